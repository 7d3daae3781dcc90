//! A request for a factory reset: what is to be emptied at the next boot, and what is kept.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Where the request waits for PID 1, as a path of the host. It is written whole or not at all, and only what it says in
/// so many words is ever done: nothing follows from a file that is missing.
pub const RESET_REQUEST: &str = "/mnt/state/twinhull/reset-request.json";

/// What is kept of the state partition in any case: without the journal an update under way would be forgotten, and the
/// others hold what a damaged boot partition or a stopped clock would be repaired with.
pub const KEPT_OF_STATE: [&str; 6] = [
    "twinhull/journal.json",
    "twinhull/config.json.last-good",
    "twinhull/registered.json",
    "twinhull/former-identity.json",
    "twinhull/last-seen",
    "lost+found",
];

/// What is kept of the data partition in any case.
pub const KEPT_OF_DATA: [&str; 1] = ["lost+found"];

/// A request for a factory reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResetRequest {
    /// `Some`: the state partition is emptied but for these paths, relative to it.
    pub state: Option<Vec<PathBuf>>,
    /// `Some`: the data partition is emptied but for these paths, relative to it.
    pub data: Option<Vec<PathBuf>>,
}

impl ResetRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// `Failed` if it is not one in every detail: then nothing is to be done.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let request: Self = serde_json::from_slice(bytes).map_err(|e| Error::failed(e.to_string()))?;
        for path in request.state.iter().chain(&request.data).flatten() {
            is_inside(path)?;
        }
        Ok(request)
    }

    /// The request as it is written.
    pub fn to_text(&self) -> String {
        serde_json::json!({ "state": self.state, "data": self.data }).to_string()
    }
}

/// Refuses a path to be kept that is not inside of its partition.
///
/// # Errors
/// `Failed`, naming the path.
pub fn is_inside(path: &Path) -> Result<()> {
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    if plain && path.components().next().is_some() {
        return Ok(());
    }
    Err(Error::failed(format!(
        "{}: expected a path inside of the partition, without a slash before it",
        path.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_request_is_one() {
        let request = ResetRequest { state: Some(vec!["a/b".into()]), data: None };
        let text = request.to_text();
        assert_eq!(ResetRequest::parse(text.as_bytes()).unwrap(), request);
        for n in 0..text.len() {
            assert!(ResetRequest::parse(&text.as_bytes()[..n]).is_err(), "{n}");
        }
        for text in [
            "{\"data\":true}",
            "[]",
            "{\"all\":[]}",
            "{\"data\":[\"../x\"]}",
            "{\"data\":[\"/x\"]}",
            "{\"data\":[\"\"]}",
        ] {
            assert!(ResetRequest::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
