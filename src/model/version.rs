//! OS versions: semantic versions with balena's `+revN`.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use crate::Error;

/// A version of the host OS, such as `2.46.1+rev10`.
///
/// Ordered as semantic versions are; of equal ones the higher `revN` in the build metadata is newer, as a
/// number (`rev2` < `rev10`; no `rev` is the lowest). Other build metadata does not count.
#[derive(Debug, Clone)]
pub struct Version {
    semver: semver::Version,
    rev: u64,
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let semver = semver::Version::parse(s)
            .map_err(|e| Error::failed(format!("version {s:?}: {e}; expected MAJOR.MINOR.PATCH")))?;
        let rev = semver.build.split('.').find_map(|p| p.strip_prefix("rev")?.parse().ok()).unwrap_or(0);
        Ok(Self { semver, rev })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.semver, f)
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.semver.cmp_precedence(&other.semver).then(self.rev.cmp(&other.rev))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Version {}

impl serde::Serialize for Version {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Version {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(s: &str) -> Version {
        s.parse().unwrap()
    }

    #[test]
    fn order() {
        let sorted = [
            "1.0.0-dev",
            "1.0.0",
            "1.0.0+rev2",
            "1.0.0+rev10",
            "1.2.0-rc.2",
            "1.2.0-rc.10",
            "1.2.0",
            "1.10.0",
        ];
        for pair in sorted.windows(2) {
            assert!(v(pair[0]) < v(pair[1]), "{pair:?}");
        }
        assert_eq!(v("1.0.0+dev"), v("1.0.0+other"));
    }

    #[test]
    fn the_text_is_kept() {
        assert_eq!(v("2.46.1+rev1").to_string(), "2.46.1+rev1");
        assert!("2.46".parse::<Version>().is_err());
    }
}
