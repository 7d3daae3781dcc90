//! Contracts, and node's versions and ranges: a version, a newline, a range.
#![no_main]
use libfuzzer_sys::fuzz_target;
use twinhull::contract::{NodeVersion, Requirement, satisfies};

fuzz_target!(|text: &str| {
    let (version, range) = text.split_once('\n').unwrap_or((text, "*"));
    let _ = satisfies(version, range);
    if let Some(version) = NodeVersion::parse(version) {
        assert_eq!(version.compare(&version), std::cmp::Ordering::Equal);
    }
    if let Ok(contract) = serde_json::from_str(text) {
        let _ = Requirement::of_contract(&contract);
    }
});
