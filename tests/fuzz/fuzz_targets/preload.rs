//! A preload archive's manifest and its entries, whoever made them.
#![no_main]
use libfuzzer_sys::fuzz_target;
use twinhull::preload::{Entry, Manifest};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Manifest::parse(text);
    }
    let mut rest = bytes;
    while let Ok(Some(entry)) = Entry::read(&mut rest) {
        let mut written = Vec::new();
        entry.write(&mut written).unwrap();
        assert_eq!(Entry::read(&mut written.as_slice()).unwrap(), Some(entry));
    }
});
