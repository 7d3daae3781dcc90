# What the scripts that make a version of an OS have in common; sourced by them.

# The name of that OS, on standard output.
os_release() {
    cat <<END
ID="twinhull-lab"
NAME="twinhull lab"
VERSION="$1"
VERSION_ID="$1"
PRETTY_NAME="twinhull lab $1"
END
}

# Makes an initramfs of the very binary as PID 1, and of modules: each after those that it needs. The modules are separated by
# commas, and after a blank have their parameters; what is built into the kernel is passed over.
#
# LZ4, in the only form that the kernel reads: a fifth larger than with zstd, and sooner unpacked (`qemu/run boot-time`).
make_initramfs() {
    local twinhull=$1 tree=$2 kernel=$3 modules=$4 out=$5 entry module parameters file needed name wanted
    local work
    work=$(mktemp -d)
    install -D --mode=0755 "$twinhull" "$work/init"
    mkdir "$work/modules"
    IFS=, read -ra wanted <<<"$modules"
    for entry in "${wanted[@]}"; do
        read -r module parameters <<<"$entry"
        # One that is not there ends it here.
        needed=$(modprobe -d "$tree" -S "$kernel" --show-depends "$module")
        while read -r _ file; do
            name=${file##*/}
            [ ! -e "$work/modules/$name" ] || continue
            cp "$file" "$work/modules/"
            if [ "$name" = "$module.ko" ]; then name="$name $parameters"; fi
            echo "$name" >>"$work/modules/order"
        done < <(grep '^insmod ' <<<"$needed")
    done
    (cd "$work" && find . -print0 | sort -z | cpio --quiet --null --create --format=newc --owner=0:0 --reproducible) |
        lz4 -q -l -9 -f - "$out"
    rm -rf "$work"
}

# Where U-Boot finds kernel and initramfs in /boot of a root.
put_extlinux() {
    mkdir -p "$1/boot/extlinux"
    cat >"$1/boot/extlinux/extlinux.conf" <<'END'
DEFAULT twinhull
TIMEOUT 0
LABEL twinhull
  LINUX /boot/Image
  INITRD /boot/initramfs
END
}

# Makes the image of a root slot. metadata_csum_seed and orphan_file: GRUB and U-Boot of Debian 12 cannot read them. The same
# UUID and hash seed in every version: what did not change lies in the same blocks.
make_root_image() {
    local root=$1 size=$2 id=$3 image=$4
    rm -f "$image"
    truncate -s "$size" "$image"
    mke2fs -q -t ext4 -d "$root" -L resin-root -U "$id" -m 0 -O ^metadata_csum_seed,^orphan_file \
        -E "root_owner=0:0,lazy_itable_init=0,hash_seed=$id" "$image"
}
