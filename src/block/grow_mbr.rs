//! Growing the last partition of an MBR to the end of its disk, primary or logical, safe against a cut at any write.
//!
//! Each entry is in one sector, so the table is a chain of single-sector writes; their order makes every moment whole:
//!
//! 1. The extended partition, in sector 0: nothing in it moves, it only reaches further.
//! 2. The entry of the record before that says how far the last logical partition's record reaches.
//! 3. **The switch**: the partition's own entry.
//!
//! Each is flushed before the next, and only what differs is written: after a cut the next plan is what is left. It
//! needs of the disk that one sector is written whole or not at all. An MBR counts in 32 bits, so a disk of more than
//! 2 TiB (of 512-byte sectors) is grown into that far.

use super::disk::Disk;
use super::grow::{ALIGN_BYTES, Growth, Step, WORTHWHILE_BYTES};
use super::mbr::{Mbr, Place, with_length};
use crate::{Doing, Error, Result};

/// Plans the growth of partition `number`; `None` if there is nothing worth doing. Nothing is written.
///
/// # Errors
/// `Failed` if the table must be left alone: the partition is not the last by place, or records lie behind it.
pub(super) fn plan(disk: &mut impl Disk, table: &Mbr, number: u32) -> Result<Option<Growth>> {
    let place = table
        .place(number)
        .ok_or_else(|| Error::failed(format!("partition {number} is not in the partition table")))?;
    let logical = place.table_lba != 0;
    let container = table.container.filter(|_| logical);
    let others_end = table.container.filter(|_| !logical).map_or(0, |c| c.end());
    if table.end_of_all() != place.end() || others_end > place.start {
        return Err(Error::failed(format!("partition {number} is not the last on the disk")));
    }
    if table.records.iter().any(|r| logical && r.lba > place.start) {
        return Err(Error::failed(format!("an extended boot record lies behind partition {number}")));
    }
    let end = end(table, &place);
    let bytes = |end: u64| (end - place.start) * table.sector_bytes;
    let (from_bytes, to_bytes) = (bytes(place.end()), bytes(end));
    if to_bytes - from_bytes <= WORTHWHILE_BYTES {
        return Ok(None);
    }
    let mut steps = Vec::new();
    if let Some(container) = container {
        steps.extend(lengthen(disk, table, &container, end)?);
        steps.extend(link(disk, table, &container, &place, end)?);
    }
    steps.extend(lengthen(disk, table, &place, end)?);
    Ok(Some(Growth { from_bytes, to_bytes, steps }))
}

/// The first LBA behind the partition as it is to be: aligned, and never less than it is.
fn end(table: &Mbr, place: &Place) -> u64 {
    let limit = table.disk_sectors.min(u32::MAX.into());
    let align = (ALIGN_BYTES / table.sector_bytes).max(1);
    (limit / align * align).max(place.end())
}

/// Makes a partition reach to LBA `end`, if it does not already.
fn lengthen(disk: &mut impl Disk, table: &Mbr, place: &Place, end: u64) -> Result<Vec<Step>> {
    if place.end() >= end {
        return Ok(Vec::new());
    }
    change(disk, table, place.table_lba, place.slot, place.start, end - place.start)
}

/// Makes the record before say that the partition's record reaches to LBA `end`. The first record has none before it.
fn link(disk: &mut impl Disk, table: &Mbr, container: &Place, place: &Place, end: u64) -> Result<Vec<Step>> {
    let record = place.table_lba;
    let before = table.records.iter().take_while(|r| r.lba < record).last();
    match before.and_then(|r| Some((r.lba, r.link?))) {
        Some((lba, (slot, sectors))) if record > container.start && record + sectors < end => {
            change(disk, table, lba, slot, record, end - record)
        }
        _ => Ok(Vec::new()),
    }
}

/// One sector with one entry's length changed, and a flush.
fn change(
    disk: &mut impl Disk,
    table: &Mbr,
    lba: u64,
    slot: usize,
    start: u64,
    sectors: u64,
) -> Result<Vec<Step>> {
    let doing = || format!("table at LBA {lba}");
    let len = usize::try_from(table.sector_bytes).map_err(|_| Error::failed("sector size"))?;
    let mut bytes = vec![0; len];
    let offset = lba * table.sector_bytes;
    disk.read_at(offset, &mut bytes).doing(doing)?;
    with_length(&mut bytes, slot, start, sectors).doing(doing)?;
    Ok(vec![Step::Write { offset, bytes }, Step::Flush])
}
