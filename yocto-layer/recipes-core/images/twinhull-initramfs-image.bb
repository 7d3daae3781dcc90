SUMMARY = "Initramfs that holds twinhull as PID 1 and the kernel modules that it needs"
DESCRIPTION = "Nothing else: no shell, no libc, no udev. It is put into /boot of each root slot."
LICENSE = "MIT"

# Modules that the machine's root disk needs are recommended by the machine or added here.
PACKAGE_INSTALL = "${TWINHULL_PROVIDER}-init ${TWINHULL_INITRAMFS_EXTRA}"
TWINHULL_INITRAMFS_EXTRA ?= ""
TWINHULL_INITRAMFS_EXTRA[doc] = "More packages for the initramfs, for example kernel-module-nvme"

IMAGE_FEATURES = ""
IMAGE_LINGUAS = ""
IMAGE_NAME_SUFFIX ?= ""
# The kernel must know the compression: files of recipes-kernel/linux.
IMAGE_FSTYPES = "${INITRAMFS_FSTYPES}"
IMAGE_ROOTFS_SIZE = "8192"
IMAGE_ROOTFS_EXTRA_SPACE = "0"

# Recommended kernel modules are the point here.
NO_RECOMMENDATIONS = "0"

inherit image twinhull-initramfs
