//! The kernel's own failing disks: loop devices on a file system that is full, and one that is read-only.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Device, SLOT, outcome, run};
use crate::{Before, Bench, assert_abandoned, assert_failed};

/// A loop device as long as a slot; gone with this value.
struct Loop {
    node: PathBuf,
}

impl Loop {
    /// `None` where there are no loop devices.
    fn new(file: &str, read_only: bool) -> Option<Self> {
        let args = ["--find", "--show", if read_only { "--read-only" } else { "--direct-io=off" }, file];
        let output = Command::new("losetup").args(args).output().ok()?;
        let node = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        output.status.success().then(|| Self { node: node.into() })
    }

    /// Makes it the partition `name` of a device.
    fn stands_for(&self, device: &Device, name: &str) {
        let node = device.path(name);
        fs::remove_file(&node).unwrap();
        symlink(&self.node, node).unwrap();
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.node).status();
    }
}

/// A mounted directory; unmounted with this value.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// A file system in memory of a limited size; gone with this value.
struct Tmpfs(Mounted);

impl Tmpfs {
    /// `None` where nothing may be mounted.
    fn new(path: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir_all(&path).unwrap();
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path);
        mount.output().ok()?.status.success().then_some(Self(Mounted(path)))
    }

    fn grow(&self, size: &str) {
        run("mount", &["-o", &format!("remount,size={size}"), self.path().to_str().unwrap()]);
    }

    fn path(&self) -> &Path {
        &self.0.0
    }
}

#[test]
fn a_device_that_loses_what_it_took_is_found_at_the_flush_and_mended_by_the_next_install() {
    let bench = Bench::new();
    let Some(small) = Tmpfs::new(bench.dir.path().join("small"), "1M") else {
        return println!("SKIPPED: needs root, to mount and to make loop devices");
    };
    let file = small.path().join("slot");
    fs::File::create(&file).unwrap().set_len(SLOT).unwrap();
    let Some(disk) = Loop::new(file.to_str().unwrap(), false) else {
        return println!("SKIPPED: needs loop devices");
    };
    let server = bench.server();
    let device = bench.device();
    disk.stands_for(&device, "dev/vda3");
    // The medium behind the device is full. What goes past the cache fails at once; what goes into it, at the flush.
    for (what, says, why) in [
        (&bench.bundle, "dev/vda3 at byte 1048576: No space left on device", "write "),
        (&server.url, "dev/vda3: Input/output error", "flush "),
    ] {
        let before = Before::of(&device);
        let output = device.twinhull(&["install", what]);
        assert_failed(&device, &output, &before, says);
        assert_abandoned(&device, why);
    }
    // There is room again. What the cache still holds of the lost blocks must not be taken for the medium's.
    small.grow("16M");
    let output = device.twinhull(&["install", &server.url]);
    bench.assert_installed(&device, &output);
}

#[test]
fn a_target_that_is_mounted_is_refused() {
    let bench = Bench::new();
    let device = bench.device();
    let file = bench.dir.path().join("target");
    fs::File::create(&file).unwrap().set_len(SLOT).unwrap();
    run("mkfs.ext4", &["-q", file.to_str().unwrap()]);
    let Some(disk) = Loop::new(file.to_str().unwrap(), false) else {
        return println!("SKIPPED: needs root, to make loop devices");
    };
    disk.stands_for(&device, "dev/vda3");
    let at = bench.dir.path().join("mounted");
    fs::create_dir(&at).unwrap();
    run("mount", &[disk.node.to_str().unwrap(), at.to_str().unwrap()]);
    let mounted = Mounted(at);
    let before = (Before::of(&device).grubenv, device.slots());
    for more in [None, Some("--explain")] {
        let args: Vec<_> = ["install", &bench.bundle].into_iter().chain(more).collect();
        let (code, text) = outcome(&device.twinhull(&args));
        assert_eq!((code, text.lines().count()), (3, 1), "{text}");
        assert!(text.contains("slot B: ") && text.contains("dev/vda3 is mounted"), "{text}");
        assert!((Before::of(&device).grubenv, device.slots()) == before, "something was written");
    }
    drop(mounted);
    bench.assert_installed(&device, &device.twinhull(&["install", &bench.bundle]));
}

#[test]
fn the_running_slot_may_be_a_device_that_cannot_be_written() {
    let bench = Bench::new();
    let server = bench.server();
    for what in [&bench.bundle, &server.url] {
        let device = bench.device();
        let file = bench.dir.path().join("running");
        fs::copy(device.path("dev/vda2"), &file).unwrap();
        let Some(disk) = Loop::new(file.to_str().unwrap(), true) else {
            return println!("SKIPPED: needs root, to make loop devices");
        };
        disk.stands_for(&device, "dev/vda2");
        bench.assert_installed(&device, &device.twinhull(&["install", what]));
    }
}

#[test]
fn a_state_partition_without_room_is_told() {
    let bench = Bench::new();
    let device = bench.device();
    let Some(state) = Tmpfs::new(device.path("mnt/state"), "16K") else {
        return println!("SKIPPED: needs root, to mount");
    };
    fs::create_dir(state.path().join("twinhull")).unwrap();
    let full = fs::write(state.path().join("logs"), vec![1; 64 << 10]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(28));
    let (before, target) = (Before::of(&device), device.slots()[1].clone());
    let output = device.twinhull(&["install", &bench.bundle]);
    assert_failed(&device, &output, &before, "journal.json: No space left on device");
    assert!(device.slots()[1] == target, "the target was written");
    assert!(!outcome(&output).1.contains("installing "), "{}", outcome(&output).1);
    fs::remove_file(state.path().join("logs")).unwrap();
    bench.assert_installed(&device, &device.twinhull(&["install", &bench.bundle]));
}

#[test]
fn the_running_slot_is_never_opened_for_writing() {
    let bench = Bench::new();
    let server = bench.server();
    let trace = bench.dir.path().join("trace");
    for what in [&bench.bundle, &server.url] {
        let device = bench.device();
        let root = device.path("");
        let program = [env!("CARGO_BIN_EXE_twinhull"), "--root", root.to_str().unwrap(), "install", what];
        let traced = Command::new("strace")
            .args(["-f", "-s", "4096", "-e", "trace=%file", "-o", trace.to_str().unwrap()])
            .args(program)
            .output();
        let Ok(output) = traced else { return println!("SKIPPED: needs strace") };
        bench.assert_installed(&device, &output);
        let text = fs::read_to_string(&trace).unwrap();
        let opened = |node: &str| -> Vec<&str> {
            let path = format!("{node}\"");
            text.lines().filter(|l| l.contains("open") && l.contains(&path)).collect()
        };
        // The trace does show what is opened for writing.
        assert!(opened("dev/vda3").iter().any(|l| l.contains("O_RDWR")), "{text}");
        for node in ["dev/vda2", "dev/vda"] {
            let opened = opened(node);
            assert!(opened.iter().all(|l| l.contains("O_RDONLY")), "{what}: {opened:?}");
        }
        assert!(what == &bench.bundle || !opened("dev/vda2").is_empty(), "it was not even read");
    }
}
