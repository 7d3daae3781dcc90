# boot.scr of twinhull instead of the one that loads a kernel from the boot partition, where U-Boot is to choose the slot.
# On 32 bit, whose kernels boot/uboot/boot.cmd cannot start, the script stays as it is.
require conf/twinhull_machines.inc

FILESEXTRAPATHS:prepend:df-twinhull := "${TWINHULL_CHECKOUT}:"

TWINHULL_BOOT_SCRIPT = "${@{'uboot-text': 'boot/uboot/boot.cmd', 'uboot-env': 'boot/uboot-env/boot.cmd'}.get(d.getVar('TWINHULL_BOOTLOADER'), '')}"
SRC_URI:append:df-twinhull = "${@' file://' + d.getVar('TWINHULL_BOOT_SCRIPT') if d.getVar('TWINHULL_BOOT_SCRIPT') else ''}"

# nooelint: oelint.func.specific
do_compile:append:df-twinhull() {
    if [ -n "${TWINHULL_BOOT_SCRIPT}" ]; then
        mkimage -A ${@'arm64' if d.getVar('TARGET_ARCH') == 'aarch64' else 'arm'} -T script -C none -n twinhull \
            -d "${UNPACKDIR}/${TWINHULL_BOOT_SCRIPT}" boot.scr
    fi
}
