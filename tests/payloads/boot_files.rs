//! Files for the boot partition: whole for the slot that they belong to, and never those of the slot that runs.

use std::fs;
use std::path::Path;

use crate::Bench;
use crate::support::{outcome, run};

/// A device that boots with systemd-boot, whose slot A has boot files of the image's maker.
pub fn bench() -> Bench {
    let bench = Bench::new();
    let device = &bench.device;
    device.write("etc/twinhull/10-boot.toml", "[boot]\nchooser = \"systemd-boot\"\n");
    for slot in ["a", "b"] {
        let entry =
            format!("title {slot}\nlinux /slot-{slot}/vmlinuz\noptions root=PARTLABEL=resin-root ro\n");
        device.write(&format!("mnt/boot/loader/entries/twinhull.{slot}"), &entry);
    }
    let first = "title a\nlinux /slot-a/vmlinuz\noptions root=PARTLABEL=resin-root ro\nsort-key 0-twinhull\nversion 1\n";
    device.write("mnt/boot/loader/entries/twinhull-a.conf", first);
    device.write("mnt/boot/slot-a/vmlinuz", "kernel of the image");
    device.write("mnt/boot/slot-a/dtbs/board.dtb", "device tree of the image");
    bench
}

/// Every file below a directory: its path and content.
pub fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    fn walk(dir: &Path, base: &Path, found: &mut Vec<(String, Vec<u8>)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, base, found);
            } else {
                let name = path.strip_prefix(base).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    if dir.exists() {
        walk(dir, dir, &mut found);
    }
    found.sort();
    found
}

/// A directory of boot files that tells versions apart.
pub fn boot_dir(bench: &Bench, version: &str) -> String {
    let dir = format!("boot-{version}");
    let kernel = crate::support::pattern(123_456, version.len() as u64 + u64::from(version.as_bytes()[0]));
    bench.write(&format!("{dir}/vmlinuz"), &kernel);
    bench.write(&format!("{dir}/dtbs/board.dtb"), format!("device tree {version}").as_bytes());
    bench.write(&format!("{dir}/dtbs/overlays/{}.dtbo", &version[..1]), version.as_bytes());
    bench.path(&dir).to_str().unwrap().to_owned()
}

#[test]
fn they_go_to_the_slot_that_is_written_and_the_others_are_not_touched() {
    let bench = bench();
    let dir = boot_dir(&bench, "2.0.0");
    let bundle = bench.bundle("new", "2.0.0", &["--boot-dir", &dir]);
    let before = files(&bench.device.path("mnt/boot/slot-a"));
    let output = bench.install(&bundle);
    assert_eq!(outcome(&output).0, 0, "{}", outcome(&output).1);
    assert_eq!(files(&bench.device.path("mnt/boot/slot-a")), before);
    let mut found = files(&bench.device.path("mnt/boot/slot-b"));
    found.retain(|(name, _)| name != "twinhull.sums");
    assert_eq!(found, files(Path::new(&dir)));
    let expected = serde_json::json!([{ "slot": "B", "of": "version 2.0.0", "files": 3, "missing": [] }]);
    assert_eq!(bench.device.status()["boot_files"], expected);
    // The real tool agrees with the list.
    let slot = bench.device.path("mnt/boot/slot-b");
    let check = format!("cd {} && sha256sum --strict --quiet -c twinhull.sums", slot.display());
    assert_eq!(run("sh", &["-c", &check]), "");
    // Rolled back: what the old system boots was there all the time.
    let output = bench.device.twinhull(&["rollback", "--no-reboot"]);
    assert_eq!(outcome(&output).0, 0, "{}", outcome(&output).1);
    assert_eq!(files(&bench.device.path("mnt/boot/slot-a")), before);
}

#[test]
fn the_set_of_a_slot_is_what_its_bundle_says_and_no_more() {
    let bench = bench();
    for (name, version, with_files, expected) in [
        ("first", "2.0.0", true, vec!["dtbs/board.dtb", "dtbs/overlays/2.dtbo", "twinhull.sums", "vmlinuz"]),
        ("second", "3.0.0", true, vec!["dtbs/board.dtb", "dtbs/overlays/3.dtbo", "twinhull.sums", "vmlinuz"]),
        // A bundle that brings none must not be booted with the kernel of another.
        ("third", "4.0.0", false, vec![]),
    ] {
        let dir = boot_dir(&bench, version);
        let args = ["--boot-dir", &dir];
        let bundle = bench.bundle(name, version, if with_files { &args } else { &[] });
        let output = bench.install(&bundle);
        assert_eq!(outcome(&output).0, 0, "{}", outcome(&output).1);
        let found = files(&bench.device.path("mnt/boot/slot-b"));
        assert_eq!(found.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), expected);
    }
    // What the image's maker put there without a list is not ours to remove.
    assert_eq!(files(&bench.device.path("mnt/boot/slot-a")).len(), 2);
}

#[test]
fn raspberry_pi_s_firmware_has_a_boot_partition_for_each_slot() {
    let bench = Bench::new();
    let device = &bench.device;
    device.write("etc/twinhull/10-boot.toml", "[boot]\nchooser = \"tryboot\"\n");
    device.write("mnt/boot/autoboot.txt", include_str!("../../boot/raspberrypi/autoboot.txt"));
    // In a directory that is not the host's, partitions are not mounted, but expected where they would be.
    for slot in ["a", "b"] {
        device.write(&format!("run/twinhull/slot-{slot}/cmdline.txt"), &format!("root=of-{slot}"));
    }
    let dir = boot_dir(&bench, "2.0.0");
    let bundle = bench.bundle("new", "2.0.0", &["--boot-dir", &dir]);
    let output = bench.install(&bundle);
    assert_eq!(outcome(&output).0, 0, "{}", outcome(&output).1);
    assert_eq!(device.status()["phase"], "ready-to-reboot");
    assert_eq!(files(&device.path("run/twinhull/slot-a")).len(), 1);
    let mut found = files(&device.path("run/twinhull/slot-b"));
    found.retain(|(name, _)| name != "twinhull.sums");
    // What differs from slot to slot is the image's, and stays.
    assert_eq!(found.remove(0), ("cmdline.txt".into(), b"root=of-b".to_vec()));
    assert_eq!(found, files(Path::new(&dir)));
}

#[test]
fn a_bootloader_that_would_not_read_them_is_told_before_anything_is_written() {
    let bench = Bench::new();
    let dir = boot_dir(&bench, "2.0.0");
    let bundle = bench.bundle("new", "2.0.0", &["--boot-dir", &dir]);
    let slots = bench.device.slots();
    let (code, text) = outcome(&bench.install(&bundle));
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("files for the boot partition, of which grub boots none"), "{text}");
    assert!(bench.device.slots() == slots && bench.device.status()["phase"] == "steady");
}

/// A file system of its own at `mnt/boot`, too small.
struct SmallBoot<'a>(&'a Path);

impl Drop for SmallBoot<'_> {
    fn drop(&mut self) {
        run("umount", &["-l", self.0.to_str().unwrap()]);
    }
}

#[test]
fn a_full_boot_partition_is_found_before_anything_is_written() {
    let bench = bench();
    let boot = bench.device.path("mnt/boot");
    let kept = bench.path("kept");
    run("cp", &["-r", boot.to_str().unwrap(), kept.to_str().unwrap()]);
    run("mount", &["-t", "tmpfs", "-o", "size=1536k", "tmpfs", boot.to_str().unwrap()]);
    let _mounted = SmallBoot(&boot);
    run("cp", &["-rT", kept.to_str().unwrap(), boot.to_str().unwrap()]);
    let dir = boot_dir(&bench, "2.0.0");
    let fits = bench.bundle("fits", "2.0.0", &["--boot-dir", &dir]);
    bench.write("boot-2.0.0/initramfs", &crate::support::pattern(900_000, 3));
    let large = bench.bundle("large", "2.0.0", &["--boot-dir", &dir]);
    let slots = bench.device.slots();
    let before = files(&boot);
    for args in [vec!["install"], vec!["install", "--explain"]] {
        let (code, text) = outcome(&bench.device.twinhull(&[&args[..], &[large.to_str().unwrap()]].concat()));
        assert_eq!((code, text.lines().count()), (3, 1), "{text}");
        assert!(
            text.contains("boot files of slot B, slot-b on the boot partition: ")
                && text.contains("are free"),
            "{text}"
        );
        assert!(bench.device.slots() == slots && files(&boot) == before);
        assert_eq!(bench.device.status()["phase"], "steady");
    }
    let output = bench.install(&fits);
    assert_eq!(outcome(&output).0, 0, "{}", outcome(&output).1);
}

#[test]
fn what_is_said_of_them_is_what_is_in_the_bundle() {
    let bench = bench();
    let dir = boot_dir(&bench, "2.0.0");
    let hook = bench.write("hook", b"#!/bin/sh\n");
    let named = format!("check={}", hook.display());
    let bundle =
        bench.bundle("new", "2.0.0", &["--boot-dir", &dir, "--hook-deadline", "7", "--hook", &named]);
    let bundle = bundle.to_str().unwrap();
    for args in [vec!["bundle", "inspect", bundle], vec!["install", "--explain", bundle]] {
        let output = bench.device.twinhull(&args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("boot files:  3 with 123478 bytes: dtbs/board.dtb, "), "{text}");
        assert!(text.contains("hooks:       check (7 s)"), "{text}");
    }
    let keys = bench.device.path("usr/share/twinhull/keys.d");
    let output = bench.device.twinhull(&["bundle", "verify", bundle, "--keys", keys.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("3 boot files, 1 hook, signed by"), "{text}");
}

#[test]
fn the_names_that_a_bundle_may_have_survive_a_real_fat() {
    let bench = bench();
    let names = ["vmlinuz-6.12.1+rpt-rpi-v8", "dtbs/st,board@2.dtb", "A=b", "a_b-c.D.e", &"n".repeat(100)];
    let mut args = Vec::new();
    for name in names {
        let file = bench.write("content", name.as_bytes());
        args.push(format!(
            "{name}={}",
            bench.write(&format!("src/{name}"), &fs::read(file).unwrap()).display()
        ));
    }
    // `--boot-file` splits at the first '='; a directory takes any name that is allowed.
    let dir = bench.path("src").to_str().unwrap().to_owned();
    let bundle = bench.bundle("fat", "2.0.0", &["--boot-dir", &dir]);
    assert_eq!(outcome(&bench.install(&bundle)).0, 0);
    let image = bench.path("fat.img");
    fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let image = image.to_str().unwrap();
    run("mkfs.vfat", &[image]);
    let slot = bench.device.path("mnt/boot/slot-b");
    run("mcopy", &["-s", "-i", image, slot.to_str().unwrap(), "::"]);
    let out = bench.path("out");
    fs::create_dir(&out).unwrap();
    run("mcopy", &["-s", "-i", image, "::slot-b", out.to_str().unwrap()]);
    assert_eq!(files(&out.join("slot-b")), files(&slot));
}

#[test]
fn mistakes_of_the_maker_are_told() {
    let bench = bench();
    let file = bench.write("f", b"x");
    bench.write("hidden/.config", b"x");
    bench.write("links/a", b"x");
    std::os::unix::fs::symlink("a", bench.path("links/b")).unwrap();
    fs::create_dir(bench.path("empty")).unwrap();
    let named = |name: &str| format!("{name}={}", file.display());
    let dir = |name: &str| bench.path(name).to_str().unwrap().to_owned();
    for (args, says) in [
        (vec!["--boot-file".to_owned(), named("../x")], "\"../x\": expected names"),
        (vec!["--boot-file".into(), named("/x")], "\"/x\": expected names"),
        (vec!["--boot-file".into(), named("twinhull.sums")], "expected names"),
        (vec!["--boot-file".into(), named("a"), "--boot-file".into(), named("a")], "clashes with"),
        (vec!["--boot-file".into(), named("a"), "--boot-file".into(), named("A")], "clashes with"),
        (vec!["--boot-file".into(), named("a"), "--boot-file".into(), named("A/b")], "clashes with"),
        (vec!["--boot-dir".into(), dir("hidden")], "not beginning with '.'"),
        (vec!["--boot-dir".into(), dir("links")], "FAT has no links"),
        (vec!["--boot-dir".into(), dir("empty")], "no files in it"),
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (code, text) = outcome(&bench.create("bad", "2.0.0", &args));
        assert_eq!((code, text.lines().count()), (1, 1), "{text}");
        assert!(text.contains(says), "{text}");
        assert!(!bench.path("bad.bundle").exists());
    }
}
