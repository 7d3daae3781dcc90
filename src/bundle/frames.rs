//! Frames: compressed runs of blocks, checked on both sides of the decompressor.

use zstd::bulk::Decompressor;

use super::index::{self, BLOCK_LEN, Frame, Index};
use crate::model::manifest::BLOCK_BYTES;
use crate::{Doing, Error, Result};

/// Decodes one frame after the other; holds one frame and its compressed bytes, some MiB at most.
pub struct Decoder {
    zstd: Decompressor<'static>,
    compressed: Vec<u8>,
    plain: Vec<u8>,
}

/// Blocks of a frame that lie next to each other in the image.
#[derive(Debug, PartialEq, Eq)]
pub struct Run<'a> {
    /// Number of the first block.
    pub first_block: u64,
    /// Their content.
    pub bytes: &'a [u8],
}

impl Decoder {
    /// A decoder.
    ///
    /// # Errors
    /// `Failed` if there is no memory for it.
    pub fn new() -> Result<Self> {
        let zstd = Decompressor::new().doing(|| "start the decompressor")?;
        Ok(Self { zstd, compressed: Vec::new(), plain: Vec::new() })
    }

    /// Decodes `frame`, whose compressed bytes `fill` supplies, and gives its blocks in order. Every block was
    /// compared with its hash.
    ///
    /// # Errors
    /// `Failed` from `fill`, or if the bytes are not the ones that were signed.
    pub fn decode<'a>(
        &'a mut self,
        index: &Index,
        frame: Frame,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<Vec<Run<'a>>> {
        let damaged = |what: &str| {
            Error::failed(format!("block {}: {what}; the bundle is damaged, get it again", frame.first_block))
        };
        let compressed_len = usize::try_from(frame.data_len).map_err(|_| damaged("too long"))?;
        let blocks = usize::try_from(frame.blocks).map_err(|_| damaged("too many blocks"))?;
        self.compressed.resize(compressed_len, 0);
        fill(&mut self.compressed)?;
        if index::hash(&self.compressed) != frame.hash {
            return Err(damaged("its frame does not match its hash"));
        }
        // Exactly one zstd frame: no skippable ones, nothing behind it.
        if zstd::zstd_safe::find_frame_compressed_size(&self.compressed) != Ok(compressed_len) {
            return Err(damaged("not one zstd frame"));
        }
        // One call into a buffer of the exact length: no window is ever allocated, whatever the frame asks for.
        self.plain.resize(blocks * BLOCK_LEN, 0);
        let len = self.zstd.decompress_to_buffer(&self.compressed, self.plain.as_mut_slice());
        if len.map_err(|e| damaged(&e.to_string()))? != self.plain.len() {
            return Err(damaged("its frame holds fewer blocks than promised"));
        }
        runs(index, frame, &self.plain)
    }
}

/// Finds where each block belongs, compares it with its hash, and joins neighbours.
fn runs<'a>(index: &Index, frame: Frame, plain: &'a [u8]) -> Result<Vec<Run<'a>>> {
    let mut runs = Vec::new();
    // Start of the present run: its first block, and where it is in `plain`.
    let mut open: Option<(u64, usize)> = None;
    let mut next = frame.first_block;
    for (i, bytes) in plain.chunks_exact(BLOCK_LEN).enumerate() {
        let block = index
            .next_carried(next)
            .ok_or_else(|| Error::inconsistent("the index has fewer blocks than its frames"))?;
        if index.hash(block) != Some(index::hash(bytes)) {
            return Err(Error::failed(format!(
                "block {block} (byte {}) does not match its signed hash; the bundle was changed, get it again",
                block.saturating_mul(BLOCK_BYTES)
            )));
        }
        let start = i * BLOCK_LEN;
        match open {
            Some((first_block, from)) if block != next => {
                runs.push(Run { first_block, bytes: plain.get(from..start).unwrap_or_default() });
                open = Some((block, start));
            }
            Some(_) => {}
            None => open = Some((block, start)),
        }
        next = block + 1;
    }
    if let Some((first_block, from)) = open {
        runs.push(Run { first_block, bytes: plain.get(from..).unwrap_or_default() });
    }
    Ok(runs)
}
