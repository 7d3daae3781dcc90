//! Growing the last partition of a GPT to the end of its disk, safe against a cut at any write; and making a backup
//! table again that is missing.
//!
//! The order, and why:
//!
//! 1. The protective MBR gets the disk's true size, and the backup table is written at the true end, entries
//!    first. The primary still holds the old table, whole.
//! 2. **The switch**: the primary header, one sector, is made to vouch for the new entries *where the backup
//!    keeps them*. Linux and GRUB do not look at a backup by themselves, so the primary must be whole at every
//!    moment; writing its entries and its header one after the other, as other tools do, would break that.
//! 3. The primary entries are written in their usual place, where nobody reads at this moment.
//! 4. The primary header is pointed back at them.
//!
//! Each group is flushed before the next. It needs of the disk that one sector is written whole or not at all.
//! A cut between 2 and 4 leaves a valid table that [`plan`] recognises; its plan is then only 3 and 4, and a
//! second plan may follow if the disk has become larger since.

use super::disk::Disk;
use super::gpt::{ENTRIES_LBA, Gpt, PRIMARY_LBA, Source};
use super::grow::{ALIGN_BYTES, Growth, Step, WORTHWHILE_BYTES};
use super::mbr;
use crate::{Doing, Error, Result};

/// Plans the growth of partition `number`; `None` if there is nothing worth doing. Nothing is written.
///
/// # Errors
/// `Failed` if the table must be left alone: only its backup is readable, the primary entries are in an
/// unusual place, or the partition is not the last.
pub(super) fn plan(disk: &mut impl Disk, table: &Gpt, number: u32) -> Result<Option<Growth>> {
    if table.source == Source::Backup {
        return Err(Error::failed(
            "the primary GPT is damaged; repair it with sgdisk before it can be grown",
        ));
    }
    // Entries behind the partitions are what our own switch leaves when it was cut.
    if table.entries_lba() > table.last_usable() {
        return Ok(Some(finish(table, number)));
    }
    if table.entries_lba() != ENTRIES_LBA {
        return Err(Error::failed(format!(
            "the primary GPT's entries are at LBA {}, not {ENTRIES_LBA}: left alone, a bootloader may be there",
            table.entries_lba()
        )));
    }
    let (first, last) = table
        .extent(number)
        .ok_or_else(|| Error::failed(format!("partition {number} is not in the partition table")))?;
    if last_of_all(table) != last {
        return Err(Error::failed(format!("partition {number} is not the last on the disk")));
    }
    let new = grown(table, number, last)?;
    let bytes = |last: u64| (last - first + 1) * table.sector_bytes;
    let (from_bytes, to_bytes) = (bytes(last), bytes(new.last));
    // A backup that is not at the end was left there by a disk that became larger: it is moved in any case.
    let backup_in_place = table.alternate_lba() == new.backup_lba;
    if backup_in_place && to_bytes - from_bytes <= WORTHWHILE_BYTES {
        let steps = repair_backup(disk, table);
        return Ok((!steps.is_empty()).then_some(Growth { from_bytes, to_bytes: from_bytes, steps }));
    }
    Ok(Some(Growth { from_bytes, to_bytes, steps: steps(disk, &new)? }))
}

/// What is left to do after a cut behind the switch: the table itself is already the new one.
fn finish(table: &Gpt, number: u32) -> Growth {
    let bytes = table.extent(number).map_or(0, |(first, last)| (last - first + 1) * table.sector_bytes);
    Growth { from_bytes: bytes, to_bytes: bytes, steps: settle(table, table.alternate_lba()) }
}

/// What it takes to have a backup table again where the primary says it is; nothing if there is a good one, or no room
/// for it there. The primary is not touched.
fn repair_backup(disk: &mut impl Disk, table: &Gpt) -> Vec<Step> {
    let lba = table.alternate_lba();
    if Gpt::read_copy(disk, table.sector_bytes, lba).is_ok_and(|backup| backup.same_entries(table)) {
        return Vec::new();
    }
    match lba.checked_sub(table.entries_sectors()) {
        Some(entries) if entries > table.last_usable() && lba < table.disk_sectors => vec![
            write(table, entries, table.encode_entries()),
            write(table, lba, table.encode_header(lba, PRIMARY_LBA, entries)),
            Step::Flush,
        ],
        _ => Vec::new(),
    }
}

/// Steps 3 and 4.
fn settle(table: &Gpt, backup_lba: u64) -> Vec<Step> {
    vec![
        write(table, ENTRIES_LBA, table.encode_entries()),
        Step::Flush,
        write(table, PRIMARY_LBA, table.encode_header(PRIMARY_LBA, backup_lba, ENTRIES_LBA)),
        Step::Flush,
    ]
}

fn write(table: &Gpt, lba: u64, bytes: Vec<u8>) -> Step {
    Step::Write { offset: lba * table.sector_bytes, bytes }
}

/// The table as it is to be.
struct New {
    table: Gpt,
    /// LBA of the partition's end.
    last: u64,
    /// LBA of the backup header: the disk's last.
    backup_lba: u64,
    /// LBA of the backup's entries.
    backup_entries_lba: u64,
}

fn last_of_all(table: &Gpt) -> u64 {
    table.partitions().iter().filter_map(|p| table.extent(p.number)).map(|(_, l)| l).max().unwrap_or(0)
}

fn grown(table: &Gpt, number: u32, last: u64) -> Result<New> {
    let backup_lba = table.disk_sectors - 1;
    let backup_entries_lba = backup_lba
        .checked_sub(table.entries_sectors())
        .filter(|lba| *lba > last)
        .ok_or_else(|| Error::failed("no room for a backup table behind the last partition"))?;
    let last_usable = backup_entries_lba - 1;
    let align = (ALIGN_BYTES / table.sector_bytes).max(1);
    let aligned = (last_usable + 1) / align * align;
    // Never smaller than it is.
    let new_last = aligned.saturating_sub(1).max(last);
    Ok(New {
        table: table.resized(number, new_last, last_usable),
        last: new_last,
        backup_lba,
        backup_entries_lba,
    })
}

fn steps(disk: &mut impl Disk, new: &New) -> Result<Vec<Step>> {
    let New { table, backup_lba, backup_entries_lba, .. } = new;
    let mut steps = Vec::new();
    if let Some(sector) = protective(disk, table)? {
        steps.push(write(table, 0, sector));
    }
    let backup = table.encode_header(*backup_lba, PRIMARY_LBA, *backup_entries_lba);
    let switch = table.encode_header(PRIMARY_LBA, *backup_lba, *backup_entries_lba);
    steps.extend([
        write(table, *backup_entries_lba, table.encode_entries()),
        write(table, *backup_lba, backup),
        Step::Flush,
        write(table, PRIMARY_LBA, switch),
        Step::Flush,
    ]);
    steps.extend(settle(table, *backup_lba));
    Ok(steps)
}

/// The first sector with the right size in its protective entry; `None` if it is right, or if there are other
/// entries: a hybrid MBR is somebody's own, and Linux does not check the size.
fn protective(disk: &mut impl Disk, table: &Gpt) -> Result<Option<Vec<u8>>> {
    let len = usize::try_from(table.sector_bytes).map_err(|_| Error::failed("sector size"))?;
    let mut sector = vec![0; len];
    disk.read_at(0, &mut sector).doing(|| "protective MBR")?;
    let Some(at) = mbr::protective_length_at(&sector) else { return Ok(None) };
    let size = u32::try_from(table.disk_sectors - 1).unwrap_or(u32::MAX);
    let before = sector.clone();
    super::le::put(&mut sector, at, &size.to_le_bytes());
    Ok((sector != before).then_some(sector))
}
