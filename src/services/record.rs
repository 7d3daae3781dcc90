//! Which applications this device runs: written by `up`, so that the boot's own `up --all` knows their files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::App;
use crate::{Result, Root, sys};

const PATH: &str = "/mnt/data/twinhull/services.json";

/// Application, and where it comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record(BTreeMap<String, Entry>);

/// Where an application comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its Compose file.
    pub file: PathBuf,
    /// The directory of its image archives, if one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
}

impl Record {
    /// What was recorded; nothing yet: empty.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    pub fn load(root: &Root) -> Result<Self> {
        Ok(sys::json_file::read(&root.path(PATH))?.unwrap_or_default())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.0.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Records an application, or changes it.
    ///
    /// # Errors
    /// `Failed`, naming the file. Then the old one is there.
    pub fn set(root: &Root, app: &App, entry: Entry) -> Result<()> {
        let mut all = Self::load(root)?;
        if all.0.get(app.name()) == Some(&entry) {
            return Ok(());
        }
        all.0.insert(app.name().to_owned(), entry);
        all.save(root)
    }

    /// Forgets an application.
    ///
    /// # Errors
    /// As [`Record::set`].
    pub fn remove(root: &Root, app: &App) -> Result<()> {
        let mut all = Self::load(root)?;
        if all.0.remove(app.name()).is_none() {
            return Ok(());
        }
        all.save(root)
    }

    fn save(&self, root: &Root) -> Result<()> {
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
        let (a, b) = (App::named("a").unwrap(), App::named("b").unwrap());
        let entry = |file: &str| Entry { file: file.into(), images: None };
        assert_eq!(Record::load(&root).unwrap(), Record::default());
        Record::set(&root, &a, entry("/a.yml")).unwrap();
        Record::set(&root, &b, Entry { images: Some("/i".into()), ..entry("/b.yml") }).unwrap();
        Record::set(&root, &a, entry("/c.yml")).unwrap();
        let all = Record::load(&root).unwrap();
        let told: Vec<_> = all.iter().map(|(n, e)| format!("{n} {}", e.file.display())).collect();
        assert_eq!(told, ["a /c.yml", "b /b.yml"]);
        Record::remove(&root, &a).unwrap();
        Record::remove(&root, &a).unwrap();
        assert_eq!(Record::load(&root).unwrap().iter().count(), 1);
    }
}
