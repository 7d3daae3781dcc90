//! Bytes on disks: partition tables, finding partitions on the disk we booted from, growing the last one, and
//! writing a slot and the files that go with it.

mod discover;
mod disk;
mod file_set;
mod gpt;
pub mod grow;
mod grow_gpt;
mod grow_mbr;
mod hash_tree;
mod le;
mod mbr;
pub mod seal;
mod slot_disk;
mod superblock;
mod table;
mod tree;

pub use discover::{BootedDisk, Partition, ROOT_DEVICE_NOTE, label, natural, not_found};
pub use disk::{Disk, FileDisk};
pub use file_set::{FileSet, Sums, missing, slot_dir, sums};
pub use gpt::Gpt;
pub use hash_tree::{HashTree, VerityTable};
pub use mbr::Mbr;
pub use slot_disk::{Verified, digest_of, read_back};
pub use superblock::{Kind as FileSystemKind, Superblock, probe};
pub use table::{Table, TableEntry};
pub use tree::{RealTree, Tree};
