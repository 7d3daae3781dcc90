//! Putting an image together in the target slot: from blocks that are on the device already, and from the frames that
//! carry the others.

use std::ops::Range;

use super::reuse::{Place, Reuse, is_zero, read_image};
use crate::block::Disk;
use crate::bundle::{
    BATCH_BLOCKS, BLOCK_LEN, Buffers, Decoder, Delta, Frames, Index, Progress, Run, Stretch,
};
use crate::{Doing, Result};

const BLOCK: u64 = BLOCK_LEN as u64;
/// Holes are looked at in pieces of this many bytes.
const STEP: usize = 256 * 1024;
/// At most so many blocks are copied in one go.
const COPY_BLOCKS: usize = 64;

/// What will be done, decided before anything is written.
#[derive(Debug)]
pub struct Plan {
    reuse: Reuse,
    /// Bytes that are still to be fetched.
    pub fetch_bytes: u64,
}

impl Plan {
    /// Decides which frames are needed, and tells `frames`.
    ///
    /// # Errors
    /// `Inconsistent` if the index contradicts itself.
    pub fn new(reuse: Reuse, frames: &mut Frames) -> Result<Self> {
        let mut needed: Vec<Range<u64>> = Vec::new();
        for carried in (0..frames.index.carried()).filter(|c| reuse.place(*c) == Place::Missing) {
            match needed.last_mut() {
                Some(run) if run.end == carried => run.end += 1,
                _ => needed.push(carried..carried + 1),
            }
        }
        let fetch_bytes = frames.plan(&needed)?;
        Ok(Self { reuse, fetch_bytes })
    }

    /// A plan in which `delta` provides what it can. Gives the frames of the delta as well, and the bytes to be fetched
    /// for them. They must be done first, by [`use_delta`]; then it is decided anew what is still missing.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn with_delta(
        reuse: &Reuse,
        frames: &mut Frames,
        delta: &mut Delta,
    ) -> Result<(Self, Vec<usize>, u64)> {
        let mut then = reuse.clone();
        let mut needed = Vec::new();
        for (number, frame) in delta.frames.iter().enumerate() {
            let mut carried = frame.carried.iter().cloned().flatten();
            if carried.any(|c| reuse.place(c) == Place::Missing) {
                frame.carried.iter().for_each(|c| then.is_in_target(c.clone()));
                needed.push(number);
            }
        }
        let bytes = delta.plan(&needed);
        Ok((Self::new(then, frames)?, needed, bytes))
    }

    /// Bytes that are in the target slot already, and bytes that are copied from the active slot.
    pub fn reused_bytes(&self) -> (u64, u64) {
        self.reuse.bytes()
    }

    /// Writes the image. Every block was compared with its signed hash in this run before it is written, also those
    /// that are copied; what is in place was compared when the plan was made.
    ///
    /// # Errors
    /// `Failed` if frames cannot be had or are damaged, or a slot cannot be read or written.
    pub fn carry_out(
        &self,
        frames: &mut Frames,
        target: &mut impl Disk,
        active: &mut impl Disk,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        let mut work = Work { target, image_len: frames.image_len };
        let mut reused = 0;
        let mut decoder = Decoder::new(&frames.index, BATCH_BLOCKS)?;
        let mut buffer = vec![0; COPY_BLOCKS * BLOCK_LEN];
        let mut done = 0;
        for batch in frames.index.batches(BATCH_BLOCKS) {
            let runs: Vec<Run> = frames.index.runs(batch.clone()).collect();
            if let (Some(first), Some(last)) = (runs.first(), runs.last()) {
                work.clear(done, &runs, first.block * BLOCK)?;
                done = (last.block + last.len) * BLOCK;
            }
            let mut next = batch.start;
            while next < batch.end {
                let here = next..batch.end;
                let missing = |c: &u64| self.reuse.place(*c) == Place::Missing;
                let run = here.clone().take_while(missing).count() as u64;
                if run > 0 {
                    next += run;
                    fetch(&mut work, here.start..next, frames, &mut decoder)?;
                    continue;
                }
                let kept = here.take_while(|c| !missing(c)).count() as u64;
                let copied = self.copy(&mut work, active, next..next + kept, &frames.index, &mut buffer)?;
                reused += copied * BLOCK;
                next += copied;
                if copied < kept {
                    // What cannot be copied after all is fetched.
                    log::debug!("carried block {next} is no longer in the active slot");
                    fetch(&mut work, next..next + 1, frames, &mut decoder)?;
                    next += 1;
                }
            }
            progress(Progress {
                done_bytes: done.min(work.image_len),
                total_bytes: work.image_len,
                read_bytes: frames.meter().bytes,
                reused_bytes: reused,
            });
        }
        let end = work.image_len;
        work.zeros(done, end)
    }

    /// Copies blocks that the active slot has, up to the first that is not there any more. Gives how many are in place now.
    fn copy(
        &self,
        work: &mut Work<impl Disk>,
        active: &mut impl Disk,
        carried: Range<u64>,
        index: &Index,
        buffer: &mut [u8],
    ) -> Result<u64> {
        let mut copied = 0;
        for run in index.runs(carried) {
            let mut i = 0;
            while i < run.len {
                let (block, from) = (run.block + i, run.carried + i);
                let in_target = |c: &u64| self.reuse.place(*c) == Place::Target;
                let here = from..run.carried + run.len;
                let kept = here.clone().take_while(in_target).count() as u64;
                let wanted =
                    here.skip(usize::try_from(kept).unwrap_or(0)).take_while(|c| !in_target(c)).count();
                (i, copied) = (i + kept, copied + kept);
                // Neighbours are written together.
                let bytes = buffer.get_mut(..wanted.min(COPY_BLOCKS) * BLOCK_LEN).unwrap_or_default();
                let count = (bytes.len() / BLOCK_LEN) as u64;
                let read = self.reuse.read(index, from + kept..from + kept + count, active, bytes);
                work.put((block + kept) * BLOCK, bytes.get(..read * BLOCK_LEN).unwrap_or_default())?;
                (i, copied) = (i + read as u64, copied + read as u64);
                if (read as u64) < count {
                    return Ok(copied);
                }
            }
        }
        Ok(copied)
    }
}

/// Fetches blocks and writes them.
fn fetch(
    work: &mut Work<impl Disk>,
    carried: Range<u64>,
    frames: &mut Frames,
    decoder: &mut Decoder,
) -> Result<()> {
    let image_len = work.image_len;
    let target = &mut *work.target;
    let mut recall = |run: Run, bytes: &mut [u8]| {
        read_image(target, image_len, run.block * BLOCK, bytes).doing(|| "read what was written")
    };
    for Stretch { run, bytes } in frames.decode(decoder, carried, &mut recall)? {
        work.put(run.block * BLOCK, bytes)?;
    }
    Ok(())
}

/// Writes what `delta` has of the missing blocks. What does not fit stays missing; so does everything that is left when the
/// delta's server fails.
///
/// # Errors
/// `Failed` if a slot cannot be written.
pub fn use_delta(
    reuse: &mut Reuse,
    needed: &[usize],
    delta: &mut Delta,
    frames: &Frames,
    target: &mut impl Disk,
    active: &mut impl Disk,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let mut buffers = Buffers::new()?;
    let (image_len, index) = (frames.image_len, &frames.index);
    let mut misfits = 0;
    for number in needed {
        let mut old = |block: u64, bytes: &mut [u8]| {
            let inside =
                usize::try_from(active.len_bytes().saturating_sub(block * BLOCK)).unwrap_or(usize::MAX);
            let (inside, behind) = bytes.split_at_mut(inside.min(bytes.len()));
            behind.fill(0);
            active.read_at(block * BLOCK, inside)
        };
        let mut new = |run: Run, bytes: &mut [u8]| read_image(target, image_len, run.block * BLOCK, bytes);
        let plain = match delta.decode(&mut buffers, index, *number, &mut old, &mut new) {
            Ok(Some(plain)) => plain,
            Ok(None) => {
                misfits += 1;
                continue;
            }
            Err(e) => {
                log::warn!("delta: {e}; what is left comes from the bundle");
                break;
            }
        };
        let carried = delta.frames.get(*number).map(|f| f.carried.clone()).unwrap_or_default();
        let mut work = Work { target, image_len };
        let mut at = 0;
        for range in carried {
            for run in index.runs(range.clone()) {
                let end = at + usize::try_from(run.len).unwrap_or(0) * BLOCK_LEN;
                work.put(run.block * BLOCK, plain.get(at..end).unwrap_or_default())?;
                at = end;
            }
            reuse.is_in_target(range);
        }
        progress(Progress {
            done_bytes: 0,
            total_bytes: image_len,
            read_bytes: delta.meter().bytes.saturating_add(frames.meter().bytes),
            reused_bytes: 0,
        });
    }
    if misfits > 0 {
        log::warn!(
            "delta: {misfits} of {} frames do not fit the running slot; they come from the bundle",
            needed.len()
        );
    }
    Ok(())
}

/// The slot that is written.
struct Work<'a, T> {
    target: &'a mut T,
    image_len: u64,
}

impl<T: Disk> Work<'_, T> {
    /// Writes whole blocks, without what the last of them has beyond the image.
    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let inside = usize::try_from(self.image_len.saturating_sub(offset)).unwrap_or(usize::MAX);
        match bytes.get(..bytes.len().min(inside)) {
            Some(bytes @ [_, ..]) => self.target.write_at(offset, bytes),
            _ => Ok(()),
        }
    }

    /// Makes the holes before and between the runs of a frame zero.
    fn clear(&mut self, from: u64, runs: &[Run], first: u64) -> Result<()> {
        self.zeros(from, first)?;
        for pair in runs.windows(2) {
            if let [before, after] = pair {
                self.zeros((before.block + before.len) * BLOCK, after.block * BLOCK)?;
            }
        }
        Ok(())
    }

    /// Makes a stretch zero. It is read first: most are already, and flash wears out by writing. A bad sector is mended
    /// by that, too.
    fn zeros(&mut self, from: u64, to: u64) -> Result<()> {
        let end = to.min(self.image_len);
        let longest = usize::try_from(end.saturating_sub(from)).unwrap_or(STEP).min(STEP);
        let mut buffer = vec![0; longest];
        let mut at = from;
        while at < end {
            let len = usize::try_from(end - at).unwrap_or(STEP).min(STEP);
            let bytes = buffer.get_mut(..len).unwrap_or_default();
            let read = self.target.read_at(at, bytes);
            if read.is_err() || !is_zero(bytes) {
                bytes.fill(0);
                self.target.write_at(at, bytes)?;
            }
            at += len as u64;
        }
        Ok(())
    }
}
