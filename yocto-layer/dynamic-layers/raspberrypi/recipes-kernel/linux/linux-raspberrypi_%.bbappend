FILESEXTRAPATHS:prepend:df-twinhull := "${TWINHULL_LAYERDIR}/recipes-kernel/linux/files:"

SRC_URI:append:df-twinhull = " file://twinhull.cfg"
