# Python tools for the checks of the Yocto layer, and a scratch directory; sourced by tests/yocto/check and build.

# Exact versions: a newer linter may know new errors.
tools=$PWD/target/yocto
if ! "$tools/bin/pip" freeze 2>/dev/null | grep -qx 'oelint_adv==9.11.2'; then
    rm -rf "$tools"
    python3 -m venv "$tools"
    # bitbake-setup carries BitBake's module bb.
    "$tools/bin/pip" --quiet --disable-pip-version-check install oelint-adv==9.11.2 bitbake-setup==2.19.0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Cargo's configuration as OpenEmbedded's cargo_common class writes it: crates from the unpacked sources alone.
cargo_config() {
    cat >"$1/cargo_home/config.toml" <<EOF
[source.bitbake]
directory = "$1/cargo_home/bitbake"

[source.crates-io]
replace-with = "bitbake"
local-registry = "/nonexistent"
EOF
}
