//! Locks that are files, as the containers of balenaOS know them: who creates the file holds the lock.

use std::fs::{self, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use crate::{Doing, Result};

/// Creates the lock `file` and gives it to `owner`; says whether it was not there before.
///
/// # Errors
/// `Failed`, naming the path. Without the right to give files away, the file stays ours.
pub fn create(file: &Path, owner: u32) -> Result<bool> {
    let doing = || format!("lock {}", file.display());
    match OpenOptions::new().write(true).create_new(true).mode(0o644).open(file) {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(false),
        Err(e) => return Err(e).doing(doing),
    }
    match chown(file, Some(owner), Some(owner)) {
        Err(e) if e.kind() != ErrorKind::PermissionDenied => Err(e).doing(doing),
        _ => Ok(true),
    }
}

/// Whether there is such a file, and it belongs to `owner`.
pub fn is_owned_by(file: &Path, owner: u32) -> bool {
    fs::symlink_metadata(file).is_ok_and(|m| m.uid() == owner)
}

/// Lets everybody make files in `dir`, and remove their own.
///
/// # Errors
/// `Failed`, naming the path.
pub fn open_to_all(dir: &Path) -> Result<()> {
    fs::set_permissions(dir, Permissions::from_mode(0o1777)).doing(|| format!("chmod {}", dir.display()))
}
