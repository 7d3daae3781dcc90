//! minisign's signature files.
#![no_main]
use libfuzzer_sys::fuzz_target;
use twinhull::bundle::Signature;

fuzz_target!(|text: &str| {
    if let Ok(signature) = Signature::parse(text) {
        assert_eq!(signature.text(), text);
        let _ = signature.trusted_comment();
    }
    if let Ok(signature) = Signature::import(text) {
        Signature::parse(signature.text()).unwrap();
    }
});
