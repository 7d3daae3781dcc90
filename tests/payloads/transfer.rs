//! Payloads of files from a server: only what is missing is fetched, and what breaks off goes on.

use std::fs;
use std::path::PathBuf;

use crate::Bench;
use crate::boot_files::{bench, boot_dir, files};
use crate::server::{Server, Vice};
use crate::support::{SLOT, outcome, pattern};

const KERNEL: u64 = 2_000_000;

/// A bundle of a kernel that does not compress, a device tree and a hook; and its kernel.
fn bundle(bench: &Bench) -> (PathBuf, Vec<u8>) {
    let dir = boot_dir(bench, "2.0.0");
    let kernel = pattern(KERNEL, 77);
    bench.write("boot-2.0.0/vmlinuz", &kernel);
    let hook = bench.write("hook", b"#!/bin/sh\nexit 0\n");
    let named = format!("check={}", hook.display());
    bench.device.write("etc/twinhull/30-stall.toml", "[bundle]\nstall_s = 1\n");
    (bench.bundle("new", "2.0.0", &["--boot-dir", &dir, "--hook", &named]), kernel)
}

fn assert_installed(bench: &Bench) {
    let mut found = files(&bench.device.path("mnt/boot/slot-b"));
    found.retain(|(name, _)| name != "twinhull.sums");
    assert_eq!(found, files(&bench.path("boot-2.0.0")));
    let hook = fs::read(bench.device.path("mnt/state/twinhull/hooks/check")).unwrap();
    assert_eq!(hook, b"#!/bin/sh\nexit 0\n");
    assert_eq!(bench.device.status()["phase"], "ready-to-reboot");
}

#[test]
fn what_the_running_system_s_boot_files_have_is_copied_and_not_fetched() {
    let bench = bench();
    let (bundle, kernel) = bundle(&bench);
    // The same kernel but for one block in the middle.
    let mut old = kernel;
    old[1_000_000] ^= 1;
    fs::write(bench.device.path("mnt/boot/slot-a/vmlinuz"), &old).unwrap();
    let whole = fs::read(&bundle).unwrap();
    let server = Server::start(whole.clone(), Vice::None);
    let output = bench.device.twinhull(&["install", &server.url]);
    assert_eq!(outcome(&output).0, 0, "{}", outcome(&output).1);
    assert_installed(&bench);
    let saved = whole.len() as u64 - server.sent();
    assert!(saved > KERNEL / 5 * 4 * 9 / 10, "{saved} bytes of the bundle were not fetched");
    assert_eq!(fs::read(bench.device.path("mnt/boot/slot-a/vmlinuz")).unwrap(), old);
}

#[test]
fn servers_that_misbehave_cost_time_and_never_a_wrong_byte() {
    for (vice, succeeds) in [
        (Vice::Closes(50_000), true),
        (Vice::NoParts, true),
        (Vice::NoPartsClosesOnce, true),
        (Vice::Busy, true),
        (Vice::Corrupts, false),
        (Vice::Shifts, false),
        (Vice::Changes, false),
    ] {
        let bench = bench();
        let (bundle, _) = bundle(&bench);
        let before = files(&bench.device.path("mnt/boot/slot-a"));
        let server = Server::start(fs::read(&bundle).unwrap(), vice);
        let (code, text) = outcome(&bench.device.twinhull(&["install", &server.url]));
        assert_eq!(code == 0, succeeds, "{vice:?}: {text}");
        if succeeds {
            assert_installed(&bench);
        } else {
            assert_eq!(bench.device.status()["phase"], "steady", "{vice:?}");
        }
        assert_eq!(files(&bench.device.path("mnt/boot/slot-a")), before, "{vice:?}");
    }
}

#[test]
fn an_install_that_broke_off_among_the_boot_files_goes_on_there() {
    let bench = bench();
    let (bundle, _) = bundle(&bench);
    let whole = fs::read(&bundle).unwrap();
    let len = whole.len() as u64;
    // Most of the root image and a good half of the kernel.
    let gone = Server::start(whole.clone(), Vice::Goes(len - 700_000));
    let (code, text) = outcome(&bench.device.twinhull(&["install", &gone.url]));
    assert_eq!(code, 1, "{text}");
    assert_eq!(bench.device.status()["phase"], "steady");
    assert!(bench.device.path("mnt/boot/slot-b/vmlinuz").exists(), "it broke off too early for this test");
    let server = Server::start(whole, Vice::None);
    let output = bench.device.twinhull(&["install", &server.url]);
    assert_eq!(outcome(&output).0, 0, "{}", outcome(&output).1);
    assert_installed(&bench);
    let both = gone.sent() + server.sent();
    // What was on the way when it broke off, and the indexes of the files, come twice.
    assert!(both < len * 110 / 100, "{both} bytes for a bundle of {len}");
}

#[test]
fn the_files_count_in_the_download_limit() {
    let bench = bench();
    let (bundle, _) = bundle(&bench);
    let whole = fs::read(&bundle).unwrap();
    // All of the root image is there.
    let mut slot = pattern(1 << 20, 10);
    slot.resize(SLOT as usize, 0);
    fs::write(bench.device.path("dev/vda3"), &slot).unwrap();
    let server = Server::start(whole, Vice::None);
    let (code, text) = outcome(&bench.device.twinhull(&["install", "--max-download", "1M", &server.url]));
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("at most 1048576 are allowed"), "{text}");
    assert!(!bench.device.path("mnt/boot/slot-b").exists());
    let (code, text) = outcome(&bench.device.twinhull(&["install", "--max-download", "2M", &server.url]));
    assert_eq!(code, 0, "{text}");
    assert_installed(&bench);
}
