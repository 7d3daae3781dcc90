//! The counter of our own, for boards whose firmware cannot count: PID 1 reads it, counts the boot and picks the slot.
//!
//! It is a redundant environment in U-Boot's format, both copies in one file of the boot partition, each in a sector of its own.
//! The file is made with the image and only ever overwritten in place, a sector at a time, so FAT's own structures do
//! not change. Not on the state partition: that may need e2fsck of a root before it can be mounted, and which root is what
//! the counter has to say.

use std::path::Path;

use super::resin::Partitions;
use super::uboot_env::{Copies, Place, Places, UbootEnv};
use super::{BootChooser, SECTOR_BYTES};
use crate::Error;
use crate::model::Slot;

/// Its name on the boot partition.
pub const FILE: &str = "initramfs.env";

/// The counter in `dir`, the directory of the boot partition, on a disk where the slots have these partition numbers.
pub fn open(dir: &Path, partitions: Partitions) -> UbootEnv<Places> {
    let sector = |offset| Place { device: dir.join(FILE), offset, len_bytes: SECTOR_BYTES };
    UbootEnv::new(Places(vec![sector(0), sector(512)]), partitions)
}

/// The slot that PID 1 has to boot now, with the boot counted if it is a trial's; and what is wrong with the counter, if
/// anything is. A trial that cannot be counted is not booted; a counter that cannot be read leaves `otherwise`.
pub fn choose<C: Copies>(counter: &mut UbootEnv<C>, otherwise: Slot) -> (Slot, Option<Error>) {
    match counter.plan() {
        Err(e) => (otherwise, Some(e)),
        Ok(plan) => match counter.count_boot() {
            Ok(slot) => (slot, None),
            Err(e) => (plan.primary, Some(e)),
        },
    }
}
