//! Partition tables, file systems and the booted disk, against images made and judged by the real tools
//! (sgdisk, sfdisk, fdisk, mke2fs, mkfs.vfat, mksquashfs, blkid).
// A test makes its own files, runs other people's programs, and fails by panicking.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation)]

mod discover;
mod gpt;
mod grow;
mod layouts;
mod mbr;
mod superblock;
mod tools;
mod verity;
