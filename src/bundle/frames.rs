//! Frames: compressed carried blocks, checked when they come out of the decompressor.

use std::ops::Range;

use zstd::zstd_safe::{self, DCtx, MAGIC_DICTIONARY};

use super::index::{self, BLOCK_LEN, Index};
use crate::model::payload::BLOCK_BYTES;
use crate::{Error, Result};

/// Blocks that are fetched and decoded in one go where single ones are wanted. It bounds what a killed process fetched in vain.
pub const BATCH_BLOCKS: u64 = 16;
/// How a zstd frame of 4096 bytes begins whose window is the content: magic number, descriptor, 4096 - 256.
const FRAME_HEADER: [u8; 7] = [0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x0f];
/// In a block's header: the last of its frame, compressed.
const LAST_COMPRESSED: u32 = 0b101;

/// Decodes frames; holds the blocks before the next one, as many as its prefix needs. Memory: twice the prefix, and what is
/// decoded in one go.
pub struct Decoder {
    zstd: DCtx<'static>,
    /// One frame, with the header that is not carried.
    frame: Vec<u8>,
    /// Carried blocks `held`, one after the other, from the beginning; then room.
    plain: Vec<u8>,
    held: Range<u64>,
}

/// Blocks that were checked and lie next to each other in the image.
#[derive(Debug, PartialEq, Eq)]
pub struct Stretch<'a> {
    /// Where they are.
    pub run: index::Run,
    /// Their content, in whole blocks.
    pub bytes: &'a [u8],
}

/// Where blocks before a frame are read again: told a run of them, fills the buffer.
pub type Recall<'a> = dyn FnMut(index::Run, &mut [u8]) -> Result<()> + 'a;

impl Decoder {
    /// A decoder that holds nothing yet, for at most `batch` blocks in one go.
    ///
    /// # Errors
    /// `Failed` if there is no memory for it.
    pub fn new(index: &Index, batch: u64) -> Result<Self> {
        let zstd = DCtx::try_create().ok_or_else(|| Error::failed("start the decompressor: no memory"))?;
        // With room for two prefixes, what is held moves to the front only once in a while.
        let room = u64::from(index.prefix_blocks()).saturating_mul(2).min(index.carried());
        let plain = vec![0; len_of(&(0..room.saturating_add(batch)))?];
        Ok(Self { zstd, frame: Vec::new(), plain, held: 0..0 })
    }

    /// Decodes `frames`, those of the blocks `carried`, and gives the blocks, which are still to be compared with their hashes
    /// by `check`. Blocks before them that were not decoded just before are asked of `recall`.
    ///
    /// # Errors
    /// `Failed` from `recall`, or if a frame cannot be decoded.
    pub fn decode(
        &mut self,
        index: &Index,
        carried: Range<u64>,
        mut frames: &[u8],
        recall: &mut Recall,
    ) -> Result<&[u8]> {
        self.hold(index, &carried, recall)?;
        let reach = len_of(&(0..index.prefix_blocks().into()))?;
        let start = len_of(&self.held)?;
        let mut at = start;
        for number in carried {
            let (data, after) = index
                .frame_len(number)
                .and_then(|len| frames.split_at_checked(len))
                .ok_or_else(|| Error::inconsistent(format!("the frame of block {number} is not there")))?;
            frames = after;
            let (before, room) = self.plain.split_at_mut(at);
            let prefix = as_prefix(before.get(at.saturating_sub(reach)..).unwrap_or_default());
            let plain = room.get_mut(..BLOCK_LEN).unwrap_or_default();
            expand(&mut self.zstd, &mut self.frame, data, prefix, plain)
                .map_err(|what| damaged(index, number, &what))?;
            at += BLOCK_LEN;
            self.held.end = number + 1;
        }
        Ok(self.plain.get(start..at).unwrap_or_default())
    }

    /// Makes the buffer begin with the blocks before `carried`, as many as belong to a prefix, and have room for these.
    fn hold(&mut self, index: &Index, carried: &Range<u64>, recall: &mut Recall) -> Result<()> {
        let prefix = carried.start.saturating_sub(index.prefix_blocks().into())..carried.start;
        if self.held.start > prefix.start || !(prefix.start..=prefix.end).contains(&self.held.end) {
            self.held = prefix.start..prefix.start;
        }
        if len_of(&(self.held.start..carried.end))? > self.plain.len() {
            let kept = len_of(&(self.held.start..prefix.start))?..len_of(&self.held)?;
            self.plain.copy_within(kept, 0);
            self.held.start = prefix.start;
        }
        if len_of(&(self.held.start..carried.end))? > self.plain.len() {
            return Err(Error::inconsistent("more blocks in one go than were agreed on"));
        }
        let mut at = len_of(&self.held)?;
        for run in index.runs(self.held.end..prefix.end) {
            let len = len_of(&(0..run.len))?;
            recall(run, self.plain.get_mut(at..at + len).unwrap_or_default())?;
            at += len;
        }
        self.held.end = prefix.end;
        Ok(())
    }
}

/// Compares blocks with their signed hashes.
///
/// # Errors
/// `Failed`, naming the first that is not what was signed.
pub fn check(index: &Index, carried: Range<u64>, plain: &[u8]) -> Result<()> {
    if plain.len() != len_of(&carried)? {
        return Err(Error::inconsistent("blocks that were not decoded"));
    }
    for (number, block) in carried.zip(plain.chunks_exact(BLOCK_LEN)) {
        if index.hash(number) != Some(index::hash(block)) {
            return Err(damaged(index, number, "does not match its signed hash"));
        }
    }
    Ok(())
}

/// Blocks that follow each other in a bundle, apart where there are zeros between them in the image.
pub fn stretches<'a>(index: &Index, carried: Range<u64>, mut plain: &'a [u8]) -> Vec<Stretch<'a>> {
    let stretch = |run: index::Run| {
        let (bytes, after) = plain.split_at(len_of(&(0..run.len)).unwrap_or(0).min(plain.len()));
        plain = after;
        Stretch { run, bytes }
    };
    index.runs(carried).map(stretch).collect()
}

/// What of some blocks can be a prefix. zstd takes bytes that begin with its magic number of dictionaries for one; so
/// blocks that do are left out at the front.
pub fn as_prefix(mut blocks: &[u8]) -> &[u8] {
    while blocks.starts_with(&MAGIC_DICTIONARY.to_le_bytes()) {
        blocks = blocks.get(BLOCK_LEN..).unwrap_or_default();
    }
    blocks
}

/// Decodes the frame of one block; `frame` is memory for it.
fn expand(
    zstd: &mut DCtx<'_>,
    frame: &mut Vec<u8>,
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
            frame.clear();
            [&FRAME_HEADER[..], &[a, b, c], data].into_iter().for_each(|part| frame.extend_from_slice(part));
            decompress(zstd, frame, prefix, plain)?;
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
