//! Making a delta: for each block that the old image lacks, the regions of the old image that look most like it are
//! found by content, and zstd is given them as prefix.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use zstd::zstd_safe::{self, CCtx, CParameter};

use super::delta::{HEADER_LEN, MAGIC, NEW, Old, VERSION};
use super::frames::as_prefix;
use super::index::{self, BLOCK_LEN, Hash, Index};
use super::pieces;
use super::reader::Bundle;
use crate::model::Digest;
use crate::{Doing, Error, Result, sys};

/// How much is carried by one frame.
const FRAME_BLOCKS: usize = 64;
/// How much of the old image helps a frame, at most.
const OLD_BLOCKS: usize = 448;
/// A frame is helped by the frames before it in a group of so many; a frame that does not fit a device spoils no more
/// than the rest of its group.
const GROUP_FRAMES: usize = 4;
/// An old block that shares fewer anchors with a frame is not worth reading.
const VOTES_MIN: u32 = 2;
/// One position in so many is an anchor.
const ANCHOR_MASK: u64 = 63 << 58;
/// An anchor that is in more blocks than this says nothing.
const ANCHOR_PLACES_MAX: usize = 8;

/// What was made.
#[derive(Debug, Clone, Copy)]
pub struct MadeDelta {
    /// Length of the delta in bytes.
    pub len_bytes: u64,
    /// Blocks of the new image that the old one lacks.
    pub missing_blocks: u64,
}

/// Makes the delta from the image or bundle `from` to the bundle `to`. `progress` is told the blocks done, of how many.
///
/// # Errors
/// `Failed`, naming the file, if one cannot be read or is damaged, or if `out` cannot be written.
pub fn create(
    from: &Path,
    to: &Path,
    out: &Path,
    level: i32,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<MadeDelta> {
    let dir = sys::durable::parent(out)?;
    let (old_file, old_len) = old_image(from, dir)?;
    let (new_file, index, index_sha256) = new_image(to, dir)?;
    let old = read_blocks(&old_file, old_len).doing(|| format!("read {}", from.display()))?;
    let hashes: Vec<Hash> = old.chunks_exact(BLOCK_LEN).map(index::hash).collect();
    let mut all = Sha256::new();
    hashes.iter().for_each(|h| all.update(h));
    let identity = Old { len_bytes: old_len, digest: Digest(all.finalize().into()) };
    let known: std::collections::HashSet<Hash> = hashes.into_iter().collect();
    let missing: Vec<u32> = (0_u32..)
        .take(usize::try_from(index.carried()).unwrap_or(0))
        .filter(|c| index.hash((*c).into()).is_some_and(|h| !known.contains(&h)))
        .collect();
    let work = Work { anchors: Anchors::new(&old), old, index, new: new_file, missing: &missing, level };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let (mut table, mut data) = (Vec::new(), sys::durable::scratch(dir)?);
    let numbers: Vec<usize> = (0..missing.len().div_ceil(FRAME_BLOCKS)).collect();
    for batch in numbers.chunks(threads * 4) {
        let made: Vec<Result<Vec<Made>>> = std::thread::scope(|scope| {
            let share = batch.len().div_ceil(threads).max(1);
            let started: Vec<_> = batch
                .chunks(share)
                .map(|part| scope.spawn(|| part.iter().map(|n| work.frame(*n)).collect()))
                .collect();
            let broke = |_| Err(Error::inconsistent("a compressing thread broke down"));
            started.into_iter().map(|t| t.join().unwrap_or_else(broke)).collect()
        });
        for frame in made.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten() {
            table.extend(frame.entry);
            data.write_all(&frame.data)?;
        }
        let done = batch.last().map_or(0, |n| (n + 1) * FRAME_BLOCKS).min(missing.len());
        progress(done as u64, missing.len() as u64);
    }
    let data_len = sys::file::len_bytes(&data)?;
    sys::durable::replace_with(out, 0o644, |file| {
        file.write_all(&header(&index_sha256, &identity, table.len() as u64))?;
        file.write_all(&table)?;
        std::io::Seek::rewind(&mut data)?;
        Ok(std::io::copy(&mut data, file).map(drop)?)
    })?;
    Ok(MadeDelta {
        len_bytes: HEADER_LEN + table.len() as u64 + data_len,
        missing_blocks: missing.len() as u64,
    })
}

fn header(index_sha256: &Digest, old: &Old, table_len: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend(index_sha256.0);
    bytes.extend(old.digest.0);
    bytes.extend(old.len_bytes.to_le_bytes());
    bytes.extend(table_len.to_le_bytes());
    bytes
}

/// An image as it is, or out of a bundle.
fn old_image(path: &Path, scratch: &Path) -> Result<(File, u64)> {
    let file = sys::file::open_read(path)?;
    let mut start = Vec::new();
    let doing = || format!("read {}", path.display());
    (&file).take(13).read_to_end(&mut start).doing(doing)?;
    if start == b"manifest.toml" {
        let (image, index, _) = new_image(path, scratch)?;
        drop(index);
        let len = sys::file::len_bytes(&image).doing(doing)?;
        return Ok((image, len));
    }
    let len = sys::file::len_bytes(&file).doing(doing)?;
    Ok((file, len))
}

/// A bundle's image as a file without a name, its index, and the digest of that.
fn new_image(path: &Path, scratch: &Path) -> Result<(File, Index, Digest)> {
    let image = sys::durable::scratch(scratch)?;
    let doing = || format!("bundle {}", path.display());
    let read = |index_only: bool| {
        let file = std::io::BufReader::new(sys::file::open_read(path)?);
        let mut bundle = Bundle::open_unchecked(file).doing(doing)?;
        let root = bundle.manifest().root.clone();
        if index_only {
            return Ok((Some(bundle.index_alone().doing(doing)?), root));
        }
        let mut write =
            |offset, bytes: &[u8]| image.write_all_at(bytes, offset).doing(|| "write scratch file");
        bundle.write_root(&mut write, &mut |_| ()).doing(doing)?;
        Ok::<_, Error>((None, root))
    };
    read(false)?;
    let (index, root) = read(true)?;
    let index = index.ok_or_else(|| Error::inconsistent("no index"))?;
    Ok((image, index, root.index_sha256))
}

/// A whole file, filled up with zeros to whole blocks.
fn read_blocks(file: &File, len: u64) -> Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| Error::failed("too large for this machine"))?;
    let mut bytes = vec![0; len.next_multiple_of(BLOCK_LEN)];
    file.read_exact_at(bytes.get_mut(..len).unwrap_or_default(), 0)?;
    Ok(bytes)
}

/// One frame, and what stands in the table for it.
struct Made {
    entry: Vec<u8>,
    data: Vec<u8>,
}

struct Work<'a> {
    old: Vec<u8>,
    anchors: Anchors,
    index: Index,
    new: File,
    /// Carried blocks that the old image lacks.
    missing: &'a [u32],
    level: i32,
}

impl Work<'_> {
    fn frame(&self, number: usize) -> Result<Made> {
        let first = number * FRAME_BLOCKS;
        let blocks =
            self.missing.get(first..(first + FRAME_BLOCKS).min(self.missing.len())).unwrap_or_default();
        let group = number / GROUP_FRAMES * GROUP_FRAMES * FRAME_BLOCKS;
        let before = self.missing.get(group..first).unwrap_or_default();
        let plain = self.read_new(blocks)?;
        let regions = self.anchors.regions(&plain);
        let mut prefix = Vec::new();
        for region in &regions {
            let bytes = self.old.get(region.start * BLOCK_LEN..region.end * BLOCK_LEN).unwrap_or_default();
            prefix.extend_from_slice(bytes);
        }
        prefix.extend(self.read_new(before)?);
        let data = compress(as_prefix(&prefix), &plain, self.level)?;
        let runs = runs_of(blocks);
        let near = runs_of(before);
        let mut entry = Vec::new();
        let number =
            |n: usize| u32::try_from(n).map_err(|_| Error::failed("an image that is too large for a delta"));
        for n in [data.len(), runs.len(), regions.len() + near.len()] {
            entry.extend(number(n)?.to_le_bytes());
        }
        for run in &runs {
            entry.extend(run.start.to_le_bytes());
            entry.extend((run.end - run.start).to_le_bytes());
        }
        for region in &regions {
            entry.extend(number(region.start)?.to_le_bytes());
            entry.extend(number(region.end - region.start)?.to_le_bytes());
        }
        for run in &near {
            entry.extend((run.start | NEW).to_le_bytes());
            entry.extend((run.end - run.start).to_le_bytes());
        }
        Ok(Made { entry, data })
    }

    /// Carried blocks of the new image.
    fn read_new(&self, carried: &[u32]) -> Result<Vec<u8>> {
        let mut bytes = vec![0; carried.len() * BLOCK_LEN];
        for (carried, block) in carried.iter().zip(bytes.chunks_exact_mut(BLOCK_LEN)) {
            let carried = u64::from(*carried);
            for run in self.index.runs(carried..carried + 1) {
                let mut at = 0;
                // The last block may be a part of one; the rest of it is zero.
                while let Some(rest @ [_, ..]) = block.get_mut(at..) {
                    match self.new.read_at(rest, run.block * BLOCK_LEN as u64 + at as u64)? {
                        0 => break,
                        n => at += n,
                    }
                }
            }
        }
        Ok(bytes)
    }
}

/// Numbers that follow each other as ranges.
fn runs_of(numbers: &[u32]) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for n in numbers {
        match runs.last_mut() {
            Some(run) if run.end == *n => run.end += 1,
            _ => runs.push(*n..*n + 1),
        }
    }
    runs
}

/// Where in the old image what stands.
struct Anchors {
    /// Fingerprint and block, sorted.
    places: Vec<(u32, u32)>,
}

impl Anchors {
    fn new(old: &[u8]) -> Self {
        let mut places = Vec::new();
        each_anchor(old, |at, print| {
            if let Ok(block) = u32::try_from(at / BLOCK_LEN) {
                places.push((print, block));
            }
        });
        places.sort_unstable();
        places.dedup();
        Self { places }
    }

    /// The stretches of the old image, in blocks and in order, that have most in common with `plain`.
    fn regions(&self, plain: &[u8]) -> Vec<Range<usize>> {
        let mut votes: HashMap<u32, u32> = HashMap::new();
        let mut prints = Vec::new();
        each_anchor(plain, |_, print| prints.push(print));
        prints.sort_unstable();
        prints.dedup();
        for print in prints {
            let first = self.places.partition_point(|p| p.0 < print);
            let same = self.places.iter().skip(first).take_while(|p| p.0 == print);
            let blocks: Vec<u32> = same.map(|p| p.1).take(ANCHOR_PLACES_MAX + 1).collect();
            if blocks.len() <= ANCHOR_PLACES_MAX {
                blocks.into_iter().for_each(|b| *votes.entry(b).or_default() += 1);
            }
        }
        let mut best: Vec<(u32, u32)> =
            votes.into_iter().filter(|(_, n)| *n >= VOTES_MIN).map(|(b, n)| (n, b)).collect();
        // Most votes first; among equals the first block, so that the same input gives the same delta.
        best.sort_unstable_by_key(|(n, b)| (std::cmp::Reverse(*n), *b));
        best.truncate(OLD_BLOCKS);
        let mut blocks: Vec<u32> = best.into_iter().map(|(_, b)| b).collect();
        blocks.sort_unstable();
        runs_of(&blocks).into_iter().map(|r| r.start as usize..r.end as usize).collect()
    }
}

/// Calls `found(position, fingerprint)` where a rolling hash over the last 64 bytes says so, which depends on the content
/// only and not on where it lies.
fn each_anchor(bytes: &[u8], mut found: impl FnMut(usize, u32)) {
    let gear = pieces::gear();
    let mut hash = 0_u64;
    for (at, byte) in bytes.iter().enumerate() {
        hash = (hash << 1).wrapping_add(gear.get(usize::from(*byte)).copied().unwrap_or(0));
        if hash & ANCHOR_MASK == 0 && hash != 0 {
            let [a, b, c, d, ..] = (hash << 6).to_be_bytes();
            found(at, u32::from_be_bytes([a, b, c, d]));
        }
    }
}

/// One zstd frame of `plain`, to be decompressed with `prefix` at hand.
fn compress(prefix: &[u8], plain: &[u8], level: i32) -> Result<Vec<u8>> {
    let failed = |code| Error::failed(format!("compress: {}", zstd_safe::get_error_name(code)));
    let mut zstd = CCtx::try_create().ok_or_else(|| Error::failed("compress: no memory"))?;
    zstd.set_parameter(CParameter::CompressionLevel(level)).map_err(failed)?;
    // Window and tables that reach over prefix and frame; by itself zstd would only look at the size of the frame.
    let log = (prefix.len() + plain.len()).next_power_of_two().ilog2().clamp(10, 27);
    for parameter in [CParameter::WindowLog(log), CParameter::ChainLog(log), CParameter::HashLog(log)] {
        zstd.set_parameter(parameter).map_err(failed)?;
    }
    zstd.ref_prefix(prefix).map_err(failed)?;
    let mut data = Vec::with_capacity(zstd_safe::compress_bound(plain.len()));
    zstd.compress2(&mut data, plain).map_err(failed)?;
    Ok(data)
}
