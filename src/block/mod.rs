//! Bytes on disks: partition tables, finding partitions on the disk we booted from, growing the last one, and
//! writing a slot.

mod disk;
mod slot_disk;

pub use disk::{Disk, FileDisk};
pub use slot_disk::{Verified, read_back};
