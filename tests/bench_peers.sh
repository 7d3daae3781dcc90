# Other tools, for tests/bench: each writes $new to a block device, or puts it together from $old, as far as it can.
# shellcheck shell=bash disable=SC2154

# The least that a full install can cost: decompress and write, checking nothing.
full_zstd_dd() {
    loop_device target
    sync
    measure sh -c "zstd -dc '$www/new.zst' | dd of='$loop' bs=4M iflag=fullblock oflag=direct conv=fsync status=none"
    flushed=$wall left=$(seconds_of sync "$loop")
    keep "zstd -dc | dd, fsync"
}

# A certificate that swupdate and rauc take.
peer_key() {
    [ -s "$work/key.pem" ] || openssl req -x509 -newkey rsa:2048 -nodes -keyout "$work/key.pem" -out "$work/cert.pem" -days 9 \
        -subj /CN=bench -addext extendedKeyUsage=emailProtection -addext keyUsage=digitalSignature 2>/dev/null
}

# One .swu that names its device, which stays the same.
swupdate_prepare() {
    local dir=$work/swu
    peer_key
    mkdir -p "$dir"
    cp "$www/new.zst" "$dir/new.zst"
    printf 'software = { version = "2.0.0"; hardware-compatibility: [ "1.0" ]; images: ( { filename = "new.zst"; type = "raw";
        compressed = "zstd"; device = "%s"; sha256 = "%s"; installed-directly = true; } ); }\n' \
        "$work/swupdate.device" "$(sha256sum "$dir/new.zst" | cut -d' ' -f1)" >"$dir/sw-description"
    openssl cms -sign -in "$dir/sw-description" -out "$dir/sw-description.sig" -signer "$work/cert.pem" \
        -inkey "$work/key.pem" -outform DER -nosmimecap -binary
    (cd "$dir" && printf '%s\n' sw-description sw-description.sig new.zst | cpio -o -H crc --quiet >"$work/new.swu")
    rm -r "$dir"
}

# It does not flush: `left` is what a sync after its exit takes.
full_swupdate() {
    loop_device target
    ln -sf "$loop" "$work/swupdate.device"
    sync
    measure swupdate -k "$work/cert.pem" -H bench:1.0 -i "$work/new.swu" -M -m
    left=$(seconds_of sync "$loop")
    flushed=$(calc "$wall + $left")
    same "$loop"
    keep swupdate
}

# The plain format: verity and adaptive need dm-verity and NBD of the kernel.
rauc_prepare() {
    local dir=$work/rauc
    peer_key
    mkdir -p "$dir/content"
    ln "$new" "$dir/content/new.img" 2>/dev/null || cp "$new" "$dir/content/new.img"
    printf '[update]\ncompatible=bench\nversion=2.0.0\n[bundle]\nformat=plain\n[image.rootfs]\nfilename=new.img\n' \
        >"$dir/content/manifest.raucm"
    rauc --cert "$work/cert.pem" --key "$work/key.pem" bundle "$dir/content" "$dir/new.raucb" >"$work/out" 2>&1
    rm -r "$dir/content"
    printf '[system]\ncompatible=bench\nbootloader=noop\nstatusfile=%s/status\nbundle-formats=plain\nmountprefix=%s/mnt
[keyring]\npath=%s\n[slot.rootfs.0]\ndevice=%s\ntype=raw\nbootname=A\n[slot.rootfs.1]\ndevice=%s\ntype=raw\nbootname=B\n' \
        "$dir" "$dir" "$work/cert.pem" "$work/rauc.active" "$work/rauc.device" >"$dir/system.conf"
}

# Its service takes its commands from a bus: each run gets both anew.
rauc_start() {
    local dir=$work/rauc
    dbus-daemon --session --fork --print-pid=3 --print-address=4 3>"$dir/bus.pid" 4>"$dir/bus"
    DBUS_SYSTEM_BUS_ADDRESS=$(cat "$dir/bus")
    export DBUS_SYSTEM_BUS_ADDRESS
    rauc --conf="$dir/system.conf" --override-boot-slot=A service >"$dir/log" 2>&1 &
    rauc_pid=$!
    until rauc status >/dev/null 2>&1; do kill -0 "$rauc_pid" && sleep 0.2; done
}

rauc_stop() {
    [ -z "${rauc_pid:-}" ] || kill "$rauc_pid" "$(cat "$work/rauc/bus.pid")"
    rauc_pid=
}

full_rauc() {
    loop_device active
    ln -sf "$loop" "$work/rauc.active"
    loop_device target
    ln -sf "$loop" "$work/rauc.device"
    rauc_start
    sync
    measure rauc install "$work/rauc/new.raucb"
    cpu=$(awk -v hz="$(getconf CLK_TCK)" '{ printf "%.2f", ($14 + $15) / hz }' "/proc/$rauc_pid/stat")
    rss=$(awk '/VmHWM/ { printf "%d", $2 / 1024 }' "/proc/$rauc_pid/status")
    written=$(awk '/^write_bytes/ { printf "%d", $2 / 1e6 }' "/proc/$rauc_pid/io")
    rauc_stop
    left=$(seconds_of sync "$loop")
    flushed=$(calc "$wall + $left")
    same "$loop"
    keep rauc
}

peer_patches() {
    xdelta3 -e -9 -f -B $((len + (1 << 20))) -s "$old" "$new" "$work/x"
    measure xdelta3 -d -f -B $((len + (1 << 20))) -s "$old" "$work/x" "$work/restored"
    row "xdelta3 -9, whole window" "$(stat -c %s "$work/x")" 1 "$wall" "$cpu" "$rss" "$written"
    zstd -q -f -9 --long=31 --patch-from="$old" "$new" -o "$work/z"
    measure zstd -q -f -d --long=31 --patch-from="$old" "$work/z" -o "$work/restored"
    row "zstd -9 --patch-from" "$(stat -c %s "$work/z")" 1 "$wall" "$cpu" "$rss" "$written"
    rm -f "$work/x" "$work/z" "$work/restored"
}

peer_zchunk() {
    zck -u -o "$work/o.zck" "$old" >/dev/null
    zck -u -o "$work/n.zck" "$new" >/dev/null
    (cd "$work" && measure zck_delta_size o.zck n.zck &&
        row "zchunk" "$(grep -oE 'download [0-9]+' "$work/out" | cut -d' ' -f2)" "" "" "" "" "")
    rm -f "$work"/?.zck
}

peer_casync() {
    casync make --store="$www/c.castr" "$www/c.caibx" "$new" >/dev/null
    counted
    measure casync extract --seed="$old" --seed-output=no --store="$url/c.castr" "$url/c.caibx" "$work/restored"
    counted
    row "casync" "$bytes" "$requests" "$wall" "$cpu" "$rss" "$written"
    rm -rf "$www"/c.* "$work/restored"
}
