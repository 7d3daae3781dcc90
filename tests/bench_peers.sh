# Other tools, for tests/bench: each writes $new over $old's device as far as it can, and prints its row.
# shellcheck shell=bash disable=SC2154

# A block device of $len bytes, freshly made.
loop_device() {
    rm -f "$work/$1"
    truncate -s "$len" "$work/$1"
    losetup -f --show "$work/$1"
}

# The least that a full install can cost: decompress and write, checking nothing.
peer_zstd_dd() {
    local target
    target=$(loop_device target)
    loops+=("$target")
    measure sh -c "zstd -dc '$www/new.zst' | dd of='$target' bs=4M iflag=fullblock oflag=direct conv=fsync status=none"
    limit=$wall
    row "zstd -dc | dd, fsync" "" "" "$wall" "$cpu" "$rss"
}

peer_swupdate() {
    local target dir=$work/swu
    target=$(loop_device target)
    loops+=("$target")
    mkdir -p "$dir"
    cp "$www/new.zst" "$dir/new.zst"
    printf 'software = { version = "2.0.0"; hardware-compatibility: [ "1.0" ]; images: ( { filename = "new.zst"; type = "raw";
        compressed = "zstd"; device = "%s"; sha256 = "%s"; installed-directly = true; } ); }\n' \
        "$target" "$(sha256sum "$dir/new.zst" | cut -d' ' -f1)" >"$dir/sw-description"
    openssl cms -sign -in "$dir/sw-description" -out "$dir/sw-description.sig" -signer "$work/cert.pem" \
        -inkey "$work/key.pem" -outform DER -nosmimecap -binary
    (cd "$dir" && printf '%s\n' sw-description sw-description.sig new.zst | cpio -o -H crc --quiet >"$work/new.swu")
    measure swupdate -k "$work/cert.pem" -H bench:1.0 -i "$work/new.swu" -M -m
    cmp -n "$(stat -c %s "$new")" "$new" "$target"
    row "swupdate, zstd, from a file" "" "" "$wall" "$cpu" "$rss"
    row "  flush after its exit" "" "" "$(seconds_of sync "$target")" "" ""
}

# The plain format: verity and adaptive need dm-verity and NBD of the kernel.
peer_rauc() {
    local target active pid dir=$work/rauc
    target=$(loop_device target) active=$(loop_device active)
    loops+=("$target" "$active")
    mkdir -p "$dir/content"
    cp "$new" "$dir/content/new.img"
    printf '[update]\ncompatible=bench\nversion=2.0.0\n[bundle]\nformat=plain\n[image.rootfs]\nfilename=new.img\n' \
        >"$dir/content/manifest.raucm"
    rauc --cert "$work/cert.pem" --key "$work/key.pem" bundle "$dir/content" "$dir/new.raucb" >"$work/out" 2>&1
    rm -r "$dir/content"
    printf '[system]\ncompatible=bench\nbootloader=noop\nstatusfile=%s/status\nbundle-formats=plain\nmountprefix=%s/mnt
[keyring]\npath=%s\n[slot.rootfs.0]\ndevice=%s\ntype=raw\nbootname=A\n[slot.rootfs.1]\ndevice=%s\ntype=raw\nbootname=B\n' \
        "$dir" "$dir" "$work/cert.pem" "$active" "$target" >"$dir/system.conf"
    # The service takes its commands from a bus; its own one.
    dbus-daemon --session --fork --print-pid=3 --print-address=4 3>"$dir/bus.pid" 4>"$dir/bus"
    DBUS_SYSTEM_BUS_ADDRESS=$(cat "$dir/bus")
    export DBUS_SYSTEM_BUS_ADDRESS
    rauc --conf="$dir/system.conf" --override-boot-slot=A service >"$dir/log" 2>&1 &
    pid=$!
    until rauc status >/dev/null 2>&1; do kill -0 "$pid" && sleep 0.2; done
    measure rauc install "$dir/new.raucb"
    cpu=$(awk -v hz="$(getconf CLK_TCK)" '{ printf "%.2f", ($14 + $15) / hz }' "/proc/$pid/stat")
    rss=$(awk '/VmHWM/ { printf "%d", $2 / 1024 }' "/proc/$pid/status")
    kill "$pid" "$(cat "$dir/bus.pid")"
    cmp -n "$(stat -c %s "$new")" "$new" "$target"
    row "rauc, plain, from a file" "" "" "$wall" "$cpu" "$rss"
}

peer_patches() {
    xdelta3 -e -9 -f -B $((len + (1 << 20))) -s "$old" "$new" "$work/x"
    measure xdelta3 -d -f -B $((len + (1 << 20))) -s "$old" "$work/x" "$work/restored"
    row "xdelta3 -9, whole window" "$(stat -c %s "$work/x")" 1 "$wall" "$cpu" "$rss"
    zstd -q -f -9 --long=31 --patch-from="$old" "$new" -o "$work/z"
    measure zstd -q -f -d --long=31 --patch-from="$old" "$work/z" -o "$work/restored"
    row "zstd -9 --patch-from" "$(stat -c %s "$work/z")" 1 "$wall" "$cpu" "$rss"
    rm -f "$work/x" "$work/z" "$work/restored"
}

peer_zchunk() {
    zck -u -o "$work/o.zck" "$old" >/dev/null
    zck -u -o "$work/n.zck" "$new" >/dev/null
    (cd "$work" && measure zck_delta_size o.zck n.zck &&
        row "zchunk" "$(grep -oE 'download [0-9]+' "$work/out" | cut -d' ' -f2)" "" "" "" "")
    rm -f "$work"/?.zck
}

peer_casync() {
    casync make --store="$www/c.castr" "$www/c.caibx" "$new" >/dev/null
    counted
    measure casync extract --seed="$old" --seed-output=no --store="$url/c.castr" "$url/c.caibx" "$work/restored"
    counted
    row "casync" "$bytes" "$requests" "$wall" "$cpu" "$rss"
    rm -rf "$www"/c.* "$work/restored"
}
