//! What the watcher leaves for `supervisor status` to show: of this boot only, so it lives in `/run`.

use serde::{Deserialize, Serialize};

use super::trial::Outcome;
use crate::{Result, Root, sys};

const PATH: &str = "/run/twinhull/supervisor.json";

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
    /// How often the engine was asked to be started again, as it did not answer.
    pub engine_restarts: u64,
    /// How the last update ended.
    pub update: Option<Outcome>,
}

impl Record {
    /// What the watcher of this boot has written; nothing yet: all empty.
    ///
    /// # Errors
    /// `Failed`, naming the file, if it cannot be read or understood.
    pub fn load(root: &Root) -> Result<Self> {
        Ok(sys::json_file::read(&root.path(PATH))?.unwrap_or_default())
    }

    /// Writes it.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    pub fn save(&self, root: &Root) -> Result<()> {
        sys::json_file::replace(&root.path(PATH), self)
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
