FILESEXTRAPATHS:prepend:df-twinhull := "${THISDIR}/files:"

SRC_URI:append:df-twinhull:aarch64 = " file://twinhull.cfg"
