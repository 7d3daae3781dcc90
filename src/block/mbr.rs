//! MBR partition tables with logical partitions: reading, and where each entry stands. An MBR has no checksum, so
//! everything that cannot be true is refused.
//!
//! Source: Linux 6.12, `block/partitions/msdos.c`; checked with sfdisk 2.38 (`tests/block.rs`).

use super::disk::Disk;
use super::le::{put, u16_at, u32_at};
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
    /// Bytes per LBA.
    pub(super) sector_bytes: u64,
    /// LBAs on the disk.
    pub(super) disk_sectors: u64,
    /// The extended partition, if there is one.
    pub(super) container: Option<Place>,
    /// Extended boot records in the order of their chain.
    pub(super) records: Vec<Record>,
    id: u32,
    found: Vec<Place>,
}

/// A partition, and the entry that describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Number, from 1.
    pub number: u32,
    /// First LBA on the disk.
    pub start: u64,
    /// Its LBAs.
    pub sectors: u64,
    /// LBA of the sector that holds its entry.
    pub table_lba: u64,
    /// Which of the sector's four entries, from 0.
    pub slot: usize,
}

impl Place {
    /// The first LBA behind it.
    pub const fn end(&self) -> u64 {
        self.start + self.sectors
    }
}

/// An extended boot record, and the entry in it that leads to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    /// Where it is.
    pub lba: u64,
    /// The entry: its slot, and the LBAs that it says the next record spans.
    pub link: Option<(usize, u64)>,
}

/// One sector with an entry that has another length. Only the length and the old-style address of the end change.
pub(super) fn with_length(sector: &mut [u8], slot: usize, start: u64, sectors: u64) -> Result<()> {
    let at = TABLE + slot * ENTRY_BYTES;
    let len = u32::try_from(sectors).map_err(|_| Error::failed("longer than an MBR can say"))?;
    put(sector, at + 5, &chs(start + sectors - 1));
    put(sector, at + 12, &len.to_le_bytes());
    Ok(())
}

/// An LBA as cylinder, head and sector of the geometry that every tool assumes, 255 heads of 63 sectors; the highest
/// there is for what lies beyond. No one reads it any more, but tools compare it.
fn chs(lba: u64) -> [u8; 3] {
    let (cylinder, head, sector) = (lba / (255 * 63), lba / 63 % 255, lba % 63 + 1);
    if cylinder > 1023 {
        return [0xfe, 0xff, 0xff];
    }
    let [low, high, ..] = cylinder.to_le_bytes();
    let [head, ..] = head.to_le_bytes();
    let [sector, ..] = sector.to_le_bytes();
    [head, sector | high << 6, low]
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
        let entry = |p: &Place| TableEntry {
            number: p.number,
            start_bytes: p.start * self.sector_bytes,
            len_bytes: p.sectors * self.sector_bytes,
            partuuid: format!("{:08x}-{:02x}", self.id, p.number),
            name: String::new(),
        };
        self.found.iter().map(entry).collect()
    }

    /// Where partition `number` is, and its entry.
    pub(super) fn place(&self, number: u32) -> Option<Place> {
        self.found.iter().find(|p| p.number == number).copied()
    }

    /// The first LBA behind every partition.
    pub(super) fn end_of_all(&self) -> u64 {
        self.found.iter().map(Place::end).max().unwrap_or(0)
    }

    fn read_checked(disk: &mut impl Disk, sector_bytes: u64) -> Result<Self> {
        let disk_sectors = disk.len_bytes() / sector_bytes;
        let sector = read_sector(disk, 0, sector_bytes)?;
        if !has_signature(&sector) {
            return Err(Error::failed("no signature 55 aa"));
        }
        let mut table = Self {
            sector_bytes,
            disk_sectors,
            container: None,
            records: Vec::new(),
            id: u32_at(&sector, 440),
            found: Vec::new(),
        };
        for (slot, e) in entries(&sector).into_iter().enumerate() {
            let number = u32::try_from(slot + 1).unwrap_or(u32::MAX);
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
            let place = Place { number, start: e.start, sectors: e.sectors, table_lba: 0, slot };
            claim(&mut table.found, place, disk_sectors)?;
            if e.is_extended() && table.container.replace(place).is_some() {
                return Err(Error::failed("two extended partitions"));
            }
        }
        if let Some(container) = table.container {
            table.found.retain(|p| p.start != container.start);
            table.read_logical(disk, container)?;
        }
        Ok(table)
    }

    /// Follows the chain of extended boot records: each names its partition relative to itself and the next record
    /// relative to the container.
    fn read_logical(&mut self, disk: &mut impl Disk, container: Place) -> Result<()> {
        let end = container.end();
        let mut logical = Vec::new();
        let mut at = container.start;
        let mut number = 5;
        loop {
            let doing = || format!("extended boot record at LBA {at}");
            let sector = read_sector(disk, at, self.sector_bytes).doing(doing)?;
            if !has_signature(&sector) {
                return Err(Error::failed("no signature 55 aa").within(doing()));
            }
            let records = entries(&sector);
            // A record without a partition is allowed: an empty container, or one whose partition was deleted.
            for (slot, e) in records.iter().enumerate().filter(|(_, e)| !e.is_empty() && !e.is_extended()) {
                let start = at + e.start;
                let place = Place { number, start, sectors: e.sectors, table_lba: at, slot };
                claim(&mut logical, place, end).doing(doing)?;
                number += 1;
            }
            let link = records.iter().enumerate().find(|(_, e)| !e.is_empty() && e.is_extended());
            self.records.push(Record { lba: at, link: link.map(|(slot, e)| (slot, e.sectors)) });
            let Some((_, next)) = link else { break };
            let next = container.start + next.start;
            // Records are chained upwards by every tool; anything else may be a loop.
            if next <= at || next >= end || number > LOGICAL_LIMIT {
                return Err(
                    Error::failed(format!("the next record is said to be at LBA {next}")).within(doing())
                );
            }
            at = next;
        }
        self.found.extend(logical);
        Ok(())
    }
}

/// Adds a partition after checking that it ends before LBA `end` and overlaps none before it.
fn claim(found: &mut Vec<Place>, new: Place, end: u64) -> Result<()> {
    let number = new.number;
    if new.start == 0 || new.end() > end {
        return Err(Error::failed(format!(
            "partition {number} has LBAs {} to {}, beyond the end at {end}",
            new.start,
            new.end() - 1
        )));
    }
    if let Some(other) = found.iter().find(|p| new.start < p.end() && p.start < new.end()) {
        return Err(Error::failed(format!("partitions {} and {number} overlap", other.number)));
    }
    found.push(new);
    Ok(())
}

fn read_sector(disk: &mut impl Disk, lba: u64, sector_bytes: u64) -> Result<[u8; 512]> {
    let mut sector = [0; 512];
    disk.read_at(lba * sector_bytes, &mut sector)?;
    Ok(sector)
}
