//! Deltas: other frames for blocks of a bundle's image, which are small because an older image is at hand.
//!
//! A delta is not signed and need not be: the blocks that come out of it are compared with the hashes of the bundle's
//! signed index, like all others. What does not fit is left to the bundle. The layout is in `FORMAT.md`.

use std::io::Read;
use std::ops::Range;

use zstd::zstd_safe::DCtx;

use super::fetch::Meter;
use super::frames::{as_prefix, decompress};
use super::index::{self, BLOCK_LEN, Fields, Index, PREFIX_BLOCKS_MAX, Run};
use super::merge::merge;
use super::source::Source;
use crate::model::Digest;
use crate::{Doing, Error, Result};

pub(super) const MAGIC: [u8; 8] = *b"twhdelta";
pub(super) const VERSION: u32 = 1;
/// Length of what stands before the table.
pub(super) const HEADER_LEN: u64 = 96;
/// The longest table, in bytes: it is read before any of it can be checked.
const TABLE_LIMIT_BYTES: u64 = 8 * 1024 * 1024;
/// The most blocks that one frame may carry: 4 MiB. It bounds what a reader holds in memory.
const FRAME_BLOCKS_MAX: u32 = 1024;
/// Marks a region of the new image in the table.
pub(super) const NEW: u32 = 1 << 31;

/// The older image that a delta was made against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Old {
    /// Its length in bytes.
    pub len_bytes: u64,
    /// SHA-256 of the hashes of all of its blocks, zero or not, one after the other.
    pub digest: Digest,
}

/// Blocks that help to decompress a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Region {
    /// Blocks of the old image, by their numbers in it.
    Old(Range<u64>),
    /// Carried blocks of the new image that frames before carried.
    New(Range<u64>),
}

/// One frame of a delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaFrame {
    /// The carried blocks in it, in ascending order.
    pub carried: Vec<Range<u64>>,
    /// Its prefix, in this order.
    pub prefix: Vec<Region>,
    offset: u64,
    data_len: usize,
}

/// A delta whose table was read.
pub struct Delta {
    source: Source,
    /// What it was made against.
    pub old: Old,
    /// Its frames.
    pub frames: Vec<DeltaFrame>,
    data_at: u64,
}

impl Delta {
    /// Reads the table of a delta for the bundle whose index is `index` and has the digest `index_sha256`.
    ///
    /// # Errors
    /// `Failed` if it is no delta, one for another bundle, or damaged.
    pub fn open(mut source: Source, index: &Index, index_sha256: &Digest) -> Result<Self> {
        let name = source.name().to_owned();
        let doing = || format!("delta {name}");
        let mut header = [0; 96];
        source.read_exact(&mut header).map_err(cut_short).doing(doing)?;
        let mut fields = Fields(&header);
        if fields.array() != Some(MAGIC) || fields.u32() != Some(VERSION) || fields.u32() != Some(0) {
            return Err(Error::failed("not a delta that this twinhull knows").within(doing()));
        }
        if fields.array().map(Digest).as_ref() != Some(index_sha256) {
            return Err(Error::failed("made for another bundle; give the delta of this one").within(doing()));
        }
        let (digest, len_bytes, table_len) = (fields.array().map(Digest), fields.u64(), fields.u64());
        let (Some(digest), Some(len_bytes), Some(table_len)) = (digest, len_bytes, table_len) else {
            return Err(Error::inconsistent("a header of 96 bytes").within(doing()));
        };
        if table_len > TABLE_LIMIT_BYTES {
            let text = format!("a table of {table_len} bytes, at most {TABLE_LIMIT_BYTES}");
            return Err(Error::failed(text).within(doing()));
        }
        let data_at = HEADER_LEN + table_len;
        source.plan(std::iter::once(HEADER_LEN..data_at));
        let mut table = Vec::new();
        // Memory grows with what arrives.
        (&mut source).take(table_len).read_to_end(&mut table).map_err(Error::from).doing(doing)?;
        if table.len() as u64 != table_len {
            return Err(cut_short(std::io::ErrorKind::UnexpectedEof.into()).within(doing()));
        }
        let frames = read_table(&table, index.carried(), len_bytes.div_ceil(BLOCK_LEN as u64))
            .ok_or_else(|| Error::failed("a table that makes no sense; get it again").within(doing()))?;
        Ok(Self { source, old: Old { len_bytes, digest }, frames, data_at })
    }

    /// Says which frames will be read, in ascending order, and how many bytes will be fetched for them.
    pub fn plan(&mut self, frames: &[usize]) -> u64 {
        let wanted: Vec<_> =
            frames.iter().filter_map(|n| self.frames.get(*n)).map(|f| self.place(f)).collect();
        let total = self.source.len_bytes().unwrap_or(u64::MAX);
        let ranges = match self.source.is_worth_skipping() {
            true => merge(&wanted, self.source.meter().bytes_per_request(), total),
            false => wanted,
        };
        let bytes = ranges.iter().map(|r| r.end - r.start).sum();
        self.source.plan(ranges);
        bytes
    }

    /// What was fetched so far.
    pub fn meter(&self) -> Meter {
        self.source.meter()
    }

    /// Decodes a frame. `old` and `new` read what its prefix is made of. `None`: what comes out is not what the bundle
    /// promises, because the old image is not quite there or the delta is damaged.
    ///
    /// # Errors
    /// `Failed` if it cannot be fetched, or from `old` and `new`.
    pub fn decode<'a>(
        &mut self,
        buffers: &'a mut Buffers,
        index: &Index,
        number: usize,
        old: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
        new: &mut dyn FnMut(Run, &mut [u8]) -> Result<()>,
    ) -> Result<Option<&'a [u8]>> {
        let frame = self.frames.get(number).ok_or_else(|| Error::inconsistent("there is no such frame"))?;
        let place = self.place(frame);
        buffers.compressed.resize(frame.data_len, 0);
        self.source.skip_to(place)?;
        self.source.read_exact(&mut buffers.compressed).map_err(cut_short)?;
        buffers.prefix.clear();
        for region in &frame.prefix {
            match region {
                Region::Old(blocks) => {
                    let at = buffers.prefix.len();
                    buffers.prefix.resize(at + bytes_in(blocks), 0);
                    old(blocks.start, buffers.prefix.get_mut(at..).unwrap_or_default())?;
                }
                Region::New(carried) => {
                    for run in index.runs(carried.clone()) {
                        let at = buffers.prefix.len();
                        buffers.prefix.resize(at + bytes_in(&(0..run.len)), 0);
                        new(run, buffers.prefix.get_mut(at..).unwrap_or_default())?;
                    }
                }
            }
        }
        buffers.plain.resize(frame.carried.iter().map(bytes_in).sum(), 0);
        let prefix = as_prefix(&buffers.prefix);
        if decompress(&mut buffers.zstd, &buffers.compressed, prefix, &mut buffers.plain).is_err() {
            return Ok(None);
        }
        let mut carried = frame.carried.iter().cloned().flatten();
        let right = buffers
            .plain
            .chunks_exact(BLOCK_LEN)
            .all(|b| carried.next().is_some_and(|c| index.hash(c) == Some(index::hash(b))));
        Ok(right.then_some(&buffers.plain))
    }

    fn place(&self, frame: &DeltaFrame) -> Range<u64> {
        let start = self.data_at.saturating_add(frame.offset);
        start..start.saturating_add(frame.data_len as u64)
    }
}

/// Memory for decoding: a frame, its compressed bytes and its prefix; 16 MiB at most.
pub struct Buffers {
    zstd: DCtx<'static>,
    compressed: Vec<u8>,
    prefix: Vec<u8>,
    plain: Vec<u8>,
}

impl Buffers {
    /// Empty ones.
    ///
    /// # Errors
    /// `Failed` if there is no memory.
    pub fn new() -> Result<Self> {
        let zstd = DCtx::try_create().ok_or_else(|| Error::failed("start the decompressor: no memory"))?;
        Ok(Self { zstd, compressed: Vec::new(), prefix: Vec::new(), plain: Vec::new() })
    }
}

/// The longest a compressed frame of `blocks` blocks may be: what zstd needs for bytes that do not compress.
const fn data_len_max(blocks: u32) -> u64 {
    let plain = blocks as u64 * BLOCK_LEN as u64;
    plain + plain / 128 + 512
}

/// Reads and checks the table. Every number in it is bounded before anything is made from it.
fn read_table(table: &[u8], carried: u64, old_blocks: u64) -> Option<Vec<DeltaFrame>> {
    let mut fields = Fields(table);
    let mut frames = Vec::new();
    let (mut offset, mut before) = (0_u64, 0);
    while !fields.0.is_empty() {
        let (data_len, runs, regions) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let mut frame = DeltaFrame {
            carried: Vec::new(),
            prefix: Vec::new(),
            offset,
            data_len: usize::try_from(data_len).ok()?,
        };
        let first = before;
        let mut blocks = 0_u32;
        for _ in 0..runs {
            let (start, len) = (fields.u32()?, fields.u32()?);
            let run = u64::from(start)..u64::from(start) + u64::from(len);
            blocks = blocks.checked_add(len)?;
            if len == 0 || run.start < before || run.end > carried || blocks > FRAME_BLOCKS_MAX {
                return None;
            }
            before = run.end;
            frame.carried.push(run);
        }
        let mut prefix = 0_u32;
        for _ in 0..regions {
            let (start, len) = (fields.u32()?, fields.u32()?);
            let blocks = u64::from(start & !NEW)..u64::from(start & !NEW) + u64::from(len);
            prefix = prefix.checked_add(len)?;
            let end = if start & NEW == 0 { old_blocks } else { first };
            if len == 0 || blocks.end > end || prefix > PREFIX_BLOCKS_MAX {
                return None;
            }
            frame.prefix.push(if start & NEW == 0 { Region::Old(blocks) } else { Region::New(blocks) });
        }
        if blocks == 0 || data_len == 0 || u64::from(data_len) > data_len_max(blocks) {
            return None;
        }
        offset = offset.checked_add(data_len.into())?;
        frames.push(frame);
    }
    Some(frames)
}

fn bytes_in(blocks: &Range<u64>) -> usize {
    usize::try_from(blocks.end.saturating_sub(blocks.start)).unwrap_or(0).saturating_mul(BLOCK_LEN)
}

fn cut_short(e: std::io::Error) -> Error {
    match e.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::failed("ends too early: cut short; get it again"),
        _ => e.into(),
    }
}
