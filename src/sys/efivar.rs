//! Writing EFI variables through efivarfs: a whole variable in one call, and its protection taken off for that moment.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::{Doing, Result};

/// Sets the variable `path` to `raw`, its attributes (u32, little-endian) and then its value. One call of the firmware's
/// `SetVariable`, which keeps the old or the new value when power is lost.
///
/// # Errors
/// `Failed`, naming the path; the old value is then still there.
pub fn write(path: &Path, raw: &[u8]) -> Result<()> {
    let doing = || format!("write {}", path.display());
    let protected = unprotect(path).doing(doing)?;
    // Not truncated: efivarfs takes each write for the whole value, and an empty one for a removal.
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path).doing(doing)?;
    let written = file.write(raw).and_then(|n| match n == raw.len() {
        // efivarfs has set the length by now; only a plain directory, which stands for it in tests, has not.
        true => file.set_len(n as u64),
        false => Err(std::io::Error::other(format!("{n} of {} bytes were taken", raw.len()))),
    });
    if let Some(flags) = protected {
        ioctl_setflags(&file, flags).doing(doing)?;
    }
    written.doing(doing)
}

/// Removes the variable `path`; one that is not there is fine.
///
/// # Errors
/// `Failed`, naming the path.
pub fn remove(path: &Path) -> Result<()> {
    let doing = || format!("remove {}", path.display());
    unprotect(path).doing(doing)?;
    match fs::remove_file(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.doing(doing),
    }
}

/// Takes the immutable flag off, which efivarfs gives variables that it does not know; gives the flags that were set, if it was.
fn unprotect(path: &Path) -> Result<Option<IFlags>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    // A file system without flags has no protection either.
    let Ok(flags) = ioctl_getflags(&file) else { return Ok(None) };
    if !flags.contains(IFlags::IMMUTABLE) {
        return Ok(None);
    }
    ioctl_setflags(&file, flags.difference(IFlags::IMMUTABLE))?;
    Ok(Some(flags))
}
