//! The log of every write to a disk, and disks as they would be had the power gone at any moment of it.
//!
//! QEMU writes the log (blklogwrites), in the format of dm-log-writes: a superblock in the first sector (magic, version, number
//! of entries: u64 each, then the size of a sector: u32), and entries from the second on, each a sector that begins with sector,
//! number of sectors and flags (u64 each), and behind it the data, unless it is a discard. All little-endian.
//! Source: Linux, drivers/md/dm-log-writes.c; QEMU, block/blklogwrites.c.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::Outcome;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const SECTOR: u64 = 512;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// One request that the drive got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    flags: u64,
    /// Where on the disk, in bytes.
    at: u64,
    len: u64,
    /// Where its data are in the log.
    data: u64,
}

/// A log that is complete.
pub struct WriteLog {
    file: File,
    entries: Vec<Entry>,
}

/// A moment at which the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// So many requests have reached the drive.
    pub requests: usize,
    /// Which of the writes since the last flush its cache has put on the medium: none, or a selection by this number.
    pub cache: Option<u64>,
}

impl WriteLog {
    /// Reads a log that nobody writes any more.
    pub fn open(path: &Path) -> Outcome<Self> {
        let failed = |e: std::io::Error| format!("{}: {e}", path.display());
        let file = File::open(path).map_err(failed)?;
        let mut head = [0; 32];
        file.read_exact_at(&mut head, 0).map_err(failed)?;
        let count = word(&head, 16);
        if word(&head, 0) != MAGIC || word(&head, 24) as u32 != SECTOR as u32 {
            return Err(format!("{}: not a log of writes in sectors of {SECTOR} bytes", path.display()));
        }
        let (mut entries, mut at) = (Vec::new(), SECTOR);
        for _ in 0..count {
            file.read_exact_at(&mut head, at).map_err(failed)?;
            let (flags, len) = (word(&head, 16), word(&head, 8) * SECTOR);
            let data = at + SECTOR;
            entries.push(Entry { flags, at: word(&head, 0) * SECTOR, len, data });
            at = data + if flags & DISCARD == 0 { len } else { 0 };
        }
        Ok(Self { file, entries })
    }

    /// How many requests there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many requests the first `bytes` of the log hold.
    pub fn len_within(&self, bytes: u64) -> usize {
        self.entries.iter().filter(|e| e.data + e.logged() <= bytes).count()
    }

    /// `count` moments, spread over the flushes: what lies between two of them is where states differ. Every other one goes in
    /// the middle of what the drive was given since the last flush, which its cache may or may not have written.
    pub fn moments(&self, count: usize) -> Vec<Moment> {
        let flushes: Vec<usize> = (0..self.len()).filter(|n| self.entries[*n].flags & FLUSH != 0).collect();
        let writes = self.entries.iter().position(|e| e.len > 0).unwrap_or(0);
        let moment = |n: usize| {
            let nth = n * flushes.len() / count.max(1);
            let end = flushes.get(nth).copied().unwrap_or(self.len());
            let begin = nth.checked_sub(1).and_then(|before| flushes.get(before)).copied().unwrap_or(writes);
            match n % 2 {
                0 => Moment { requests: end, cache: None },
                _ => Moment { requests: begin + (end - begin).div_ceil(2), cache: Some(n as u64) },
            }
        };
        (0..count).map(moment).collect()
    }

    /// Brings a disk that has seen the first `from` requests to what is certain to be on the medium after `to` of them: all
    /// before the last flush. Gives how many that are.
    pub fn advance(&self, disk: &File, from: usize, to: usize) -> Outcome<usize> {
        let flushed = self.flushed(to).max(from);
        for entry in &self.entries[from..flushed] {
            self.apply(disk, entry, entry.len)?;
        }
        Ok(flushed)
    }

    /// Adds what the drive's cache put on the medium beyond that. Gives what was there before, to be put back.
    pub fn add_cached(&self, disk: &File, moment: Moment) -> Outcome<Vec<(u64, Vec<u8>)>> {
        let mut before = Vec::new();
        let Some(seed) = moment.cache else { return Ok(before) };
        let mut random = Random(seed);
        let tail = &self.entries[self.flushed(moment.requests)..moment.requests];
        for entry in tail.iter().filter(|e| e.flags & DISCARD == 0 && e.len > 0) {
            let is_kept = entry.flags & FUA != 0 || random.next().is_multiple_of(2);
            // Of the one that was under way, some sectors.
            let len = match std::ptr::eq(entry, &tail[tail.len() - 1]) && entry.flags & FUA == 0 {
                true => random.next() % (entry.len / SECTOR + 1) * SECTOR,
                false => entry.len,
            };
            if is_kept {
                let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
                disk.read_exact_at(&mut bytes, entry.at).map_err(|e| format!("the disk: {e}"))?;
                before.push((entry.at, bytes));
                self.apply(disk, entry, len)?;
            }
        }
        Ok(before)
    }

    /// Requests up to the last flush among the first `count`.
    fn flushed(&self, count: usize) -> usize {
        let before = &self.entries[..count.min(self.len())];
        before.iter().rposition(|e| e.flags & FLUSH != 0).map_or(0, |n| n + 1)
    }

    fn apply(&self, disk: &File, entry: &Entry, len: u64) -> Outcome {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        if entry.flags & DISCARD == 0 {
            self.file.read_exact_at(&mut bytes, entry.data).map_err(|e| format!("the log: {e}"))?;
        }
        disk.write_all_at(&bytes, entry.at).map_err(|e| format!("the disk: {e}"))
    }
}

/// Puts back what was there.
pub fn undo(disk: &File, before: Vec<(u64, Vec<u8>)>) -> Outcome {
    for (at, bytes) in before.iter().rev() {
        disk.write_all_at(bytes, *at).map_err(|e| format!("the disk: {e}"))?;
    }
    Ok(())
}

impl Entry {
    /// Bytes of data in the log.
    const fn logged(&self) -> u64 {
        if self.flags & DISCARD == 0 { self.len } else { 0 }
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// The same numbers each time (SplitMix64).
struct Random(u64);

impl Random {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of writes of whole sectors, each full of its number, and flushes (`None`).
    fn log(requests: &[Option<(u64, u64)>]) -> WriteLog {
        let path = std::env::temp_dir().join(format!("write-log-{}-{}", std::process::id(), requests.len()));
        let sector = |words: &[u64]| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            bytes.resize(512, 0);
            bytes
        };
        let mut bytes = sector(&[MAGIC, 1, requests.len() as u64, SECTOR]);
        for (n, request) in requests.iter().enumerate() {
            let (at, sectors) = request.unwrap_or((0, 0));
            bytes.extend(sector(&[at, sectors, if request.is_none() { FLUSH } else { 0 }, 0]));
            bytes.extend(std::iter::repeat_n(n as u8 + 1, sectors as usize * 512));
        }
        std::fs::write(&path, bytes).unwrap();
        let log = WriteLog::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        log
    }

    fn disk(name: &str) -> File {
        let path = std::env::temp_dir().join(format!("write-log-{}-{name}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.set_len(16 * SECTOR).unwrap();
        std::fs::remove_file(&path).unwrap();
        file
    }

    fn sectors(disk: &File) -> Vec<u8> {
        let mut bytes = vec![0; 16 * 512];
        disk.read_exact_at(&mut bytes, 0).unwrap();
        bytes.chunks(512).map(|c| if c.iter().all(|b| *b == c[0]) { c[0] } else { 255 }).collect()
    }

    #[test]
    fn what_was_flushed_is_certain_and_the_rest_is_chance() {
        let log = log(&[Some((0, 2)), Some((4, 1)), None, Some((0, 1)), Some((8, 4)), None, Some((1, 1))]);
        assert_eq!(log.len(), 7);
        let disk = disk("certain");
        assert_eq!(log.advance(&disk, 0, 2).unwrap(), 0, "nothing was flushed yet");
        assert_eq!(log.advance(&disk, 0, 5).unwrap(), 3);
        let flushed = [1, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(sectors(&disk), flushed);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..256 {
            let before = log.add_cached(&disk, Moment { requests: 5, cache: Some(seed) }).unwrap();
            let found = sectors(&disk);
            assert!([1, 4].contains(&found[0]) && found[1] == 1, "{found:?}");
            let torn = found[8..12].iter().take_while(|b| **b == 5).count();
            assert!(found[8 + torn..12].iter().all(|b| *b == 0), "{found:?}");
            seen.insert((found[0], torn));
            undo(&disk, before).unwrap();
            assert_eq!(sectors(&disk), flushed);
        }
        // Either first write with each length of the second.
        assert_eq!(seen.len(), 10, "{seen:?}");
        assert_eq!(log.advance(&disk, 3, 7).unwrap(), 6);
        assert_eq!(sectors(&disk)[..2], [4, 1]);
    }

    #[test]
    fn what_qemu_logs_makes_the_disk_that_it_wrote() {
        let dir = std::env::temp_dir().join(format!("write-log-{}-qemu", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (image, logged) = (dir.join("disk"), dir.join("log"));
        File::create(&image).unwrap().set_len(16 * SECTOR).unwrap();
        File::create(&logged).unwrap();
        let options = format!(
            "driver=blklogwrites,log-sector-size=512,log-super-update-interval=1,file.driver=file,\
             file.filename={},log.driver=file,log.filename={}",
            image.display(),
            logged.display()
        );
        let mut command = std::process::Command::new("qemu-io");
        command.args(["--image-opts", &options]);
        for request in ["write -P 1 0 1k", "flush", "write -P 2 512 512", "write -f -P 3 2k 512", "flush"] {
            command.args(["-c", request]);
        }
        match command.output() {
            Err(e) => println!("SKIPPED: needs qemu-io (Debian package qemu-utils): {e}"),
            Ok(output) => {
                assert!(output.status.success(), "{output:?}");
                let log = WriteLog::open(&logged).unwrap();
                let written = sectors(&File::open(&image).unwrap());
                assert_eq!(written[..6], [1, 2, 0, 0, 3, 0]);
                let replayed = disk("replayed");
                log.advance(&replayed, 0, log.len()).unwrap();
                assert_eq!(sectors(&replayed), written);
                assert_eq!(log.len_within(logged.metadata().unwrap().len()), log.len());
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn moments_are_spread_over_the_flushes_in_order() {
        let log = log(&[
            None,
            Some((0, 1)),
            Some((1, 1)),
            None,
            Some((0, 1)),
            None,
            Some((2, 1)),
            None,
            Some((0, 1)),
        ]);
        let moments = log.moments(4);
        assert_eq!(moments[0], Moment { requests: 0, cache: None });
        assert_eq!(moments[1], Moment { requests: 2, cache: Some(1) });
        assert!(moments.windows(2).all(|w| w[0].requests <= w[1].requests), "{moments:?}");
        assert_eq!(log.len_within(0), 0);
        assert_eq!(log.len_within(u64::MAX), 9);
    }
}
