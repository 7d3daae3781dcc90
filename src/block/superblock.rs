//! What file system a partition holds, with its label and UUID: only what PID 1 must tell apart.
//!
//! Sources: Linux 6.12, `fs/ext4/ext4.h`, `fs/squashfs/squashfs_fs.h`, `fs/erofs/erofs_fs.h`; Microsoft FAT
//! specification 1.03; checked with mke2fs 1.47, mkfs.vfat 4.2, mksquashfs 4.5 (`tests/block.rs`).

use std::fmt;

use super::disk::Disk;
use super::le::{array, u16_at, u32_at};
use crate::Result;

/// `EXT4_ERROR_FS`.
const EXT4_ERROR_FS: u16 = 2;
/// `FAT_STATE_DIRTY`, which Linux sets while it may write.
const FAT_STATE_DIRTY: u8 = 1;

/// The kinds that a device's partitions may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ext4, or an older ext that the same driver mounts.
    Ext4,
    /// FAT of any width.
    Vfat,
    /// squashfs 4: a read-only root.
    Squashfs,
    /// erofs: a read-only root.
    Erofs,
}

impl Kind {
    /// The kernel's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Vfat => "vfat",
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Which file system.
    pub kind: Kind,
    /// Its label; empty if it has none.
    pub label: String,
    /// Its UUID as `/dev/disk/by-uuid` has it, in lower case; empty if it has none.
    pub uuid: String,
    /// Bytes that the file system fills, where it says so.
    pub len_bytes: Option<u64>,
    /// Whether a check is asked for: the kernel found it damaged (ext4), or it was not unmounted in order (FAT).
    pub needs_check: bool,
}

/// Reads the superblock at `offset_bytes` of a disk; `None` if it is of no kind known here.
///
/// # Errors
/// `Failed` if the disk cannot be read.
pub fn probe(disk: &mut impl Disk, offset_bytes: u64, len_bytes: u64) -> Result<Option<Superblock>> {
    // ext4 and erofs keep theirs at byte 1024, the others at 0.
    let mut start = [0; 2048];
    if len_bytes < start.len() as u64 {
        return Ok(None);
    }
    disk.read_at(offset_bytes, &mut start)?;
    let (first, second) = start.split_at(1024);
    Ok(ext4(second).or_else(|| erofs(second)).or_else(|| squashfs(first)).or_else(|| vfat(first)))
}

fn ext4(block: &[u8]) -> Option<Superblock> {
    if u16_at(block, 0x38) != 0xef53 {
        return None;
    }
    let is_64bit = u32_at(block, 0x60) & 0x80 != 0;
    let high = if is_64bit { u64::from(u32_at(block, 0x150)) << 32 } else { 0 };
    let blocks = high | u64::from(u32_at(block, 0x04));
    let block_bytes = 1024_u64.checked_shl(u32_at(block, 0x18)).filter(|b| *b <= 65536)?;
    Some(Superblock {
        kind: Kind::Ext4,
        label: text(block.get(0x78..0x88)?),
        uuid: uuid(array(block, 0x68)?),
        len_bytes: blocks.checked_mul(block_bytes),
        needs_check: u16_at(block, 0x3a) & EXT4_ERROR_FS != 0,
    })
}

fn erofs(block: &[u8]) -> Option<Superblock> {
    (u32_at(block, 0) == 0xe0f5_e1e2).then_some(())?;
    let label = text(block.get(64..80)?);
    let uuid = uuid(array(block, 48)?);
    Some(Superblock { kind: Kind::Erofs, label, uuid, len_bytes: None, needs_check: false })
}

fn squashfs(block: &[u8]) -> Option<Superblock> {
    (block.starts_with(b"hsqs") && u16_at(block, 28) == 4).then_some(())?;
    Some(Superblock {
        kind: Kind::Squashfs,
        label: String::new(),
        uuid: String::new(),
        len_bytes: Some(super::le::u64_at(block, 40)),
        needs_check: false,
    })
}

fn vfat(block: &[u8]) -> Option<Superblock> {
    if u16_at(block, 510) != 0xaa55 {
        return None;
    }
    // The width is told by counting clusters; these texts are what mkfs.vfat, mtools and Windows write.
    let (state_at, id_at, label_at) = if block.get(82..87)? == b"FAT32" {
        (65, 67, 71)
    } else if matches!(block.get(54..59)?, b"FAT12" | b"FAT16") {
        (37, 39, 43)
    } else {
        return None;
    };
    let id = u32_at(block, id_at);
    let label = text(block.get(label_at..label_at + 11)?).trim_end().to_owned();
    Some(Superblock {
        kind: Kind::Vfat,
        label: if label == "NO NAME" { String::new() } else { label },
        uuid: format!("{:04x}-{:04x}", id >> 16, id & 0xffff),
        len_bytes: None,
        needs_check: block.get(state_at)? & FAT_STATE_DIRTY != 0,
    })
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

fn uuid(bytes: [u8; 16]) -> String {
    if bytes == [0; 16] {
        return String::new();
    }
    let mut text = String::with_capacity(36);
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
