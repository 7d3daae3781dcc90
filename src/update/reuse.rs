//! What of a new image is on the device already: in the slot that is to be written, where an earlier install got to, or
//! anywhere in the slot that runs.
//!
//! The disk itself is asked, block by block and by hash, so there is no record that could be wrong. Slots are only read.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::lookup::Lookup;
use super::moved::{Moved, Search};
use crate::block::Disk;
use crate::bundle::{BLOCK_LEN, Hash, Index, Old, hash};
use crate::model::Digest;
use crate::{Error, Result};

/// Bytes read in one go.
const STEP: usize = 256 * 1024;
const BLOCK: u64 = BLOCK_LEN as u64;
const NOWHERE: u32 = u32::MAX;
const IN_TARGET: u32 = u32::MAX - 1;
const MOVED: u32 = u32::MAX - 2;

/// Where one block of the new image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the target slot, where it belongs.
    Target,
    /// In the active slot.
    Active,
    /// Nowhere on the device.
    Missing,
}

/// Where each carried block is. 4 bytes for each.
#[derive(Debug, Clone)]
pub struct Reuse {
    places: Vec<u32>,
    /// Where pieces of blocks are that are nowhere as a whole.
    moved: Moved,
    /// Whether the active slot begins with the image that was asked for.
    pub old_is_there: bool,
}

impl Reuse {
    /// Reads both slots and looks for the blocks of `index`, whose image has `image_len` bytes, and whether the active
    /// slot still holds `old`. `progress` is told the bytes read so far.
    ///
    /// Blocks that cannot be read count as missing, in either slot: a bad sector of the target is mended by writing it.
    ///
    /// # Errors
    /// `Failed` if the image has more blocks than memory can list.
    pub fn survey(
        index: &Index,
        image_len: u64,
        target: &mut impl Disk,
        active: &mut impl Disk,
        old: Option<&Old>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self> {
        let carried = usize::try_from(index.carried())
            .map_err(|_| Error::failed("an image with more blocks than memory can list"))?;
        let mut reuse = Self { places: vec![NOWHERE; carried], moved: Moved::default(), old_is_there: false };
        let mut read = 0;
        reuse.look_in_target(index, image_len, target, &mut |n| {
            read += n;
            progress(read);
        });
        let wanted = reuse.missing_by_hash(index);
        if !wanted.is_empty() {
            reuse.look_in_active(index, &wanted, active, old, &mut |n| {
                read += n;
                progress(read);
            });
        }
        Ok(reuse)
    }

    /// Where a carried block is.
    pub fn place(&self, carried: u64) -> Place {
        match usize::try_from(carried).ok().and_then(|c| self.places.get(c)) {
            Some(&IN_TARGET) => Place::Target,
            None | Some(&NOWHERE) => Place::Missing,
            Some(_) => Place::Active,
        }
    }

    /// Reads carried blocks that are in the active slot, as long as they still are: each hash is compared again. Gives how many
    /// of the first were read.
    pub fn read(
        &self,
        index: &Index,
        carried: Range<u64>,
        active: &mut impl Disk,
        blocks: &mut [u8],
    ) -> usize {
        let places =
            usize::try_from(carried.start).ok().and_then(|c| self.places.get(c..)).unwrap_or_default();
        let count = blocks.len() / BLOCK_LEN;
        let mut done = 0;
        while let Some((first, rest)) = places.get(done..count).and_then(<[u32]>::split_first) {
            // Neighbours there are read together.
            let neighbours =
                (first.saturating_add(1)..MOVED).zip(rest).take_while(|(at, place)| at == *place).count();
            let together = done..done + 1 + if *first < MOVED { neighbours } else { 0 };
            let bytes =
                blocks.get_mut(together.start * BLOCK_LEN..together.end * BLOCK_LEN).unwrap_or_default();
            let whole = *first < MOVED && active.read_at(u64::from(*first) * BLOCK, bytes).is_ok();
            for (n, block) in together.zip(bytes.chunks_exact_mut(BLOCK_LEN)) {
                let c = carried.start + n as u64;
                // Around a bad sector, each block by itself.
                let is_read = whole || self.read_one(index, c, active, block);
                if !is_read || index.hash(c) != Some(hash(block)) {
                    return n;
                }
                done = n + 1;
            }
        }
        done
    }

    fn read_one(&self, index: &Index, carried: u64, active: &mut impl Disk, block: &mut [u8]) -> bool {
        match usize::try_from(carried).ok().and_then(|c| self.places.get(c)) {
            None | Some(&(NOWHERE | IN_TARGET)) => false,
            Some(&MOVED) => self.moved.read(index, carried, active, block),
            Some(&at) => active.read_at(u64::from(at) * BLOCK, block).is_ok(),
        }
    }

    /// How many bytes are in the target, and how many in the active slot only.
    pub fn bytes(&self) -> (u64, u64) {
        let count =
            |wanted: fn(&u32) -> bool| self.places.iter().filter(|p| wanted(p)).count() as u64 * BLOCK;
        (count(|p| *p == IN_TARGET), count(|p| *p < IN_TARGET))
    }

    /// Notes that blocks were put where they belong.
    pub fn is_in_target(&mut self, carried: Range<u64>) {
        carried.for_each(|c| self.put(c, IN_TARGET));
    }

    fn look_in_target(
        &mut self,
        index: &Index,
        image_len: u64,
        target: &mut impl Disk,
        progress: &mut dyn FnMut(u64),
    ) {
        let mut buffer = vec![0; STEP];
        for run in index.runs(0..index.carried()) {
            let mut done = 0;
            while done < run.len {
                let blocks = (run.len - done).min((STEP / BLOCK_LEN) as u64);
                let len = usize::try_from(blocks * BLOCK).unwrap_or(STEP);
                let bytes = buffer.get_mut(..len).unwrap_or_default();
                let offset = (run.block + done) * BLOCK;
                let whole = read_image(target, image_len, offset, bytes).is_ok();
                let blocks_of = bytes.chunks_exact_mut(BLOCK_LEN);
                for ((i, carried), block) in (0..).zip(run.carried + done..).zip(blocks_of) {
                    // Around a bad sector, each block by itself.
                    let is_read = whole || read_image(target, image_len, offset + i * BLOCK, block).is_ok();
                    if is_read && !is_zero(block) && index.hash(carried) == Some(hash(block)) {
                        self.put(carried, IN_TARGET);
                    }
                }
                done += blocks;
                progress(blocks * BLOCK);
            }
        }
    }

    fn put(&mut self, carried: u64, place: u32) {
        if let Some(p) = usize::try_from(carried).ok().and_then(|c| self.places.get_mut(c)) {
            *p = place;
        }
    }

    /// The blocks that are missing, by their hashes.
    fn missing_by_hash(&self, index: &Index) -> Lookup {
        let missing = self.missing().filter_map(|c| Some((key(index.hash(c.into())?), c)));
        Lookup::new(missing)
    }

    fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        (0_u32..).zip(&self.places).filter(|(_, p)| **p == NOWHERE).map(|(c, _)| c)
    }

    /// Looks at every block of the active slot. Whatever cannot be read there is simply not found.
    fn look_in_active(
        &mut self,
        index: &Index,
        wanted: &Lookup,
        active: &mut impl Disk,
        old: Option<&Old>,
        progress: &mut dyn FnMut(u64),
    ) {
        let mut identity = Sha256::new();
        let old_blocks = old.map_or(0, |o| o.len_bytes.div_ceil(BLOCK));
        let mut search = Search::new(index, self.missing().map(u64::from));
        let hash_of_zeros = hash(&[0; BLOCK_LEN]);
        let mut buffer = vec![0; STEP];
        let whole = active.len_bytes() / BLOCK * BLOCK;
        let mut offset = 0;
        while offset < whole {
            let len = usize::try_from(whole - offset).unwrap_or(STEP).min(STEP);
            let bytes = buffer.get_mut(..len).unwrap_or_default();
            if active.read_at(offset, bytes).is_ok() {
                for (block, bytes) in (offset / BLOCK..).zip(bytes.chunks_exact(BLOCK_LEN)) {
                    let is_zero = is_zero(bytes);
                    let found = if is_zero { hash_of_zeros } else { hash(bytes) };
                    if block < old_blocks {
                        identity.update(found);
                    }
                    // No block of zeros is carried.
                    if is_zero {
                        continue;
                    }
                    search.block(block * BLOCK, bytes);
                    if let Ok(block) = u32::try_from(block) {
                        self.found(index, wanted, found, block);
                    }
                }
            }
            offset += len as u64;
            progress(len as u64);
        }
        self.moved = search.finish();
        for carried in wanted.numbers().map(u64::from) {
            if self.place(carried) == Place::Missing && self.moved.has(index, carried) {
                self.put(carried, MOVED);
            }
        }
        let identity = Digest(identity.finalize().into());
        self.old_is_there = old.is_some_and(|o| o.digest == identity);
    }

    /// Notes that a block with this hash is in the active slot, for all blocks of the image that have it.
    fn found(&mut self, index: &Index, wanted: &Lookup, found: Hash, block: u32) {
        for carried in wanted.with(key(found)).map(u64::from) {
            if index.hash(carried) != Some(found) {
                continue;
            }
            if self.place(carried) != Place::Missing {
                // All of them were found before.
                return;
            }
            self.put(carried, block);
        }
    }
}

/// Whether there is nothing but zeros in a block.
pub fn is_zero(block: &[u8]) -> bool {
    let (words, rest) = block.as_chunks();
    words.iter().all(|word| u64::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// Reads part of an image from the slot that holds it. What lies behind its end reads as zeros: that is how its last
/// block was hashed.
///
/// # Errors
/// `Failed` if it cannot be read.
pub fn read_image(disk: &mut impl Disk, image_len: u64, offset: u64, bytes: &mut [u8]) -> Result<()> {
    let inside = usize::try_from(image_len.saturating_sub(offset)).unwrap_or(usize::MAX).min(bytes.len());
    let (inside, behind) = bytes.split_at_mut(inside);
    behind.fill(0);
    disk.read_at(offset, inside)
}

/// The first bits of a hash.
const fn key(hash: Hash) -> u32 {
    let [a, b, c, d, ..] = hash;
    u32::from_be_bytes([a, b, c, d])
}
