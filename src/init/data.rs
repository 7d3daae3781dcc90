//! Growing the data partition: the table before it is mounted, its ext4 after.

use std::path::Path;

use super::size::human;
use crate::block::{BootedDisk, Disk, FileDisk, Partition, Table, grow, label, probe};
use crate::{Doing, Error, Result, sys};

/// Less than this is not worth growing a file system for: it is what alignment leaves.
const WORTHWHILE_BYTES: u64 = 10 * 1024 * 1024;

/// The data partition, also if its file system is too damaged to say that it is one.
///
/// # Errors
/// `Failed` if there is none. The boot can go on without it.
pub(super) fn find(disk: &BootedDisk) -> Result<Partition> {
    disk.data_without_label().map_or_else(|| disk.required(label::DATA).cloned(), Ok)
}

/// Grows the data partition in the table and in the kernel, if it is the last and there is room.
///
/// The result is the partition as it is now.
///
/// # Errors
/// `Failed` if the table is to be left alone, or a write fails: then it is the old or the new one. The boot can
/// go on with the old size.
pub(super) fn grow_partition(disk: &BootedDisk, data: &Partition) -> Result<Partition> {
    let doing = || format!("grow {} on {}", data.label, disk.device.display());
    // A look needs no write access, and on most boots there is nothing to do.
    let mut medium = FileDisk::open_read_only(&disk.device)?;
    let mut plan = grow::plan(&mut medium, &disk.table, data.number).doing(doing)?;
    let mut len_bytes = data.len_bytes;
    while let Some(growth) = plan {
        let mut medium = FileDisk::open(&disk.device)?;
        grow::apply(&mut medium, &growth).doing(doing)?;
        len_bytes = growth.to_bytes;
        // Read back from the medium, then believe.
        let table = read_back(&mut medium, disk.sector_bytes, data.number, len_bytes).doing(doing)?;
        // What was interrupted is finished; a disk that has grown since may be grown into.
        plan = grow::plan(&mut medium, &table, data.number)?.filter(|next| next.to_bytes > len_bytes);
    }
    if len_bytes != data.len_bytes {
        let file = sys::file::open_read_write(&disk.device)?;
        sys::device::resize_partition(&file, data.number, data.start_bytes, len_bytes).doing(doing)?;
    }
    Ok(Partition { len_bytes, ..data.clone() })
}

fn read_back(medium: &mut impl Disk, sector_bytes: u64, number: u32, len_bytes: u64) -> Result<Table> {
    let table = Table::read(medium, sector_bytes).doing(|| "read back")?;
    match table {
        Some(table) if table.partitions().iter().any(|p| p.number == number && p.len_bytes == len_bytes) => {
            Ok(table)
        }
        _ => Err(Error::failed("read back: the medium does not hold the table that was written")),
    }
}

/// Grows the mounted ext4 to its partition's size; says so if it did.
///
/// # Errors
/// `Failed` if the kernel refuses; the file system is then as it was.
pub(super) fn grow_file_system(partition: &Partition, mount_point: &Path) -> Result<()> {
    let mut device = FileDisk::open_read_only(&partition.device)?;
    let superblock = probe(&mut device, 0, partition.len_bytes)?;
    let Some(from_bytes) = superblock.and_then(|s| s.len_bytes) else { return Ok(()) };
    if partition.len_bytes.saturating_sub(from_bytes) <= WORTHWHILE_BYTES {
        return Ok(());
    }
    let block_bytes = sys::device::block_bytes(mount_point)?;
    let blocks = partition.len_bytes / block_bytes;
    sys::device::grow_ext4(mount_point, blocks)?;
    log::info!("data partition grown from {} to {}", human(from_bytes), human(blocks * block_bytes));
    Ok(())
}
