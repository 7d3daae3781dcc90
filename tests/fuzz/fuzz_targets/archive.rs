//! The container: any bytes as a bundle, as `bundle inspect` reads it before a signature was checked.
#![no_main]
use libfuzzer_sys::fuzz_target;
use twinhull::bundle::describe;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(found) = describe(bytes) {
        // What was accepted can be said again.
        let text = found.manifest.to_text().unwrap();
        assert_eq!(twinhull::model::Manifest::parse(&text).unwrap(), found.manifest);
    }
});
