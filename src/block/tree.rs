//! A directory of files that are written piece by piece.

use std::path::PathBuf;

use crate::sys::piecewise::{self, Room};
use crate::{Result, sys};

/// A file system as a file set sees it, by paths in one directory. The simulated world has one that loses power.
pub trait Tree {
    /// The length of a file in bytes; `None` if there is none.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    fn len_bytes(&self, path: &str) -> Result<Option<u64>>;

    /// Fills `buffer` from byte `offset` of a file. What is not there reads as zeros.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Writes at byte `offset` of a file, which is made if it is not there. Not durable before [`Tree::flush`].
    ///
    /// # Errors
    /// `Failed`, naming the file.
    fn write_at(&mut self, path: &str, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Makes a file so many bytes long. Not durable before [`Tree::flush`].
    ///
    /// # Errors
    /// `Failed`, naming the file.
    fn set_len(&mut self, path: &str, len_bytes: u64) -> Result<()>;

    /// Makes the writes to these files durable, and drops what is cached of them.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    fn flush(&mut self, paths: &[String]) -> Result<()>;

    /// Replaces a small file, durably. A cut leaves the old or the new content there, and maybe the new one under the same name
    /// with `.new` behind it, whole or empty; or, as versions before this one left it, that alone.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    fn replace(&mut self, path: &str, content: &[u8]) -> Result<()>;

    /// Removes a file, durably; one that is not there is fine.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    fn remove(&mut self, path: &str) -> Result<()>;

    /// How much room there is.
    ///
    /// # Errors
    /// `Failed`, naming the directory.
    fn room(&self) -> Result<Room>;
}

/// A real directory.
#[derive(Debug, Clone)]
pub struct RealTree(pub PathBuf);

impl RealTree {
    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }
}

impl Tree for RealTree {
    fn len_bytes(&self, path: &str) -> Result<Option<u64>> {
        piecewise::len_bytes(&self.path(path))
    }

    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        piecewise::read_at(&self.path(path), offset, buffer)
    }

    fn write_at(&mut self, path: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        piecewise::write_at(&self.path(path), offset, bytes)
    }

    fn set_len(&mut self, path: &str, len_bytes: u64) -> Result<()> {
        piecewise::set_len(&self.path(path), len_bytes)
    }

    fn flush(&mut self, paths: &[String]) -> Result<()> {
        let paths: Vec<PathBuf> = paths.iter().map(|p| self.path(p)).collect();
        piecewise::flush(&self.0, paths.iter().map(PathBuf::as_path))
    }

    fn replace(&mut self, path: &str, content: &[u8]) -> Result<()> {
        let path = self.path(path);
        sys::durable::create_dir(sys::durable::parent(&path)?)?;
        sys::durable::replace_on_fat(&path, content, 0o644)
    }

    fn remove(&mut self, path: &str) -> Result<()> {
        let path = self.path(path);
        if piecewise::len_bytes(&path)?.is_some() { sys::durable::remove(&path) } else { Ok(()) }
    }

    fn room(&self) -> Result<Room> {
        piecewise::room(&self.0)
    }
}
