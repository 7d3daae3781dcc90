//! dm-verity of a root image: what the kernel needs to check each block as it is read, and where a slot keeps it.

use serde::{Deserialize, Serialize};

use super::Digest;

/// A slot's seal is in the first sector of its last block of so many bytes, which no sealed image may reach into.
pub const SEAL_BYTES: u64 = 4096;

/// `[payload.verity]`: the image holds a file system, then a hash tree of it as `veritysetup format` makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verity {
    /// The root of the hash tree.
    pub root_hash: Digest,
    /// Where the tree's superblock lies in the image, in bytes.
    pub hash_offset: u64,
}

/// Where a slot of `slot_len_bytes` keeps its seal; `None` if it is too small for one.
pub const fn seal_at(slot_len_bytes: u64) -> Option<u64> {
    (slot_len_bytes / SEAL_BYTES * SEAL_BYTES).checked_sub(SEAL_BYTES)
}
