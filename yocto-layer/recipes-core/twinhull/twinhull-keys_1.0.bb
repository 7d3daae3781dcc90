SUMMARY = "Public keys whose bundles a device accepts"
DESCRIPTION = "Installs minisign public keys where twinhull looks for them. Their secret halves never belong into an image."
HOMEPAGE = "https://github.com/twinhull/twinhull"
BUGTRACKER = "https://github.com/twinhull/twinhull/issues"
SECTION = "base"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"
CVE_PRODUCT = ""

TWINHULL_PUBLIC_KEYS ?= ""
TWINHULL_PUBLIC_KEYS[doc] = "Absolute paths of minisign public key files, *.pub"

SRC_URI = "${@' '.join('file://%s;subdir=keys' % key for key in d.getVar('TWINHULL_PUBLIC_KEYS').split())}"

S = "${UNPACKDIR}"

inherit allarch

INHIBIT_DEFAULT_DEPS = "1"
do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    if [ -z "${TWINHULL_PUBLIC_KEYS}" ]; then
        bbfatal "TWINHULL_PUBLIC_KEYS is empty: without a public key a device accepts no bundle. Make a pair with \
'twinhull bundle keygen --public fleet.pub --secret fleet.key' (or minisign -G) and name the .pub file in local.conf"
    fi
    # By name: a key of an earlier build may still lie in the folder.
    for path in ${TWINHULL_PUBLIC_KEYS}; do
        name=$(basename "$path")
        # Unpacked with its whole path.
        key="${UNPACKDIR}/keys$path"
        # A secret key has the same form, but is longer.
        if [ "${name%.pub}" = "$name" ] || [ "$(sed -n 2p "$key" | wc -c)" -ne 57 ]; then
            bbfatal "TWINHULL_PUBLIC_KEYS: $path is not a minisign public key, *.pub"
        fi
        if [ -e "${D}${datadir}/twinhull/keys.d/$name" ]; then
            bbfatal "TWINHULL_PUBLIC_KEYS: two keys have the name $name"
        fi
        install -D -m 0644 "$key" "${D}${datadir}/twinhull/keys.d/$name"
    done
}

# Nothing to build without a key.
EXCLUDE_FROM_WORLD = "1"

FILES:${PN} += "${datadir}/twinhull/keys.d"
