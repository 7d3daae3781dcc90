//! The block index: where an image has data, for each block of it a hash and the length of its frame, and the pieces that its
//! data can be found by elsewhere.
//!
//! The layout is in `FORMAT.md`. An index is used only after its bytes were seen to have the digest in the signed
//! manifest; even so each number in it is checked against the manifest and against the others.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::pieces::{self, Print};
use crate::model::payload::{BLOCK_BYTES, Payload};
use crate::{Error, Result};

pub(super) const MAGIC: [u8; 8] = *b"twhindex";
pub(super) const VERSION: u32 = 2;
const HEADER_LEN: usize = 64;
const EXTENT_LEN: usize = 16;
pub(super) const HASH_LEN: usize = 16;
const SIZE_LEN: usize = 2;
pub(super) const PIECE_LEN: usize = 6;
/// Length of a block in memory.
pub const BLOCK_LEN: usize = 4096;
/// The most blocks before a frame that it may be compressed with: 8 MiB. It bounds what a reader holds in memory.
pub const PREFIX_BLOCKS_MAX: u32 = 2048;
/// Of so many frames in a row, or pieces, only the first one's place is remembered.
const STEP: usize = 64;

/// The first 16 bytes of a SHA-256.
pub type Hash = [u8; HASH_LEN];

/// The hash of some bytes.
pub fn hash(bytes: &[u8]) -> Hash {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    let mut short = [0; HASH_LEN];
    short.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    short
}

/// Blocks that lie next to each other in the image.
///
/// *Carried* blocks are those that are not zero. They are numbered from 0 in the order of the image, and that
/// number is meant wherever "carried" is said. Each has a frame of its own, with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Number of the first block in the image.
    pub block: u64,
    /// Its number among the carried ones.
    pub carried: u64,
    /// How many blocks.
    pub len: u64,
}

/// A checked index. Its tables stay in the form of their bytes: 18 for each block that is not zero, and 6 for each piece.
#[derive(Debug)]
pub struct Index {
    bytes: Vec<u8>,
    /// Every stretch of the image that is not zero.
    runs: Vec<Run>,
    /// Where every [`STEP`]th frame begins in the frames member, and where the last one ends.
    places: Vec<u64>,
    /// Where every [`STEP`]th piece begins in the carried blocks.
    starts: Vec<u64>,
    pieces: usize,
    carried: u64,
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
            return Err(wrong("not an index of version 2"));
        }
        if fields.u32().map(u64::from) != Some(BLOCK_BYTES) || fields.u64() != Some(payload.size) {
            return Err(wrong("another block size or image length than the manifest's"));
        }
        let header = (fields.u64(), fields.u64(), fields.u64(), fields.u64(), fields.u32(), fields.u32());
        let (Some(carried), Some(extents), frames_len, Some(pieces), Some(prefix_blocks), Some(0)) = header
        else {
            return Err(wrong("flags that are not known"));
        };
        if frames_len != Some(payload.frames_size) {
            return Err(wrong("another length of all frames than the manifest's"));
        }
        if prefix_blocks > PREFIX_BLOCKS_MAX {
            return Err(wrong("prefixes that are too large"));
        }
        // Before anything is allocated: all counts are bounded by the blocks that there are.
        let fits = carried <= payload.blocks() && extents <= carried;
        if !fits || len_of(carried, extents, pieces) != Some(bytes.len() as u64) {
            return Err(wrong("a length that does not fit its counts"));
        }
        let runs = read_runs(fields.0, extents, carried, payload.blocks())
            .ok_or_else(|| wrong("stretches of data that overlap, touch, or do not fit their count"))?;
        let count = usize::try_from(pieces).map_err(|_| wrong("more pieces than memory can list"))?;
        let (places, starts) = (Vec::new(), Vec::new());
        let mut index = Self { bytes, runs, places, starts, pieces: count, carried, prefix_blocks };
        index.places = index.read_places();
        if index.places.is_empty() || index.places.last() != Some(&payload.frames_size) {
            return Err(wrong("frames whose lengths do not fit"));
        }
        index.starts =
            index.read_starts(pieces).ok_or_else(|| wrong("pieces that do not fit the stretches of data"))?;
        Ok(index)
    }

    /// The index as it was read.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many blocks are carried.
    pub const fn carried(&self) -> u64 {
        self.carried
    }

    /// The most blocks before a frame that it was compressed with.
    pub const fn prefix_blocks(&self) -> u32 {
        self.prefix_blocks
    }

    /// The hash of a carried block, or `None` after the last.
    pub fn hash(&self, carried: u64) -> Option<Hash> {
        if carried >= self.carried {
            return None;
        }
        self.fields(self.hashes_at(), carried, HASH_LEN)?.array()
    }

    /// The length of the frame of a carried block, or `None` after the last.
    pub fn frame_len(&self, carried: u64) -> Option<usize> {
        if carried >= self.carried {
            return None;
        }
        self.fields(self.sizes_at(), carried, SIZE_LEN)?.array().map(u16::from_le_bytes).map(usize::from)
    }

    /// Where the frames of some carried blocks lie in the frames member, or `None` behind its end.
    pub fn frames(&self, carried: &Range<u64>) -> Option<Range<u64>> {
        Some(self.place(carried.start)?..self.place(carried.end)?)
    }

    /// All carried blocks, in batches of `len`.
    pub fn batches(&self, len: u64) -> impl Iterator<Item = Range<u64>> + use<> {
        let carried = self.carried;
        (0..carried.div_ceil(len)).map(move |n| n * len..carried.min((n + 1) * len))
    }

    /// The carried ones of some blocks of the image.
    pub fn carried_in(&self, blocks: Range<u64>) -> Range<u64> {
        let before = |block: u64| match self.runs.partition_point(|r| r.block < block).checked_sub(1) {
            Some(last) => self.runs.get(last).map_or(0, |r| r.carried + r.len.min(block - r.block)),
            None => 0,
        };
        before(blocks.start)..before(blocks.end)
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

    /// How many pieces there are.
    pub const fn pieces(&self) -> usize {
        self.pieces
    }

    /// The print of a piece, or `None` after the last.
    pub fn print(&self, piece: usize) -> Option<Print> {
        if piece >= self.pieces() {
            return None;
        }
        let mut fields = self.fields(self.pieces_at(), piece as u64, PIECE_LEN)?;
        let len = fields.array().map(u16::from_le_bytes)?;
        Some(Print { crc: fields.u32()?, len })
    }

    /// The pieces that a carried block has a part of, each with the place where it begins: bytes from the beginning of all
    /// carried blocks.
    pub fn pieces_of(&self, carried: u64) -> impl Iterator<Item = (usize, u64)> + '_ {
        let (start, end) = (carried * BLOCK_BYTES, (carried + 1) * BLOCK_BYTES);
        let step = self.starts.partition_point(|s| *s <= start).saturating_sub(1);
        let mut at = self.starts.get(step).copied().unwrap_or(0);
        (step * STEP..self.pieces)
            .map(move |piece| {
                let begin = at;
                at += self.piece_len(piece as u64).map_or(0, u64::from);
                (piece, begin..at)
            })
            .skip_while(move |(_, place)| place.end <= start)
            .take_while(move |(_, place)| place.start < end)
            .map(|(piece, place)| (piece, place.start))
    }

    fn piece_len(&self, piece: u64) -> Option<u16> {
        self.fields(self.pieces_at(), piece, PIECE_LEN)?.array().map(u16::from_le_bytes)
    }

    const fn hashes_at(&self) -> usize {
        HEADER_LEN + self.runs.len() * EXTENT_LEN
    }

    fn sizes_at(&self) -> usize {
        self.hashes_at() + usize::try_from(self.carried).unwrap_or(0) * HASH_LEN
    }

    fn pieces_at(&self) -> usize {
        self.sizes_at() + usize::try_from(self.carried).unwrap_or(0) * SIZE_LEN
    }

    /// An entry of a table that begins at `table`.
    fn fields(&self, table: usize, number: u64, len: usize) -> Option<Fields<'_>> {
        let start = table.checked_add(usize::try_from(number).ok()?.checked_mul(len)?)?;
        self.bytes.get(start..).map(Fields)
    }

    /// Where a frame begins in the frames member, or where the last one ends.
    fn place(&self, carried: u64) -> Option<u64> {
        if carried >= self.carried {
            return self.places.last().copied().filter(|_| carried == self.carried);
        }
        let step = usize::try_from(carried).ok()? / STEP;
        let first = step as u64 * STEP as u64;
        let lens = (first..carried).map(|c| self.frame_len(c).unwrap_or(0) as u64);
        Some(self.places.get(step)? + lens.sum::<u64>())
    }

    /// Empty if a frame has a length that none can have.
    fn read_places(&self) -> Vec<u64> {
        let mut places = Vec::new();
        let mut end = 0_u64;
        for carried in 0..self.carried {
            match self.frame_len(carried) {
                Some(len @ 1..=BLOCK_LEN) => {
                    if carried % STEP as u64 == 0 {
                        places.push(end);
                    }
                    end = end.saturating_add(len as u64);
                }
                _ => return Vec::new(),
            }
        }
        places.push(end);
        places
    }

    /// `None` if a piece does not end with the stretch of data that it is in.
    fn read_starts(&self, pieces: u64) -> Option<Vec<u64>> {
        let mut starts = Vec::new();
        let mut runs = self.runs.iter().map(|r| (r.carried + r.len) * BLOCK_BYTES).peekable();
        let mut end = 0;
        for piece in 0..pieces {
            let len = self.piece_len(piece)?;
            let run_end = *runs.peek()?;
            if piece % STEP as u64 == 0 {
                starts.push(end);
            }
            end += u64::from(len);
            if len == 0 || usize::from(len) > pieces::LEN_MAX || end > run_end {
                return None;
            }
            if end == run_end {
                runs.next();
            }
        }
        runs.next().is_none().then_some(starts)
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
fn len_of(carried: u64, extents: u64, pieces: u64) -> Option<u64> {
    let blocks = carried.checked_mul((HASH_LEN + SIZE_LEN) as u64)?;
    let pieces = pieces.checked_mul(PIECE_LEN as u64)?;
    let extents = extents.checked_mul(EXTENT_LEN as u64)?;
    extents.checked_add(blocks)?.checked_add(pieces)?.checked_add(HEADER_LEN as u64)
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
    use crate::bundle::index_builder::Builder;
    use crate::model::Digest;
    use crate::model::payload::PayloadKind;

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
            frames_sha256: Digest([0; 32]),
            verity: None,
            files: Vec::new(),
        }
    }

    fn builder(extents: &[(u64, u64)], frames: &[u16], pieces: &[u16]) -> (Vec<u8>, u64) {
        let mut b = Builder::new(2);
        b.extents = extents.to_vec();
        b.hashes = (1..=4).flat_map(|h| [h; 16]).collect();
        frames.iter().for_each(|len| b.frame(*len));
        pieces.iter().for_each(|len| b.piece(Print { crc: 7, len: *len }));
        b.finish(SIZE)
    }

    /// Six blocks, of which 0, 2, 3 and 5 are not zero.
    fn example() -> (Vec<u8>, u64) {
        builder(&[(0, 1), (2, 2), (5, 1)], &[100, 50, 4096, 1], &[1000, 3096, 8192, 4096])
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (bytes, frames_len) = example();
        assert_eq!((bytes.len(), frames_len), (64 + 3 * 16 + 4 * 18 + 4 * 6, 4247));
        let index = Index::parse(bytes.clone(), &payload(&bytes, frames_len)).unwrap();
        assert_eq!((index.carried(), index.prefix_blocks(), index.pieces()), (4, 2, 4));
        assert_eq!((index.hash(2), index.hash(3), index.hash(4)), (Some([3; 16]), Some([4; 16]), None));
        assert_eq!((index.frame_len(0), index.frame_len(3), index.frame_len(4)), (Some(100), Some(1), None));
        assert_eq!((index.frames(&(1..3)), index.frames(&(0..4))), (Some(100..4246), Some(0..4247)));
        assert_eq!((index.frames(&(4..4)), index.frames(&(3..5))), (Some(4247..4247), None));
        assert_eq!((index.print(1), index.print(4)), (Some(Print { crc: 7, len: 3096 }), None));
        let pieces = |c| index.pieces_of(c).collect::<Vec<_>>();
        assert_eq!((pieces(0), pieces(1)), (vec![(0, 0), (1, 1000)], vec![(2, 4096)]));
        assert_eq!((pieces(2), pieces(3), pieces(4)), (vec![(2, 4096)], vec![(3, 12288)], vec![]));
    }

    #[test]
    fn frames_far_in_are_found() {
        let mut b = Builder::new(0);
        (0..300).for_each(|i| b.block(i, [1; 16]));
        (0..300).for_each(|i| b.frame(i + 1));
        (0..75).for_each(|_| b.piece(Print { crc: 0, len: 16384 }));
        let (bytes, len) = b.finish(300 * 4096);
        let payload = Payload { size: 300 * 4096, ..payload(&bytes, len) };
        let index = Index::parse(bytes, &payload).unwrap();
        let sum = |n: u64| n * (n + 1) / 2;
        for n in [0, 1, 63, 64, 65, 200, 299] {
            assert_eq!(index.frames(&(n..n + 1)), Some(sum(n)..sum(n + 1)));
        }
    }

    #[test]
    fn runs_tell_where_carried_blocks_lie() {
        let (bytes, len) = example();
        let index = Index::parse(bytes.clone(), &payload(&bytes, len)).unwrap();
        let runs = |r: Range<u64>| index.runs(r).map(|r| (r.block, r.carried, r.len)).collect::<Vec<_>>();
        assert_eq!(runs(0..4), [(0, 0, 1), (2, 1, 2), (5, 3, 1)]);
        assert_eq!(runs(1..2), [(2, 1, 1)]);
        assert_eq!(runs(2..4), [(3, 2, 1), (5, 3, 1)]);
        assert_eq!((runs(0..0), runs(2..2), runs(4..9)), (vec![], vec![], vec![]));
        let carried = |r: Range<u64>| index.carried_in(r);
        assert_eq!((carried(0..6), carried(0..9), carried(0..1), carried(1..2)), (0..4, 0..4, 0..1, 1..1));
        assert_eq!((carried(1..3), carried(3..6), carried(4..5), carried(5..6)), (1..2, 2..4, 3..3, 3..4));
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
            let (bytes, len) = builder(&extents, &[1, 2, 3, 4], &[16384]);
            let parsed = Index::parse(bytes.clone(), &payload(&bytes, len));
            assert_eq!(parsed.is_ok(), extents == [(0, 4)], "{extents:?}");
        }
    }

    #[test]
    fn lengths_of_frames_and_pieces_must_be_possible() {
        let all: &[u16] = &[4096, 8192, 4096];
        for (frames, pieces, good) in [
            ([1, 1, 1, 4096], all, true),
            ([1, 1, 1, 0], all, false),
            ([1, 4097, 1, 1], all, false),
            ([1; 4], &[4096, 4096, 4096, 4096], true),
            ([1; 4], &[4096, 8192], false),
            ([1; 4], &[4096, 8192, 4096, 1], false),
            ([1; 4], &[4096, 0, 8192, 4096], false),
            ([1; 4], &[4000, 8288, 4096], false),
            ([1; 4], &[12288, 4096], false),
            ([1; 4], &[], false),
        ] {
            let (bytes, len) = builder(&[(0, 1), (2, 2), (5, 1)], &frames, pieces);
            let parsed = Index::parse(bytes.clone(), &payload(&bytes, len));
            assert_eq!(parsed.is_ok(), good, "{frames:?} {pieces:?}");
        }
        let (bytes, len) = builder(&[(0, 4)], &[1; 4], &[16385]);
        Index::parse(bytes.clone(), &payload(&bytes, len)).unwrap_err();
    }

    #[test]
    fn every_change_of_the_header_is_refused() {
        let (bytes, len) = example();
        // Another size of prefixes may make sense; then the frames do not decode.
        for byte in (0..56).chain(58..HEADER_LEN) {
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
