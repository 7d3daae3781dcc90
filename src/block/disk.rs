//! A partition (or file) as bytes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::{Doing, Error, Result, sys};

/// Where an image is written. The simulated world has one that loses what was not flushed.
pub trait Disk {
    /// Size in bytes.
    fn len_bytes(&self) -> u64;
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `Failed` if it cannot all be read.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()>;
    /// Writes all of `bytes` at `offset`. Not durable before [`Disk::flush`].
    ///
    /// # Errors
    /// `Failed` if it cannot all be written.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;
    /// Makes every write durable and drops what is cached, so that later reads come from the medium.
    ///
    /// # Errors
    /// `Failed` if any write since the last flush may be lost.
    fn flush(&mut self) -> Result<()>;
}

impl<D: Disk + ?Sized> Disk for &mut D {
    fn len_bytes(&self) -> u64 {
        (**self).len_bytes()
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        (**self).read_at(offset, buffer)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        (**self).write_at(offset, bytes)
    }

    fn flush(&mut self) -> Result<()> {
        (**self).flush()
    }
}

/// A block device or a regular file.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    path: PathBuf,
    len_bytes: u64,
}

impl FileDisk {
    /// Opens an existing device or file for reading and writing.
    ///
    /// # Errors
    /// `Failed`, naming the path.
    pub fn open(path: &Path) -> Result<Self> {
        Self::of(sys::file::open_read_write(path)?, path)
    }

    /// Opens a device that nothing else may use meanwhile: one that is mounted would be written under the feet of its
    /// file system. Unless `writable`, writes will fail.
    ///
    /// # Errors
    /// `Refused` if it is in use, `Failed` if it cannot be opened; both name the path.
    pub fn claim(path: &Path, writable: bool) -> Result<Self> {
        match sys::file::claim(path, writable)? {
            Some(file) => Self::of(file, path),
            None => Err(Error::refused(format!(
                "{} is mounted, or in use otherwise; unmount it (`findmnt {0}` says where it is)",
                path.display()
            ))),
        }
    }

    /// Opens an existing device or file for reading: writes will fail. Closing a device that was open for
    /// writing makes udev look at it again, so who only looks uses this.
    ///
    /// # Errors
    /// `Failed`, naming the path.
    pub fn open_read_only(path: &Path) -> Result<Self> {
        Self::of(sys::file::open_read(path)?, path)
    }

    fn of(file: File, path: &Path) -> Result<Self> {
        let len_bytes = sys::file::len_bytes(&file).doing(|| format!("size of {}", path.display()))?;
        Ok(Self { file, path: path.to_owned(), len_bytes })
    }

    /// Makes `len_bytes` from `offset` read as zeros: discarded where the medium then gives zeros, else written. Not durable
    /// before [`Disk::flush`].
    ///
    /// # Errors
    /// `Failed` if it cannot be written.
    pub fn zero_at(&mut self, offset: u64, len_bytes: u64) -> Result<()> {
        sys::file::zero(&self.file, offset, len_bytes).doing(|| self.doing("zero", offset))
    }

    fn doing(&self, verb: &str, offset: u64) -> String {
        format!("{verb} {} at byte {offset}", self.path.display())
    }
}

impl Disk for FileDisk {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, offset).doing(|| self.doing("read", offset))
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).doing(|| self.doing("write", offset))
    }

    fn flush(&mut self) -> Result<()> {
        let doing = || format!("flush {}", self.path.display());
        let flushed = self.file.sync_all();
        // Also when the flush failed: what the cache holds must not be taken for the medium's by the next install.
        let dropped = sys::file::drop_cache(&self.file);
        flushed.doing(doing)?;
        dropped.doing(doing)
    }
}
