//! What the watcher leaves for `supervisor status` to show: of this boot only, so it lives in `/run`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::trial::Outcome;
use crate::{Error, Result, Root, sys};

const PATH: &str = "/run/twinhull/supervisor.json";
const LIMIT_BYTES: u64 = 64 * 1024;

/// The watcher's account of this boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// How often the container was started again after it ended or was unhealthy.
    pub restarts: u64,
    /// Why, the last time.
    pub last_restart: Option<String>,
    /// What keeps it from running now.
    pub trouble: Option<String>,
    /// How the last update ended.
    pub update: Option<Outcome>,
}

impl Record {
    /// What the watcher of this boot has written; nothing yet: all empty.
    ///
    /// # Errors
    /// `Failed`, naming the file, if it cannot be read or understood.
    pub fn load(root: &Root) -> Result<Self> {
        let path = root.path(PATH);
        let Some(bytes) = sys::file::read_if_exists(&path, LIMIT_BYTES)? else { return Ok(Self::default()) };
        serde_json::from_slice(&bytes).map_err(|e| Error::failed(format!("{}: {e}", path.display())))
    }

    /// Writes it.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    pub fn save(&self, root: &Root) -> Result<()> {
        let path = root.path(PATH);
        sys::durable::create_dir(path.parent().unwrap_or(Path::new("/")))?;
        let text = serde_json::to_string(self).map_err(|e| Error::failed(e.to_string()))?;
        sys::durable::replace(&path, text.as_bytes(), 0o644)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        assert_eq!(Record::load(&root).unwrap(), Record::default());
        let record = Record { restarts: 2, last_restart: Some("exit code 1".into()), ..Record::default() };
        record.save(&root).unwrap();
        assert_eq!(Record::load(&root).unwrap(), record);
    }
}
