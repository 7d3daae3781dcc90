//! Pieces of a new image that are in the active slot, wherever they moved to.
//!
//! Where bytes are inserted, in a compressed image or within a file, no block is what it was; but the pieces are. A piece is
//! looked for by its print, which proves nothing: blocks that are made from pieces are compared with their hashes.

use super::lookup::Lookup;
use crate::block::Disk;
use crate::bundle::{BLOCK_LEN, Cutter, Index, PIECE_LEN_MAX, Print};

const BLOCK: u64 = BLOCK_LEN as u64;
const NOWHERE: u64 = u64::MAX;
/// How much of a stretch waits before it is cut.
const STRETCH_LEN: usize = 256 * 1024;

/// Where each piece of an index was found. 8 bytes for each.
#[derive(Debug, Clone, Default)]
pub struct Moved {
    places: Vec<u64>,
}

impl Moved {
    /// Whether all of a block is there.
    pub fn has(&self, index: &Index, carried: u64) -> bool {
        index.pieces_of(carried).all(|(piece, _)| self.place(piece).is_some())
    }

    /// Puts a block together. `false`: it cannot be read.
    pub fn read(&self, index: &Index, carried: u64, active: &mut impl Disk, block: &mut [u8]) -> bool {
        let (start, end) = (carried * BLOCK, (carried + 1) * BLOCK);
        index.pieces_of(carried).all(|(piece, at)| {
            let len = index.print(piece).map_or(0, |p| u64::from(p.len));
            let part = at.max(start)..(at + len).min(end);
            let inside = usize::try_from(part.start - start).ok().zip(usize::try_from(part.end - start).ok());
            let bytes = inside.and_then(|(from, to)| block.get_mut(from..to));
            let place = self.place(piece).map(|p| p + (part.start - at));
            bytes.zip(place).is_some_and(|(bytes, place)| active.read_at(place, bytes).is_ok())
        })
    }

    fn place(&self, piece: usize) -> Option<u64> {
        self.places.get(piece).copied().filter(|p| *p != NOWHERE)
    }
}

/// A search through the active slot, which is shown block by block.
pub struct Search<'a> {
    index: &'a Index,
    /// Pieces, by their prints.
    wanted: Lookup,
    cutter: Cutter,
    /// Blocks that follow each other, not cut yet, and where they begin.
    stretch: Vec<u8>,
    at: u64,
    found: Moved,
}

impl<'a> Search<'a> {
    /// A search for the pieces that some carried blocks are made of.
    pub fn new(index: &'a Index, blocks: impl Iterator<Item = u64>) -> Self {
        let pieces = blocks.flat_map(|c| index.pieces_of(c)).map(|(piece, _)| piece);
        let wanted = pieces.filter_map(|p| Some((index.print(p)?.crc, u32::try_from(p).ok()?)));
        Self {
            index,
            wanted: Lookup::new(wanted),
            cutter: Cutter::default(),
            stretch: Vec::new(),
            at: 0,
            found: Moved { places: vec![NOWHERE; index.pieces()] },
        }
    }

    /// Looks at the block at byte `at`, which is not zero.
    pub fn block(&mut self, at: u64, bytes: &[u8]) {
        if self.at + self.stretch.len() as u64 != at {
            self.cut(0);
            self.at = at;
        }
        self.stretch.extend_from_slice(bytes);
        if self.stretch.len() >= STRETCH_LEN {
            self.cut(PIECE_LEN_MAX);
        }
    }

    /// What was found.
    pub fn finish(mut self) -> Moved {
        self.cut(0);
        self.found
    }

    /// Cuts the stretch into pieces while more than `keep` bytes are left, and looks whether they are wanted.
    fn cut(&mut self, keep: usize) {
        let mut rest = self.stretch.as_slice();
        let mut at = self.at;
        while rest.len() > keep {
            let (piece, after) = rest.split_at(self.cutter.cut(rest));
            let print = Print::of(piece);
            for piece in self.wanted.with(print.crc).map(|p| p as usize) {
                if self.index.print(piece) != Some(print) {
                    continue;
                }
                match self.found.places.get_mut(piece) {
                    Some(place) if *place == NOWHERE => *place = at,
                    // All of them were found before: both slots may hold the same piece any number of times.
                    _ => break,
                }
            }
            at += piece.len() as u64;
            rest = after;
        }
        self.stretch.drain(..self.stretch.len() - rest.len());
        self.at = at;
    }
}
