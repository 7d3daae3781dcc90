//! What was written to a disk, in order: the log of QEMU's `blklogwrites`.
//!
//! The format is that of the kernel's dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst), all numbers
//! little-endian: a sector with magic, version, number of entries (u64 each) and the size of a sector (u32), then for each entry a
//! sector with its place, length and flags (u64 each), and behind it what was written, unless it is a discard.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::Outcome;

/// The unit of the log, and of what a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;
/// The content of one sector.
pub type Sector = [u8; SECTOR_BYTES];

const SECTOR: u64 = SECTOR_BYTES as u64;

const MAGIC: u64 = 0x6a_73_66_77_73_68_72;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// One request that the drive got: a flush, something to write, or first the one and then the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    flags: u64,
    /// Where on the disk, in bytes.
    pub at: u64,
    /// How much, in bytes: whole sectors.
    pub len: u64,
    /// Where what was written begins in the log.
    content: u64,
}

impl Entry {
    /// Whether all that was written before must be on the medium.
    pub const fn is_flush(&self) -> bool {
        self.flags & FLUSH != 0
    }

    /// Whether it must be on the medium before what comes next.
    pub const fn is_through(&self) -> bool {
        self.flags & FUA != 0
    }

    /// Whether the sectors are to hold nothing any more.
    pub const fn is_discard(&self) -> bool {
        self.flags & DISCARD != 0
    }

    /// Where it ends in the log.
    pub const fn end(&self) -> u64 {
        self.content + if self.is_discard() { 0 } else { self.len }
    }
}

/// A log that nobody writes any more.
#[derive(Debug)]
pub struct BlockLog {
    file: File,
    /// What the disk was told, in order.
    pub entries: Vec<Entry>,
}

impl BlockLog {
    /// Reads a log; what was written stays in the file.
    ///
    /// # Errors
    /// If it is none, or ends early.
    pub fn open(path: &Path) -> Outcome<Self> {
        let failed = |e: std::io::Error| format!("{}: {e}", path.display());
        let file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let mut head = [0; 32];
        file.read_exact_at(&mut head, 0).map_err(failed)?;
        let word =
            |head: &[u8; 32], n: usize| head.as_chunks().0.get(n).copied().map_or(0, u64::from_le_bytes);
        if word(&head, 0) != MAGIC || word(&head, 1) != 1 || word(&head, 3) & 0xffff_ffff != SECTOR {
            return Err(format!("{}: no log of blklogwrites with sectors of {SECTOR} bytes", path.display()));
        }
        let count = word(&head, 2);
        let (mut entries, mut at) = (Vec::new(), SECTOR);
        for _ in 0..count {
            file.read_exact_at(&mut head, at).map_err(failed)?;
            let [place, len] = [word(&head, 0), word(&head, 1)].map(|sectors| sectors.saturating_mul(SECTOR));
            let entry = Entry { flags: word(&head, 2), at: place, len, content: at + SECTOR };
            at = entry.end();
            if at > size {
                return Err(format!("{}: ends within what was written", path.display()));
            }
            entries.push(entry);
        }
        Ok(Self { file, entries })
    }

    /// The first `len` bytes of what an entry wrote; zeros for a discard.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn content(&self, entry: &Entry, len: u64) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len.min(entry.len)).map_err(|e| e.to_string())?];
        if !entry.is_discard() {
            self.file.read_exact_at(&mut bytes, entry.content).map_err(|e| format!("the log: {e}"))?;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What the lab's tests have a drive asked for.
    #[derive(Debug, Clone, Copy)]
    pub enum Request<'a> {
        Flush,
        /// From this sector on, each sector full of one byte.
        Write(u64, &'a [u8]),
        /// The same, through the cache and after a flush.
        FlushAndWriteThrough(u64, &'a [u8]),
        Discard(u64, u64),
    }

    /// The log of these requests.
    pub fn log_bytes(requests: &[Request]) -> Vec<u8> {
        let sector = |words: [u64; 4]| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            bytes.resize(SECTOR_BYTES, 0);
            bytes
        };
        let mut log = sector([MAGIC, 1, requests.len() as u64, SECTOR]);
        for request in requests {
            let (at, count, flags, content) = match *request {
                Request::Flush => (0, 0, FLUSH, [].as_slice()),
                Request::Write(at, content) => (at, content.len() as u64, 0, content),
                Request::FlushAndWriteThrough(at, content) => {
                    (at, content.len() as u64, FLUSH | FUA, content)
                }
                Request::Discard(at, count) => (at, count, DISCARD, [].as_slice()),
            };
            log.extend(sector([at, count, flags, 0]));
            log.extend(content.iter().flat_map(|byte| [*byte; SECTOR_BYTES]));
        }
        log
    }

    /// Opens the log of these bytes.
    pub fn opened(bytes: &[u8]) -> Outcome<BlockLog> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, bytes).unwrap();
        BlockLog::open(&path)
    }

    #[test]
    fn entries_and_their_content() {
        let bytes = log_bytes(&[
            Request::Write(7, &[1, 2]),
            Request::Flush,
            Request::FlushAndWriteThrough(9, &[3]),
            Request::Discard(5, 4),
        ]);
        let log = opened(&bytes).unwrap();
        let told: Vec<_> = log
            .entries
            .iter()
            .map(|e| (e.at / SECTOR, e.len / SECTOR, e.is_flush(), e.is_through(), e.is_discard()))
            .collect();
        let expected = [
            (7, 2, false, false, false),
            (0, 0, true, false, false),
            (9, 1, true, true, false),
            (5, 4, false, false, true),
        ];
        assert_eq!(told, expected);
        let content = log.content(&log.entries[0], u64::MAX).unwrap();
        assert_eq!((content[0], content[512], content.len()), (1, 2, 1024));
        assert_eq!(log.content(&log.entries[3], 512).unwrap(), [0; 512]);
        assert_eq!(log.entries[3].end(), bytes.len() as u64);
        for end in [0, 40, 600, 1100, bytes.len() - 500] {
            assert!(opened(&bytes[..end]).is_err(), "{end}");
        }
    }
}
