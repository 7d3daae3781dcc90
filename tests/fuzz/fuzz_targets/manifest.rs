//! The signed description, before anybody has checked what it says.
#![no_main]
use libfuzzer_sys::fuzz_target;
use twinhull::model::Manifest;

fuzz_target!(|text: &str| {
    if let Ok(manifest) = Manifest::parse(text)
        && let Ok(text) = manifest.to_text()
    {
        assert_eq!(Manifest::parse(&text).unwrap(), manifest);
    }
});
