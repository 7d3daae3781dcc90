//! balenaOS's text files for U-Boot.
#![no_main]
use libfuzzer_sys::fuzz_target;
use twinhull::boot::uboot_text::decode;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = decode(bytes) {
        let raw = text.encode(bytes.len());
        let again = decode(&raw).unwrap();
        assert_eq!(again.encode(raw.len()), raw);
    }
});
