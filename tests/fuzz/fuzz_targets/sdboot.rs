//! systemd-boot's entries: the name on the first line, then the content.
#![no_main]
use libfuzzer_sys::fuzz_target;
use twinhull::boot::sdboot::{Entry, EntryName};

fuzz_target!(|bytes: &[u8]| {
    let at = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
    let (name, content) = bytes.split_at(at);
    let Ok(name) = std::str::from_utf8(name) else { return };
    let _ = Entry::content(content, 7);
    let Some(name) = EntryName::parse(name) else { return };
    assert_eq!(EntryName::parse(&name.file()), Some(name));
    let _ = Entry::parse(name, content);
});
