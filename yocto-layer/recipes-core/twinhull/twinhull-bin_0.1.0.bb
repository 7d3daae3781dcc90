# For releases whose Rust is too old: the static program of a release archive, made by scripts/make-release.
require twinhull.inc

LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

TWINHULL_RELEASE_URI ?= ""
TWINHULL_RELEASE_URI[doc] = "Where the archives of make-release are: https://… or file:///…"
TWINHULL_ARCHIVE = "twinhull-${PV}-${HOST_ARCH}.tar.gz"
# Set by twinhull-release.inc, which make-release writes beside the archives.
TWINHULL_SHA256 = "${@d.getVar('TWINHULL_RELEASE_SHA256_' + d.getVar('HOST_ARCH')) or ''}"

SRC_URI = "${TWINHULL_RELEASE_URI}/${TWINHULL_ARCHIVE}"
SRC_URI[sha256sum] = "${TWINHULL_SHA256}"

S = "${UNPACKDIR}/twinhull-${PV}-${HOST_ARCH}"

COMPATIBLE_HOST = "(x86_64|aarch64).*-linux"

python () {
    if not d.getVar('TWINHULL_RELEASE_URI') or not d.getVar('TWINHULL_SHA256'):
        raise bb.parse.SkipRecipe('no release archive for %s: run scripts/make-release, require the twinhull-release.inc '
                                  'that it writes and set TWINHULL_RELEASE_URI' % d.getVar('HOST_ARCH'))
}

# The fetcher compares digests of downloads, but not of local files.
python do_unpack:prepend() {
    archive = bb.fetch2.Fetch([d.getVar('SRC_URI').split()[0]], d).localpaths()[0]
    found, expected = bb.utils.sha256_file(archive), d.getVar('TWINHULL_SHA256')
    if found != expected:
        bb.fatal('%s has the sha256 %s, expected %s: it is not the archive that twinhull-release.inc was written for'
                 % (archive, found, expected))
}

do_configure[noexec] = "1"
do_compile[noexec] = "1"

TWINHULL_PROGRAM = "${S}/twinhull"
TWINHULL_PROGRAM:class-native = "${S}/twinhull-host"

# It is stripped already.
INHIBIT_PACKAGE_STRIP = "1"
INHIBIT_PACKAGE_DEBUG_SPLIT = "1"
INHIBIT_SYSROOT_STRIP = "1"

PROVIDES:append:class-native = " twinhull-bundle-native"
RPROVIDES:${PN} = "twinhull"
RCONFLICTS:${PN} = "twinhull"
RPROVIDES:${PN}-init = "twinhull-init"
RCONFLICTS:${PN}-init = "twinhull-init"

BBCLASSEXTEND = "native"
