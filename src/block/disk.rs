//! A partition (or file) as bytes.

use std::fs::File;
use std::io;
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
    /// The same past the page cache, of a disk that is claimed.
    direct: Option<File>,
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
    /// file system. Unless `writable`, writes will fail. Whole blocks in a [`sys::direct::Buffer`] are read and written past
    /// the page cache.
    ///
    /// # Errors
    /// `Refused` if it is in use, `Failed` if it cannot be opened; both name the path.
    pub fn claim(path: &Path, writable: bool) -> Result<Self> {
        match sys::file::claim(path, writable)? {
            Some(file) => {
                let direct = sys::direct::open(path, writable);
                Ok(Self { direct, ..Self::of(file, path)? })
            }
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
        Ok(Self { file, direct: None, path: path.to_owned(), len_bytes })
    }

    /// Whole blocks go past the cache where that can be had, and the memory is made for it.
    fn way(&self, offset: u64, bytes: &[u8]) -> &File {
        self.direct.as_ref().filter(|_| sys::direct::fits(offset, bytes)).unwrap_or(&self.file)
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
        in_parts(buffer.len(), |done| {
            let (offset, rest) = (offset + done as u64, buffer.get_mut(done..).unwrap_or_default());
            self.way(offset, rest).read_at(rest, offset)
        })
        .doing(|| self.doing("read", offset))
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        in_parts(bytes.len(), |done| {
            let (offset, rest) = (offset + done as u64, bytes.get(done..).unwrap_or_default());
            self.way(offset, rest).write_at(rest, offset)
        })
        .doing(|| self.doing("write", offset))
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

/// Repeats `part`, which is told how much is done already, until all `len` bytes are. After a part that ends within a block, the
/// rest must go another way than past the cache.
fn in_parts(len: usize, mut part: impl FnMut(usize) -> io::Result<usize>) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        match part(done) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::direct::Buffer;

    #[test]
    fn what_goes_past_the_cache_and_what_goes_through_it_is_one_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slot");
        sys::durable::replace(&path, &[0; 5 * 4096 + 7], 0o600).unwrap();
        let mut disk = FileDisk::claim(&path, true).unwrap();
        let mut blocks = Buffer::new(2 * 4096);
        blocks.fill(1);
        disk.write_at(4096, &blocks).unwrap();
        disk.write_at(2 * 4096, &[2; 100]).unwrap();
        disk.write_at(5 * 4096, &[3; 7]).unwrap();
        disk.flush().unwrap();
        let mut expected = vec![0; 5 * 4096 + 7];
        expected[4096..3 * 4096].fill(1);
        expected[2 * 4096..2 * 4096 + 100].fill(2);
        expected[5 * 4096..].fill(3);
        let mut through = vec![9; expected.len()];
        disk.read_at(0, &mut through).unwrap();
        let mut past = Buffer::new(5 * 4096);
        disk.read_at(0, &mut past).unwrap();
        assert!(through == expected && *past == expected[..5 * 4096]);
        let e = disk.read_at(5 * 4096, &mut [0; 8]).unwrap_err().to_string();
        assert!(e.contains("slot at byte 20480: "), "{e}");
    }
}
