//! The block index: where an image has data, a hash for each block of it, and the frames that carry them.
//!
//! The layout is in `FORMAT.md`. An index is used only after its bytes were seen to have the digest in the signed
//! manifest; even so each number in it is checked against the manifest and against the others.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use crate::model::payload::{BLOCK_BYTES, Payload};
use crate::{Error, Result};

const MAGIC: [u8; 8] = *b"twhindex";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 64;
const EXTENT_LEN: usize = 16;
const HASH_LEN: usize = 16;
const FRAME_LEN: usize = 20;
/// Length of a block in memory.
pub const BLOCK_LEN: usize = 4096;
/// The most blocks that one frame may carry: 4 MiB. It bounds what a reader holds in memory.
pub const FRAME_BLOCKS_MAX: u32 = 1024;
/// The most blocks before a frame that it may be compressed with: 8 MiB. It bounds what a reader holds in memory.
pub const PREFIX_BLOCKS_MAX: u32 = 2048;

/// The first 16 bytes of a SHA-256.
pub type Hash = [u8; HASH_LEN];

/// The hash of some bytes.
pub fn hash(bytes: &[u8]) -> Hash {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    let mut short = [0; HASH_LEN];
    short.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    short
}

/// The longest a compressed frame of `blocks` blocks may be: what zstd needs for bytes that do not compress.
pub const fn data_len_max(blocks: u32) -> u64 {
    let plain = blocks as u64 * BLOCK_BYTES;
    plain + plain / 128 + 512
}

/// One frame: some carried blocks, compressed together.
///
/// *Carried* blocks are those that are not zero. They are numbered from 0 in the order of the image, and that
/// number is meant wherever "carried" is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The carried blocks in it.
    pub carried: Range<u64>,
    /// The carried blocks before it that the decompressor must be shown.
    pub prefix: Range<u64>,
    /// Where its compressed bytes begin in the frames member.
    pub offset: u64,
    /// How many they are.
    pub data_len: usize,
    /// Their hash, so that nothing unsigned reaches the decompressor.
    pub hash: Hash,
}

/// Carried blocks that lie next to each other in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Number of the first block in the image.
    pub block: u64,
    /// Its number among the carried ones.
    pub carried: u64,
    /// How many blocks.
    pub len: u64,
}

/// A checked index. Hashes and frames stay in the form of their bytes: 16 for each block that is not zero.
#[derive(Debug)]
pub struct Index {
    bytes: Vec<u8>,
    /// Every stretch of the image that is not zero.
    runs: Vec<Run>,
    /// Where each frame ends in the frames member.
    ends: Vec<u64>,
    carried: u64,
    frame_blocks: u32,
    prefix_blocks: u32,
}

impl Index {
    /// Reads and checks an index against the signed description of its payload.
    ///
    /// # Errors
    /// `Failed` if any number in it contradicts the payload or another.
    pub fn parse(bytes: Vec<u8>, payload: &Payload) -> Result<Self> {
        let wrong = |what: &str| {
            Error::failed(format!("{}.index: {what}; the bundle was made wrongly", payload.name))
        };
        let mut fields = Fields(&bytes);
        if fields.array() != Some(MAGIC) || fields.u32() != Some(VERSION) {
            return Err(wrong("not an index of version 1"));
        }
        if fields.u32().map(u64::from) != Some(BLOCK_BYTES) || fields.u64() != Some(payload.size) {
            return Err(wrong("another block size or image length than the manifest's"));
        }
        let header = (fields.u64(), fields.u64(), fields.u64(), fields.u32(), fields.u32(), fields.u64());
        let (Some(carried), Some(extents), frames_len, Some(frame_blocks), Some(prefix_blocks), Some(0)) =
            header
        else {
            return Err(wrong("flags that are not known"));
        };
        if frames_len != Some(payload.frames_size) {
            return Err(wrong("another length of all frames than the manifest's"));
        }
        if !(1..=FRAME_BLOCKS_MAX).contains(&frame_blocks) || prefix_blocks > PREFIX_BLOCKS_MAX {
            return Err(wrong("frames or prefixes that are too large"));
        }
        // Before anything is allocated: both counts are bounded by the blocks that there are.
        let fits = carried <= payload.blocks() && extents <= carried;
        if !fits || len_of(carried, extents, frame_blocks) != Some(bytes.len() as u64) {
            return Err(wrong("a length that does not fit its counts"));
        }
        let runs = read_runs(fields.0, extents, carried, payload.blocks())
            .ok_or_else(|| wrong("stretches of data that overlap, touch, or do not fit their count"))?;
        let mut index = Self { bytes, runs, ends: Vec::new(), carried, frame_blocks, prefix_blocks };
        match index.read_ends() {
            Some(ends) if ends.last().copied().unwrap_or(0) == payload.frames_size => {
                index.ends = ends;
                Ok(index)
            }
            _ => Err(wrong("frames whose lengths do not fit")),
        }
    }

    /// The index as it was read.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many blocks are carried.
    pub const fn carried(&self) -> u64 {
        self.carried
    }

    /// How many frames there are.
    pub const fn frames(&self) -> u64 {
        self.carried.div_ceil(self.frame_blocks as u64)
    }

    /// The most blocks that one frame carries, and that are shown before it.
    pub const fn limits(&self) -> (u32, u32) {
        (self.frame_blocks, self.prefix_blocks)
    }

    /// The hash of a carried block, or `None` after the last.
    pub fn hash(&self, carried: u64) -> Option<Hash> {
        if carried >= self.carried {
            return None;
        }
        Fields(self.bytes.get(self.hash_at(carried)?..)?).array()
    }

    /// A frame by its number, or `None` after the last.
    pub fn frame(&self, number: u64) -> Option<Frame> {
        let end = *self.ends.get(usize::try_from(number).ok()?)?;
        let (data_len, hash) = self.record(number)?;
        let first = number * u64::from(self.frame_blocks);
        Some(Frame {
            carried: first..(first + u64::from(self.frame_blocks)).min(self.carried),
            prefix: first.saturating_sub(self.prefix_blocks.into())..first,
            offset: end.checked_sub(data_len.into())?,
            data_len: usize::try_from(data_len).ok()?,
            hash,
        })
    }

    /// Where some carried blocks lie in the image, in order.
    pub fn runs(&self, carried: Range<u64>) -> impl Iterator<Item = Run> + '_ {
        let first = self.runs.partition_point(|r| r.carried + r.len <= carried.start);
        let runs = self.runs.get(first..).unwrap_or_default();
        let end = carried.end;
        runs.iter()
            .take_while(move |r| r.carried < end)
            .map(move |r| {
                let skip = carried.start.saturating_sub(r.carried);
                let len = (end - r.carried).min(r.len).saturating_sub(skip);
                Run { block: r.block + skip, carried: r.carried + skip, len }
            })
            .filter(|r| r.len > 0)
    }

    fn hash_at(&self, carried: u64) -> Option<usize> {
        let start = HEADER_LEN.checked_add(self.runs.len().checked_mul(EXTENT_LEN)?)?;
        start.checked_add(usize::try_from(carried).ok()?.checked_mul(HASH_LEN)?)
    }

    /// A frame's compressed length and the hash of its bytes.
    fn record(&self, number: u64) -> Option<(u32, Hash)> {
        let start = self.hash_at(self.carried)?;
        let start = start.checked_add(usize::try_from(number).ok()?.checked_mul(FRAME_LEN)?)?;
        let mut fields = Fields(self.bytes.get(start..)?);
        Some((fields.u32()?, fields.array()?))
    }

    fn read_ends(&self) -> Option<Vec<u64>> {
        let mut ends = Vec::new();
        let mut end = 0_u64;
        for number in 0..self.frames() {
            let (len, _) = self.record(number)?;
            let left = self.carried - number * u64::from(self.frame_blocks);
            let blocks = u32::try_from(left).unwrap_or(u32::MAX).min(self.frame_blocks);
            if len == 0 || u64::from(len) > data_len_max(blocks) {
                return None;
            }
            end = end.checked_add(len.into())?;
            ends.push(end);
        }
        Some(ends)
    }
}

/// The table of extents. They are in order and do not touch, so there is one way only to write them.
fn read_runs(bytes: &[u8], extents: u64, carried: u64, blocks: u64) -> Option<Vec<Run>> {
    let mut fields = Fields(bytes);
    let mut runs: Vec<Run> = Vec::new();
    let mut count = 0;
    for _ in 0..extents {
        let run = Run { block: fields.u64()?, carried: count, len: fields.u64()? };
        let apart = runs.last().is_none_or(|last| last.block + last.len < run.block);
        if run.len == 0 || !apart || run.block.checked_add(run.len)? > blocks {
            return None;
        }
        count += run.len;
        runs.push(run);
    }
    (count == carried).then_some(runs)
}

/// The length of an index in bytes.
fn len_of(carried: u64, extents: u64, frame_blocks: u32) -> Option<u64> {
    let hashes = carried.checked_mul(HASH_LEN as u64)?;
    let frames = carried.div_ceil(frame_blocks.into()).checked_mul(FRAME_LEN as u64)?;
    let extents = extents.checked_mul(EXTENT_LEN as u64)?;
    extents.checked_add(hashes)?.checked_add(frames)?.checked_add(HEADER_LEN as u64)
}

/// An index in the making.
#[cfg(feature = "build-host")]
#[derive(Debug)]
pub struct Builder {
    frame_blocks: u32,
    prefix_blocks: u32,
    extents: Vec<(u64, u64)>,
    hashes: Vec<u8>,
    frames: Vec<u8>,
    frames_len: u64,
}

#[cfg(feature = "build-host")]
impl Builder {
    /// An index whose frames carry `frame_blocks` blocks, compressed with `prefix_blocks` before them.
    pub const fn new(frame_blocks: u32, prefix_blocks: u32) -> Self {
        Self {
            frame_blocks,
            prefix_blocks,
            extents: Vec::new(),
            hashes: Vec::new(),
            frames: Vec::new(),
            frames_len: 0,
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

    /// Adds the next frame: its compressed length, and the hash of its compressed bytes.
    pub fn frame(&mut self, data_len: u32, hash: Hash) {
        self.frames.extend(data_len.to_le_bytes());
        self.frames.extend(hash);
        self.frames_len += u64::from(data_len);
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
        bytes.extend(self.frame_blocks.to_le_bytes());
        bytes.extend(self.prefix_blocks.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        for (block, len) in &self.extents {
            bytes.extend(block.to_le_bytes());
            bytes.extend(len.to_le_bytes());
        }
        bytes.extend(&self.hashes);
        bytes.extend(&self.frames);
        (bytes, self.frames_len)
    }
}

/// Little-endian numbers, one after the other.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(all(test, feature = "build-host"))]
mod tests {
    use super::*;
    use crate::model::Digest;
    use crate::model::PayloadKind;

    const SIZE: u64 = 6 * 4096 - 7;

    fn payload(index: &[u8], frames_size: u64) -> Payload {
        Payload {
            name: "root".into(),
            kind: PayloadKind::RootSlot,
            size: SIZE,
            sha256: Digest([0; 32]),
            index_sha256: Digest([0; 32]),
            index_size: index.len() as u64,
            frames_size,
            files: Vec::new(),
        }
    }

    /// Six blocks, of which 0, 2, 3 and 5 are not zero; two frames of three and one.
    fn example() -> (Vec<u8>, u64) {
        let mut b = Builder::new(3, 2);
        for (block, h) in [(0, 1), (2, 2), (3, 3), (5, 4)] {
            b.block(block, [h; 16]);
        }
        b.frame(100, [8; 16]);
        b.frame(50, [9; 16]);
        b.finish(SIZE)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (bytes, frames_len) = example();
        assert_eq!((bytes.len(), frames_len), (64 + 3 * 16 + 4 * 16 + 2 * 20, 150));
        let index = Index::parse(bytes.clone(), &payload(&bytes, 150)).unwrap();
        assert_eq!((index.carried(), index.frames(), index.limits()), (4, 2, (3, 2)));
        assert_eq!((index.hash(2), index.hash(3), index.hash(4)), (Some([3; 16]), Some([4; 16]), None));
        let first = Frame { carried: 0..3, prefix: 0..0, offset: 0, data_len: 100, hash: [8; 16] };
        let last = Frame { carried: 3..4, prefix: 1..3, offset: 100, data_len: 50, hash: [9; 16] };
        assert_eq!((index.frame(0), index.frame(1), index.frame(2)), (Some(first), Some(last), None));
    }

    #[test]
    fn runs_tell_where_carried_blocks_lie() {
        let (bytes, _) = example();
        let index = Index::parse(bytes.clone(), &payload(&bytes, 150)).unwrap();
        let runs = |r: Range<u64>| index.runs(r).map(|r| (r.block, r.carried, r.len)).collect::<Vec<_>>();
        assert_eq!(runs(0..4), [(0, 0, 1), (2, 1, 2), (5, 3, 1)]);
        assert_eq!(runs(1..2), [(2, 1, 1)]);
        assert_eq!(runs(2..4), [(3, 2, 1), (5, 3, 1)]);
        assert_eq!((runs(0..0), runs(2..2), runs(4..9)), (vec![], vec![], vec![]));
    }

    #[test]
    fn extents_must_be_apart_in_order_and_complete() {
        for extents in [
            vec![(0, 4)],
            vec![(0, 2), (2, 2)],
            vec![(2, 2), (0, 2)],
            vec![(0, 3), (2, 1)],
            vec![(0, 3), (5, 2)],
            vec![(0, 3), (6, 1)],
            vec![(0, 4), (5, 0)],
            vec![(0, 1), (2, u64::MAX)],
            vec![(0, 1), (u64::MAX, 3)],
        ] {
            let mut b = Builder::new(3, 2);
            b.extents.clone_from(&extents);
            b.hashes = vec![1; 4 * 16];
            b.frame(100, [8; 16]);
            b.frame(50, [9; 16]);
            let (bytes, len) = b.finish(SIZE);
            let parsed = Index::parse(bytes.clone(), &payload(&bytes, len));
            assert_eq!(parsed.is_ok(), extents == [(0, 4)], "{extents:?}");
        }
    }

    #[test]
    fn lengths_of_frames_must_be_possible() {
        for (lens, good) in
            [([100, 50], true), ([0, 50], false), ([100, 0], false), ([100, 4096 + 32 + 513], false)]
        {
            let mut b = Builder::new(3, 0);
            (0..4).for_each(|i| b.block(i, [1; 16]));
            lens.iter().for_each(|len| b.frame(*len, [0; 16]));
            let (bytes, len) = b.finish(SIZE);
            assert_eq!(Index::parse(bytes.clone(), &payload(&bytes, len)).is_ok(), good, "{lens:?}");
        }
    }

    #[test]
    fn every_change_of_the_header_is_refused() {
        let (bytes, len) = example();
        // Other sizes of frames and prefixes may make sense; then the frames do not decode.
        for byte in (0..48).chain(54..HEADER_LEN) {
            for flip in [1, 0x80, 0xff] {
                let mut bad = bytes.clone();
                bad[byte] ^= flip;
                assert!(Index::parse(bad, &payload(&bytes, len)).is_err(), "byte {byte}");
            }
        }
        for short in 0..bytes.len() {
            assert!(Index::parse(bytes[..short].to_vec(), &payload(&bytes, len)).is_err());
        }
    }
}
