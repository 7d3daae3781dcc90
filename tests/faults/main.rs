//! Disks that fail while an install writes to them: whatever happens, it is said, nothing half written boots, and the
//! journal tells the truth.
#![cfg(feature = "build-host")]
// Tests may panic and start programs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, clippy::disallowed_macros)]
#![allow(clippy::cast_possible_truncation)]

#[path = "../support/bundle.rs"]
#[allow(dead_code)]
mod bundle;
mod real;
#[path = "../transfer/server.rs"]
#[allow(dead_code)]
mod server;
#[path = "../support/mod.rs"]
#[allow(dead_code)]
mod support;
#[path = "../support/systemctl.rs"]
#[allow(dead_code)]
mod systemctl;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use server::{Server, Vice};
use support::{Device, KeyPair, outcome, pattern, run};
use systemctl::Systemctl;

/// A signed bundle, and a disk that fails as it is told.
struct Bench {
    dir: tempfile::TempDir,
    key: KeyPair,
    shim: PathBuf,
    image: Vec<u8>,
    bundle: String,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::new(dir.path(), "fleet");
        let shim = dir.path().join("shim.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/shim.c");
        run("cc", &["-Wall", "-Werror", "-shared", "-fPIC", "-o", shim.to_str().unwrap(), source]);
        let image = pattern((3 << 20) + 1234, 99);
        let bundle = bundle::bundle(dir.path(), "os", &image, &[&key], &[]).to_str().unwrap().to_owned();
        Self { dir, key, shim, image, bundle }
    }

    fn device(&self) -> Device {
        Device::new(&[&self.key])
    }

    fn server(&self) -> Server {
        Server::start(fs::read(&self.bundle).unwrap(), Vice::None)
    }

    /// Installs `what` on a device whose disks have these `faults`.
    fn install(&self, device: &Device, what: &str, faults: &str) -> Output {
        let root = device.path("");
        Command::new(env!("CARGO_BIN_EXE_twinhull"))
            .args(["--root", root.to_str().unwrap(), "install", what])
            .env("LD_PRELOAD", &self.shim)
            .env("FAULTS", faults)
            .output()
            .unwrap()
    }

    fn assert_installed(&self, device: &Device, output: &Output) {
        assert_eq!(outcome(output).0, 0, "{}", outcome(output).1);
        assert_eq!(device.status()["phase"], "ready-to-reboot");
        assert!(device.slots()[1][..self.image.len()] == self.image, "the slot does not hold the image");
    }
}

/// Exit 1, one line that says `says`; the bootloader's environment and the running slot are as they were.
fn assert_failed(device: &Device, output: &Output, before: &Before, says: &str) {
    let (code, text) = outcome(output);
    assert_eq!(code, 1, "{text}");
    assert!(!text.contains("panicked"), "{text}");
    let last = text.lines().last().unwrap_or("");
    assert!(last.starts_with("twinhull: install ") && last.contains(says), "expected {says:?} in {last:?}");
    assert!(device.slots()[0] == before.active, "the active slot changed");
    assert!(fs::read(device.grubenv()).unwrap() == before.grubenv, "the boot plan changed");
}

/// The journal knows that an update was abandoned, and why.
fn assert_abandoned(device: &Device, why: &str) {
    let status = device.status();
    assert_eq!((&status["phase"], &status["update"]["state"]), (&"steady".into(), &"idle".into()));
    assert_eq!(status["boot"]["trial"], serde_json::Value::Null);
    let last = &status["update"]["last"];
    assert_eq!(last["result"], "abandoned", "{status}");
    assert!(last["reason"].as_str().unwrap().contains(why), "expected {why:?} in {last}");
}

/// What a failed install must leave as it is.
struct Before {
    active: Vec<u8>,
    grubenv: Vec<u8>,
}

impl Before {
    fn of(device: &Device) -> Self {
        Self { active: device.slots()[0].clone(), grubenv: fs::read(device.grubenv()).unwrap() }
    }
}

#[test]
fn a_target_that_fails_is_never_booted_and_the_journal_says_why() {
    let bench = Bench::new();
    let server = bench.server();
    for (faults, says) in [
        // Full, and broken, in the middle.
        ("write dev/vda3 1500000 28", "No space left on device"),
        ("write dev/vda3 1500000 5", "Input/output error"),
        ("write dev/vda3 0 5", "Input/output error"),
        // What every write took is lost at the flush.
        ("sync dev/vda3 0 5", "flush "),
        ("sync dev/vda3 0 28", "No space left on device"),
        // It became read-only, or went away.
        ("write dev/vda3 1000000 30", "Read-only file system"),
        ("gone dev/vda3 1000000 19", "No such device"),
        ("gone dev/vda3 1000000 6", "No such device or address"),
        ("open dev/vda3 0 6", "No such device or address"),
        // Writes that say that they worked, and did not: only reading back tells.
        ("lose dev/vda3 1000000 0", "it may be worn out"),
        // The bootloader's environment: nothing may be half armed.
        ("write EFI/BOOT/grubenv 0 28", "grubenv"),
        ("sync EFI/BOOT/grubenv 0 5", "grubenv"),
        ("open EFI/BOOT/grubenv 0 30", "grubenv"),
    ] {
        for what in [&bench.bundle, &server.url] {
            let device = bench.device();
            let before = Before::of(&device);
            let output = bench.install(&device, what, faults);
            let device_name = faults.split(' ').nth(1).unwrap();
            let text = outcome(&output).1;
            assert!(text.contains(device_name) || says.contains("worn out"), "{faults}: {text}");
            assert_failed(&device, &output, &before, says);
            let status = device.status();
            match faults.split_once(' ').unwrap() {
                // Nothing had begun.
                ("open", target) if target.starts_with("dev/vda3") => {
                    assert_eq!(status["update"]["last"], serde_json::Value::Null);
                }
                // Not even calling it off worked: the next command of any kind does.
                ("sync", env) if env.contains("grubenv") => {
                    assert_eq!(outcome(&device.twinhull(&["resume"])).0, 0);
                    assert_eq!(device.status()["phase"], "steady");
                }
                _ => assert_abandoned(&device, says),
            }
            // The disk is well again: the same command works.
            bench.assert_installed(&device, &bench.install(&device, what, ""));
        }
    }
}

#[test]
fn a_state_partition_that_is_full_is_told_before_the_target_is_touched() {
    let bench = Bench::new();
    for faults in ["write mnt/state 0 28", "open mnt/state 0 28", "sync mnt/state 0 5"] {
        let device = bench.device();
        let (before, target) = (Before::of(&device), device.slots()[1].clone());
        let output = bench.install(&device, &bench.bundle, faults);
        assert_failed(&device, &output, &before, "mnt/state/twinhull");
        assert!(device.slots()[1] == target, "{faults}: the target was written");
        bench.assert_installed(&device, &bench.install(&device, &bench.bundle, ""));
    }
}

#[test]
fn a_state_partition_that_becomes_full_leaves_an_install_that_counts_as_cut_short() {
    let bench = Bench::new();
    // The first record (Installing) is written, those of the trial and of the end are not.
    for faults in ["open journal.json 1 28", "sync journal.json 1 5"] {
        let device = bench.device();
        let before = Before::of(&device);
        let output = bench.install(&device, &bench.bundle, faults);
        assert_failed(&device, &output, &before, "journal.json");
        let status = device.status();
        assert_eq!(
            (&status["phase"], &status["boot"]["trial"]),
            (&"install-interrupted".into(), &serde_json::Value::Null)
        );
        assert_eq!(outcome(&device.twinhull(&["resume"])).0, 0);
        assert_abandoned(&device, "interrupted");
    }
}

#[test]
fn the_kept_index_is_only_a_convenience() {
    let bench = Bench::new();
    let server = bench.server();
    let device = bench.device();
    let output = bench.install(&device, &server.url, "open bundle.index 0 28");
    bench.assert_installed(&device, &output);
    assert!(outcome(&output).1.contains("would fetch the index again"), "{}", outcome(&output).1);
}

#[test]
fn sectors_that_cannot_be_read_are_written_anew() {
    let bench = Bench::new();
    let server = bench.server();
    // A block that is carried, and one in a hole, which is read to see whether it is zero already.
    for at in [4096 * 6 + 512, 4096 * 5] {
        let device = bench.device();
        let output = bench.install(&device, &server.url, &format!("bad dev/vda3 {at} 5"));
        bench.assert_installed(&device, &output);
    }
    // The running slot is only looked at for what could be reused.
    let device = bench.device();
    let output = bench.install(&device, &server.url, "bad dev/vda2 8192 5");
    bench.assert_installed(&device, &output);
    // Where a seal would be.
    let device = bench.device();
    let seal = device.slots()[1].len() - 4096;
    let output = bench.install(&device, &server.url, &format!("bad dev/vda3 {seal} 5"));
    bench.assert_installed(&device, &output);
}

#[test]
fn a_partition_whose_start_cannot_be_read_does_not_hide_the_others() {
    let bench = Bench::new();
    for n in [1, 3, 4, 5] {
        let device = bench.device();
        let sector = fs::read_to_string(device.path(&format!("sys/block/vda/vda{n}/start"))).unwrap();
        let start = sector.parse::<u64>().unwrap() * 512;
        let output =
            bench.install(&device, &bench.bundle, &format!("bad dev/vda3 0 5; bad dev/vda {start} 5"));
        bench.assert_installed(&device, &output);
        assert!(outcome(&output).1.contains(&format!("dev/vda{n}: ")), "{}", outcome(&output).1);
    }
}

/// Firmware that tries only once is asked again at each boot: where that cannot be counted, it must not go on for ever.
#[test]
fn a_try_that_cannot_be_counted_ends_the_trial_without_a_reboot() {
    let bench = Bench::new();
    let device = bench.device();
    device.write("etc/twinhull/test.toml", "[boot]\nchooser = \"tryboot\"\n");
    device.write("mnt/boot/autoboot.txt", include_str!("../../boot/raspberrypi/autoboot.txt"));
    let systemctl = Systemctl::new(bench.dir.path());
    let twinhull = |args: &[&str], faults: &str| {
        Command::new(env!("CARGO_BIN_EXE_twinhull"))
            .args(["--root", device.path("").to_str().unwrap()])
            .args(args)
            .env("PATH", systemctl.path_variable())
            .env("LD_PRELOAD", &bench.shim)
            .env("FAULTS", faults)
            .output()
            .unwrap()
    };
    let installed = twinhull(&["install", "--reboot", &bench.bundle], "");
    assert_eq!(outcome(&installed).0, 0, "{}", outcome(&installed).1);
    // "reboot", with what the firmware must be told.
    let reboots = || systemctl.asked().lines().filter(|asked| asked.starts_with("reboot")).count();
    assert_eq!(reboots(), 1);
    let left = || device.status()["boot"]["trial"]["tries_left"].as_u64();
    assert_eq!(left(), Some(2));
    // Back on the old system: asked again, and counted.
    let next_boot = |id: &str| {
        device.write("proc/sys/kernel/random/boot_id", id);
        fs::remove_file(device.path("run/twinhull/boot-ended")).unwrap();
    };
    next_boot("22222222-2222-3333-4444-555555555555\n");
    assert_eq!(outcome(&twinhull(&["resume"], "")).0, 0);
    assert_eq!((reboots(), left()), (1, Some(1)));
    next_boot("33333333-2222-3333-4444-555555555555\n");
    let (code, text) = outcome(&twinhull(&["resume"], "open boot/autoboot.txt 0 30"));
    assert_eq!((code, systemctl.asked().as_str()), (1, ""), "{text}");
    // Its reason is kept, and as soon as the medium can be written again the trial is called off.
    assert_eq!(outcome(&twinhull(&["resume"], "")).0, 0);
    let status = device.status();
    assert_eq!((&status["phase"], left(), systemctl.asked().as_str()), (&"steady".into(), None, ""));
    let reason = status["update"]["last"]["reason"].as_str().unwrap();
    assert!(reason.contains("its next try cannot be started") && reason.contains("autoboot.txt"), "{reason}");
}

#[test]
fn a_target_that_is_not_there_is_named() {
    let bench = Bench::new();
    let server = bench.server();
    for what in [&bench.bundle, &server.url] {
        let device = bench.device();
        fs::remove_file(device.path("dev/vda3")).unwrap();
        let (code, text) = outcome(&device.twinhull(&["install", what]));
        assert_eq!((code, text.lines().count()), (1, 1), "{text}");
        assert!(text.contains("no partition resin-rootB; it has resin-boot, resin-rootA, "), "{text}");
    }
}

#[test]
fn the_wall_clock_decides_nothing() {
    let bench = Bench::new();
    // 1970, and a century later.
    for clock in ["0", "4951000000"] {
        let device = bench.device();
        let root = device.path("");
        let output = Command::new(env!("CARGO_BIN_EXE_twinhull"))
            .args(["--root", root.to_str().unwrap(), "install", &bench.bundle])
            .env("LD_PRELOAD", &bench.shim)
            .env("CLOCK", clock)
            .output()
            .unwrap();
        bench.assert_installed(&device, &output);
    }
}
