# Pairs of images, for tests/bench: Debian systems that differ as releases of an OS do.
# shellcheck shell=bash disable=SC2154

# A tree as ext4, squashfs and erofs. Names and times are fixed, so that only what is in the images differs.
images() {
    local fixed=11111111-2222-3333-4444-555555555555
    rm -f "$2".*
    truncate -s 1G "$2.ext4"
    mkfs.ext4 -q -F -b 4096 -m 0 -U $fixed -E hash_seed=$fixed,lazy_itable_init=0 -d "$1" "$2.ext4"
    mksquashfs "$1" "$2.squashfs" -quiet -no-progress -comp zstd -b 128K -all-time 1700000000 -mkfs-time 1700000000 >/dev/null
    mkfs.erofs -zlz4hc -T1700000000 -U$fixed "$2.erofs" "$1" >/dev/null
}

# A Debian system in a directory; the package sources come from standard input.
debian() {
    local suite=$1 dir=$2
    local packages=systemd,systemd-sysv,dbus,udev,network-manager,docker.io,modemmanager,linux-image-amd64,grub-efi-amd64
    packages+=,python3,openssh-server,curl,ca-certificates,e2fsprogs,dosfstools,iproute2,kmod,less,nano
    SOURCE_DATE_EPOCH=1700000000 mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
        --aptopt='Apt::Install-Recommends "false"' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' "$suite" "$dir" -
}

# old: a point release of Debian 12. new: the same with all updates since. kernel: the old one with the new one's kernel.
# major: Debian 13.
pair() {
    local dir=$1 name job
    need_packages mmdebstrap e2fsprogs squashfs-tools erofs-utils
    mkdir -p "$dir"
    debian_sources '' | debian bookworm "$work/old" &
    debian_sources '|-updates|-security' | debian bookworm "$work/new" &
    debian_sources '' | sed 's/ bookworm / trixie /' | debian trixie "$work/major" &
    for job in $(jobs -p); do wait "$job"; done
    cp -a "$work/old" "$work/kernel"
    rm -r "$work"/kernel/{boot,usr/lib/modules}
    cp -a "$work/new/boot" "$work/kernel/boot"
    cp -a "$work/new/usr/lib/modules" "$work/kernel/usr/lib/modules"
    for name in old new kernel major; do
        images "$work/$name" "$dir/$name"
        rm -r "${work:?}/$name"
    done
    ls -l "$dir"
}
