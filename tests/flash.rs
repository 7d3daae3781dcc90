//! The installer through the command line: disks that are files, and, where there are any, loop devices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(clippy::disallowed_methods, clippy::disallowed_macros, clippy::cast_possible_truncation)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[allow(dead_code)]
mod support;

use support::{Device, KeyPair, outcome, pattern, run, twinhull};

const MIB: u64 = 1 << 20;
const IMAGE: u64 = 24 * MIB;

struct Lab {
    installer: Device,
    dir: tempfile::TempDir,
    key: KeyPair,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::new(dir.path(), "fleet");
        let installer = Device::new(&[&key]);
        let lab = Self { installer, dir, key };
        lab.installer.write(
            "mnt/boot/config.json",
            r#"{"deviceType":"intel-nuc","apiKey":"k","installer":{"secureboot":false}}"#,
        );
        lab.installer.write("mnt/boot/system-connections/wifi", "[connection]\n");
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The image of a whole disk, with an ext4 in place of the FAT that this machine's kernel may lack.
    fn image(&self) -> PathBuf {
        let image = self.path("disk.img");
        fs::File::create(&image).unwrap().set_len(IMAGE).unwrap();
        let table = "label: gpt\nstart=2048, size=8192, name=resin-boot\nsize=16384, name=resin-rootA\n\
                     size=4096, name=resin-rootB\nsize=8192, name=resin-state\nsize=8192, name=resin-data\n";
        fs::write(self.path("table"), table).unwrap();
        let at = |name: &str| self.path(name).display().to_string();
        run("sh", &["-c", &format!("sfdisk -q {} < {}", at("disk.img"), at("table"))]);
        fs::create_dir_all(self.path("boot/EFI/BOOT")).unwrap();
        fs::write(self.path("boot/EFI/BOOT/BOOTX64.EFI"), "MZ").unwrap();
        fs::write(self.path("boot/config.json"), "{}").unwrap();
        run(
            "mke2fs",
            &[
                "-q",
                "-t",
                "ext4",
                "-O",
                "^has_journal",
                "-L",
                "resin-boot",
                "-d",
                &at("boot"),
                &at("boot.img"),
                "4M",
            ],
        );
        fs::write(self.path("root.img"), pattern(6 * MIB, 7)).unwrap();
        for (file, mib) in [("boot.img", 1), ("root.img", 5)] {
            let (from, to) = (format!("if={}", at(file)), format!("of={}", at("disk.img")));
            run("dd", &[&from, &to, "bs=1M", &format!("seek={mib}"), "conv=notrunc,sparse", "status=none"]);
        }
        image
    }

    fn bundle(&self, option: &str, image: &Path, key: &KeyPair) -> String {
        let out = self.path("disk.bundle");
        let args = [
            "bundle",
            "create",
            option,
            image.to_str().unwrap(),
            "--version",
            "2.0.0",
            "--compatible",
            "intel-nuc",
        ];
        let rest = ["--level", "1", "--key", key.secret.to_str().unwrap(), "-o", out.to_str().unwrap()];
        let made = twinhull(&[&args[..], &rest].concat());
        assert_eq!(outcome(&made).0, 0, "{made:?}");
        out.to_str().unwrap().to_owned()
    }

    /// A disk of the installer's host, full of something else.
    fn disk(&self, name: &str, mib: u64) -> PathBuf {
        let device = self.installer.path(&format!("dev/{name}"));
        fs::write(&device, vec![0xa5; usize::try_from(mib * MIB).unwrap()]).unwrap();
        self.installer.write(&format!("sys/block/{name}/size"), &(mib * 2048).to_string());
        self.installer.write(&format!("sys/block/{name}/device/serial"), "S-42\n");
        device
    }

    fn flash(&self, args: &[&str]) -> (i32, String) {
        outcome(&self.installer.twinhull(&[&["flash"], args].concat()))
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_written() {
    let lab = Lab::new();
    let image = lab.image();
    let bundle = lab.bundle("--disk", &image, &lab.key);
    let (disk, small) = (lab.disk("nvme0n1", 32), lab.disk("sda", 8));
    let before = fs::read(&disk).unwrap();
    let own = fs::read(lab.installer.path("dev/vda")).unwrap();
    let refused = |args: &[&str], expected: &str| {
        let (code, text) = lab.flash(args);
        assert!(code == 3 && text.contains(expected), "{args:?}: {code}: {text}");
        assert!(fs::read(&disk).unwrap() == before && fs::metadata(&small).unwrap().len() == 8 * MIB);
        assert!(fs::read(lab.installer.path("dev/vda")).unwrap() == own);
        text
    };
    let text = refused(&[&bundle], "nothing is written yet; add --yes");
    assert!(text.contains("dev/nvme0n1, 33 MB, model not told, serial S-42\n"), "{text}");
    assert!(
        text.contains("dev/sda, 8 MB, model not told, serial S-42: too small: the image has 25 MB"),
        "{text}"
    );
    refused(&["--yes", "--target", "vda", &bundle], "vda: this system runs from it");
    refused(&["--yes", "--target", "/dev/sda", &bundle], "sda: too small");
    refused(&["--yes", "--target", "nvme1n1", &bundle], "nvme0n1: not in the list");
    let target = r#"{"deviceType":"intel-nuc","installer":{"target_devices":"sdb sda"}}"#;
    lab.installer.write("mnt/boot/config.json", target);
    refused(&["--yes", &bundle], "looked for sdb sda");
    lab.installer.write("mnt/boot/config.json", r#"{"deviceType":"intel-nuc"}"#);
    lab.installer.write("sys/block/nvme0n1/queue/logical_block_size", "4096");
    refused(&["--yes", &bundle], "sectors of 512 bytes, this one has sectors of 4096; nothing was written");
    let root = lab.bundle("--image", &image, &lab.key);
    refused(&["--yes", &root], "not a whole disk");
    let stranger = KeyPair::new(lab.dir.path(), "stranger");
    let other = lab.bundle("--disk", &image, &stranger);
    refused(&["--yes", &other], "signed by");
    lab.installer.write("mnt/boot/device-type.json", r#"{"slug":"fincm3","arch":"armv7hf"}"#);
    let bundle = lab.bundle("--disk", &image, &lab.key);
    refused(&["--yes", &bundle], "this device is fincm3");
    let (code, text) = outcome(&twinhull(&["flash", "--disk", "x"]));
    assert!(code == 2 && text.contains("flash: invalid option '--disk'"), "{text}");
}

#[test]
fn a_disk_bundle_is_no_update() {
    let lab = Lab::new();
    let bundle = lab.bundle("--disk", &lab.image(), &lab.key);
    let (code, text) = outcome(&lab.installer.twinhull(&["install", &bundle]));
    assert!(code == 3 && text.contains("holds a whole disk, for an installer"), "{text}");
    let keys = lab.installer.path("usr/share/twinhull/keys.d");
    let verified = twinhull(&["bundle", "verify", &bundle, "--keys", keys.to_str().unwrap()]);
    assert_eq!(outcome(&verified).0, 0, "{verified:?}");
}

#[test]
fn a_bundle_that_is_damaged_leaves_a_disk_that_does_not_boot_and_a_retry_works() {
    let lab = Lab::new();
    let image = lab.image();
    let bundle = lab.bundle("--disk", &image, &lab.key);
    let disk = lab.disk("nvme0n1", 32);
    // Something that boots, before.
    run(
        "dd",
        &[
            &format!("if={}", image.display()),
            &format!("of={}", disk.display()),
            "conv=notrunc",
            "status=none",
        ],
    );
    let good = fs::read(&bundle).unwrap();
    let mut bad = good.clone();
    let at = bad.len() - 4096;
    bad[at] ^= 1;
    fs::write(&bundle, &bad).unwrap();
    let (code, text) = lab.flash(&["--yes", &bundle]);
    assert!(code == 1, "{code}: {text}");
    let left = fs::read(&disk).unwrap();
    assert!(left[..MIB as usize].iter().all(|b| *b == 0), "no partition table");
    assert!(left[31 * MIB as usize..].iter().all(|b| *b == 0), "nor a copy of one");
    // Everything but the last steps works on a file, too: the kernel knows no partitions of it.
    fs::write(&bundle, &good).unwrap();
    let (code, text) = lab.flash(&["--yes", &bundle]);
    assert!(code == 1 && text.contains("this disk does not boot now, run it again"), "{code}: {text}");
    let written = fs::read(&disk).unwrap();
    let expected = fs::read(&image).unwrap();
    let (head, tail) = (MIB as usize, IMAGE as usize);
    assert!(written[head..tail] == expected[head..tail], "every block, and holes are zero");
    assert!(written[..head].iter().all(|b| *b == 0));
}

/// A loop device, if this machine has any.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Option<Self> {
        let output =
            Command::new("losetup").args(["--find", "--show", "--partscan"]).arg(file).output().ok()?;
        let name = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !name.is_empty()).then_some(Self(name))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn on_a_block_device_the_whole_of_it() {
    let lab = Lab::new();
    let image = lab.image();
    let bundle = lab.bundle("--disk", &image, &lab.key);
    let file = lab.path("medium");
    fs::write(&file, vec![0xa5; 40 << 20]).unwrap();
    let Some(device) = Loop::new(&file) else {
        println!("SKIPPED: needs root and a loop device");
        return;
    };
    // It is called sdb on the installer's host.
    lab.installer.write("sys/block/sdb/size", &(40 * 2048).to_string());
    std::os::unix::fs::symlink(&device.0, lab.installer.path("dev/sdb")).unwrap();
    let variables = lab.installer.path("sys/firmware/efi/efivars");
    fs::create_dir_all(&variables).unwrap();
    fs::write(variables.join("BootOrder-8be4df61-93ca-11d2-aa0d-00e098032b8c"), [7, 0, 0, 0, 5, 0]).unwrap();
    for _twice in 0..2 {
        let (code, text) = lab.flash(&["--yes", "--target", "sdb", &bundle]);
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("carried over: config.json, system-connections"), "{text}");
        assert!(text.contains("boot entry 0000 is the first"), "{text}");
    }
    run("sgdisk", &["--verify", &device.0]);
    run("sfdisk", &["--verify", &device.0]);
    let written = fs::read(&file).unwrap();
    let expected = fs::read(&image).unwrap();
    let differs =
        |from: u64, to: u64| written[from as usize..to as usize] != expected[from as usize..to as usize];
    assert!(!differs(0, MIB) && !differs(5 * MIB, IMAGE), "all but the boot partition");
    let boot = lab.path("boot-as-written.img");
    fs::write(&boot, &written[MIB as usize..5 * MIB as usize]).unwrap();
    let cat = |path: &str| run("debugfs", &["-R", &format!("cat {path}"), boot.to_str().unwrap()]);
    let config: serde_json::Value = serde_json::from_str(&cat("/config.json")).unwrap();
    assert_eq!(config, serde_json::json!({ "deviceType": "intel-nuc", "apiKey": "k" }));
    assert_eq!(cat("/system-connections/wifi"), "[connection]\n");
    run("e2fsck", &["-fn", boot.to_str().unwrap()]);
}
