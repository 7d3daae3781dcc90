//! What is asked of block devices and mounted ext4 by ioctl.

use std::ffi::c_void;
use std::fs::File;
use std::mem::size_of;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

use crate::{Doing, Error, Result};

/// `struct blkpg_ioctl_arg` of linux/blkpg.h.
#[repr(C)]
struct BlkpgArg {
    op: i32,
    flags: i32,
    data_len: i32,
    data: *mut c_void,
}

/// `struct blkpg_partition` of linux/blkpg.h.
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: i32,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// More partitions than a device's disk has.
const PARTITIONS_MAX: u32 = 128;

/// `_IO(0x12, 105)`.
const BLKPG: Opcode = opcode::none(0x12, 105);
const BLKPG_ADD_PARTITION: i32 = 1;
const BLKPG_DEL_PARTITION: i32 = 2;
const BLKPG_RESIZE_PARTITION: i32 = 3;
/// `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: Opcode = opcode::write::<u64>(b'f', 16);

/// Tells the kernel the new size of a partition that starts where it did; it may be mounted.
///
/// # Errors
/// `Failed` if the kernel refuses, for example because it would overlap another.
pub fn resize_partition(disk: &File, number: u32, start_bytes: u64, len_bytes: u64) -> Result<()> {
    change_partition(disk, BLKPG_RESIZE_PARTITION, number, start_bytes, len_bytes)
        .doing(|| format!("tell the kernel that partition {number} has {len_bytes} bytes"))
}

/// A partition that the kernel was told of, whatever the disk's table says. It is forgotten with this.
#[derive(Debug)]
pub struct Partition {
    disk: File,
    number: u32,
    device: PathBuf,
}

impl Partition {
    /// Tells the kernel of one; what it knew of that disk before is forgotten first.
    ///
    /// # Errors
    /// `Failed` if the kernel refuses, for example because another partition is mounted.
    pub fn add(disk: &Path, number: u32, start_bytes: u64, len_bytes: u64) -> Result<Self> {
        let file = super::file::open_read_write(disk)?;
        let doing = || format!("tell the kernel of partition {number} of {}", disk.display());
        for old in 1..=PARTITIONS_MAX {
            match change_partition(&file, BLKPG_DEL_PARTITION, old, 0, 0) {
                Err(Errno::NXIO | Errno::INVAL) | Ok(()) => {}
                Err(e) => return Err(e).doing(doing),
            }
        }
        change_partition(&file, BLKPG_ADD_PARTITION, number, start_bytes, len_bytes).doing(doing)?;
        // The kernel's own name, which the partition's is made of.
        let name = super::file::without_links(disk).display().to_string();
        let between = if name.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
        Ok(Self { disk: file, number, device: format!("{name}{between}{number}").into() })
    }

    /// Its device.
    pub fn device(&self) -> &Path {
        &self.device
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        if let Err(e) = change_partition(&self.disk, BLKPG_DEL_PARTITION, self.number, 0, 0) {
            log::warn!("partition {}: {e}", self.device.display());
        }
    }
}

fn change_partition(
    disk: &File,
    op: i32,
    number: u32,
    start_bytes: u64,
    len_bytes: u64,
) -> std::result::Result<(), Errno> {
    let fits = |n: u64| i64::try_from(n).map_err(|_| Errno::OVERFLOW);
    let mut partition = BlkpgPartition {
        start: fits(start_bytes)?,
        length: fits(len_bytes)?,
        number: i32::try_from(number).map_err(|_| Errno::OVERFLOW)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let arg = BlkpgArg {
        op,
        flags: 0,
        data_len: i32::try_from(size_of::<BlkpgPartition>()).unwrap_or(0),
        data: (&raw mut partition).cast(),
    };
    // SAFETY: BLKPG takes a pointer to a `blkpg_ioctl_arg`, whose `data` points to a `blkpg_partition` that
    // lives until after the call; both are laid out as in linux/blkpg.h.
    unsafe { ioctl(disk, Setter::<BLKPG, BlkpgArg>::new(arg)) }
}

/// Grows a mounted ext4 to `blocks` blocks of its own size. Already that large is fine.
///
/// # Errors
/// `Failed` if it is not ext4, or cannot grow that far.
pub fn grow_ext4(mount_point: &Path, blocks: u64) -> Result<()> {
    let doing = || format!("grow the file system on {} to {blocks} blocks", mount_point.display());
    let dir = File::open(mount_point).doing(doing)?;
    // SAFETY: EXT4_IOC_RESIZE_FS takes a pointer to a 64-bit number of blocks and only reads it.
    unsafe { ioctl(&dir, Setter::<EXT4_IOC_RESIZE_FS, u64>::new(blocks)) }.doing(doing)
}

/// Block size of a mounted file system, in bytes.
///
/// # Errors
/// `Failed`, naming the path.
pub fn block_bytes(mount_point: &Path) -> Result<u64> {
    let status = rustix::fs::statfs(mount_point).doing(|| format!("statfs {}", mount_point.display()))?;
    u64::try_from(status.f_bsize)
        .ok()
        .filter(|b| *b > 0)
        .ok_or_else(|| Error::failed(format!("statfs {}: no block size", mount_point.display())))
}
