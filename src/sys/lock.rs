//! Locks between our own processes.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::{Doing, Error, Result};

/// A lock that is held until it is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Takes the lock `file`, at once or not at all; `None`: somebody else holds it.
///
/// # Errors
/// `Failed`, naming the path.
pub fn try_lock(file: &Path) -> Result<Option<Lock>> {
    let doing = || format!("lock {}", file.display());
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir).map_err(needs_root).doing(doing)?;
    }
    let opened = OpenOptions::new().create(true).append(true).open(file).map_err(needs_root).doing(doing)?;
    Ok(try_lock_file(&opened).doing(doing)?.then_some(Lock { _file: opened }))
}

/// What changes a device takes its lock first: here a user learns what is missing.
fn needs_root(e: io::Error) -> Error {
    let text = e.to_string();
    let hint = if e.kind() == ErrorKind::PermissionDenied { "; run this as root" } else { "" };
    Error::failed(text + hint)
}

/// Whether somebody holds the lock `file`. Makes nothing.
///
/// # Errors
/// `Failed` if the file cannot be opened or locked.
pub fn is_held(file: &Path) -> Result<bool> {
    match File::open(file) {
        Ok(opened) => Ok(!try_lock_file(&opened)?),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Takes the lock of an open file, until it is closed; `false`: somebody else holds it.
///
/// # Errors
/// `Failed` if the file cannot be locked at all.
pub fn try_lock_file(file: &File) -> Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_is_told_to_be_root() {
        let e = needs_root(io::Error::from(ErrorKind::PermissionDenied)).to_string();
        assert!(e.ends_with("; run this as root"), "{e}");
        assert!(!needs_root(io::Error::from(ErrorKind::NotFound)).to_string().contains("root"));
    }

    #[test]
    fn only_one_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run/a.lock");
        assert!(!is_held(&file).unwrap() && !file.exists());
        let first = try_lock(&file).unwrap();
        assert!(first.is_some());
        assert!(try_lock(&file).unwrap().is_none());
        assert!(is_held(&file).unwrap());
        drop(first);
        assert!(!is_held(&file).unwrap());
        assert!(try_lock(&file).unwrap().is_some());
    }
}
