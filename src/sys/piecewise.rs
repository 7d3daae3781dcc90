//! Files that are written piece by piece, at any place of them. Nothing is durable before [`flush`].

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::{Doing, Result};

/// How much room a file system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that may still be used.
    pub free_bytes: u64,
    /// Files take room in multiples of so many bytes.
    pub unit_bytes: u64,
}

/// The length of a file in bytes; `None` if there is none.
///
/// # Errors
/// `Failed`, naming the path, if it cannot be looked at or is no file.
pub fn len_bytes(path: &Path) -> Result<Option<u64>> {
    match fs::symlink_metadata(path) {
        Ok(m) if m.is_file() => Ok(Some(m.len())),
        Ok(_) => Err(crate::Error::failed(format!("{}: not a file", path.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).doing(|| format!("look at {}", path.display())),
    }
}

/// Fills `buffer` from byte `offset` of a file. What is not there reads as zeros.
///
/// # Errors
/// `Failed`, naming the path.
pub fn read_at(path: &Path, offset: u64, buffer: &mut [u8]) -> Result<()> {
    buffer.fill(0);
    if len_bytes(path)?.is_none() {
        return Ok(());
    }
    let doing = || format!("read {}", path.display());
    let file = File::open(path).doing(doing)?;
    let mut at = 0;
    while let Some(rest @ [_, ..]) = buffer.get_mut(at..) {
        match file.read_at(rest, offset + at as u64).doing(doing)? {
            0 => break,
            n => at += n,
        }
    }
    Ok(())
}

/// Writes `bytes` at byte `offset`; the file, and directories above it, are made if they are not there.
///
/// # Errors
/// `Failed`, naming the path.
pub fn write_at(path: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    open(path)?.write_all_at(bytes, offset).doing(|| format!("write {}", path.display()))
}

/// Makes a file, which is made if it is not there, so many bytes long.
///
/// # Errors
/// `Failed`, naming the path.
pub fn set_len(path: &Path, len_bytes: u64) -> Result<()> {
    open(path)?.set_len(len_bytes).doing(|| format!("write {}", path.display()))
}

fn open(path: &Path) -> Result<File> {
    super::durable::create_dir(super::durable::parent(path)?)?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).open(path).doing(|| format!("open {}", path.display()))
}

/// Makes every write to these files of the file system that holds `dir` durable, and drops what is cached of them, so
/// that they are read from the medium.
///
/// # Errors
/// `Failed`, naming the path.
pub fn flush<'a>(dir: &Path, files: impl Iterator<Item = &'a Path>) -> Result<()> {
    let mut opened = Vec::new();
    for path in files {
        let doing = || format!("flush {}", path.display());
        let file = File::open(path).doing(doing)?;
        file.sync_all().doing(doing)?;
        opened.push(file);
    }
    super::tree::sync(dir)?;
    opened.iter().try_for_each(super::file::drop_cache)
}

/// The room on the file system that holds `path`.
///
/// # Errors
/// `Failed`, naming the path.
pub fn room(path: &Path) -> Result<Room> {
    let found = rustix::fs::statvfs(path).doing(|| format!("room on {}", path.display()))?;
    let unit_bytes = found.f_frsize.max(1);
    Ok(Room { free_bytes: found.f_bavail.saturating_mul(unit_bytes), unit_bytes })
}
