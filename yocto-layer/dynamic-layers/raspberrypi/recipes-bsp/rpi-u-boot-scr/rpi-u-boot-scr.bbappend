# boot.scr of twinhull instead of the one that loads a kernel from the boot partition. On 32 bit, whose kernels boot/uboot/boot.cmd
# cannot start, the script stays as it is.
FILESEXTRAPATHS:prepend:df-twinhull := "${TWINHULL_CHECKOUT}:"

# Without a choice as in conf/twinhull_machines.inc.
TWINHULL_CHOSEN:df-twinhull = "${@d.getVar('TWINHULL_BOOTLOADER') or ('uboot-text' if d.getVar('TARGET_ARCH') == 'aarch64' else '')}"
TWINHULL_BOOT_SCRIPT:df-twinhull = "${@bb.utils.contains('TWINHULL_CHOSEN', 'uboot-text', 'boot/uboot/boot.cmd', \
    bb.utils.contains('TWINHULL_CHOSEN', 'uboot-env', 'boot/uboot-env/boot.cmd', '', d), d)}"
SRC_URI:append:df-twinhull = " ${@'file://' + d.getVar('TWINHULL_BOOT_SCRIPT') if d.getVar('TWINHULL_BOOT_SCRIPT') else ''}"

# nooelint: oelint.func.specific
do_compile:append:df-twinhull() {
    if [ -n "${TWINHULL_BOOT_SCRIPT}" ]; then
        mkimage -A ${@'arm64' if d.getVar('TARGET_ARCH') == 'aarch64' else 'arm'} -T script -C none -n twinhull \
            -d "${UNPACKDIR}/${TWINHULL_BOOT_SCRIPT}" boot.scr
    fi
}
