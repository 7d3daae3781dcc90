SUMMARY = "twinhull on a device"
DESCRIPTION = "The agent, its settings for this machine and the public keys whose bundles it accepts."

PACKAGE_ARCH = "${MACHINE_ARCH}"

inherit packagegroup

RDEPENDS:${PN} = " \
    ${TWINHULL_PROVIDER} \
    twinhull-conf \
    twinhull-keys \
"

# Needs a key: see twinhull-keys.
EXCLUDE_FROM_WORLD = "1"
