//! All frames of a payload in their order: fetched and decoded, checked, and written, each in a thread of its own.
//!
//! So a full install takes as long as the slowest of decompressor, hash and medium, and not as long as all of them together. What
//! the last of them is given went through the one before, so nothing is written that was not checked; and an error comes to
//! the writer in its turn, after all that was right before it.

use std::io::Read;
use std::ops::Range;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use sha2::{Digest as _, Sha256};

use super::archive;
use super::frames::{self, Decoder, Stretch};
use super::index::{BLOCK_LEN, Index};
use crate::model::Digest;
use crate::sys::ahead::ahead;
use crate::sys::direct::Buffer;
use crate::{Doing, Error, Result};

/// Blocks that go from one thread to the next, and to the medium, together.
const BATCH: usize = 128;
/// Batches that may wait for each thread. More of them would only take up memory.
const WAITING: usize = 1;

/// Some blocks on their way.
struct Batch {
    carried: Range<u64>,
    /// Their frames, one after the other.
    frames: Vec<u8>,
    /// What they hold.
    plain: Buffer,
    /// How far the bundle was read with them.
    read_bytes: u64,
}

/// Reads all frames of a payload from the archive's member `name`, which is next, and hands out the blocks in order, each compared
/// with its hash, with the bytes of the bundle that were read until then. Gives the digest of the frames.
///
/// # Errors
/// `Failed`, naming the member, if they cannot be read or are not what was signed; and whatever `write` fails with.
pub fn hand_out<R: Read + Send>(
    members: &mut archive::Reader<R>,
    name: &str,
    index: &Index,
    write: &mut dyn FnMut(&[Stretch], u64) -> Result<()>,
) -> Result<Digest> {
    let mut decoder = Decoder::new(index, BATCH as u64)?;
    let mut sum = Sha256::new();
    // Batches that were written are used again.
    let (done, again) = channel();
    thread::scope(|scope| {
        let decode = move |carried| decode(members, index, &mut decoder, carried, &again);
        let decoded = ahead(scope, WAITING, index.batches(BATCH as u64).map(decode))?;
        let check = |batch: Result<Batch>| {
            let batch = batch?;
            sum.update(&batch.frames);
            frames::check(index, batch.carried.clone(), batch.blocks())?;
            Ok::<_, Error>(batch)
        };
        for batch in ahead(scope, WAITING, decoded.map(check))? {
            let batch: Batch = batch.doing(|| name)?;
            write(&frames::stretches(index, batch.carried.clone(), batch.blocks()), batch.read_bytes)?;
            // The decoder may have come to its end.
            let _ = done.send(batch);
        }
        Ok::<_, Error>(())
    })?;
    Ok(Digest(sum.finalize().into()))
}

impl Batch {
    fn blocks(&self) -> &[u8] {
        let blocks = usize::try_from(self.carried.end - self.carried.start).unwrap_or(0);
        self.plain.get(..blocks * BLOCK_LEN).unwrap_or_default()
    }
}

fn decode(
    members: &mut archive::Reader<impl Read>,
    index: &Index,
    decoder: &mut Decoder,
    carried: Range<u64>,
    again: &Receiver<Batch>,
) -> Result<Batch> {
    let (mut frames, mut plain) = match again.try_recv() {
        Ok(batch) => (batch.frames, batch.plain),
        Err(_) => (Vec::new(), Buffer::new(BATCH * BLOCK_LEN)),
    };
    let len = index.frames(&carried).and_then(|place| usize::try_from(place.end - place.start).ok());
    frames.resize(len.ok_or_else(|| Error::inconsistent("frames that are not there"))?, 0);
    members.fill(&mut frames)?;
    let all_held = &mut |_, _: &mut [u8]| Err(Error::inconsistent("a prefix that was not decoded before"));
    let decoded = decoder.decode(index, carried.clone(), &frames, all_held)?;
    if let Some(room) = plain.get_mut(..decoded.len()) {
        room.copy_from_slice(decoded);
    }
    Ok(Batch { carried, frames, plain, read_bytes: members.position() })
}
