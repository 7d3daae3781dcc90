# A device in a directory, for tests/bench: what it installs, from where, and what that costs.
# shellcheck shell=bash disable=SC2154

# The size of a slot for all of these images: whole MiB.
padded_len() {
    local largest
    largest=$(stat -c %s "$@" | sort -n | tail -n1)
    echo $(((largest + (1 << 20) - 1) >> 20 << 20))
}

# A block device of $len zeros with the name $1, in $loop. The one before of that name is gone.
loop_device() {
    [ -z "${loops[$1]:-}" ] || losetup -d "${loops[$1]}"
    rm -f "$work/loop.$1"
    truncate -s "$len" "$work/loop.$1"
    loop=$(losetup -f --show "$work/loop.$1")
    loops[$1]=$loop
}

# A NUC that runs slot A, with the image $1 in it. Slot B is a block device.
device() {
    local root=$work/device n start sectors=$((len / 512)) names=(resin-boot resin-rootA resin-rootB resin-state resin-data)
    rm -rf "$root"
    mkdir -p "$root"/{dev,proc/sys/kernel/random,etc,mnt/boot/EFI/BOOT,mnt/state,usr/lib/twinhull,usr/share/twinhull/keys.d}
    echo "root=PARTLABEL=resin-rootA ro" >"$root/proc/cmdline"
    echo 11111111-2222-3333-4444-555555555555 >"$root/proc/sys/kernel/random/boot_id"
    echo 'VERSION_ID="1.0.0"' >"$root/etc/os-release"
    echo '{"slug":"intel-nuc","arch":"amd64"}' >"$root/mnt/boot/device-type.json"
    echo '{"deviceType":"intel-nuc"}' >"$root/mnt/boot/config.json"
    printf '[engine]\nenabled = false\n[supervisor]\nenabled = false\n' >"$root/usr/lib/twinhull/bench.toml"
    cp "$here/tests/fixtures/grub/seed.grubenv" "$root/mnt/boot/EFI/BOOT/grubenv"
    cp "$www/key.pub" "$root/usr/share/twinhull/keys.d/"
    truncate -s $((len * 5 + (4 << 20))) "$root/dev/vda"
    for n in 0 1 2 3 4; do echo "size=$sectors, name=${names[n]}"; done |
        cat <(echo "label: gpt") - | sfdisk -q "$root/dev/vda"
    mkdir -p "$root/sys/block/vda/queue"
    echo $(((len * 5 + (4 << 20)) / 512)) >"$root/sys/block/vda/size"
    echo 0 >"$root/sys/block/vda/removable"
    echo 512 >"$root/sys/block/vda/queue/logical_block_size"
    for n in 1 2 3 4 5; do
        start=$((2048 + sectors * (n - 1)))
        mkdir -p "$root/sys/block/vda/vda$n"
        echo "$n" >"$root/sys/block/vda/vda$n/partition"
        echo "$start" >"$root/sys/block/vda/vda$n/start"
        echo "$sectors" >"$root/sys/block/vda/vda$n/size"
        truncate -s "$len" "$root/dev/vda$n"
    done
    ln -sf "$(realpath "$1")" "$root/dev/vda2"
    loop_device vda3
    ln -sf "$loop" "$root/dev/vda3"
}

# What is in the target is the new image.
same() { cmp -n "$(stat -c %s "$new")" "$new" "$1"; }

serve() {
    python3 "$here/tests/bench_server.py" "$1" "$work/port" &
    server=$!
    until [ -s "$work/port" ]; do
        kill -0 "$server" || exit 1
        sleep 0.1
    done
    url=http://127.0.0.1:$(cat "$work/port")
    before="0 0"
}

# Leaves requests and bytes since the last call in $requests and $bytes.
counted() {
    local now
    now=$(curl -fsS "$url/count")
    read -r requests bytes <<<"$(awk -v was="$before" '{ split(was, b); print $1 - b[1], $2 - b[2] }' <<<"$now")"
    before=$now
}

vices() { curl -fsS "$url/set?$1"; }

# The bundle from a file, onto a slot of zeros: when all was flushed, which its JSON lines tell, and when it ended.
full_twinhull() {
    local line start
    device "$work/nothing"
    sync
    start=$EPOCHREALTIME flushed=
    while IFS= read -r line; do
        [[ $line != *'"flushed"'* ]] || flushed=$(calc "$EPOCHREALTIME - $start")
    done < <(/usr/bin/time -f '%e %U %S %M %O' -o "$work/time" "$twinhull" --root "$work/device" --json install "$www/b")
    measured
    left=$(seconds_of sync "$loop")
    same "$loop"
    keep twinhull
}

# One install over HTTP on a device that runs the image $2; prints a row with the name $1.
fetch_twinhull() {
    local name=$1
    device "$2"
    shift 2
    counted
    measure "$twinhull" --root "$work/device" install "$@"
    counted
    same "$loop"
    row "$name" "$bytes" "$requests" "$wall" "$cpu" "$rss" "$written"
}

# An install of which $1 bytes are fetched without trouble, killed 20 times on its way and then left to end; leaves all that was
# fetched in $bytes and $requests.
killed_20_times() {
    local n all=0 asked=0 pid
    device "$work/nothing"
    counted
    for n in $(seq 20); do
        "$twinhull" --root "$work/device" install "$url/b" >/dev/null 2>&1 &
        pid=$!
        # By what was fetched in all, so that one that lived too long does not bring the end before the last kill.
        while [ "$all" -lt $((n * $1 / 21)) ]; do
            sleep 0.05
            kill -0 "$pid"
            counted
            all=$((all + bytes)) asked=$((asked + requests))
        done
        kill -9 "$pid"
        wait "$pid" 2>/dev/null || true
    done
    measure "$twinhull" --root "$work/device" install "$url/b"
    counted
    bytes=$((all + bytes)) requests=$((asked + requests))
    same "$loop"
}
