# NVIDIA's UEFI launcher starts the slot's own kernel. One that cannot go on restarts the machine, so that the launcher
# counts the boot. The initramfs comes with INITRAMFS_IMAGE = "twinhull-initramfs-image".
KERNEL_ARGS:append:df-twinhull = " panic=5"
