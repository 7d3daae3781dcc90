//! The hash tree of a root image, as `veritysetup format` lays it out: its superblock, and the kernel's words for it.
//!
//! The superblock itself is not hashed; all that it says goes into the root hash, so a wrong one opens nothing.
//!
//! Source: cryptsetup 2.6, `lib/verity/verity.c`; Linux 6.12, `Documentation/admin-guide/device-mapper/verity.rst`; checked
//! with veritysetup (`tests/block/verity.rs`).

use std::path::Path;

use super::Disk;
use super::le::{u16_at, u32_at, u64_at};
use crate::model::Verity;
use crate::{Doing, Error, Result};

const SUPERBLOCK: usize = 512;
const SECTOR: u64 = 512;
/// The largest block that every kernel can check: a page.
const BLOCK_MAX: u64 = 4096;
const SALT_MAX: usize = 256;

/// What the superblock says, checked for sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashTree {
    verity: Verity,
    data_block_bytes: u64,
    hash_block_bytes: u64,
    data_blocks: u64,
    salt: Vec<u8>,
}

/// A table of the device mapper with one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerityTable {
    /// Length of the device in sectors of 512 bytes.
    pub sectors: u64,
    /// The target's parameters.
    pub parameters: String,
}

impl HashTree {
    /// Reads the superblock from the image or slot that `verity` is about.
    ///
    /// # Errors
    /// `Failed` if the disk cannot be read, or there is no hash tree of a kind that PID 1 sets up: format 1, SHA-256, behind
    /// the data.
    pub fn read(disk: &mut impl Disk, verity: &Verity) -> Result<Self> {
        let mut block = [0; SUPERBLOCK];
        disk.read_at(verity.hash_offset, &mut block).doing(|| "hash tree")?;
        Self::parse(&block, verity)
            .map_err(|what| Error::failed(format!("hash tree at byte {}: {what}", verity.hash_offset)))
    }

    fn parse(block: &[u8; SUPERBLOCK], verity: &Verity) -> std::result::Result<Self, &'static str> {
        let [data_block_bytes, hash_block_bytes] = [64, 68].map(|at| u64::from(u32_at(block, at)));
        let data_blocks = u64_at(block, 72);
        let salt_len = usize::from(u16_at(block, 80));
        let is_block = |b: &u64| (SECTOR..=BLOCK_MAX).contains(b) && b.is_power_of_two();
        let algorithm = block.get(32..64).unwrap_or_default();
        if !block.starts_with(b"verity\0\0") {
            Err("no superblock of veritysetup")
        } else if (u32_at(block, 8), u32_at(block, 12)) != (1, 1) {
            Err("another version than 1, or hashes of another type")
        } else if algorithm.split(|b| *b == 0).next() != Some(b"sha256") {
            Err("another algorithm than sha256")
        } else if ![data_block_bytes, hash_block_bytes].iter().all(is_block) || salt_len > SALT_MAX {
            Err("blocks or salt of a size that cannot be")
        } else if data_blocks == 0
            || data_blocks.checked_mul(data_block_bytes).is_none_or(|end| end > verity.hash_offset)
            || !verity.hash_offset.is_multiple_of(hash_block_bytes)
        {
            Err("it does not lie behind the data")
        } else {
            let salt = block.get(88..88 + salt_len).unwrap_or_default().to_vec();
            Ok(Self { verity: *verity, data_block_bytes, hash_block_bytes, data_blocks, salt })
        }
    }

    /// The first block of hashes, counted in their blocks from the start of the device: right behind the superblock.
    const fn first_hash_block(&self) -> u64 {
        self.verity.hash_offset / self.hash_block_bytes + 1
    }

    /// What the kernel is told to check `device` with.
    pub fn table(&self, device: &Path) -> VerityTable {
        let mut salt: String = self.salt.iter().map(|b| format!("{b:02x}")).collect();
        if salt.is_empty() {
            salt.push('-');
        }
        VerityTable {
            sectors: self.data_blocks * self.data_block_bytes / SECTOR,
            parameters: format!(
                "1 {0} {0} {1} {2} {3} {4} sha256 {5} {salt}",
                device.display(),
                self.data_block_bytes,
                self.hash_block_bytes,
                self.data_blocks,
                self.first_hash_block(),
                self.verity.root_hash,
            ),
        }
    }

    /// Hashes the data anew and compares that with the tree and the root hash: on the build host, so that no image is
    /// signed that no device could boot.
    ///
    /// # Errors
    /// `Failed` if the disk cannot be read, or anything differs.
    #[cfg(feature = "build-host")]
    pub fn check(&self, disk: &mut impl Disk) -> Result<()> {
        use sha2::{Digest as _, Sha256};
        let hash = |block: &[u8]| -> [u8; 32] {
            Sha256::new_with_prefix(&self.salt).chain_update(block).finalize().into()
        };
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(0);
        let mut block = vec![0; size(self.data_block_bytes)];
        let mut hashes = Vec::new();
        for i in 0..self.data_blocks {
            disk.read_at(i * self.data_block_bytes, &mut block)?;
            hashes.push(hash(&block));
        }
        // From the data up to the root; they are stored from the root down.
        let mut levels = Vec::new();
        while hashes.len() > 1 {
            let mut level = hashes.concat();
            level.resize(level.len().next_multiple_of(size(self.hash_block_bytes)), 0);
            hashes = level.chunks(size(self.hash_block_bytes)).map(hash).collect();
            levels.push(level);
        }
        let mut at = self.first_hash_block() * self.hash_block_bytes;
        for level in levels.iter().rev() {
            let mut stored = vec![0; level.len()];
            disk.read_at(at, &mut stored)?;
            if stored != *level {
                return Err(Error::failed("the hash tree is not that of the data before it"));
            }
            at += level.len() as u64;
        }
        match hashes.first() {
            Some(root) if *root == self.verity.root_hash.0 => Ok(()),
            _ => Err(Error::failed(format!(
                "root hash is {}, not {}",
                hashes.first().map_or_else(String::new, |h| crate::model::Digest(*h).to_string()),
                self.verity.root_hash
            ))),
        }
    }
}
