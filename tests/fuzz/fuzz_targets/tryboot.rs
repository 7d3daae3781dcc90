//! autoboot.txt of the Raspberry Pi.
#![no_main]
use libfuzzer_sys::fuzz_target;
use twinhull::boot::tryboot::{Section, decode};

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut file) = decode(bytes) else { return };
    let _ = (file.tries_left(), file.value(Section::All, "boot_partition"));
    if file.set(Section::All, "boot_partition", "3").is_ok() {
        file.set_tries_left(2);
        let raw = file.encode(512);
        let again = decode(&raw).unwrap();
        assert_eq!(again.value(Section::All, "boot_partition").as_deref(), Some("3"));
        assert_eq!(again.tries_left().unwrap(), 2);
    }
});
