# Debian's packages of arm64 on a machine of another architecture; sourced.

# Gives apt a state of its own in a directory, and fetches the lists: this machine's own packages stay alone.
arm64_apt() {
    mkdir -p "$1/state/lists/partial" "$1/cache/archives/partial"
    : >"$1/state/status"
    debian_sources '|-updates|-security' |
        sed 's,^deb ,deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ,' >"$1/sources.list"
    cat >"$1/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "root";
Dir::State "$1/state";
Dir::State::status "$1/state/status";
Dir::Cache "$1/cache";
Dir::Etc::sourcelist "$1/sources.list";
Dir::Etc::sourceparts "-";
END
    export APT_CONFIG=$1/apt.conf
    apt-get -qq update
}
