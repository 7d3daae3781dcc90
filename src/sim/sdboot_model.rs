//! The model of systemd-boot: which entry it starts, and how it counts.
//!
//! Source: systemd 252, `src/boot/efi/boot.c` (`config_entry_compare`, `config_entry_bump_counters`); the order is
//! checked with bootctl 252 (tests/boot).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::boot::sdboot::{Entry, EntryName};
use crate::model::Slot;

/// A rename: the old name and the new one.
pub type Rename = (String, String);

/// The slot whose entry sorts first, and how its file is renamed to count the boot.
pub fn choose(files: &BTreeMap<String, Vec<u8>>) -> (Slot, Option<Rename>) {
    let mut entries: Vec<Entry> = files
        .iter()
        .filter_map(|(file, content)| Entry::parse(EntryName::parse(file)?, content).ok())
        .collect();
    entries.sort_by_key(|e| {
        let used_up = matches!(e.name.counter, Some((0, _)));
        let left = e.name.counter.map_or(0, |(left, _)| left);
        (used_up, Reverse(e.version), Reverse(left))
    });
    // Without any entry the firmware would try something else; no test gets there.
    let first = entries.first().unwrap();
    let rename = first.name.counter.filter(|(left, _)| *left > 0).map(|(left, done)| {
        let counted = EntryName { slot: first.name.slot, counter: Some((left - 1, done + 1)) };
        (first.name.file(), counted.file())
    });
    (first.name.slot, rename)
}
