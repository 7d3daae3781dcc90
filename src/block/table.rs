//! The partition table of a disk, of either kind.

use super::disk::Disk;
use super::gpt::Gpt;
use super::mbr::{self, Mbr};
use crate::{Error, Result};

/// One partition as its table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableEntry {
    /// Number, from 1; logical partitions of an MBR from 5.
    pub number: u32,
    /// Where it starts on the disk, in bytes.
    pub start_bytes: u64,
    /// Its size in bytes.
    pub len_bytes: u64,
    /// The id that the kernel calls PARTUUID, lower case.
    pub partuuid: String,
    /// Its name in a GPT; empty on MBR.
    pub name: String,
}

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Table {
    /// A GUID partition table.
    Gpt(Gpt),
    /// A DOS partition table.
    Mbr(Mbr),
}

impl Table {
    /// Reads the table of a disk with sectors of `sector_bytes`; `None` if it has none.
    ///
    /// A GPT counts only behind its protective MBR, as for Linux: a disk that was given an MBR later may still
    /// hold the old GPT.
    ///
    /// # Errors
    /// `Failed` if the disk cannot be read or its table is damaged.
    pub fn read(disk: &mut impl Disk, sector_bytes: u64) -> Result<Option<Self>> {
        if !(512..=65536).contains(&sector_bytes) || !sector_bytes.is_power_of_two() {
            return Err(Error::failed(format!("sectors of {sector_bytes} bytes: expected 512 to 65536")));
        }
        if disk.len_bytes() < sector_bytes {
            return Ok(None);
        }
        let mut first = [0; 512];
        disk.read_at(0, &mut first)?;
        if !mbr::has_signature(&first) {
            return Ok(None);
        }
        if mbr::is_protective(&first) {
            return Gpt::read(disk, sector_bytes).map(Self::Gpt).map(Some);
        }
        Mbr::read(disk, sector_bytes).map(Self::Mbr).map(Some)
    }

    /// The partitions, by number.
    pub fn partitions(&self) -> Vec<TableEntry> {
        match self {
            Self::Gpt(table) => table.partitions(),
            Self::Mbr(table) => table.partitions(),
        }
    }
}
