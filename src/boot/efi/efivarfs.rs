//! The variables through Linux's efivarfs.

use std::path::PathBuf;

use super::chooser::VariableStore;
use crate::{Doing, Error, Result, sys};

/// No variable of ours is longer.
const LIMIT_BYTES: u64 = 64 * 1024;

/// efivarfs, mounted on a directory.
#[derive(Debug)]
pub struct Efivarfs(PathBuf);

impl Efivarfs {
    /// The one that is mounted on `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }
}

impl VariableStore for Efivarfs {
    fn list(&self) -> Result<Vec<String>> {
        let files = sys::file::list(&self.0)?;
        Ok(files.iter().filter_map(|p| p.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        sys::file::read_if_exists(&self.0.join(name), LIMIT_BYTES)
    }

    fn write(&mut self, name: &str, raw: &[u8]) -> Result<()> {
        let path = self.0.join(name);
        sys::efivar::write(&path, raw)?;
        // Firmware has been seen to say yes and keep the old value.
        match self.read(name)? {
            Some(found) if found == raw => Ok(()),
            _ => Err(Error::failed("reads back other than written"))
                .doing(|| format!("write {}", path.display())),
        }
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        sys::efivar::remove(&self.0.join(name))
    }

    fn name(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}
