require twinhull.inc

LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

# The workspace of the checkout, without its integration tests: those want the tools of a build host.
SRC_URI = " \
    file://Cargo.lock;subdir=${BP} \
    file://Cargo.toml;subdir=${BP} \
    file://LICENSE;subdir=${BP} \
    file://boot;subdir=${BP} \
    file://qemu/Cargo.toml;subdir=${BP} \
    file://qemu/src;subdir=${BP} \
    file://src;subdir=${BP} \
    file://tests/fixtures;subdir=${BP} \
"

S = "${UNPACKDIR}/${BP}"

# ptest-cargo came with nanbield; without it there are no packaged tests.
inherit cargo twinhull-checkout twinhull-crates
inherit ${@'ptest-cargo' if bb.utils.which(d.getVar('BBPATH'), 'classes-recipe/ptest-cargo.bbclass') else ''}

PACKAGECONFIG ??= ""
PACKAGECONFIG:class-native ??= "build-host"
# bundle create, sign and keygen; a device does not need them.
PACKAGECONFIG[build-host] = "--features build-host"

# Newer cargo classes pass PACKAGECONFIG_CONFARGS on themselves; a feature may be named twice.
CARGO_BUILD_FLAGS:append = " --no-default-features ${PACKAGECONFIG_CONFARGS}"
# Packaging strips, and keeps the symbols in -dbg.
export CARGO_PROFILE_RELEASE_STRIP = "none"
# __FILE__ of the C sources in crates, wherever the release unpacks them.
DEBUG_PREFIX_MAP:append = " \
    -ffile-prefix-map=${CARGO_HOME}=${TARGET_DBGSRC_DIR}/cargo_home \
    -ffile-prefix-map=${UNPACKDIR}/cargo_home=${TARGET_DBGSRC_DIR}/cargo_home \
"

# Rust before 1.85 does not even understand Cargo.toml.
do_configure:append() {
    wanted=$(sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' ${S}/Cargo.toml)
    found=$(rustc --version | cut -d' ' -f2)
    if [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1)" != "$wanted" ]; then
        bbfatal "${PN} needs Rust $wanted, found $found: add meta-lts-mixins, or use twinhull-bin (README.md of meta-twinhull, Releases)"
    fi
}

TWINHULL_PROGRAM = "${B}/target/${CARGO_TARGET_SUBDIR}/twinhull"

# Tests of the file system checks damage images with debugfs.
RDEPENDS:${PN}-ptest:append:class-target = " e2fsprogs"

PROVIDES:append:class-native = " twinhull-bundle-native"

BBCLASSEXTEND = "native"
