# boot.scr of twinhull instead of the one that loads a kernel from the boot partition.
FILESEXTRAPATHS:prepend:df-twinhull := "${TWINHULL_CHECKOUT}:"

TWINHULL_BOOT_SCRIPT:df-twinhull = "${@'boot/uboot-env/boot.cmd' if d.getVar('TWINHULL_BOOTLOADER') == 'uboot-env' else 'boot/uboot/boot.cmd'}"
SRC_URI:append:df-twinhull = " file://${TWINHULL_BOOT_SCRIPT}"

# nooelint: oelint.func.specific
do_compile:append:df-twinhull() {
    mkimage -A ${@'arm64' if d.getVar('TARGET_ARCH') == 'aarch64' else 'arm'} -T script -C none -n twinhull \
        -d "${UNPACKDIR}/${TWINHULL_BOOT_SCRIPT}" boot.scr
}
