//! Growing the last partition to the end of its disk: what it takes, as steps that may be cut anywhere. How is in
//! `grow_gpt` and `grow_mbr`.
//!
//! # Laws
//! 1. After a cut anywhere the table is whole, and the partition has its old or its new size.
//! 2. What a cut left is finished by the next plan, and a disk that grew again later is grown into again.
//! 3. A table that is not understood is left alone, with the reason.

use super::disk::Disk;
use super::table::Table;
use super::{grow_gpt, grow_mbr};
use crate::Result;

/// Less free space than this behind the partition is left alone: the rest of an earlier growth, or alignment.
pub(super) const WORTHWHILE_BYTES: u64 = 10 * 1024 * 1024;
/// Partitions end where they would also begin, so that no flash page is shared.
pub(super) const ALIGN_BYTES: u64 = 1024 * 1024;

/// One durable step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Bytes to write at an offset of the disk, whole sectors.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// All before must be on the medium before anything after.
    Flush,
}

/// What growing takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    /// The partition's size in the table now, in bytes.
    pub from_bytes: u64,
    /// Its size afterwards; the same if only an interrupted growth is finished.
    pub to_bytes: u64,
    /// The writes, in order.
    pub steps: Vec<Step>,
}

/// Plans the growth of partition `number`; `None` if there is nothing worth doing. Nothing is written.
///
/// # Errors
/// `Failed` if the table must be left alone: the partition is not the last, or the table is damaged or unusual.
pub fn plan(disk: &mut impl Disk, table: &Table, number: u32) -> Result<Option<Growth>> {
    match table {
        Table::Gpt(table) => grow_gpt::plan(disk, table, number),
        Table::Mbr(table) => grow_mbr::plan(disk, table, number),
    }
}

/// Carries a plan out.
///
/// # Errors
/// `Failed` if a write or flush does; the table is then the old or the new one.
pub fn apply(disk: &mut impl Disk, growth: &Growth) -> Result<()> {
    for step in &growth.steps {
        match step {
            Step::Write { offset, bytes } => disk.write_at(*offset, bytes)?,
            Step::Flush => disk.flush()?,
        }
    }
    Ok(())
}
