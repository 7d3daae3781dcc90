# Pairs of images, for tests/bench: Debian systems that differ as releases of an OS do.
# shellcheck shell=bash disable=SC2154

# Names and times are fixed, so that only what is in the images differs.
fixed=11111111-2222-3333-4444-555555555555

# The tree $1 as an image $2 of each kind. The ext4 has no journal, as a root that is only read needs none.
image_ext4() {
    truncate -s "${SMALL:-1G}" "$2"
    mkfs.ext4 -q -F -b 4096 -m 0 -O ^has_journal -U $fixed -E hash_seed=$fixed,lazy_itable_init=0 -d "$1" "$2"
}

image_erofs() {
    mkfs.erofs -zlz4hc -T1700000000 -U$fixed "$2" "$1" >/dev/null
}

image_squashfs() {
    mksquashfs "$1" "$2" -quiet -no-progress -comp zstd -b 128K -all-time 1700000000 -mkfs-time 1700000000 >/dev/null
}

# A Debian system of the suite $1 in the directory $2; the package sources come from standard input.
debian() {
    local suite=$1 dir=$2
    local packages=systemd,systemd-sysv,dbus,udev,network-manager,openssh-server,curl,ca-certificates,e2fsprogs,iproute2,kmod
    case "${SMALL:-}" in
        "") packages+=,linux-image-amd64,docker.io,modemmanager,grub-efi-amd64,python3,dosfstools,less,nano ;;
        *) packages+=,linux-image-cloud-amd64 ;;
    esac
    rm -rf --one-file-system "$dir.part"
    SOURCE_DATE_EPOCH=1700000000 mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
        --aptopt='Apt::Install-Recommends "false"' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' "$suite" "$dir.part" -
    mv "$dir.part" "$dir"
}

# old: a point release of Debian 12. new: the same with all updates since. kernel: the old one with the new one's kernel.
# major: Debian 13. What an earlier run came to is used.
pair() {
    local dir=$1 trees=$1/trees name kind job
    need_packages mmdebstrap e2fsprogs squashfs-tools erofs-utils
    mkdir -p "$trees"
    [ -d "$trees/old" ] || debian_sources '' | debian bookworm "$trees/old" &
    [ -d "$trees/new" ] || debian_sources '|-updates|-security' | debian bookworm "$trees/new" &
    [ -d "$trees/major" ] || debian_sources '' | sed 's/ bookworm / trixie /' | debian trixie "$trees/major" &
    for job in $(jobs -p); do wait "$job"; done
    if ! [ -d "$trees/kernel" ]; then
        rm -rf "$trees/kernel.part"
        cp -a "$trees/old" "$trees/kernel.part"
        rm -r "$trees"/kernel.part/{boot,usr/lib/modules}
        cp -a "$trees/new/boot" "$trees/kernel.part/boot"
        cp -a "$trees/new/usr/lib/modules" "$trees/kernel.part/usr/lib/modules"
        mv "$trees/kernel.part" "$trees/kernel"
    fi
    for kind in ext4 erofs squashfs; do
        for name in old new kernel major; do
            [ -e "$dir/$name.$kind" ] && continue
            rm -f "$dir/$name.part"
            image_$kind "$trees/$name" "$dir/$name.part"
            mv "$dir/$name.part" "$dir/$name.$kind"
        done
    done
    rm -r "$trees"
    ls -l "$dir"
}
