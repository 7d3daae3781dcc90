//! The block index: a hash for each block of an image, and the frames that carry those that are not zero.
//!
//! The layout is in `FORMAT.md`. An index is used only after its bytes were seen to have the digest in the signed
//! manifest; even so each number in it is checked against the manifest and against the others.

use sha2::{Digest as _, Sha256};

use crate::model::manifest::{BLOCK_BYTES, Payload};
use crate::{Error, Result};

const MAGIC: [u8; 8] = *b"twhindex";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 64;
const FRAME_LEN: usize = 48;
/// Length of a block in memory.
pub const BLOCK_LEN: usize = 4096;
/// The most blocks that one frame may carry: 4 MiB. It bounds what a reader holds in memory.
pub const FRAME_BLOCKS_MAX: u32 = 1024;

/// The first 16 bytes of a SHA-256. All zero stands for a block of zeros, which no frame carries.
pub type Hash = [u8; 16];
const HASH_LEN: usize = 16;
/// The hash that stands for a block of zeros.
pub const ZERO: Hash = [0; HASH_LEN];

/// The hash of some bytes.
pub fn hash(bytes: &[u8]) -> Hash {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    let mut short = ZERO;
    short.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    short
}

/// The longest a compressed frame of `blocks` blocks may be: what zstd needs for bytes that do not compress.
pub const fn data_len_max(blocks: u32) -> u64 {
    let plain = blocks as u64 * BLOCK_BYTES;
    plain + plain / 128 + 512
}

/// One frame: the next `blocks` blocks that are not zero, from `first_block` on, compressed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Number of its first block, from 0.
    pub first_block: u64,
    /// How many blocks it carries; zero blocks in between do not count.
    pub blocks: u32,
    /// Its compressed length in bytes.
    pub data_len: u32,
    /// Hash of the compressed bytes, so that nothing unsigned reaches the decompressor.
    pub hash: Hash,
}

/// A checked index. It stays in the form of its bytes: 16 for each block of the image.
#[derive(Debug)]
pub struct Index {
    bytes: Vec<u8>,
    blocks: u64,
    frames: u64,
}

impl Index {
    /// Reads and checks an index against the signed description of its payload.
    ///
    /// # Errors
    /// `Failed` if any number in it contradicts the payload or another.
    pub fn parse(bytes: Vec<u8>, payload: &Payload) -> Result<Self> {
        let wrong = |what: &str| {
            Err(Error::failed(format!("{}.index: {what}; the bundle was made wrongly", payload.name)))
        };
        let mut fields = Fields(&bytes);
        if fields.array() != Some(MAGIC) || fields.u32() != Some(VERSION) {
            return wrong("not an index of version 1");
        }
        if fields.u32().map(u64::from) != Some(BLOCK_BYTES) || fields.u64() != Some(payload.size) {
            return wrong("another block size or image length than the manifest's");
        }
        let blocks = payload.blocks();
        let (found, frames, prefixes) = (fields.u64(), fields.u64().unwrap_or(u64::MAX), fields.u64());
        if found != Some(blocks) || frames > blocks || prefixes != Some(0) {
            return wrong("a number of blocks, frames or prefixes that does not fit");
        }
        if fields.u64() != Some(payload.frames_size) {
            return wrong("another length of all frames than the manifest's");
        }
        let frame_max = fields.u32().unwrap_or(u32::MAX);
        if frame_max > FRAME_BLOCKS_MAX || fields.u32() != Some(0) {
            return wrong("frames that are too large, or flags that are not known");
        }
        if len_of(blocks, frames) != Some(bytes.len() as u64) {
            return wrong("a length that does not fit its counts");
        }
        let index = Self { bytes, blocks, frames };
        match index.check_frames() {
            Some(found) if found == (payload.frames_size, frame_max) => Ok(index),
            _ => wrong("frames that do not carry each block once and in order"),
        }
    }

    /// How many frames there are.
    pub const fn frames(&self) -> u64 {
        self.frames
    }

    /// The hash of a block, or `None` after the last.
    pub fn hash(&self, block: u64) -> Option<Hash> {
        if block >= self.blocks {
            return None;
        }
        let start = HEADER_LEN + usize::try_from(block).ok()?.checked_mul(HASH_LEN)?;
        Fields(self.bytes.get(start..)?).array()
    }

    /// A frame by its number, or `None` after the last.
    pub fn frame(&self, number: u64) -> Option<Frame> {
        if number >= self.frames {
            return None;
        }
        Some(self.record(number)?.0)
    }

    /// The first block at or after `block` that is not zero.
    pub fn next_carried(&self, block: u64) -> Option<u64> {
        (block..self.blocks).find(|b| self.hash(*b) != Some(ZERO))
    }

    /// A frame, and what is reserved in its record.
    fn record(&self, number: u64) -> Option<(Frame, [u8; 16])> {
        let hashes = usize::try_from(self.blocks).ok()?.checked_mul(HASH_LEN)?;
        let offset = usize::try_from(number).ok()?.checked_mul(FRAME_LEN)?;
        let start = HEADER_LEN.checked_add(hashes)?.checked_add(offset)?;
        let mut fields = Fields(self.bytes.get(start..)?);
        let frame = Frame {
            first_block: fields.u64()?,
            blocks: fields.u32()?,
            data_len: fields.u32()?,
            hash: fields.array()?,
        };
        Some((frame, fields.array()?))
    }

    /// The length of all frames and the most blocks of one, if each block that is not zero is carried once and in
    /// order.
    fn check_frames(&self) -> Option<(u64, u32)> {
        let mut at = 0;
        let mut largest = 0;
        let mut total = 0_u64;
        for number in 0..self.frames {
            let (frame, reserved) = self.record(number)?;
            let fits = frame.blocks >= 1
                && frame.blocks <= FRAME_BLOCKS_MAX
                && frame.data_len >= 1
                && u64::from(frame.data_len) <= data_len_max(frame.blocks)
                && reserved == [0; 16]
                && self.next_carried(at) == Some(frame.first_block);
            if !fits {
                return None;
            }
            for _ in 0..frame.blocks {
                at = self.next_carried(at)? + 1;
            }
            total = total.checked_add(u64::from(frame.data_len))?;
            largest = largest.max(frame.blocks);
        }
        self.next_carried(at).is_none().then_some((total, largest))
    }
}

/// The length of an index in bytes.
fn len_of(blocks: u64, frames: u64) -> Option<u64> {
    let hashes = blocks.checked_mul(HASH_LEN as u64)?;
    frames.checked_mul(FRAME_LEN as u64)?.checked_add(hashes)?.checked_add(HEADER_LEN as u64)
}

/// An index in the making.
#[cfg(feature = "build-host")]
#[derive(Debug, Default)]
pub struct Builder {
    hashes: Vec<u8>,
    frames: Vec<Frame>,
}

#[cfg(feature = "build-host")]
impl Builder {
    /// Adds the next block's hash.
    pub fn block(&mut self, hash: Hash) {
        self.hashes.extend(hash);
    }

    /// Adds the next frame.
    pub fn frame(&mut self, frame: Frame) {
        self.frames.push(frame);
    }

    /// The index's bytes, and the length of all frames.
    pub fn finish(self, image_len: u64) -> (Vec<u8>, u64) {
        let frames_len = self.frames.iter().map(|f| u64::from(f.data_len)).sum();
        let frame_max = self.frames.iter().map(|f| f.blocks).max().unwrap_or(0);
        let mut bytes = Vec::new();
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(BLOCK_LEN_U32.to_le_bytes());
        bytes.extend(image_len.to_le_bytes());
        bytes.extend((self.hashes.len() as u64 / HASH_LEN as u64).to_le_bytes());
        bytes.extend((self.frames.len() as u64).to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        bytes.extend(u64::to_le_bytes(frames_len));
        bytes.extend(frame_max.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(&self.hashes);
        for frame in &self.frames {
            bytes.extend(frame.first_block.to_le_bytes());
            bytes.extend(frame.blocks.to_le_bytes());
            bytes.extend(frame.data_len.to_le_bytes());
            bytes.extend(frame.hash);
            bytes.extend([0; 16]);
        }
        (bytes, frames_len)
    }
}

#[cfg(feature = "build-host")]
const BLOCK_LEN_U32: u32 = 4096;

/// Little-endian numbers, one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(all(test, feature = "build-host"))]
mod tests {
    use super::*;
    use crate::model::Digest;
    use crate::model::manifest::PayloadKind;

    fn payload(size: u64, index: &[u8], frames_size: u64) -> Payload {
        Payload {
            name: "root".into(),
            kind: PayloadKind::RootSlot,
            size,
            sha256: Digest([0; 32]),
            index_sha256: Digest([0; 32]),
            index_size: index.len() as u64,
            frames_size,
        }
    }

    fn frame(first_block: u64, blocks: u32) -> Frame {
        Frame { first_block, blocks, data_len: 100, hash: [9; 16] }
    }

    /// Five blocks, the second and the last of which are zero.
    fn example(frames: &[Frame]) -> (Vec<u8>, u64) {
        let mut b = Builder::default();
        for h in [[1; 16], ZERO, [2; 16], [3; 16], ZERO] {
            b.block(h);
        }
        frames.iter().for_each(|f| b.frame(*f));
        b.finish(5 * 4096 - 7)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (bytes, frames_len) = example(&[frame(0, 2), frame(3, 1)]);
        assert_eq!((bytes.len(), frames_len), (64 + 5 * 16 + 2 * 48, 200));
        let index = Index::parse(bytes.clone(), &payload(5 * 4096 - 7, &bytes, 200)).unwrap();
        assert_eq!((index.frames(), index.frame(1), index.frame(2)), (2, Some(frame(3, 1)), None));
        assert_eq!((index.hash(2), index.hash(4), index.hash(5)), (Some([2; 16]), Some(ZERO), None));
        assert_eq!((index.next_carried(1), index.next_carried(4)), (Some(2), None));
    }

    #[test]
    fn frames_must_carry_each_block_once_and_in_order() {
        for frames in [
            vec![],
            vec![frame(0, 2)],
            vec![frame(0, 3), frame(3, 1)],
            vec![frame(0, 4)],
            vec![frame(1, 3)],
            vec![frame(3, 1), frame(0, 2)],
            vec![frame(0, 0), frame(0, 3)],
            vec![frame(0, u32::MAX)],
            vec![Frame { data_len: 0, ..frame(0, 3) }],
            vec![Frame { data_len: u32::MAX, ..frame(0, 3) }],
        ] {
            let (bytes, len) = example(&frames);
            assert!(Index::parse(bytes.clone(), &payload(5 * 4096 - 7, &bytes, len)).is_err(), "{frames:?}");
        }
    }

    #[test]
    fn every_change_of_the_header_and_of_what_is_reserved_is_refused() {
        let (bytes, len) = example(&[frame(0, 3)]);
        let reserved = bytes.len() - 16;
        for byte in (0..HEADER_LEN).chain(reserved..bytes.len()) {
            for flip in [1, 0x80, 0xff] {
                let mut bad = bytes.clone();
                bad[byte] ^= flip;
                assert!(Index::parse(bad, &payload(5 * 4096 - 7, &bytes, len)).is_err(), "byte {byte}");
            }
        }
        for short in 0..bytes.len() {
            assert!(Index::parse(bytes[..short].to_vec(), &payload(5 * 4096 - 7, &bytes, len)).is_err());
        }
    }
}
