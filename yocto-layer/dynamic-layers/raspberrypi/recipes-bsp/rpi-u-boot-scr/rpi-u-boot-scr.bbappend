# boot.scr of boot/uboot instead of the one that loads a kernel from the boot partition.
FILESEXTRAPATHS:prepend:df-twinhull := "${TWINHULL_CHECKOUT}:"

SRC_URI:append:df-twinhull = " file://boot/uboot/boot.cmd"

# nooelint: oelint.func.specific
do_compile:append:df-twinhull() {
    mkimage -A ${@'arm64' if d.getVar('TARGET_ARCH') == 'aarch64' else 'arm'} -T script -C none -n twinhull \
        -d "${UNPACKDIR}/boot/uboot/boot.cmd" boot.scr
}
