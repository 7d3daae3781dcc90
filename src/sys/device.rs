//! What is asked of block devices and mounted ext4 by ioctl.

use std::ffi::c_void;
use std::fs::File;
use std::mem::size_of;
use std::path::Path;

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

/// `_IO(0x12, 105)`.
const BLKPG: Opcode = opcode::none(0x12, 105);
const BLKPG_RESIZE_PARTITION: i32 = 3;
/// `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: Opcode = opcode::write::<u64>(b'f', 16);

/// Tells the kernel the new size of a partition that starts where it did; it may be mounted.
///
/// # Errors
/// `Failed` if the kernel refuses, for example because it would overlap another.
pub fn resize_partition(disk: &File, number: u32, start_bytes: u64, len_bytes: u64) -> Result<()> {
    let fits = |n: u64| i64::try_from(n).map_err(|_| Error::failed(format!("{n} bytes: too large")));
    let mut partition = BlkpgPartition {
        start: fits(start_bytes)?,
        length: fits(len_bytes)?,
        number: i32::try_from(number).map_err(|_| Error::failed(format!("partition {number}")))?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let arg = BlkpgArg {
        op: BLKPG_RESIZE_PARTITION,
        flags: 0,
        data_len: i32::try_from(size_of::<BlkpgPartition>()).unwrap_or(0),
        data: (&raw mut partition).cast(),
    };
    // SAFETY: BLKPG takes a pointer to a `blkpg_ioctl_arg`, whose `data` points to a `blkpg_partition` that
    // lives until after the call; both are laid out as in linux/blkpg.h.
    unsafe { ioctl(disk, Setter::<BLKPG, BlkpgArg>::new(arg)) }
        .doing(|| format!("tell the kernel that partition {number} has {len_bytes} bytes"))
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
