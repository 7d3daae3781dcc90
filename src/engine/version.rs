//! Which version of the engine's API is spoken.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// A version of the engine API, such as 1.41.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    major: u16,
    minor: u16,
}

/// The version that the calls here are written against: that of balenaEngine 20.10, and old enough for Podman.
const OURS: ApiVersion = ApiVersion { major: 1, minor: 41 };
/// The oldest that has every field we use; balenaEngine 19.03.
const OLDEST: ApiVersion = ApiVersion { major: 1, minor: 40 };

impl ApiVersion {
    /// The version to speak with an engine that knows `oldest` (none told: anything) to `newest`.
    ///
    /// Ours if it knows that; else the nearest to it: its newest, or its oldest, which by the engine's own promise
    /// is compatible in what we use.
    ///
    /// # Errors
    /// `Failed` for an engine that is too old.
    pub fn negotiate(newest: Self, oldest: Option<Self>) -> Result<Self> {
        if newest < OLDEST {
            return Err(Error::failed(format!("engine API {newest}: at least {OLDEST} is needed")));
        }
        let lower = newest.min(OURS);
        Ok(oldest.map_or(lower, |o| lower.max(o)))
    }
}

impl FromStr for ApiVersion {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text
            .split_once('.')
            .and_then(|(major, minor)| Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? }));
        parsed.ok_or_else(|| Error::failed(format!("engine API version {text:?}: expected MAJOR.MINOR")))
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(text: &str) -> ApiVersion {
        text.parse().unwrap()
    }

    #[test]
    fn negotiation() {
        // Newest and oldest as told by dockerd 20.10.24, 25, 28 and 29, and by Podman 4.3.
        for (newest, oldest, expected) in [
            ("1.41", Some("1.12"), "1.41"),
            ("1.44", Some("1.24"), "1.41"),
            ("1.40", Some("1.12"), "1.40"),
            ("1.52", Some("1.44"), "1.44"),
            ("1.41", Some("1.24"), "1.41"),
            ("1.41", None, "1.41"),
        ] {
            assert_eq!(ApiVersion::negotiate(v(newest), oldest.map(v)).unwrap(), v(expected), "{newest}");
        }
        let e = ApiVersion::negotiate(v("1.39"), None).unwrap_err();
        assert_eq!(e.to_string(), "engine API 1.39: at least 1.40 is needed");
    }

    #[test]
    fn what_is_no_version_is_an_error() {
        for text in ["", "1", "1.", "v1.41", "1.41.0", "1.-1"] {
            assert!(text.parse::<ApiVersion>().is_err(), "{text:?}");
        }
    }
}
