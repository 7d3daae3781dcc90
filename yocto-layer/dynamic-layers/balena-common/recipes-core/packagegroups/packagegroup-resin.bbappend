RDEPENDS:${PN}:append:df-twinhull = " packagegroup-twinhull"

# 1: what twinhull does instead of balenaOS's own scripts and units leaves the image: updates and rollback, the
# supervisor's units, growing the data partition. What reads config.json for other units stays.
# 0 (the default): nothing is removed.
RDEPENDS:${PN}:remove:df-twinhull = "${@bb.utils.contains('TWINHULL_REPLACES_BALENA', '1', 'balena-rollback \
    balena-supervisor hostapp-update hostapp-update-hooks mobynit resin-filesystem-expand', '', d)}"
