//! CONTRACTS: what a service requires of its device, and whether a device has it.
//!
//! Requirements come from `io.balena.features.requires.*` labels and from `contract.yml` files; they are judged against
//! [`Facts`] as balena's supervisor and contrato judge them, with node's rules for version ranges. A requirement of a
//! type that is not known rejects the release as a whole; one that is not met rejects it too, unless its service is
//! optional: then that service is left out. Everything that is unmet is told at once.
//!
//! Source: balena-supervisor v19.0.5, `src/lib/contracts.ts`; contrato, `lib/contract.ts`; balena-compose-parser v0.3.0,
//! `lib/contracts.ts`.

mod check;
mod facts;
pub mod range;
mod requirement;
mod version;

pub use check::{Lack, Service, Unmet, lost_by, unmet};
pub use facts::{Facts, Named};
pub use range::satisfies;
pub use requirement::{Kind, Requirement};
pub use version::NodeVersion;

#[cfg(test)]
mod tests {
    use super::*;

    /// Every verdict of npm's semver 7.7.4 that tests/fixtures/semver holds.
    #[test]
    fn versions_and_ranges_are_as_nodes_semver_says() {
        let cases = include_str!("../../tests/fixtures/semver/cases.jsonl");
        let mut wrong = Vec::new();
        for line in cases.lines() {
            let (version, range, valid, valid_range, expected): (String, String, bool, bool, bool) =
                serde_json::from_str(line).unwrap();
            let (version, range) = (NodeVersion::parse(&version), range::Range::parse(&range));
            let satisfied =
                version.as_ref().zip(range.as_ref()).is_some_and(|(version, range)| range.contains(version));
            let found = (version.is_some(), range.is_some(), satisfied);
            if found != (valid, valid_range, expected) {
                wrong.push(format!("{line}: found {found:?}"));
            }
        }
        assert!(cases.lines().count() >= 200);
        assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_odd(version in "[0-9a-z.+v= -]{0,24}", range in "[0-9xX*.^~<>=|v+ a-]{0,40}", any in ".*") {
            for range in [&range, &any] {
                satisfies(&version, range);
                // A version is in the range that names it alone.
                if let Some(parsed) = NodeVersion::parse(&version) {
                    let itself = range::Range::parse(&format!(">={}", version.trim()));
                    assert!(itself.is_none_or(|r| r.contains(&parsed)), "{version:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_version_must_be_the_same_text() {
        assert!(satisfies("2022.01.0", "2022.01.0"));
        assert!(!satisfies("2022.01.0", ">=2021"));
        assert!(!satisfies("6.4.0", "latest"));
        assert!(satisfies("6.4.0", ">=6"));
    }
}
