//! MBR partition tables with logical partitions: reading. An MBR has no checksum, so everything that cannot be
//! true is refused.
//!
//! Source: Linux 6.12, `block/partitions/msdos.c`; checked with sfdisk 2.38 (`tests/block.rs`).

use super::disk::Disk;
use super::le::{u16_at, u32_at};
use super::table::TableEntry;
use crate::{Doing, Error, Result};

const TABLE: usize = 446;
const ENTRY_BYTES: usize = 16;
/// More logical partitions than this are a loop.
const LOGICAL_LIMIT: u32 = 250;

/// Type of the entry that protects a GPT.
pub(super) const PROTECTIVE: u8 = 0xee;

/// One of the four entries of a sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    status: u8,
    kind: u8,
    /// In LBAs, from where depends on the entry.
    start: u64,
    sectors: u64,
}

impl Entry {
    const fn is_extended(&self) -> bool {
        // DOS, Windows 95 with LBA, Linux.
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    const fn is_empty(&self) -> bool {
        self.kind == 0 || self.sectors == 0
    }
}

/// Whether a sector ends in the signature of an MBR (or of a FAT boot sector).
pub(super) fn has_signature(sector: &[u8]) -> bool {
    u16_at(sector, 510) == 0xaa55
}

/// Whether a sector's table protects a GPT.
pub(super) fn is_protective(sector: &[u8]) -> bool {
    entries(sector).iter().any(|e| e.kind == PROTECTIVE && e.start == 1)
}

/// Byte offset of the length of the one protective entry; `None` if there are other entries (a hybrid MBR).
pub(super) fn protective_length_at(sector: &[u8]) -> Option<usize> {
    let found = entries(sector);
    let at = found.iter().position(|e| e.kind == PROTECTIVE && e.start == 1)?;
    let alone = found.iter().filter(|e| e.kind != 0).count() == 1;
    alone.then_some(TABLE + at * ENTRY_BYTES + 12)
}

fn entries(sector: &[u8]) -> [Entry; 4] {
    [0, 1, 2, 3].map(|i| {
        let at = TABLE + i * ENTRY_BYTES;
        Entry {
            status: sector.get(at).copied().unwrap_or(0),
            kind: sector.get(at + 4).copied().unwrap_or(0),
            start: u32_at(sector, at + 8).into(),
            sectors: u32_at(sector, at + 12).into(),
        }
    })
}

/// An MBR that passed every check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mbr {
    partitions: Vec<TableEntry>,
}

impl Mbr {
    /// Reads the four primary entries and the chain of logical ones (numbers from 5).
    ///
    /// # Errors
    /// `Failed` if an entry lies outside the disk or its container, entries overlap, or the chain is broken.
    pub fn read(disk: &mut impl Disk, sector_bytes: u64) -> Result<Self> {
        Self::read_checked(disk, sector_bytes).doing(|| "MBR")
    }

    /// The partitions, by number; the extended one is only the container of the others and is left out.
    pub fn partitions(&self) -> Vec<TableEntry> {
        self.partitions.clone()
    }

    fn read_checked(disk: &mut impl Disk, sector_bytes: u64) -> Result<Self> {
        let disk_sectors = disk.len_bytes() / sector_bytes;
        let sector = read_sector(disk, 0, sector_bytes)?;
        if !has_signature(&sector) {
            return Err(Error::failed("no signature 55 aa"));
        }
        let id = u32_at(&sector, 440);
        let mut found: Vec<(u32, u64, u64)> = Vec::new();
        let mut extended = None;
        for (number, e) in (1..).zip(entries(&sector)) {
            // What starts like a FAT boot sector has code here.
            if !matches!(e.status, 0 | 0x80) {
                return Err(Error::failed(format!(
                    "entry {number} has status {:02x}: not a table",
                    e.status
                )));
            }
            if e.kind == PROTECTIVE {
                // Linux, too, takes no MBR that has one.
                return Err(Error::failed(format!(
                    "entry {number} protects a GPT but does not start at LBA 1"
                )));
            }
            if e.is_empty() {
                continue;
            }
            claim(&mut found, number, e.start, e.sectors, disk_sectors)?;
            if e.is_extended() && extended.replace(e).is_some() {
                return Err(Error::failed("two extended partitions"));
            }
        }
        if let Some(container) = extended {
            let logical = read_logical(disk, sector_bytes, container)?;
            found.retain(|(_, start, _)| *start != container.start);
            found.extend(logical);
        }
        let partitions = found
            .into_iter()
            .map(|(number, start, sectors)| TableEntry {
                number,
                start_bytes: start * sector_bytes,
                len_bytes: sectors * sector_bytes,
                partuuid: format!("{id:08x}-{number:02x}"),
                name: String::new(),
            })
            .collect();
        Ok(Self { partitions })
    }
}

/// Follows the chain of extended boot records: each names its partition relative to itself and the next record
/// relative to the container.
fn read_logical(disk: &mut impl Disk, sector_bytes: u64, container: Entry) -> Result<Vec<(u32, u64, u64)>> {
    let end = container.start + container.sectors;
    let mut found = Vec::new();
    let mut at = container.start;
    let mut number = 5;
    loop {
        let doing = || format!("extended boot record at LBA {at}");
        let sector = read_sector(disk, at, sector_bytes).doing(doing)?;
        if !has_signature(&sector) {
            return Err(Error::failed("no signature 55 aa").within(doing()));
        }
        let records = entries(&sector);
        // A record without a partition is allowed: an empty container, or one whose partition was deleted.
        for e in records.iter().filter(|e| !e.is_empty() && !e.is_extended()) {
            claim(&mut found, number, at + e.start, e.sectors, end).doing(doing)?;
            number += 1;
        }
        let Some(next) = records.iter().find(|e| !e.is_empty() && e.is_extended()) else { return Ok(found) };
        let next = container.start + next.start;
        // Records are chained upwards by every tool; anything else may be a loop.
        if next <= at || next >= end || number > LOGICAL_LIMIT {
            return Err(Error::failed(format!("the next record is said to be at LBA {next}")).within(doing()));
        }
        at = next;
    }
}

/// Adds a partition after checking that it ends before LBA `end` and overlaps none before it.
fn claim(found: &mut Vec<(u32, u64, u64)>, number: u32, start: u64, sectors: u64, end: u64) -> Result<()> {
    if start == 0 || start + sectors > end {
        return Err(Error::failed(format!(
            "partition {number} has LBAs {start} to {}, beyond the end at {end}",
            start + sectors - 1
        )));
    }
    if let Some((other, ..)) = found.iter().find(|(_, s, n)| start < s + n && *s < start + sectors) {
        return Err(Error::failed(format!("partitions {other} and {number} overlap")));
    }
    found.push((number, start, sectors));
    Ok(())
}

fn read_sector(disk: &mut impl Disk, lba: u64, sector_bytes: u64) -> Result<[u8; 512]> {
    let mut sector = [0; 512];
    disk.read_at(lba * sector_bytes, &mut sector)?;
    Ok(sector)
}
