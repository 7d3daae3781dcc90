//! Frames: compressed carried blocks, checked on both sides of the decompressor.

use std::ops::Range;

use zstd::zstd_safe::{self, DCtx, MAGIC_DICTIONARY};

use super::index::{self, BLOCK_LEN, Frame, Index};
use crate::model::payload::BLOCK_BYTES;
use crate::{Error, Result};

/// The plain blocks are moved to the front of their buffer only when so many times prefix and frame are in it.
const SLACK: usize = 2;

/// Decodes frames; holds the blocks before the next one, as many as its prefix needs. Memory: twice prefix and frame.
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

    /// Decodes `frame`, whose compressed bytes `fill` supplies, and gives its blocks in order. Every block was
    /// compared with its hash. Blocks of its prefix that were not decoded just before are asked of `recall`.
    ///
    /// # Errors
    /// `Failed` from `fill` and `recall`, or if the bytes are not the ones that were signed.
    pub fn decode<'a>(
        &'a mut self,
        index: &'a Index,
        frame: &Frame,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
        recall: &mut Recall,
    ) -> Result<Vec<Checked<'a>>> {
        self.compressed.resize(frame.data_len, 0);
        fill(&mut self.compressed)?;
        if index::hash(&self.compressed) != frame.hash {
            return Err(damaged(index, frame, "its frame does not match its hash"));
        }
        // Exactly one zstd frame: no skippable ones, nothing behind it.
        if zstd_safe::find_frame_compressed_size(&self.compressed) != Ok(frame.data_len) {
            return Err(damaged(index, frame, "not one zstd frame"));
        }
        self.hold(index, frame.prefix.clone(), recall)?;
        let start = self.plain.len();
        let prefix_start = start - len_of(&frame.prefix)?;
        self.plain.resize(start + len_of(&frame.carried)?, 0);
        // Until it was checked, the buffer is longer than what is held, so that nothing of it is used again.
        let (before, plain) = self.plain.split_at_mut(start);
        let prefix = as_prefix(before.get(prefix_start..).unwrap_or_default());
        decompress(&mut self.zstd, &self.compressed, prefix, plain)
            .map_err(|what| damaged(index, frame, &what))?;
        check(index, &frame.carried, plain)?;
        self.held.end = frame.carried.end;
        let runs = index.runs(frame.carried.clone());
        let mut plain = self.plain.get(start..).unwrap_or_default();
        Ok(runs
            .map(|run| {
                let (head, rest) = plain.split_at(len_of(&(0..run.len)).unwrap_or(0).min(plain.len()));
                plain = rest;
                Checked { run, bytes: head }
            })
            .collect())
    }

    /// Makes the buffer end with the blocks of `prefix`.
    fn hold(&mut self, index: &Index, prefix: Range<u64>, recall: &mut Recall) -> Result<()> {
        let follows = self.held.start <= prefix.start && (prefix.start..=prefix.end).contains(&self.held.end);
        if !follows || self.plain.len() != len_of(&self.held)? {
            self.plain.clear();
            self.held = prefix.start..prefix.start;
        }
        let (frame_blocks, prefix_blocks) = index.limits();
        let room = len_of(&(0..u64::from(frame_blocks) + u64::from(prefix_blocks)))?;
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
        Ok(_) => Err("its frame holds fewer blocks than promised".into()),
        Err(code) => Err(zstd_safe::get_error_name(code).to_owned()),
    }
}

/// Compares each block with its hash.
fn check(index: &Index, carried: &Range<u64>, plain: &[u8]) -> Result<()> {
    for (number, bytes) in carried.clone().zip(plain.chunks_exact(BLOCK_LEN)) {
        if index.hash(number) != Some(index::hash(bytes)) {
            let block = block_of(index, number);
            return Err(Error::failed(format!(
                "block {block} (byte {}) does not match its signed hash; the bundle was changed, get it again",
                block.saturating_mul(BLOCK_BYTES)
            )));
        }
    }
    Ok(())
}

fn damaged(index: &Index, frame: &Frame, what: &str) -> Error {
    let block = block_of(index, frame.carried.start);
    Error::failed(format!("block {block}: {what}; the bundle is damaged, get it again"))
}

fn block_of(index: &Index, carried: u64) -> u64 {
    index.runs(carried..carried + 1).next().map_or(0, |run| run.block)
}

fn len_of(carried: &Range<u64>) -> Result<usize> {
    usize::try_from(carried.end.saturating_sub(carried.start))
        .ok()
        .and_then(|n| n.checked_mul(BLOCK_LEN))
        .ok_or_else(|| Error::inconsistent("more blocks than memory"))
}
