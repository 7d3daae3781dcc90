//! Finding the disk that holds the root we booted from, and its partitions.
//!
//! Partitions are looked up on that disk only: a second disk with the same labels (an installer stick, an old
//! disk of the same kind) must never be mounted by mistake.

use std::path::{Path, PathBuf};

use super::disk::{Disk, FileDisk};
use super::superblock::{self, Superblock};
use super::table::{Table, TableEntry};
use crate::model::{Cmdline, RootSpec, Slot};
use crate::{Doing, Error, Result, Root, sys};

/// Labels of a device's partitions, as balenaOS has them.
pub mod label {
    use crate::model::Slot;

    /// The bootloader, its environment and `config.json` (FAT).
    pub const BOOT: &str = "resin-boot";
    /// What must survive updates (ext4).
    pub const STATE: &str = "resin-state";
    /// Containers; the last partition, grown on first boot (ext4).
    pub const DATA: &str = "resin-data";

    /// The root partition of a slot.
    pub const fn root(slot: Slot) -> &'static str {
        match slot {
            Slot::A => "resin-rootA",
            Slot::B => "resin-rootB",
        }
    }

    /// All of them.
    pub const ALL: [&str; 5] = [BOOT, root(Slot::A), root(Slot::B), STATE, DATA];
}

/// PID 1's note, for the running system, of the partition that it mounted as root: the kernel's name of it.
/// `root=` alone may mean another disk once one was plugged in.
pub const ROOT_DEVICE_NOTE: &str = "/run/twinhull/root-device";

/// Disks that cannot hold a root: memory, images, optical media, maps of other disks.
const PASSED_OVER: [&str; 8] = ["loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd"];
const SMALL_FILE: u64 = 64 * 1024;

/// A partition of the disk we booted from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its device, such as `/dev/nvme0n1p2`.
    pub device: PathBuf,
    /// Its number in the table, from 1.
    pub number: u32,
    /// What it is for: its GPT name if that is one of ours, else its file system's label, else its GPT name.
    pub label: String,
    /// The table's id of it, lower case.
    pub partuuid: String,
    /// Where it starts on the disk, in bytes.
    pub start_bytes: u64,
    /// Its size in bytes, as the kernel has it.
    pub len_bytes: u64,
    /// What it holds; `None` if that is not known here, as in a slot that was never written.
    pub file_system: Option<Superblock>,
    /// Its name in a GPT; empty on MBR.
    pub name: String,
}

impl Partition {
    fn kernel_name(&self) -> &str {
        self.device.file_name().and_then(|n| n.to_str()).unwrap_or("")
    }

    fn is(&self, spec: &RootSpec) -> bool {
        let of_file_system = |f: fn(&Superblock) -> &String, text: &String| {
            self.file_system.as_ref().is_some_and(|s| f(s) == text)
        };
        match spec {
            RootSpec::PartUuid(id) => self.partuuid == *id,
            RootSpec::PartLabel(name) => self.name == *name,
            RootSpec::Label(label) => self.label == *label || of_file_system(|s| &s.label, label),
            RootSpec::Uuid(id) => of_file_system(|s| &s.uuid, id),
            RootSpec::Device(name) => self.kernel_name() == name,
        }
    }
}

/// The disk that holds the root we booted from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootedDisk {
    /// Its device, such as `/dev/nvme0n1`.
    pub device: PathBuf,
    /// Bytes per logical sector.
    pub sector_bytes: u64,
    /// Its partition table.
    pub table: Table,
    /// Its partitions, by number.
    pub partitions: Vec<Partition>,
    /// Numbers of partitions that are in the table, but of which the kernel has no device (yet).
    pub without_device: Vec<u32>,
    /// Other disks with a partition that `root=` fits just as well; they were passed over.
    pub also_matching: Vec<PathBuf>,
    slot: Slot,
}

impl BootedDisk {
    /// Finds the disk of the root that this host runs from: by PID 1's note, else by `root=`.
    ///
    /// # Errors
    /// `Failed` if there is no `root=` or no such partition, with what was found instead; `Inconsistent` if the
    /// partition is no slot, or a label is there twice.
    pub fn find(root: &Root) -> Result<Self> {
        let note = sys::file::read_if_exists(&root.path(ROOT_DEVICE_NOTE), SMALL_FILE)?;
        let spec = match note.map(|n| String::from_utf8_lossy(&n).trim().to_owned()) {
            Some(name) if !name.is_empty() => RootSpec::Device(name),
            _ => Cmdline::parse(&sys::file::read_text(&root.path("/proc/cmdline"), SMALL_FILE)?).root()?,
        };
        match Self::search(root, &spec)? {
            Some(disk) => Ok(disk),
            None => Err(not_found(root, &spec)),
        }
    }

    /// Looks once for the disk with the partition that `spec` names; `None` if there is none (yet).
    ///
    /// If several disks have one, the first is taken: fixed disks before removable ones, then by the kernel's
    /// name, digits as numbers (`mmcblk0`, `nvme0n1`, `sda`, `sdb`, `vda`).
    ///
    /// # Errors
    /// As [`BootedDisk::find`], but a disk that cannot be read or has no table is passed over.
    pub fn search(root: &Root, spec: &RootSpec) -> Result<Option<Self>> {
        let mut first: Option<Scanned> = None;
        let mut also_matching = Vec::new();
        for name in disk_names(root)? {
            let Ok(Some(disk)) = scan(root, &name) else { continue };
            if !disk.partitions.iter().any(|p| p.is(spec)) {
                continue;
            }
            match first {
                None => first = Some(disk),
                Some(_) => also_matching.push(disk.device),
            }
        }
        first.map(|disk| disk.booted(spec, also_matching)).transpose()
    }

    /// The slot that runs.
    pub const fn slot(&self) -> Slot {
        self.slot
    }

    /// The same disk with `slot` as the one that runs, whatever `root=` says: for PID 1, where it chooses.
    ///
    /// # Errors
    /// `Failed` if the disk has no such slot.
    pub fn running(self, slot: Slot) -> Result<Self> {
        self.slot_partition(slot)?;
        Ok(Self { slot, ..self })
    }

    /// The root partition of a slot.
    ///
    /// # Errors
    /// `Failed` if the disk has none.
    pub fn slot_partition(&self, slot: Slot) -> Result<&Partition> {
        self.required(label::root(slot))
    }

    /// The partition with a label, if there is one.
    pub fn partition(&self, label: &str) -> Option<&Partition> {
        self.partitions.iter().find(|p| p.label == label)
    }

    /// The state partition of an MBR, which has no names, if its file system is so damaged that it has lost its label:
    /// the one right before the data partition, both logical, which holds nothing that is known. `None` where there is
    /// any doubt.
    pub fn state_without_label(&self) -> Option<Partition> {
        let data = self.partition(label::DATA)?.number;
        let found = self.partitions.iter().find(|p| p.number + 1 == data)?;
        let lost = matches!(self.table, Table::Mbr(_)) && found.number >= 5 && found.file_system.is_none();
        let state = Partition { label: label::STATE.into(), ..found.clone() };
        (lost && self.partition(label::STATE).is_none()).then_some(state)
    }

    /// The data partition of an MBR, if its file system is so damaged that it has lost its label: the one right after the
    /// state partition, and the last. `None` where there is any doubt.
    pub fn data_without_label(&self) -> Option<Partition> {
        let state = self.partition(label::STATE)?.number;
        let found = self.partitions.last().filter(|p| p.number == state + 1)?;
        let lost = matches!(self.table, Table::Mbr(_)) && found.number >= 5 && found.file_system.is_none();
        let data = Partition { label: label::DATA.into(), ..found.clone() };
        (lost && self.partition(label::DATA).is_none()).then_some(data)
    }

    /// The partition with a label.
    ///
    /// # Errors
    /// `Failed` if the disk has none.
    pub fn required(&self, label: &str) -> Result<&Partition> {
        self.partition(label).ok_or_else(|| {
            let found: Vec<_> = self.partitions.iter().map(|p| p.label.as_str()).collect();
            let device = self.device.display();
            Error::failed(format!("{device}: no partition {label}; it has {}", found.join(", ")))
        })
    }
}

/// Says that no disk has the root, and what each disk has.
pub fn not_found(root: &Root, spec: &RootSpec) -> Error {
    let mut seen = Vec::new();
    for name in disk_names(root).unwrap_or_default() {
        seen.push(match scan(root, &name) {
            Ok(Some(disk)) => format!("{name} with {} partitions", disk.partitions.len()),
            Ok(None) => format!("{name} without a partition table"),
            Err(e) => e.to_string(),
        });
    }
    let seen = if seen.is_empty() { "no disk at all".into() } else { seen.join("; ") };
    Error::failed(format!("root={spec}: no such partition; found {seen}"))
}

/// A disk with a table.
struct Scanned {
    device: PathBuf,
    sector_bytes: u64,
    table: Table,
    partitions: Vec<Partition>,
    without_device: Vec<u32>,
}

impl Scanned {
    fn booted(self, spec: &RootSpec, also_matching: Vec<PathBuf>) -> Result<BootedDisk> {
        let Self { device, sector_bytes, table, partitions, without_device } = self;
        for wanted in label::ALL {
            if partitions.iter().filter(|p| p.label == wanted).count() > 1 {
                let text = format!("{}: two partitions are called {wanted}", device.display());
                return Err(Error::inconsistent(text));
            }
        }
        // A name in the table is meant for this lookup; a file system's label may be a copy of another slot's.
        let by_label = |s: Slot| partitions.iter().any(|p| p.is(spec) && p.label == label::root(s));
        let slot = Slot::ALL.into_iter().find(|s| by_label(*s)).ok_or_else(|| {
            let found: Vec<_> = partitions.iter().filter(|p| p.is(spec)).map(|p| p.label.as_str()).collect();
            Error::inconsistent(format!(
                "root={spec} on {}: the partition is called {:?}, expected {} or {}",
                device.display(),
                found.join(", "),
                label::root(Slot::A),
                label::root(Slot::B)
            ))
        })?;
        Ok(BootedDisk { device, sector_bytes, table, partitions, without_device, also_matching, slot })
    }
}

/// The kernel's names of the disks that may hold a root, in the order of preference.
fn disk_names(root: &Root) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for path in sys::file::list(&root.path("/sys/block"))? {
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let flag = |attribute: &str| number(&path.join(attribute)).unwrap_or(0) != 0;
        // Hidden: one of several paths to a disk, without a device (NVMe multipath).
        if !PASSED_OVER.iter().any(|p| name.starts_with(p)) && flag("size") && !flag("hidden") {
            let removable = flag("removable");
            names.push((removable, natural(name), name.to_owned()));
        }
    }
    names.sort();
    Ok(names.into_iter().map(|(_, _, name)| name).collect())
}

/// A name as its letters and numbers, so that `sd9` sorts before `sd10`.
pub fn natural(name: &str) -> Vec<(String, u64)> {
    let mut parts = vec![(String::new(), 0_u64)];
    let mut in_number = false;
    for c in name.chars() {
        let digit = c.to_digit(10);
        if in_number && digit.is_none() {
            parts.push((String::new(), 0));
        }
        in_number = digit.is_some();
        if let Some((letters, n)) = parts.last_mut() {
            match digit {
                Some(d) => *n = n.saturating_mul(10).saturating_add(d.into()),
                None => letters.push(c),
            }
        }
    }
    parts
}

/// Reads a disk's table and joins it with what the kernel made of it; `None` if it has no table.
fn scan(root: &Root, name: &str) -> Result<Option<Scanned>> {
    let sysfs = root.path("/sys/block").join(name);
    let device = root.path("/dev").join(name);
    let sector_bytes = number(&sysfs.join("queue/logical_block_size"))?;
    let mut disk = FileDisk::open_read_only(&device)?;
    let Some(table) = Table::read(&mut disk, sector_bytes).doing(|| device.display().to_string())? else {
        return Ok(None);
    };
    let known = kernel_partitions(root, &sysfs)?;
    let (mut partitions, mut without_device) = (Vec::new(), Vec::new());
    for entry in table.partitions() {
        // A partition that starts elsewhere than the table says is one of an older table: not to be touched.
        match known.iter().find(|k| k.number == entry.number && k.start_bytes == entry.start_bytes) {
            Some(k) => partitions.push(join(&mut disk, entry, k)),
            None => without_device.push(entry.number),
        }
    }
    name_roots_by_place(&mut partitions);
    Ok(Some(Scanned { device, sector_bytes, table, partitions, without_device }))
}

/// A partition as the kernel has it.
struct KernelPartition {
    device: PathBuf,
    number: u32,
    start_bytes: u64,
    len_bytes: u64,
}

fn kernel_partitions(root: &Root, sysfs_disk: &Path) -> Result<Vec<KernelPartition>> {
    let mut found = Vec::new();
    for path in sys::file::list(sysfs_disk)? {
        let Some(name) = path.file_name() else { continue };
        let device = root.path("/dev").join(name);
        let Ok(number_of) = number(&path.join("partition")) else { continue };
        if !device.exists() {
            continue;
        }
        found.push(KernelPartition {
            device,
            number: u32::try_from(number_of).unwrap_or(0),
            // Always in units of 512 bytes, whatever the disk's sectors are.
            start_bytes: number(&path.join("start"))?.saturating_mul(512),
            len_bytes: number(&path.join("size"))?.saturating_mul(512),
        });
    }
    Ok(found)
}

/// A partition whose start cannot be read is there all the same, without a file system: a sector that a power cut has spoilt in
/// one must not hide the others, and is mended by writing it.
fn join(disk: &mut impl Disk, entry: TableEntry, kernel: &KernelPartition) -> Partition {
    let file_system = superblock::probe(disk, entry.start_bytes, kernel.len_bytes).unwrap_or_else(|e| {
        log::warn!("{}: {e}", kernel.device.display());
        None
    });
    let label = label_of(&entry.name, file_system.as_ref().map_or("", |s| &s.label));
    Partition {
        device: kernel.device.clone(),
        number: entry.number,
        label,
        partuuid: entry.partuuid,
        start_bytes: entry.start_bytes,
        len_bytes: kernel.len_bytes,
        file_system,
        name: entry.name,
    }
}

/// What a partition is called. The table's name goes first: the file system in a slot came with an image that
/// may have been made for the other one.
fn label_of(name: &str, file_system: &str) -> String {
    if label::ALL.contains(&name) {
        return name.into();
    }
    // Some FAT tools write labels in capitals.
    match label::ALL.into_iter().find(|l| l.eq_ignore_ascii_case(file_system)) {
        Some(ours) => ours.into(),
        None if file_system.is_empty() => name.into(),
        None => file_system.into(),
    }
}

/// Where the table gives no names (MBR), the slots are the two partitions after the boot partition, A first: so
/// balenaOS's bootloader scripts count, and the labels inside the slots cannot be relied on. FAT partitions that follow the
/// boot partition at once belong to it: each slot's kernel is in one where the firmware reads nothing else (tryboot).
fn name_roots_by_place(partitions: &mut [Partition]) {
    let roots = Slot::ALL.map(label::root);
    if partitions.iter().any(|p| roots.contains(&p.name.as_str())) {
        return;
    }
    let Some(boot) = partitions.iter().find(|p| p.label == label::BOOT).map(|p| p.number) else { return };
    let is_fat = |number: u32| {
        let mut there = partitions.iter().filter(|p| p.number == number);
        there.any(|p| p.file_system.as_ref().is_some_and(|s| s.kind == superblock::Kind::Vfat))
    };
    let last_fat = (boot..).take_while(|n| is_fat(*n)).last().unwrap_or(boot);
    // The container of logical partitions has a number, too, and is none of them.
    let next = partitions.iter().map(|p| p.number).filter(|n| *n > last_fat).min();
    let first = if last_fat == boot { Some(boot + 1) } else { next };
    for partition in partitions {
        let place = first.and_then(|first| partition.number.checked_sub(first));
        match (place, partition.label.as_str()) {
            (_, label::STATE | label::DATA) => {}
            (Some(0), _) => partition.label = label::root(Slot::A).into(),
            (Some(1), _) => partition.label = label::root(Slot::B).into(),
            (_, l) if roots.contains(&l) => partition.label.clear(),
            _ => {}
        }
    }
}

fn number(path: &Path) -> Result<u64> {
    let text = sys::file::read_text(path, SMALL_FILE)?;
    text.trim().parse().map_err(|_| Error::failed(format!("{}: {text:?}, expected a number", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_with_digits_as_numbers() {
        let mut names = ["vda", "sdb", "nvme10n1", "nvme2n1", "mmcblk1", "sda", "mmcblk0"];
        names.sort_by_key(|n| natural(n));
        assert_eq!(names, ["mmcblk0", "mmcblk1", "nvme2n1", "nvme10n1", "sda", "sdb", "vda"]);
    }

    #[test]
    fn the_tables_name_goes_before_the_label_inside() {
        for (name, inside, expected) in [
            ("resin-rootB", "resin-rootA", "resin-rootB"),
            ("primary", "resin-state", "resin-state"),
            ("", "RESIN-BOOT", "resin-boot"),
            ("EFI", "", "EFI"),
            ("", "", ""),
            ("", "other", "other"),
        ] {
            assert_eq!(label_of(name, inside), expected);
        }
    }
}
