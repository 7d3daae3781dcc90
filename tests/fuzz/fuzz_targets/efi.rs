//! EFI load options, and the templates of our own.
#![no_main]
use libfuzzer_sys::fuzz_target;
use twinhull::boot::efi::{LoadOption, Template};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(option) = LoadOption::decode(bytes)
        && let Ok(raw) = option.encode()
    {
        LoadOption::decode(&raw).unwrap();
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Template::parse(text);
    }
});
