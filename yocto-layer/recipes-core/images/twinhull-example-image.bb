SUMMARY = "A small host OS with A/B updates, as an example to copy"
DESCRIPTION = "systemd, a network, the agent, and a container engine if a layer with one is there."
LICENSE = "MIT"

IMAGE_INSTALL = "packagegroup-core-boot ${TWINHULL_EXAMPLE_ENGINE}"
TWINHULL_EXAMPLE_ENGINE ?= "${@'docker-moby' if 'virtualization-layer' in d.getVar('BBFILE_COLLECTIONS').split() else ''}"
TWINHULL_EXAMPLE_ENGINE[doc] = "Package of the container engine"

IMAGE_LINGUAS = ""
# Fills the slot of files/wic, so that every image of the fleet has the same size.
IMAGE_ROOTFS_SIZE = "1048576"
IMAGE_ROOTFS_MAXSIZE = "1048576"
IMAGE_ROOTFS_EXTRA_SPACE = "0"
IMAGE_OVERHEAD_FACTOR = "1.0"
IMAGE_FSTYPES = "wic.gz wic.bmap"

inherit core-image twinhull-image

# Needs a key: see twinhull-keys.
EXCLUDE_FROM_WORLD = "1"
