//! GRUB's environment block.
#![no_main]
use libfuzzer_sys::fuzz_target;
use twinhull::boot::grub::{decode, encode};

fuzz_target!(|bytes: &[u8]| {
    let Ok(block) = decode(bytes) else { return };
    if let Ok(raw) = encode(&block) {
        assert_eq!(encode(&decode(&raw).unwrap()).unwrap(), raw);
    }
});
