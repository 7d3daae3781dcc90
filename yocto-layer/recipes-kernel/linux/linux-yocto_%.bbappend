FILESEXTRAPATHS:prepend:df-twinhull := "${THISDIR}/files:"

SRC_URI:append:df-twinhull = " file://twinhull.cfg"
