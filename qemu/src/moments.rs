//! Moments of a log at which the power goes, and the disk as it would be then.
//!
//! For a whole system's log, which is far too long to try everything that its drive may have done (`replay` does that): what
//! was flushed is certain, of the rest some requests have landed, and the last of them in part.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::Outcome;
use crate::block_log::{BlockLog, Entry, SECTOR_BYTES};
use crate::replay::Random;

const SECTOR: u64 = SECTOR_BYTES as u64;

/// A moment at which the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// So many requests have reached the drive.
    pub requests: usize,
    /// Which of the writes since the last flush its cache has put on the medium: none, or a selection by this number.
    pub cache: Option<u64>,
}

/// `count` moments, spread over the flushes: what lies between two of them is where states differ. Every other one goes in
/// the middle of what the drive was given since the last flush, which its cache may or may not have written.
pub fn moments(log: &BlockLog, count: usize) -> Vec<Moment> {
    let flushes: Vec<usize> = (0..log.entries.len()).filter(|n| log.entries[*n].is_flush()).collect();
    let writes = log.entries.iter().position(|e| e.len > 0).unwrap_or(0);
    let moment = |n: usize| {
        let nth = n * flushes.len() / count.max(1);
        let end = flushes.get(nth).copied().unwrap_or(log.entries.len());
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
pub fn advance(log: &BlockLog, disk: &File, from: usize, to: usize) -> Outcome<usize> {
    let flushed = flushed(log, to).max(from);
    for entry in &log.entries[from..flushed] {
        apply(log, disk, entry, entry.len)?;
    }
    Ok(flushed)
}

/// Adds what the drive's cache put on the medium beyond that. Gives what was there before, to be put back.
pub fn add_cached(log: &BlockLog, disk: &File, moment: Moment) -> Outcome<Vec<(u64, Vec<u8>)>> {
    let mut before = Vec::new();
    let Some(seed) = moment.cache else { return Ok(before) };
    let mut random = Random(seed);
    let tail = &log.entries[flushed(log, moment.requests)..moment.requests];
    for entry in tail.iter().filter(|e| !e.is_discard() && e.len > 0) {
        let is_kept = entry.is_through() || random.below(2) == 0;
        // Of the one that was under way, some sectors.
        let len = match std::ptr::eq(entry, &tail[tail.len() - 1]) && !entry.is_through() {
            true => random.below(usize::try_from(entry.len / SECTOR).unwrap_or(0) + 1) as u64 * SECTOR,
            false => entry.len,
        };
        if is_kept {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            disk.read_exact_at(&mut bytes, entry.at).map_err(|e| format!("the disk: {e}"))?;
            before.push((entry.at, bytes));
            apply(log, disk, entry, len)?;
        }
    }
    Ok(before)
}

/// Requests up to the last flush among the first `count`.
fn flushed(log: &BlockLog, count: usize) -> usize {
    let before = &log.entries[..count.min(log.entries.len())];
    before.iter().rposition(|e| e.is_flush()).map_or(0, |n| n + 1)
}

fn apply(log: &BlockLog, disk: &File, entry: &Entry, len: u64) -> Outcome {
    disk.write_all_at(&log.content(entry, len)?, entry.at).map_err(|e| format!("the disk: {e}"))
}

/// Puts back what was there.
pub fn undo(disk: &File, before: Vec<(u64, Vec<u8>)>) -> Outcome {
    for (at, bytes) in before.iter().rev() {
        disk.write_all_at(bytes, *at).map_err(|e| format!("the disk: {e}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_log::tests::{Request, log_bytes, opened};

    /// A log of writes of whole sectors, each full of its number, and flushes (`None`).
    fn log(requests: &[Option<(u64, usize)>]) -> BlockLog {
        let contents: Vec<Vec<u8>> =
            (1..).zip(requests).map(|(n, request)| vec![n; request.map_or(0, |(_, count)| count)]).collect();
        let requests: Vec<Request> = requests
            .iter()
            .zip(&contents)
            .map(|(request, content)| request.map_or(Request::Flush, |(at, _)| Request::Write(at, content)))
            .collect();
        opened(&log_bytes(&requests)).unwrap()
    }

    fn disk() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16 * SECTOR).unwrap();
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
        assert_eq!(log.entries.len(), 7);
        let disk = disk();
        assert_eq!(advance(&log, &disk, 0, 2).unwrap(), 0, "nothing was flushed yet");
        assert_eq!(advance(&log, &disk, 0, 5).unwrap(), 3);
        let flushed = [1, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(sectors(&disk), flushed);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..256 {
            let before = add_cached(&log, &disk, Moment { requests: 5, cache: Some(seed) }).unwrap();
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
        assert_eq!(advance(&log, &disk, 3, 7).unwrap(), 6);
        assert_eq!(sectors(&disk)[..2], [4, 1]);
    }

    #[test]
    fn what_qemu_logs_makes_the_disk_that_it_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let (image, logged) = (dir.path().join("disk"), dir.path().join("log"));
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
                let log = BlockLog::open(&logged).unwrap();
                let written = sectors(&File::open(&image).unwrap());
                assert_eq!(written[..6], [1, 2, 0, 0, 3, 0]);
                let replayed = disk();
                advance(&log, &replayed, 0, log.entries.len()).unwrap();
                assert_eq!(sectors(&replayed), written);
                assert_eq!(log.entries.last().unwrap().end(), logged.metadata().unwrap().len());
            }
        }
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
        let moments = moments(&log, 4);
        assert_eq!(moments[0], Moment { requests: 0, cache: None });
        assert_eq!(moments[1], Moment { requests: 2, cache: Some(1) });
        assert!(moments.windows(2).all(|w| w[0].requests <= w[1].requests), "{moments:?}");
    }
}
