//! The proof that a slot holds what it should.

use std::sync::mpsc::{channel, sync_channel};
use std::thread;

use sha2::{Digest as _, Sha256};

use super::Disk;
use crate::model::{Digest, Slot};
use crate::sys::direct::Buffer;
use crate::{Doing, Error, Result};

/// Bytes read in one go.
const STEP: usize = 1024 * 1024;
/// Steps that may wait to be hashed.
const WAITING: usize = 2;

/// Proof that a slot's image was read from the medium and is the one meant. Only [`read_back`] makes it, and
/// only with it can a slot be armed.
#[derive(Debug, PartialEq, Eq)]
pub struct Verified {
    slot: Slot,
}

impl Verified {
    /// The slot that was read.
    pub const fn slot(&self) -> Slot {
        self.slot
    }

    /// A proof without a reading, for tests of what needs one.
    #[cfg(test)]
    pub const fn for_test(slot: Slot) -> Self {
        Self { slot }
    }
}

/// Reads the first `len_bytes` of `slot`'s disk and compares them with `digest`; `progress` is told the bytes
/// read so far.
///
/// The caller has flushed the disk, so these are the medium's bytes, not a cache's.
///
/// # Errors
/// `Failed` if the disk cannot be read, is too short, or holds anything else.
pub fn read_back(
    disk: &mut impl Disk,
    slot: Slot,
    len_bytes: u64,
    digest: &Digest,
    progress: impl FnMut(u64),
) -> Result<Verified> {
    let found = digest_of(disk, len_bytes, progress)?;
    if found == *digest {
        Ok(Verified { slot })
    } else {
        Err(Error::failed(format!(
            "read back slot {slot}: the medium holds {found}, expected {digest}; it may be worn out"
        )))
    }
}

/// The digest of the first `len_bytes` of a disk; `progress` is told the bytes read so far. One thread reads, another hashes.
///
/// # Errors
/// `Failed` if the disk cannot be read or is too short.
pub fn digest_of(disk: &mut impl Disk, len_bytes: u64, mut progress: impl FnMut(u64)) -> Result<Digest> {
    let (full, filled) = sync_channel::<(Buffer, usize)>(WAITING);
    let (done, again) = channel();
    thread::scope(|scope| {
        let hash = move || {
            let mut hash = Sha256::new();
            for (buffer, len) in filled {
                hash.update(buffer.get(..len).unwrap_or_default());
                // The reader may have come to its end.
                let _ = done.send(buffer);
            }
            Digest(hash.finalize().into())
        };
        let hasher = thread::Builder::new().spawn_scoped(scope, hash).doing(|| "start a thread")?;
        let mut offset = 0;
        while offset < len_bytes {
            let n = usize::try_from(len_bytes - offset).map_or(STEP, |left| left.min(STEP));
            let mut buffer = again.try_recv().unwrap_or_else(|_| Buffer::new(STEP));
            disk.read_at(offset, buffer.get_mut(..n).unwrap_or_default())?;
            offset += n as u64;
            progress(offset);
            if full.send((buffer, n)).is_err() {
                break;
            }
        }
        drop(full);
        hasher.join().map_err(|_| Error::inconsistent("hashing ended early"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::FileDisk;

    #[test]
    fn one_wrong_bit_anywhere_or_a_missing_end_is_no_proof() {
        let image: Vec<u8> = (0..=250).cycle().take(2 * STEP + 4096).collect();
        let digest = Digest(Sha256::digest(&image).into());
        let len = image.len() as u64;
        let dir = tempfile::tempdir().unwrap();
        let read = |bytes: &[u8]| {
            let path = dir.path().join("slot");
            crate::sys::durable::replace(&path, bytes, 0o600).unwrap();
            read_back(&mut FileDisk::open_read_only(&path).unwrap(), Slot::B, len, &digest, |_| ())
        };
        assert_eq!(read(&image).unwrap().slot(), Slot::B);
        for at in [0, STEP, image.len() - 1] {
            let mut worn = image.clone();
            worn[at] ^= 1;
            assert!(read(&worn).unwrap_err().to_string().contains("may be worn out"), "byte {at}");
        }
        read(&image[..image.len() - 1]).unwrap_err();
    }
}
