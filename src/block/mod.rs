//! Bytes on disks: partition tables, finding partitions on the disk we booted from, growing the last one, and
//! writing a slot.

mod discover;
mod disk;
mod gpt;
pub mod grow;
mod grow_gpt;
mod grow_mbr;
mod le;
mod mbr;
mod slot_disk;
mod superblock;
mod table;

pub use discover::{BootedDisk, Partition, ROOT_DEVICE_NOTE, label, not_found};
pub use disk::{Disk, FileDisk};
pub use gpt::Gpt;
pub use mbr::Mbr;
pub use slot_disk::{Verified, read_back};
pub use superblock::{Kind as FileSystemKind, Superblock, probe};
pub use table::{Table, TableEntry};
