//! Mounting.

use std::ffi::CString;
use std::path::{Path, PathBuf};

pub use rustix::mount::MountFlags;

use crate::{Doing, Error, Result};

/// Mounts a file system of type `kind`, found at `source`, on the directory `target`.
///
/// # Errors
/// `Failed`, naming source, target and type, or the missing directory.
pub fn mount(source: &Path, target: &Path, kind: &str, flags: MountFlags, options: &str) -> Result<()> {
    let doing = || format!("mount {} on {} as {kind}", source.display(), target.display());
    must_exist(target).doing(doing)?;
    let options = CString::new(options).map_err(|_| Error::failed("NUL in the options")).doing(doing)?;
    rustix::mount::mount(source, target, kind, flags, options.as_c_str()).doing(doing)
}

/// As [`mount`]; something that is already mounted there is fine.
///
/// # Errors
/// As [`mount`].
pub fn mount_if_not(source: &str, target: &Path, kind: &str, flags: MountFlags, options: &str) -> Result<()> {
    let options = CString::new(options).map_err(|_| Error::failed("NUL in the options"))?;
    match rustix::mount::mount(source, target, kind, flags, options.as_c_str()) {
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(e) => Err(e).doing(|| format!("mount {kind} on {}", target.display())),
    }
}

/// Shows the file or directory `source` at `target` as well.
///
/// # Errors
/// `Failed`, naming both.
pub fn bind(source: &Path, target: &Path) -> Result<()> {
    let doing = || format!("bind {} over {}", source.display(), target.display());
    must_exist(target).doing(doing)?;
    rustix::mount::mount_bind(source, target).doing(doing)
}

/// Moves a mount to another directory.
///
/// # Errors
/// `Failed`, naming both.
pub fn move_to(source: &Path, target: &Path) -> Result<()> {
    let doing = || format!("move the mount {} to {}", source.display(), target.display());
    must_exist(target).doing(doing)?;
    rustix::mount::mount_move(source, target).doing(doing)
}

/// A mount that goes when this does.
#[derive(Debug)]
pub struct Temporary(PathBuf);

impl Temporary {
    /// As [`mount`]; the directory is made, and what an earlier process left mounted there goes first.
    ///
    /// # Errors
    /// As [`mount`].
    pub fn new(source: &Path, target: &Path, kind: &str, flags: MountFlags, options: &str) -> Result<Self> {
        super::durable::create_dir(target)?;
        while super::file::is_mount_point(target)? {
            detach(target)?;
        }
        mount(source, target, kind, flags, options)?;
        Ok(Self(target.to_owned()))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(e) = detach(&self.0) {
            log::warn!("{e}");
        }
    }
}

/// Takes a mount away as soon as nobody uses it.
///
/// # Errors
/// `Failed`, naming it.
pub fn detach(target: &Path) -> Result<()> {
    rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH)
        .doing(|| format!("unmount {}", target.display()))
}

// "No such file or directory" from mount(2) may mean either path: say which.
fn must_exist(target: &Path) -> Result<()> {
    if target.exists() {
        return Ok(());
    }
    Err(Error::failed(format!("there is no {} to mount on; the image must have it", target.display())))
}
