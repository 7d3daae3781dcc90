//! `twinhull boot` on a device in a directory that runs a trial: what a boot that ends in order costs, and what is kept of one
//! that does not.
// Tests may panic and start programs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, clippy::cast_possible_truncation)]

use std::fs;

#[allow(dead_code)] // No bundle is made here.
mod support;
use support::{Device, run};

/// Slot A runs on trial, for the second of its three boots; slot B is the primary.
fn on_trial() -> Device {
    let device = Device::new(&[]);
    let env = device.grubenv();
    let set = ["set", "resin_root_part=2", "upgrade_available=1", "bootcount=2", "os_bc_lim=3"];
    run("grub-editenv", &[&[env.to_str().unwrap()], &set[..]].concat());
    let journal =
        include_str!("fixtures/journal/0.1-trial.json").replacen("\"target\": \"B\"", "\"target\": \"A\"", 1);
    device.write("mnt/state/twinhull/journal.json", &journal);
    device
}

fn count(device: &Device) -> String {
    let list = run("grub-editenv", &[device.grubenv().to_str().unwrap(), "list"]);
    list.lines().find_map(|l| l.strip_prefix("bootcount=")).unwrap().to_owned()
}

fn boot(device: &Device, verb: &str, boot_id: &str) {
    device.write("proc/sys/kernel/random/boot_id", boot_id);
    let output = device.twinhull(&["boot", verb]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_boot_that_ends_in_order_gives_its_try_back_once() {
    let device = on_trial();
    for _ in 0..2 {
        boot(&device, "begin", "second");
    }
    for _ in 0..2 {
        boot(&device, "end", "second");
        assert_eq!(count(&device), "1");
    }
    // The next boot finds nothing to explain.
    fs::remove_file(device.path("run/twinhull/boot-ended")).unwrap();
    boot(&device, "begin", "third");
    assert!(device.status()["update"]["failure"].is_null());
}

#[test]
fn the_reason_of_a_boot_that_did_not_end_in_order_is_kept_until_the_rollback() {
    let device = on_trial();
    boot(&device, "begin", "second");
    assert!(device.status()["update"]["failure"].is_null());
    boot(&device, "begin", "third");
    let power = "power was lost, or somebody reset the machine";
    assert_eq!(device.status()["update"]["failure"], power);
    let log = "Panic#1 Part1\n<0>[    4.2] Kernel panic - not syncing: sysrq triggered crash\n<4>[    4.2] CPU: 0\n";
    device.write("sys/fs/pstore/dmesg-efi-170000000001001", log);
    boot(&device, "begin", "fourth");
    let panic = "kernel panic: not syncing: sysrq triggered crash";
    assert_eq!(device.status()["update"]["failure"], panic);
    // Back on slot B, with the tries used up.
    let env = device.grubenv();
    run("grub-editenv", &[env.to_str().unwrap(), "set", "bootcount=3"]);
    device.write("proc/cmdline", "root=PARTLABEL=resin-rootB ro\n");
    boot(&device, "begin", "fifth");
    assert!(device.twinhull(&["resume"]).status.success());
    let last = device.status()["update"]["last"].clone();
    assert_eq!(last["result"], "rolled-back");
    // The boot that was open at the end left nothing: power. A later boot does not tell the old panic again.
    assert_eq!(last["reason"], format!("slot A used up its tries; its last boot failed: {power}"));
}

#[test]
fn a_hang_is_told_by_the_watchdog() {
    let device = on_trial();
    boot(&device, "begin", "second");
    device.write("sys/class/watchdog/watchdog0/bootstatus", "32\n");
    boot(&device, "begin", "third");
    assert_eq!(device.status()["update"]["failure"], "it hung and the watchdog reset the machine");
    let text = String::from_utf8(device.twinhull(&["status"]).stdout).unwrap();
    assert!(text.contains("Trial       an earlier boot of it failed: it hung"), "{text}");
}

#[test]
fn without_an_update_nothing_is_written() {
    let device = Device::new(&[]);
    let before = fs::read(device.grubenv()).unwrap();
    for verb in ["begin", "end"] {
        boot(&device, verb, "second");
    }
    assert_eq!(fs::read(device.grubenv()).unwrap(), before);
    assert!(!device.path("mnt/state/twinhull/journal.json").exists());
}
