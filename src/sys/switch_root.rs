//! Leaving the initramfs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::mount;
use crate::{Doing, Error, Result};

/// `RAMFS_MAGIC` and `TMPFS_MAGIC` of linux/magic.h: what an initramfs is unpacked into.
const RAM_MAGICS: [u64; 2] = [0x8584_58f6, 0x0102_1994];

/// Makes the file system mounted at `new_root` the root of this process.
///
/// The initramfs's own files are removed first: they would fill memory for as long as the machine runs. Nothing
/// on any other mount is touched.
///
/// # Errors
/// `Failed`; the old root may then be empty.
pub fn switch(new_root: &Path) -> Result<()> {
    let doing = || format!("switch root to {}", new_root.display());
    let magic = rustix::fs::statfs("/").doing(doing)?.f_type;
    if !RAM_MAGICS.iter().any(|m| i128::from(*m) == i128::from(magic)) {
        return Err(Error::failed("the root is no initramfs: its files are not removed").within(doing()));
    }
    let device = fs::metadata("/").doing(doing)?.dev();
    empty(Path::new("/"), device);
    std::env::set_current_dir(new_root).doing(doing)?;
    mount::move_to(Path::new("."), Path::new("/")).doing(doing)?;
    rustix::process::chroot(".").doing(doing)?;
    std::env::set_current_dir("/").doing(doing)
}

/// Removes everything in `dir` that is on `device`. What cannot be removed only costs memory.
fn empty(dir: &Path, device: u64) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        // `symlink_metadata` shows a mount point as the root of what is mounted there.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.dev() != device {
            continue;
        }
        let _ = if metadata.is_dir() {
            empty(&path, device);
            fs::remove_dir(&path)
        } else {
            fs::remove_file(&path)
        };
    }
}

/// Becomes the program `path`, which is called by that name and gets no arguments.
///
/// Returns only the error.
pub fn become_program(path: &Path) -> Error {
    Error::from(Command::new(path).exec()).within(format!("start {}", path.display()))
}

/// Makes a kernel panic restart the machine after `seconds`, if it would otherwise stand still: a dead init must
/// end in a boot that is counted.
///
/// # Errors
/// `Failed` if the setting cannot be read or written.
pub fn restart_on_panic(seconds: u32) -> Result<()> {
    let path = Path::new("/proc/sys/kernel/panic");
    if super::file::read_text(path, 64)? != "0" {
        return Ok(());
    }
    fs::write(path, format!("{seconds}\n")).doing(|| format!("write {}", path.display()))
}

/// Asks the kernel to write everything out and make every file system read-only, so that none is found dirty at
/// the next boot. The kernel does it in the background, within a moment; a kernel without it is left as it is.
pub fn remount_read_only() {
    rustix::fs::sync();
    let _ = fs::write("/proc/sysrq-trigger", "u");
}

/// Creates a directory of the initramfs, of `/run` or of the like: nothing here outlives this boot.
///
/// # Errors
/// `Failed`, naming it.
pub fn make_dir(path: &Path) -> Result<()> {
    match fs::create_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(e).doing(|| format!("create {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a file of `/run`: it need not outlive this boot.
///
/// # Errors
/// `Failed`, naming it.
pub fn note(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).doing(|| format!("write {}", path.display()))
}

/// Runs `f` if a program panics, with what it said. Set once, by PID 1.
pub fn on_panic(f: impl Fn(&str) + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |info| f(&info.to_string())));
}
