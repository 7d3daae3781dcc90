//! Discovery over made-up sysfs trees: a directory stands for the host, image files for its disks.

use std::path::Path;
use std::process::Command;

use twinhull::block::{BootedDisk, Table, label};
use twinhull::model::Slot;
use twinhull::{Kind, Root};

use crate::tools::{Image, MIB, Scratch, device_script, must};

struct Host {
    scratch: Scratch,
}

impl Host {
    fn new(cmdline: &str) -> Self {
        let host = Self { scratch: Scratch::new() };
        host.write("proc/cmdline", cmdline);
        host
    }

    fn root(&self) -> Root {
        Root::new(self.scratch.path(""))
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.scratch.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Plugs a disk in: its image, and what the kernel's sysfs says of it and its partitions.
    fn plug(&self, name: &str, image: &Image, sector_bytes: u64, removable: bool) {
        std::fs::create_dir_all(self.scratch.path("dev")).unwrap();
        image.save(&self.scratch.path(&format!("dev/{name}")));
        let sys = format!("sys/block/{name}");
        self.write(&format!("{sys}/size"), &format!("{}\n", image.len / 512));
        self.write(&format!("{sys}/removable"), if removable { "1\n" } else { "0\n" });
        self.write(&format!("{sys}/queue/logical_block_size"), &format!("{sector_bytes}\n"));
        let Ok(Some(table)) = image.clone().table(sector_bytes) else { return };
        for p in table.partitions() {
            let separator = if name.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
            let partition = format!("{name}{separator}{}", p.number);
            self.write(&format!("dev/{partition}"), "");
            self.write(&format!("{sys}/{partition}/partition"), &format!("{}\n", p.number));
            self.write(&format!("{sys}/{partition}/start"), &format!("{}\n", p.start_bytes / 512));
            self.write(&format!("{sys}/{partition}/size"), &format!("{}\n", p.len_bytes / 512));
        }
    }

    fn find(&self) -> twinhull::Result<BootedDisk> {
        BootedDisk::find(&self.root())
    }

    fn error(&self) -> String {
        self.find().unwrap_err().to_string().replace(self.scratch.path("").to_str().unwrap(), "/")
    }

    fn dev(&self, name: &str) -> std::path::PathBuf {
        self.scratch.path("dev").join(name)
    }
}

fn device(sector_bytes: u64) -> Image {
    Scratch::new().fdisk(32 * MIB, sector_bytes, &device_script(sector_bytes))
}

/// Puts an ext4 with a label at `mib` of a disk.
fn with_ext4(image: &Image, mib: u64, label: &str) -> Image {
    with_file_system(image, mib, &["mke2fs", "-q", "-t", "ext4", "-L", label])
}

fn with_file_system(image: &Image, mib: u64, command: &[&str]) -> Image {
    let scratch = Scratch::new();
    let file = scratch.path("fs");
    Image { len: 2 * MIB, sectors: Default::default() }.save(&file);
    must(command[0], &[&command[1..], &[file.to_str().unwrap()]].concat(), "");
    let mut image = image.clone();
    for (at, sector) in Image::load(&file).sectors {
        *image.sector_mut(mib * 2048 + at) = sector;
    }
    image
}

fn mbr() -> Image {
    let mut script = String::from("label: dos\nlabel-id: 0x1a2b3c4d\n");
    for (number, start, len, kind) in [
        (1, 4, 4, "c"),
        (2, 8, 4, "83"),
        (3, 12, 4, "83"),
        (4, 16, 16, "f"),
        (5, 20, 4, "83"),
        (6, 28, 4, "83"),
    ] {
        script += &format!("{number}: start={}, size={}, type={kind}\n", start * 2048, len * 2048);
    }
    let image = Scratch::new().fdisk(64 * MIB, 512, &script);
    let image = with_file_system(&image, 4, &["mkfs.vfat", "-n", "RESIN-BOOT"]);
    with_ext4(&with_ext4(&image, 20, "resin-state"), 28, "resin-data")
}

#[test]
fn finds_slot_and_partitions_by_name() {
    for (sector_bytes, cmdline, slot) in [
        (512, "root=PARTLABEL=resin-rootA ro", Slot::A),
        (512, "root=PARTLABEL=resin-rootB ro", Slot::B),
        (4096, "root=PARTLABEL=resin-rootB ro", Slot::B),
        (512, "root=LABEL=resin-rootB", Slot::B),
        (512, "root=/dev/nvme0n1p2", Slot::A),
    ] {
        let host = Host::new(cmdline);
        host.plug("nvme0n1", &device(sector_bytes), sector_bytes, false);
        let disk = host.find().unwrap();
        assert_eq!(disk.slot(), slot, "{cmdline}");
        assert_eq!(disk.device, host.dev("nvme0n1"));
        let other = disk.slot_partition(!slot).unwrap();
        assert_eq!(other.label, label::root(!slot));
        let data = disk.partition("resin-data").unwrap();
        assert_eq!((data.device.clone(), data.number), (host.dev("nvme0n1p5"), 5));
        assert_eq!((data.start_bytes, data.len_bytes), (18 * MIB, 8 * MIB));
        assert!(disk.without_device.is_empty() && disk.also_matching.is_empty());
    }
}

#[test]
fn partuuid_is_found_in_any_case() {
    let image = device(512);
    let id = image.clone().partitions(512)[2].partuuid.to_uppercase();
    let host = Host::new(&format!("root=PARTUUID={id}"));
    host.plug("sda", &image, 512, false);
    assert_eq!(host.find().unwrap().slot(), Slot::B);
}

#[test]
fn mbr_slots_are_the_two_after_the_boot_partition() {
    // Both slots hold an image that was made with one label.
    let image = with_ext4(&with_ext4(&mbr(), 8, "resin-rootA"), 12, "resin-rootA");
    for (cmdline, slot) in [("root=PARTUUID=1A2B3C4D-02", Slot::A), ("root=/dev/mmcblk0p3", Slot::B)] {
        let host = Host::new(cmdline);
        host.plug("mmcblk0", &image, 512, false);
        let disk = host.find().unwrap();
        assert_eq!(disk.slot(), slot);
        let numbers = ["resin-boot", "resin-rootA", "resin-rootB", "resin-state", "resin-data"]
            .map(|l| disk.partition(l).map(|p| p.number));
        assert_eq!(numbers, [Some(1), Some(2), Some(3), Some(5), Some(6)]);
        assert!(matches!(disk.table, Table::Mbr(_)));
    }
}

#[test]
fn mbr_slots_come_after_the_boot_partitions_that_each_slot_has() {
    let mut script = String::from("label: dos\nlabel-id: 0x1a2b3c4d\n");
    for (number, start, len, kind) in [
        (1, 4, 4, "c"),
        (2, 8, 4, "c"),
        (3, 12, 4, "c"),
        (4, 16, 40, "f"),
        (5, 20, 4, "83"),
        (6, 28, 4, "83"),
        (7, 36, 4, "83"),
        (8, 44, 4, "83"),
    ] {
        script += &format!("{number}: start={}, size={}, type={kind}\n", start * 2048, len * 2048);
    }
    let mut image = Scratch::new().fdisk(64 * MIB, 512, &script);
    for (mib, name) in [(4, "RESIN-BOOT"), (8, "BOOT-A"), (12, "BOOT-B")] {
        image = with_file_system(&image, mib, &["mkfs.vfat", "-n", name]);
    }
    // Slot B was never written.
    for (mib, name) in [(20, "resin-rootB"), (36, "resin-state"), (44, "resin-data")] {
        image = with_ext4(&image, mib, name);
    }
    let host = Host::new("root=PARTUUID=1A2B3C4D-05");
    host.plug("mmcblk0", &image, 512, false);
    let disk = host.find().unwrap();
    assert_eq!(disk.slot(), Slot::A);
    let numbers = label::ALL.map(|l| disk.partition(l).map(|p| p.number));
    assert_eq!(numbers, [Some(1), Some(5), Some(6), Some(7), Some(8)]);
}

#[test]
fn uuid_of_the_root_file_system_is_found() {
    let image = with_file_system(
        &mbr(),
        12,
        &["mke2fs", "-q", "-t", "ext4", "-U", "ba1eadef-1234-4567-89ab-0123456789ab"],
    );
    let host = Host::new("root=UUID=BA1EADEF-1234-4567-89ab-0123456789ab");
    host.plug("mmcblk0", &image, 512, false);
    assert_eq!(host.find().unwrap().slot(), Slot::B);
}

#[test]
fn the_name_in_the_table_goes_before_the_label_in_the_slot() {
    let image = with_ext4(&with_ext4(&device(512), 8, "resin-rootA"), 12, "resin-rootA");
    let host = Host::new("root=PARTLABEL=resin-rootB");
    host.plug("sda", &image, 512, false);
    assert_eq!(host.find().unwrap().slot(), Slot::B);
}

#[test]
fn of_two_disks_the_fixed_one_and_then_the_first_by_name_is_taken() {
    let host = Host::new("root=PARTLABEL=resin-rootA");
    host.plug("sda", &device(512), 512, true);
    host.plug("sdc", &device(512), 512, false);
    host.plug("sdb", &device(512), 512, false);
    let disk = host.find().unwrap();
    assert_eq!(disk.device, host.dev("sdb"));
    assert_eq!(disk.also_matching, [host.dev("sdc"), host.dev("sda")]);
    assert!(disk.partitions.iter().all(|p| p.device.to_string_lossy().contains("sdb")));
}

#[test]
fn the_note_of_pid_1_goes_before_the_command_line() {
    let host = Host::new("root=PARTLABEL=resin-rootA");
    host.plug("sda", &device(512), 512, false);
    host.plug("sdb", &device(512), 512, true);
    host.write("run/twinhull/root-device", "sdb3\n");
    let disk = host.find().unwrap();
    assert_eq!((disk.device.clone(), disk.slot()), (host.dev("sdb"), Slot::B));
}

#[test]
fn disks_without_a_readable_table_are_passed_over_and_told_of_in_the_error() {
    let host = Host::new("root=PARTLABEL=resin-rootA");
    host.plug("sda", &Image { len: MIB, sectors: Default::default() }, 512, false);
    let mut damaged = device(512);
    *damaged.sector_mut(1) = [0; 512];
    let last = damaged.len / 512 - 1;
    *damaged.sector_mut(last) = [0; 512];
    host.plug("sdb", &damaged, 512, false);
    assert_eq!(
        host.error(),
        "root=PARTLABEL=resin-rootA: no such partition; found sda without a partition table; /dev/sdb: GPT: both \
         copies are damaged: header at LBA 1: no \"EFI PART\"; header at LBA 65535: no \"EFI PART\""
    );
    host.plug("sdc", &device(512), 512, false);
    assert_eq!(host.find().unwrap().device, host.dev("sdc"));
}

#[test]
fn memory_and_hidden_disks_are_not_looked_at() {
    let host = Host::new("root=PARTLABEL=resin-rootA");
    for name in ["loop0", "ram0", "zram0", "sr0", "dm-0"] {
        host.plug(name, &device(512), 512, false);
    }
    host.plug("nvme0c0n1", &device(512), 512, false);
    host.write("sys/block/nvme0c0n1/hidden", "1\n");
    assert!(host.error().ends_with("found no disk at all"), "{}", host.error());
}

#[test]
fn a_root_that_is_no_slot_or_a_name_that_is_there_twice_is_inconsistent() {
    let host = Host::new("root=PARTLABEL=resin-state");
    host.plug("sda", &device(512), 512, false);
    assert_eq!(host.find().unwrap_err().kind(), Kind::Inconsistent);

    let twice = Scratch::new().fdisk(
        32 * MIB,
        512,
        "label: gpt\nstart=2048, size=2048, name=resin-rootA\nstart=4096, size=2048, name=resin-rootA\n",
    );
    let host = Host::new("root=PARTLABEL=resin-rootA");
    host.plug("sda", &twice, 512, false);
    assert!(host.error().ends_with("two partitions are called resin-rootA"), "{}", host.error());
}

#[test]
fn partitions_that_the_kernel_does_not_have_or_has_elsewhere_are_not_used() {
    let host = Host::new("root=PARTLABEL=resin-rootA");
    host.plug("sda", &device(512), 512, false);
    std::fs::remove_file(host.dev("sda5")).unwrap();
    host.write("sys/block/sda/sda4/start", "1\n");
    let disk = host.find().unwrap();
    assert_eq!(disk.without_device, [4, 5]);
    let e = disk.required("resin-data").unwrap_err().to_string();
    assert!(e.ends_with("sda: no partition resin-data; it has resin-boot, resin-rootA, resin-rootB"), "{e}");
}

fn dry_run(host: &Host, args: &[&str]) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_twinhull"))
        .args(["init", "--root", host.scratch.path("").to_str().unwrap()])
        .args(args)
        .output()
        .unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

#[test]
fn dry_run_says_what_would_be_mounted_and_grown() {
    let host = Host::new("root=PARTLABEL=resin-rootB init=/bin/next");
    host.plug("sda", &with_ext4(&device(512), 18, "resin-data").with_len(200 * MIB), 512, false);
    host.write("usr/lib/twinhull/10.toml", "[init]\npersist = [\"/etc/hostname\"]\n");
    let (code, text, _) = dry_run(&host, &["--dry-run"]);
    assert_eq!(code, 0);
    for expected in [
        "GPT, sectors of 512 bytes; slot B\n",
        "/ (read-only)\n",
        "not mounted (the other slot)\n",
        "data partition would grow from 8 MiB to 181 MiB\n",
        "kept on the state partition: /etc/hostname\n",
        "next init: /bin/next\n",
    ] {
        assert!(text.contains(expected), "{expected:?} in {text}");
    }
    let (code, text, _) = dry_run(&host, &["--dry-run", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &json["slot"], &json["growth"]["to_bytes"]), (0, &"B".into(), &(181 * MIB).into()));
    assert_eq!(json["partitions"][4]["file_system"], "ext4");
}

#[test]
fn by_hand_without_dry_run_it_refuses() {
    let host = Host::new("root=PARTLABEL=resin-rootA");
    let (code, out, err) = dry_run(&host, &[]);
    assert_eq!((code, out.as_str()), (3, ""));
    assert!(err.contains("--dry-run"), "{err}");
    let (code, _, err) = dry_run(&host, &["--dry-run"]);
    assert_eq!(code, 1);
    assert!(err.contains("found no disk at all"), "{err}");
    assert_eq!(dry_run(&host, &["--nonsense"]).0, 2);
    assert!(Path::new("/proc").exists());
}

#[test]
fn a_state_partition_that_lost_its_label_is_known_by_its_place_on_an_mbr_only() {
    let without_state = |image: &Image| {
        let mut image = image.clone();
        image
            .sectors
            .retain(|at, _| !(20 * 2048..24 * 2048).contains(at) || at % 2048 == 0 && *at < 20 * 2048);
        image
    };
    let find = |image: &Image| {
        let host = Host::new("root=PARTUUID=1a2b3c4d-02");
        host.plug("mmcblk0", image, 512, false);
        host.find().unwrap().state_without_label().map(|p| (p.number, p.label))
    };
    assert_eq!(find(&mbr()), None, "its label is there");
    let lost = without_state(&mbr());
    assert_eq!(find(&lost), Some((5, "resin-state".into())));
    // Something else lives there, or data is not known: no guess.
    assert_eq!(find(&with_ext4(&lost, 20, "other")), None);
    let mut no_data = lost.clone();
    no_data.sectors.retain(|at, _| *at < 28 * 2048);
    assert_eq!(find(&no_data), None);

    let host = Host::new("root=PARTLABEL=resin-rootA");
    host.plug("sda", &device(512), 512, false);
    assert_eq!(host.find().unwrap().state_without_label(), None, "a GPT has names");
    assert_eq!(host.find().unwrap().data_without_label(), None, "a GPT has names");
}

/// Such a device must boot all the same, and e2fsck may find another superblock.
#[test]
fn a_data_partition_that_lost_its_label_is_known_by_its_place_on_an_mbr_only() {
    let find = |image: &Image| {
        let host = Host::new("root=PARTUUID=1a2b3c4d-02");
        host.plug("mmcblk0", image, 512, false);
        let disk = host.find().unwrap();
        (disk.data_without_label().map(|p| (p.number, p.label)), disk.partition("resin-data").is_some())
    };
    assert_eq!(find(&mbr()), (None, true), "its label is there");
    let mut lost = mbr();
    lost.sectors.retain(|at, _| *at < 28 * 2048);
    assert_eq!(find(&lost), (Some((6, "resin-data".into())), false));
    // Something else lives there, or state is not known: no guess.
    assert_eq!(find(&with_ext4(&lost, 28, "other")).0, None);
    lost.sectors.retain(|at, _| !(20 * 2048..24 * 2048).contains(at));
    assert_eq!(find(&lost).0, None);
}
