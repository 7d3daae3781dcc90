//! What was written to a disk, in order: the log of QEMU's `blklogwrites`.
//!
//! The format is that of the kernel's dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst): a sector with the
//! number of entries, then for each a sector with its place, length and flags, and behind it what was written.

use crate::Outcome;

/// The unit of the log, and of what a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;
/// The content of one sector.
pub type Sector = [u8; SECTOR_BYTES];

const MAGIC: u64 = 0x6a_73_66_77_73_68_72;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// What a disk was told, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// These sectors, from this one on.
    Write {
        /// The first sector's number, from 0.
        sector: u64,
        /// Their contents.
        content: Vec<Sector>,
        /// Whether they must be on the medium before the next event.
        through: bool,
    },
    /// All that was written before must be on the medium.
    Flush,
}

/// Reads a log.
///
/// # Errors
/// If it is none, ends early, or has a discard, which nobody here asks for.
pub fn parse(log: &[u8]) -> Outcome<Vec<Event>> {
    let number = |at: usize| {
        let bytes = log.get(at..at + 8).and_then(|b| b.try_into().ok());
        bytes.map(u64::from_le_bytes).ok_or_else(|| format!("the log ends before byte {}", at + 8))
    };
    if number(0)? != MAGIC || number(8)? != 1 || number(24)? & 0xffff_ffff != SECTOR_BYTES as u64 {
        return Err("the log is none of blklogwrites with sectors of 512 bytes".into());
    }
    let mut events = Vec::new();
    let mut at = SECTOR_BYTES;
    for _ in 0..number(16)? {
        let [sector, count, flags] = [number(at)?, number(at + 8)?, number(at + 16)?];
        if flags & DISCARD != 0 {
            return Err(format!(
                "a discard of {count} sectors from {sector} on, which nobody should ask for"
            ));
        }
        at += SECTOR_BYTES;
        if flags & FLUSH != 0 {
            events.push(Event::Flush);
        }
        if count > 0 {
            let len = usize::try_from(count).map_err(|e| e.to_string())? * SECTOR_BYTES;
            let raw = log.get(at..at + len).ok_or("the log ends within what was written")?;
            let (content, _) = raw.as_chunks();
            events.push(Event::Write { sector, content: content.to_vec(), through: flags & FUA != 0 });
            at += len;
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector_of(numbers: &[u64]) -> Vec<u8> {
        let mut raw: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        raw.resize(SECTOR_BYTES, 0);
        raw
    }

    #[test]
    fn entries_become_events() {
        let log = [
            sector_of(&[MAGIC, 1, 3, 512]),
            sector_of(&[7, 2, 0, 0]),
            vec![1; 512],
            vec![2; 512],
            sector_of(&[0, 0, FLUSH, 0]),
            sector_of(&[9, 1, FLUSH | FUA, 0]),
            vec![3; 512],
        ]
        .concat();
        let write = |sector, content: &[u8], through| Event::Write {
            sector,
            content: content.iter().map(|b| [*b; 512]).collect(),
            through,
        };
        let expected = [write(7, &[1, 2], false), Event::Flush, Event::Flush, write(9, &[3], true)];
        assert_eq!(parse(&log).unwrap(), expected);
        for end in [0, 40, 600, 1100, log.len() - 1] {
            assert!(parse(&log[..end]).is_err(), "{end}");
        }
        let discard = [sector_of(&[MAGIC, 1, 1, 512]), sector_of(&[7, 2, DISCARD, 0])].concat();
        assert!(parse(&discard).unwrap_err().starts_with("a discard of 2 sectors from 7 on"));
    }
}
