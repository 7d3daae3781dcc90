//! Settings: fragments of TOML.
#![no_main]
mod lab;

use libfuzzer_sys::fuzz_target;
use twinhull::Root;
use twinhull::config::Settings;

fuzz_target!(|bytes: &[u8]| {
    let path = lab::scratch("settings.toml", bytes);
    if let Err(e) = Settings::load(&Root::default(), Some(&path)) {
        assert!(!e.to_string().contains('\n'), "{e}");
    }
});
