# What the commands of this project need on a Debian 12 machine; sourced by tests/run and qemu/run.

# Which of these Debian packages are not there yet.
missing_packages() {
    local package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
    done
}

# Installs packages; options of apt-get may be among them.
install_packages() {
    if [ "$(id -u)" -ne 0 ]; then
        echo "these packages are missing; install them or run this as root: $*" >&2
        exit 1
    fi
    echo "installing $*" >&2
    apt-get -qq -o DPkg::Lock::Timeout=600 update >&2
    DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "$@" >/dev/null
}

# Installs Debian packages that are not there yet.
need_packages() {
    local missing
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"
}

# The machine's own package sources of Debian 12, a `deb` line each, so that no mirror is named in this project:
# `debian_sources ''` is the point release alone, `debian_sources '|-updates|-security'` all that came since as well.
debian_sources() {
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        grep -E "^deb [^ ]+ bookworm($1) main\$" | sort -u
}

# Demands Rust 1.93 or newer, which Debian 12 does not package.
need_rust() {
    local found
    found=$(cargo --version 2>/dev/null | sed -nE 's/^cargo 1\.([0-9]+).*/\1/p')
    if [ -z "$found" ] || [ "$found" -lt 93 ]; then
        echo "cargo 1.93 or newer is needed (found: $(cargo --version 2>/dev/null || echo none)); install it with rustup" >&2
        exit 1
    fi
}

# Adds a target to the Rust installation.
need_target() {
    rustc --print target-libdir --target "$1" 2>/dev/null | xargs -r test -d || rustup target add "$1" >&2
}

# Installs QEMU and its firmware from the backports of this release, whose QEMU is 10; where nothing of QEMU is
# installed in an older version, Debian's own would also do, but one version for all is easier to trust. The mirror is
# that of the machine's own package sources.
need_qemu() {
    local missing mirror list=/etc/apt/sources.list.d/twinhull-backports.list
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -eq 0 ] && return
    if ! apt-get indextargets --format '$(RELEASE)' 'Created-By: Packages' | grep -q '^bookworm-backports$'; then
        mirror=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
            sed -n 's/^bookworm //p' | head -n1)
        : "${mirror:?the package sources of this machine have no bookworm}"
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm-backports main" >"$list"
    fi
    install_packages --target-release bookworm-backports "${missing[@]}"
}
