//! All frames of a payload in their order: fetched and decoded, checked, and written, each in a thread of its own.
//!
//! So a full install takes as long as the slowest of decompressor, hash and medium, and not as long as all of them together. What
//! the last of them is given went through the one before, so nothing is written that was not checked; and an error comes to
//! the writer in its turn, after all that was right before it.
//!
//! The image goes through in chunks of equal length, holes and all: a medium takes few large writes better than many small ones.

use std::io::Read;
use std::ops::Range;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use sha2::{Digest as _, Sha256};

use super::archive;
use super::frames::{self, Decoder, Stretch};
use super::index::{BLOCK_LEN, Index, Run};
use crate::model::Digest;
use crate::sys::ahead::ahead;
use crate::sys::direct::Buffer;
use crate::{Doing, Error, Result};

/// Blocks in a chunk.
const BLOCKS: usize = 128;
const CHUNK_LEN: usize = BLOCKS * BLOCK_LEN;
/// Chunks that may wait for each thread. More of them would only take up memory.
const WAITING: usize = 1;

/// A stretch of the image on its way.
struct Chunk {
    /// The number of its first block.
    first: u64,
    /// Its blocks that are not zero.
    carried: Range<u64>,
    /// Their frames, one after the other.
    frames: Vec<u8>,
    image: Buffer,
    /// How far the bundle was read for it.
    read_bytes: u64,
}

/// Where an image goes: told an offset, the bytes there, and how many bytes of the bundle were read for all until then.
pub type Write<'a> = dyn FnMut(u64, &[u8], u64) -> Result<()> + 'a;

/// Reads all frames of a payload from the archive's member `name`, which is next, and hands out its image of `image_len` bytes, in
/// order, without gaps, every block compared with its hash. Gives the digest of the frames.
///
/// # Errors
/// `Failed`, naming the member, if they cannot be read or are not what was signed; and whatever `write` fails with.
pub fn hand_out<R: Read + Send>(
    members: &mut archive::Reader<R>,
    name: &str,
    index: &Index,
    image_len: u64,
    write: &mut Write,
) -> Result<Digest> {
    let mut decoder = Decoder::new(index, BLOCKS as u64)?;
    let mut sum = Sha256::new();
    // Chunks that were written are used again.
    let (done, again) = channel();
    thread::scope(|scope| {
        let chunks = (0..image_len.div_ceil(CHUNK_LEN as u64)).map(|n| n * BLOCKS as u64);
        let decode = move |first| decode(members, index, &mut decoder, first, &again);
        let decoded = ahead(scope, WAITING, chunks.map(decode))?;
        let check = |chunk: Result<Chunk>| {
            let chunk = chunk?;
            sum.update(&chunk.frames);
            chunk.check(index)?;
            Ok::<_, Error>(chunk)
        };
        for chunk in ahead(scope, WAITING, decoded.map(check))? {
            let chunk: Chunk = chunk.doing(|| name)?;
            let offset = chunk.first * BLOCK_LEN as u64;
            let len = usize::try_from(image_len - offset).map_or(CHUNK_LEN, |left| left.min(CHUNK_LEN));
            write(offset, chunk.image.get(..len).unwrap_or_default(), chunk.read_bytes)?;
            // The decoder may have come to its end.
            let _ = done.send(chunk);
        }
        Ok::<_, Error>(())
    })?;
    Ok(Digest(sum.finalize().into()))
}

/// Reads and decodes what a chunk has of blocks that are not zero.
fn decode(
    members: &mut archive::Reader<impl Read>,
    index: &Index,
    decoder: &mut Decoder,
    first: u64,
    again: &Receiver<Chunk>,
) -> Result<Chunk> {
    let (mut frames, image) = match again.try_recv() {
        Ok(chunk) => (chunk.frames, chunk.image),
        Err(_) => (Vec::new(), Buffer::new(CHUNK_LEN)),
    };
    let carried = index.carried_in(first..first + BLOCKS as u64);
    let len = index.frames(&carried).and_then(|place| usize::try_from(place.end - place.start).ok());
    frames.resize(len.ok_or_else(|| Error::inconsistent("frames that are not there"))?, 0);
    members.fill(&mut frames)?;
    let all_held = &mut |_, _: &mut [u8]| Err(Error::inconsistent("a prefix that was not decoded before"));
    let plain = decoder.decode(index, carried.clone(), &frames, all_held)?;
    let mut chunk = Chunk { first, carried: carried.clone(), frames: Vec::new(), image, read_bytes: 0 };
    if plain.len() < CHUNK_LEN {
        chunk.image.fill(0);
    }
    for Stretch { run, bytes } in frames::stretches(index, carried, plain) {
        let place = chunk.place(&run);
        if let Some(room) = chunk.image.get_mut(place) {
            room.copy_from_slice(bytes);
        }
    }
    Ok(Chunk { frames, read_bytes: members.position(), ..chunk })
}

impl Chunk {
    fn check(&self, index: &Index) -> Result<()> {
        for run in index.runs(self.carried.clone()) {
            let blocks = self.image.get(self.place(&run)).unwrap_or_default();
            frames::check(index, run.carried..run.carried + run.len, blocks)?;
        }
        Ok(())
    }

    /// Where in the chunk some of its blocks are.
    fn place(&self, run: &Run) -> Range<usize> {
        let at = |block: u64| usize::try_from(block - self.first).unwrap_or(BLOCKS) * BLOCK_LEN;
        at(run.block)..at(run.block + run.len)
    }
}
