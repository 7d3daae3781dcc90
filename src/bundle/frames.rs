//! Frames: compressed carried blocks, checked when they come out of the decompressor.

use std::ops::Range;

use zstd::zstd_safe::{self, DCtx, MAGIC_DICTIONARY};

use super::index::{self, BLOCK_LEN, Index};
use crate::model::payload::BLOCK_BYTES;
use crate::{Error, Result};

/// The most blocks that are decoded in one go.
pub const BATCH_BLOCKS: u64 = 16;
/// The plain blocks are moved to the front of their buffer only when so many times prefix and batch are in it.
const SLACK: usize = 2;
/// How a zstd frame of 4096 bytes begins whose window is the content: magic number, descriptor, 4096 - 256.
const FRAME_HEADER: [u8; 7] = [0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x0f];
/// In a block's header: the last of its frame, compressed.
const LAST_COMPRESSED: u32 = 0b101;

/// Decodes frames; holds the blocks before the next one, as many as its prefix needs. Memory: twice prefix and batch.
pub struct Decoder {
    zstd: DCtx<'static>,
    compressed: Vec<u8>,
    /// Carried blocks `held`, one after the other.
    plain: Vec<u8>,
    held: Range<u64>,
}

/// Blocks that were checked and lie next to each other in the image.
#[derive(Debug, PartialEq, Eq)]
pub struct Checked<'a> {
    /// Where they are.
    pub run: index::Run,
    /// Their content, in whole blocks.
    pub bytes: &'a [u8],
}

/// Where blocks before a frame are read again: told a run of them, fills the buffer.
pub type Recall<'a> = dyn FnMut(index::Run, &mut [u8]) -> Result<()> + 'a;

impl Decoder {
    /// A decoder that holds nothing yet.
    ///
    /// # Errors
    /// `Failed` if there is no memory for it.
    pub fn new() -> Result<Self> {
        let zstd = DCtx::try_create().ok_or_else(|| Error::failed("start the decompressor: no memory"))?;
        Ok(Self { zstd, compressed: Vec::new(), plain: Vec::new(), held: 0..0 })
    }

    /// Decodes the frames of the blocks `carried`, at most [`BATCH_BLOCKS`], whose bytes `fill` supplies, and gives the blocks
    /// in order. Every block was compared with its hash. Blocks before them that were not decoded just before are asked of
    /// `recall`.
    ///
    /// # Errors
    /// `Failed` from `fill` and `recall`, or if what comes out is not what was signed.
    pub fn decode<'a>(
        &'a mut self,
        index: &'a Index,
        carried: Range<u64>,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
        recall: &mut Recall,
    ) -> Result<Vec<Checked<'a>>> {
        let lens: Vec<usize> = carried.clone().filter_map(|c| index.frame_len(c)).collect();
        self.compressed.resize(lens.iter().sum(), 0);
        fill(&mut self.compressed)?;
        self.hold(index, carried.start, recall)?;
        let start = self.plain.len();
        let reach = len_of(&(0..index.prefix_blocks().into()))?;
        let mut rest = self.compressed.as_slice();
        for (number, len) in carried.clone().zip(lens) {
            let (data, after) = rest.split_at(len);
            rest = after;
            let at = self.plain.len();
            self.plain.resize(at + BLOCK_LEN, 0);
            let (before, plain) = self.plain.split_at_mut(at);
            let prefix = as_prefix(before.get(at.saturating_sub(reach)..).unwrap_or_default());
            expand(&mut self.zstd, data, prefix, plain).map_err(|what| damaged(index, number, &what))?;
            if index.hash(number) != Some(index::hash(plain)) {
                return Err(damaged(index, number, "does not match its signed hash"));
            }
            // Until here the buffer was longer than what is held, so nothing unchecked is ever used again.
            self.held.end = number + 1;
        }
        let mut plain = self.plain.get(start..).unwrap_or_default();
        let split = |run: index::Run| {
            let (head, rest) = plain.split_at(len_of(&(0..run.len)).unwrap_or(0).min(plain.len()));
            plain = rest;
            Checked { run, bytes: head }
        };
        Ok(index.runs(carried).map(split).collect())
    }

    /// Makes the buffer end with the blocks before `first`, as many as belong to its prefix.
    fn hold(&mut self, index: &Index, first: u64, recall: &mut Recall) -> Result<()> {
        let prefix = first.saturating_sub(index.prefix_blocks().into())..first;
        let follows = self.held.start <= prefix.start && (prefix.start..=prefix.end).contains(&self.held.end);
        if !follows || self.plain.len() != len_of(&self.held)? {
            self.plain.clear();
            self.held = prefix.start..prefix.start;
        }
        let room = len_of(&(0..BATCH_BLOCKS + u64::from(index.prefix_blocks())))?;
        if self.plain.len() + room > SLACK * room {
            let keep = len_of(&(prefix.start..self.held.end))?;
            self.plain.drain(..self.plain.len() - keep);
            self.held.start = prefix.start;
        }
        self.plain.reserve_exact(room);
        let missing = self.held.end..prefix.end;
        let mut at = self.plain.len();
        self.plain.resize(at + len_of(&missing)?, 0);
        for run in index.runs(missing) {
            let len = len_of(&(0..run.len))?;
            recall(run, self.plain.get_mut(at..at + len).unwrap_or_default())?;
            at += len;
        }
        self.held.end = prefix.end;
        Ok(())
    }
}

/// What of some blocks can be a prefix. zstd takes bytes that begin with its magic number of dictionaries for one; so
/// blocks that do are left out at the front.
pub fn as_prefix(mut blocks: &[u8]) -> &[u8] {
    while blocks.starts_with(&MAGIC_DICTIONARY.to_le_bytes()) {
        blocks = blocks.get(BLOCK_LEN..).unwrap_or_default();
    }
    blocks
}

/// Decodes the frame of one block.
fn expand(
    zstd: &mut DCtx<'_>,
    data: &[u8],
    prefix: &[u8],
    plain: &mut [u8],
) -> std::result::Result<(), String> {
    match data {
        [byte] => plain.fill(*byte),
        _ if data.len() == BLOCK_LEN => plain.copy_from_slice(data),
        _ => {
            let len = u32::try_from(data.len()).map_err(|e| e.to_string())?;
            let [a, b, c, _] = (len << 3 | LAST_COMPRESSED).to_le_bytes();
            let frame = [&FRAME_HEADER[..], &[a, b, c], data].concat();
            decompress(zstd, &frame, prefix, plain)?;
        }
    }
    Ok(())
}

/// One call into a buffer of the exact length: no window is ever allocated, whatever the frame asks for.
pub(super) fn decompress(
    zstd: &mut DCtx<'_>,
    compressed: &[u8],
    prefix: &[u8],
    plain: &mut [u8],
) -> std::result::Result<(), String> {
    let expected = plain.len();
    match zstd.decompress_using_dict(plain, compressed, prefix) {
        Ok(len) if len == expected => Ok(()),
        Ok(_) => Err("its frame holds less than promised".into()),
        Err(code) => Err(zstd_safe::get_error_name(code).to_owned()),
    }
}

fn damaged(index: &Index, carried: u64, what: &str) -> Error {
    let block = index.runs(carried..carried + 1).next().map_or(0, |run| run.block);
    Error::failed(format!(
        "block {block} (byte {}): {what}; the bundle is damaged, get it again",
        block.saturating_mul(BLOCK_BYTES)
    ))
}

fn len_of(carried: &Range<u64>) -> Result<usize> {
    usize::try_from(carried.end.saturating_sub(carried.start))
        .ok()
        .and_then(|n| n.checked_mul(BLOCK_LEN))
        .ok_or_else(|| Error::inconsistent("more blocks than memory"))
}
