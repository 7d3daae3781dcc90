# What the scripts that make systems of Debian packages have in common; sourced by them.

# What systemd and the engine need, and nothing that a device lacks.
debian_packages=(systemd systemd-sysv udev dbus docker.io iptables kmod ca-certificates iproute2 dosfstools)

# Makes Debian's kernel modules in the directory $1 what they are on a device: decompressed, as twinhull's PID 1 loads them without
# kmod, and not every kernel decompresses by itself; and without signatures, as kernels of Yocto have none, and an emulated
# processor needs 0.1 s and more to check one.
#
# A signature's length is in the last four of the twelve bytes before the text that ends such a file. Source: Linux 6.12,
# `struct module_signature` and `MODULE_SIG_STRING`.
unpack_modules() {
    local module
    find "$1" -name '*.ko.xz' -exec xz -d {} +
    find "$1" -name '*.ko' | while read -r module; do
        [ "$(tail -c 28 "$module" | tr -d '\0')" = "~Module signature appended~" ] || continue
        truncate -s "-$((16#$(tail -c 32 "$module" | od -An -tx1 -N4 | tr -d ' ') + 12 + 28))" "$module"
    done
}

# Makes a device's read-only root of unpacked packages, in the working directory. `machine` is Debian's name of its libraries'
# directory, `console` the serial console.
make_device_root() {
    local machine=$1 console=$2
    # What no device needs. The engine's API is used, never its command line.
    rm -rf usr/bin/{docker,ctr,dnet,containerd-shim,containerd-shim-runc-v1,tini-static,openssl} usr/sbin/ovrouter \
        usr/share/docker.io etc/init.d usr/share/{doc,man,locale,info,perl,zoneinfo} \
        "usr/lib/$machine"/{gconv,perl,perl-base} usr/lib/udev/hwdb.* usr/bin/perl* \
        var/lib/{apt,dpkg} var/cache usr/lib/apt usr/bin/{apt,dpkg}* "usr/lib/$machine"/libapt* \
        usr/lib/systemd/system-generators/systemd-gpt-auto-generator boot
    mkdir boot

    # A root that stays read-only: what changes lies on the state and data partitions or in memory.
    mkdir -p mnt/{boot,state,data} resin-data
    : >etc/machine-id
    echo nuc >etc/hostname
    : >etc/motd
    printf '\\S on \\n\n\n' >etc/issue
    cat >etc/fstab <<'EOF'
tmpfs  /tmp  tmpfs  mode=1777,nosuid,nodev  0  0
tmpfs  /var  tmpfs  mode=0755,nosuid,nodev  0  0
EOF
    ln -sf ../proc/self/mounts etc/mtab
    ln -sf /run/systemd/resolve/resolv.conf etc/resolv.conf
    mkdir -p etc/docker etc/systemd/network etc/modules-load.d
    # `deprecated-key-path`: the engine would otherwise write its key into the read-only /etc/docker.
    cat >etc/docker/daemon.json <<'EOF'
{
  "data-root": "/mnt/data/docker",
  "deprecated-key-path": "/mnt/data/docker-key.json",
  "log-driver": "journald"
}
EOF
    cat >etc/systemd/network/10-wired.network <<'EOF'
[Match]
Name=en* eth*

[Network]
DHCP=ipv4
EOF
    # A system that hangs is restarted, and the restart is counted.
    echo i6300esb >etc/modules-load.d/watchdog.conf
    mkdir -p etc/systemd/system.conf.d
    printf "[Manager]\nRuntimeWatchdogSec=60\n" >etc/systemd/system.conf.d/watchdog.conf

    systemctl --quiet --root=. enable systemd-networkd.service docker.service "serial-getty@$console.service"
    systemctl --quiet --root=. disable systemd-networkd-wait-online.service getty@tty1.service
    systemctl --quiet --root=. mask dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
        serial-getty@hvc0.service
    # Nobody uses these here, and an emulated processor is slow to start them.
    systemctl --quiet --root=. mask {dev-hugepages,dev-mqueue,sys-kernel-debug,sys-kernel-tracing,sys-kernel-config}.mount \
        sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount modprobe@{configfs,dm_mod,drm,fuse,loop}.service \
        systemd-{network-generator,update-utmp,update-utmp-runlevel}.service
    # A console for people: nobody else can reach a device in QEMU.
    sed -i 's/^root:[^:]*:/root::/' etc/passwd etc/shadow
    mkdir -p "etc/systemd/system/serial-getty@$console.service.d"
    cat >"etc/systemd/system/serial-getty@$console.service.d/autologin.conf" <<EOF
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 $console linux
EOF
}
