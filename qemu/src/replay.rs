//! What a disk may hold after a power cut, from the log of what was written to it.
//!
//! What was written before the last flush is on the medium. Of what was written since, each sector may be there or not, whatever
//! the others are: a drive writes its cache back in any order, and a write of several sectors may be torn. A sector that was
//! written more than once may hold any of its contents. A sector itself is old or new.

use std::collections::{BTreeMap, HashMap};

use crate::Outcome;
use crate::block_log::{BlockLog, SECTOR_BYTES, Sector};

/// What a disk was told.
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

/// What a log says, in order.
///
/// # Errors
/// If it cannot be read, or has a discard, which nobody asks for who writes to a boot partition.
pub fn events(log: &BlockLog) -> Outcome<Vec<Event>> {
    let mut events = Vec::new();
    for entry in &log.entries {
        let sector = entry.at / SECTOR_BYTES as u64;
        if entry.is_discard() {
            return Err(format!(
                "a discard of {} bytes from sector {sector} on, which nobody should ask for",
                entry.len
            ));
        }
        if entry.is_flush() {
            events.push(Event::Flush);
        }
        if entry.len > 0 {
            let content = log.content(entry, entry.len)?.as_chunks().0.to_vec();
            events.push(Event::Write { sector, content, through: entry.is_through() });
        }
    }
    Ok(events)
}

/// As many combinations of sectors are all tried at one moment; of more, a sample of as many, always the same.
pub const ALL_OF: usize = 4096;

/// The sectors that differ from what the disk was before, by number: each content has a number, too.
pub type State = BTreeMap<u64, usize>;

/// A disk while its log is replayed.
#[derive(Debug, Default)]
pub struct Replay {
    contents: Vec<Sector>,
    numbers: HashMap<Sector, usize>,
    durable: State,
    /// In the order in which they were written.
    pending: Vec<(u64, usize)>,
    moments: u64,
}

impl Replay {
    /// A content by its number.
    pub fn content(&self, number: usize) -> &Sector {
        &self.contents[number]
    }

    /// Takes an event of the log.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Flush => self.durable.extend(self.pending.drain(..)),
            Event::Write { sector, content, through } => {
                for (at, content) in (*sector..).zip(content) {
                    let next = self.contents.len();
                    let number = *self.numbers.entry(*content).or_insert(next);
                    if number == next {
                        self.contents.push(*content);
                    }
                    if *through {
                        self.pending.retain(|(pending, _)| *pending != at);
                        self.durable.insert(at, number);
                    } else {
                        self.pending.push((at, number));
                    }
                }
            }
        }
    }

    /// Everything that the disk may hold if the power goes now, and whether that is all of it or a sample.
    pub fn states(&mut self) -> (Vec<State>, bool) {
        self.moments += 1;
        // What each sector may hold: what it held at the last flush, and all that was written to it since.
        let mut choices: BTreeMap<u64, Vec<Option<usize>>> = BTreeMap::new();
        for (sector, number) in &self.pending {
            let before = self.durable.get(sector).copied();
            let versions = choices.entry(*sector).or_insert_with(|| vec![before]);
            if !versions.contains(&Some(*number)) {
                versions.push(Some(*number));
            }
        }
        let choices: Vec<(u64, Vec<Option<usize>>)> = choices.into_iter().collect();
        let all = choices.iter().try_fold(1_usize, |n, (_, versions)| n.checked_mul(versions.len()));
        match all.filter(|n| *n <= ALL_OF) {
            Some(count) => {
                let state = |n| self.state(&choices, mixed_radix(n, &choices));
                ((0..count).map(state).collect(), true)
            }
            None => (self.sample(&choices), false),
        }
    }

    fn state(&self, choices: &[(u64, Vec<Option<usize>>)], picks: impl Iterator<Item = usize>) -> State {
        let mut state = self.durable.clone();
        for ((sector, versions), pick) in choices.iter().zip(picks) {
            if let Some(number) = versions[pick] {
                state.insert(*sector, number);
            }
        }
        state
    }

    /// What was written in its order up to each sector, the same backwards, and then whatever comes.
    fn sample(&self, choices: &[(u64, Vec<Option<usize>>)]) -> Vec<State> {
        let mut states = Vec::new();
        for n in 0..=self.pending.len() {
            let (first, last) = self.pending.split_at(n);
            for landed in [first, last] {
                let mut state = self.durable.clone();
                state.extend(landed.iter().copied());
                states.push(state);
            }
        }
        let mut random = Random(self.moments);
        while states.len() < ALL_OF {
            let picks: Vec<usize> =
                choices.iter().map(|(_, versions)| random.below(versions.len())).collect();
            states.push(self.state(choices, picks.into_iter()));
        }
        states
    }
}

/// The digits of `n`, where each sector is a digit with as many values as it has versions.
fn mixed_radix(n: usize, choices: &[(u64, Vec<Option<usize>>)]) -> impl Iterator<Item = usize> {
    choices.iter().scan(n, |rest, (_, versions)| {
        let digit = *rest % versions.len();
        *rest /= versions.len();
        Some(digit)
    })
}

/// Numbers that look random and are always the same (splitmix64).
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ z >> 31) % limit.max(1) as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_log::tests::{Request, log_bytes, opened};

    #[test]
    fn a_log_becomes_events() {
        let bytes =
            log_bytes(&[Request::Write(7, &[1, 2]), Request::Flush, Request::FlushAndWriteThrough(9, &[3])]);
        let through = Event::Write { sector: 9, content: vec![[3; 512]], through: true };
        let expected = [write(7, &[1, 2]), Event::Flush, Event::Flush, through];
        assert_eq!(events(&opened(&bytes).unwrap()).unwrap(), expected);
        let discard = opened(&log_bytes(&[Request::Discard(7, 2)])).unwrap();
        assert!(events(&discard).unwrap_err().starts_with("a discard of 1024 bytes from sector 7 on"));
    }

    fn write(sector: u64, bytes: &[u8]) -> Event {
        Event::Write { sector, content: bytes.iter().map(|b| [*b; 512]).collect(), through: false }
    }

    /// The states as the first bytes of sectors 0 to 2; `.` is what was there before.
    fn shown(replay: &mut Replay) -> Vec<String> {
        let (states, _) = replay.states();
        let sector = |state: &State, n: u64| {
            state.get(&n).map_or('.', |number| char::from(replay.content(*number)[0]))
        };
        let mut shown: Vec<String> =
            states.iter().map(|state| (0..3).map(|n| sector(state, n)).collect()).collect();
        shown.sort();
        shown
    }

    #[test]
    fn what_was_flushed_stays_and_the_rest_lands_in_any_order() {
        let mut replay = Replay::default();
        assert_eq!(shown(&mut replay), ["..."]);
        replay.apply(&write(0, b"ab"));
        assert_eq!(shown(&mut replay), ["...", ".b.", "a..", "ab."]);
        replay.apply(&write(2, b"c"));
        assert_eq!(shown(&mut replay).len(), 8);
        replay.apply(&Event::Flush);
        assert_eq!(shown(&mut replay), ["abc"]);
        replay.apply(&write(1, b"x"));
        replay.apply(&write(1, b"y"));
        replay.apply(&write(1, b"x"));
        assert_eq!(shown(&mut replay), ["abc", "axc", "ayc"]);
    }

    #[test]
    fn a_write_through_the_cache_leaves_the_others_in_it() {
        let mut replay = Replay::default();
        replay.apply(&write(0, b"a"));
        replay.apply(&Event::Write { sector: 1, content: vec![[b'b'; 512]], through: true });
        assert_eq!(shown(&mut replay), [".b.", "ab."]);
    }

    #[test]
    fn of_too_many_a_sample_has_the_prefixes_and_is_always_the_same() {
        let mut replay = Replay::default();
        let bytes: Vec<u8> = (1..=20).collect();
        replay.apply(&write(0, &bytes));
        let (states, all) = replay.states();
        assert!(!all && states.len() == ALL_OF);
        for n in 0..=20_u64 {
            assert!(states.iter().any(|s| s.keys().copied().eq(0..n)), "prefix of {n}");
            assert!(states.iter().any(|s| s.keys().copied().eq(n..20)), "without the first {n}");
        }
        let mut again = Replay::default();
        again.apply(&write(0, &bytes));
        assert_eq!(again.states().0, states);
    }
}
