FILESEXTRAPATHS:prepend:df-twinhull := "${THISDIR}/files:"

SRC_URI:append:df-twinhull:aarch64 = " file://twinhull.cfg"
SRC_URI:append:df-twinhull:aarch64 = "${@bb.utils.contains('TWINHULL_BOOTLOADER', 'uboot-env', ' file://twinhull-env.cfg', '', d)}"
