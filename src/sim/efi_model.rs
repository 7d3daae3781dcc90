//! The model of UEFI's boot manager: `BootNext` once, else the first entry of `BootOrder` that can be started.
//!
//! Source: UEFI specification 2.10, section 3.1.1.

use std::collections::BTreeMap;

use crate::boot::efi::{BOOT_NEXT, BOOT_ORDER, LoadOption, Volume, entry_file};
use crate::model::Slot;

type Variables = BTreeMap<String, Vec<u8>>;

/// The entries of both slots, each with its program on its own partition; as tests/fixtures/efi/make has them.
pub fn wanted() -> [LoadOption; 2] {
    [(Slot::A, 2), (Slot::B, 3)].map(|(slot, number)| {
        let partuuid = format!("a069de34-f845-4932-aa5f-0d0e532db4e{number}");
        let volume =
            Volume { number, start_lba: 2048 + u64::from(number - 1) * 16384, sectors: 16384, partuuid };
        LoadOption::new(&format!("twinhull {slot}"), &volume, "/boot/vmlinuz", "quiet").unwrap()
    })
}

/// A variable as efivarfs shows it.
fn variable(value: &[u8]) -> Vec<u8> {
    [&[7, 0, 0, 0], value].concat()
}

/// A new device: an entry for a stick, which is not there, then slot A's. Slot B has none yet.
pub fn seed() -> Variables {
    let stick = [&[1, 0, 0, 0, 4, 0][..], b"U\0\0\0", &[0x7f, 0xff, 4, 0]].concat();
    BTreeMap::from([
        (entry_file(0), variable(&stick)),
        (entry_file(3), variable(&wanted()[0].encode().unwrap())),
        (BOOT_ORDER.to_owned(), variable(&[0, 0, 3, 0])),
    ])
}

/// The slot that boots, and the variable that is removed before that.
pub fn choose(variables: &Variables) -> (Slot, Option<String>) {
    let numbers = |name: &str| -> Vec<u16> {
        let raw = variables.get(name).map(Vec::as_slice).unwrap_or_default();
        raw.get(4..).unwrap_or_default().chunks(2).map(|n| u16::from_le_bytes([n[0], n[1]])).collect()
    };
    let start = |number: u16| {
        let raw = variables.get(&entry_file(number))?;
        let is = |wanted: &LoadOption| raw[4..] == wanted.encode().unwrap();
        Slot::ALL.into_iter().zip(&wanted()).find(|(_, wanted)| is(wanted)).map(|(slot, _)| slot)
    };
    let next = numbers(BOOT_NEXT).into_iter().find_map(start);
    let removed = variables.contains_key(BOOT_NEXT).then(|| BOOT_NEXT.to_owned());
    // With nothing that can be started the firmware looks for a removable medium; no test gets there.
    (next.or_else(|| numbers(BOOT_ORDER).into_iter().find_map(start)).unwrap(), removed)
}
