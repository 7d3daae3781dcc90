//! Making a block index; [`super::index`] reads it.

use super::index::{HASH_LEN, Hash, MAGIC, PIECE_LEN, VERSION};
use super::pieces::Print;

/// An index in the making.
#[derive(Debug)]
pub struct Builder {
    prefix_blocks: u32,
    pub(super) extents: Vec<(u64, u64)>,
    pub(super) hashes: Vec<u8>,
    sizes: Vec<u8>,
    frames_len: u64,
    pieces: Vec<u8>,
}

impl Builder {
    /// An index whose frames are compressed with `prefix_blocks` blocks before them.
    pub const fn new(prefix_blocks: u32) -> Self {
        Self {
            prefix_blocks,
            extents: Vec::new(),
            hashes: Vec::new(),
            sizes: Vec::new(),
            frames_len: 0,
            pieces: Vec::new(),
        }
    }

    /// Adds a block that is not zero. Blocks come in order.
    pub fn block(&mut self, block: u64, hash: Hash) {
        match self.extents.last_mut() {
            Some((first, len)) if *first + *len == block => *len += 1,
            _ => self.extents.push((block, 1)),
        }
        self.hashes.extend(hash);
    }

    /// Adds the length of the next frame.
    pub fn frame(&mut self, len: u16) {
        self.sizes.extend(len.to_le_bytes());
        self.frames_len += u64::from(len);
    }

    /// Adds the next piece.
    pub fn piece(&mut self, print: Print) {
        self.pieces.extend(print.len.to_le_bytes());
        self.pieces.extend(print.crc.to_le_bytes());
    }

    /// The index's bytes, and the length of all frames.
    pub fn finish(self, image_len: u64) -> (Vec<u8>, u64) {
        let mut bytes = Vec::new();
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(4096_u32.to_le_bytes());
        bytes.extend(image_len.to_le_bytes());
        bytes.extend((self.hashes.len() as u64 / HASH_LEN as u64).to_le_bytes());
        bytes.extend((self.extents.len() as u64).to_le_bytes());
        bytes.extend(self.frames_len.to_le_bytes());
        bytes.extend((self.pieces.len() as u64 / PIECE_LEN as u64).to_le_bytes());
        bytes.extend(self.prefix_blocks.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        for (block, len) in &self.extents {
            bytes.extend(block.to_le_bytes());
            bytes.extend(len.to_le_bytes());
        }
        bytes.extend(&self.hashes);
        bytes.extend(&self.sizes);
        bytes.extend(&self.pieces);
        (bytes, self.frames_len)
    }
}
