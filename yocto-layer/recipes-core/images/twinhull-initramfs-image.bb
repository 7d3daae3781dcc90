SUMMARY = "Initramfs that holds twinhull as PID 1 and the kernel modules that it needs"
DESCRIPTION = "No shell and no udev; the C library only if the program is not static. It is put into /boot of each root slot."
LICENSE = "MIT"

# Modules that the machine's root disk needs are recommended by the machine or added here.
PACKAGE_INSTALL = "${TWINHULL_PROVIDER}-init ${TWINHULL_INITRAMFS_SETTINGS} ${TWINHULL_INITRAMFS_EXTRA}"
# Where PID 1 itself picks the slot, it must know before it mounts one.
TWINHULL_INITRAMFS_SETTINGS = "${@'twinhull-conf' if d.getVar('TWINHULL_BOOTLOADER') == 'initramfs' else ''}"
TWINHULL_INITRAMFS_EXTRA ?= ""
TWINHULL_INITRAMFS_EXTRA[doc] = "More packages for the initramfs, for example kernel-module-nvme"

IMAGE_FEATURES = ""
IMAGE_LINGUAS = ""
IMAGE_NAME_SUFFIX ?= ""
# The kernel must know the compression: files of recipes-kernel/linux.
IMAGE_FSTYPES = "${INITRAMFS_FSTYPES}"
IMAGE_ROOTFS_SIZE = "8192"
IMAGE_ROOTFS_EXTRA_SPACE = "0"

# Recommended kernel modules are the point here; the kernel that they recommend in turn is not.
NO_RECOMMENDATIONS = "0"
BAD_RECOMMENDATIONS += "kernel-image"
PACKAGE_EXCLUDE = "kernel-image-*"

require conf/twinhull_machines.inc

inherit image twinhull-initramfs
