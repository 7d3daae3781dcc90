//! Durable writes: after `Ok` the bytes survive a power cut; before it, the old ones do.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::{Doing, Error, Result};

/// Replaces the file at `path` by `bytes` with mode `mode`: old or new after a cut at any point, never a mix.
///
/// For file systems whose rename is atomic (ext4). On FAT use [`super::fatrw`], or `boot::Store` for what a bootloader reads.
///
/// # Errors
/// `Failed`, naming the path. The old file is then still there, and what was written is removed.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    swap_in(path, mode, |file| Ok(file.write_all(bytes)?))
}

/// Replaces the file at `path` by what `fill` writes, as [`replace`] does; for files that are too large to hold, at a
/// path that a person named.
///
/// # Errors
/// As [`check_replaceable`] and [`replace`], and whatever `fill` fails with.
pub fn replace_with(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    check_replaceable(path)?;
    swap_in(path, mode, fill)
}

/// Sees that at `path` is a regular file or nothing. A rename would put a file in the place of anything else: of
/// `/dev/null` too, and then the machine has none any more.
///
/// # Errors
/// `Failed`, naming the path and what is there.
pub fn check_replaceable(path: &Path) -> Result<()> {
    let doing = || format!("write {}", path.display());
    let kind = match fs::symlink_metadata(path) {
        Ok(facts) => facts.file_type(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).doing(doing),
    };
    let what = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "a directory",
        kind if kind.is_symlink() => "a symbolic link",
        kind if kind.is_fifo() => "a named pipe",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(Error::failed(format!("{what} is there, which is not replaced by a file; give another name"))
        .within(doing()))
}

fn swap_in(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let dir = parent(path)?;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let temporary = dir.join(name);
    let doing = || format!("write {}", path.display());
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(mode);
    let mut file = options.open(&temporary).doing(doing)?;
    let done =
        fill(&mut file).and_then(|()| Ok(file.sync_all()?)).and_then(|()| Ok(fs::rename(&temporary, path)?));
    if let Err(e) = done {
        // The error that counts is the one above.
        let _ = fs::remove_file(&temporary);
        return Err(e).doing(doing);
    }
    sync_dir(dir).doing(doing)
}

/// A file in `dir` that has no name any more and is gone when it is closed.
///
/// # Errors
/// `Failed`, naming the directory, if it cannot be made there.
pub fn scratch(dir: &Path) -> Result<File> {
    let doing = || format!("make a scratch file in {}", dir.display());
    let path = dir.join(format!(".twinhull-{}-{}", std::process::id(), super::random::hex(4)?));
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path).doing(doing)?;
    fs::remove_file(&path).doing(doing)?;
    Ok(file)
}

/// Appends `bytes` to an existing file and flushes it. What stood there before is not touched.
///
/// The file's last sector is first written once more as it is: behind the file's end the kernel writes zeros, so if a cut
/// leaves the new length without the new bytes, there are zeros, not what the cluster held before. (A file that was
/// empty gets a cluster of unknown content.)
///
/// # Errors
/// `Failed`, naming the path.
pub fn append(path: &Path, bytes: &[u8]) -> Result<()> {
    let doing = || format!("append to {}", path.display());
    let file = OpenOptions::new().read(true).write(true).open(path).doing(doing)?;
    let end = file.metadata().doing(doing)?.len();
    let mut last = [0];
    if end > 0 {
        file.read_exact_at(&mut last, end - 1).doing(doing)?;
        file.write_all_at(&last, end - 1).doing(doing)?;
        file.sync_all().doing(doing)?;
    }
    file.write_all_at(bytes, end).doing(doing)?;
    file.sync_all().doing(doing)
}

/// Creates (or truncates) `path`, writes and flushes it. Its directory entry is durable only after
/// [`sync_dir`].
pub(super) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    Ok(file.sync_all()?)
}

/// Makes a file of `len` bytes whose blocks belong to it and are not written.
///
/// # Errors
/// `Failed`, naming the path: the disk is full, or its file system knows no such thing. There is no file then.
pub fn set_aside(path: &Path, len: u64) -> Result<()> {
    let doing = || format!("set {len} bytes aside in {}", path.display());
    let file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).doing(doing)?;
    let done = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len)
        .map_err(Error::from)
        .and_then(|()| Ok(file.sync_all()?));
    if done.is_err() {
        // The error that counts is the one above.
        let _ = fs::remove_file(path);
    }
    done.doing(doing)
}

/// Gives a file another name in its directory, durably; what had that name before is gone.
///
/// # Errors
/// `Failed`, naming the path.
pub fn rename(path: &Path, to: &Path) -> Result<()> {
    let doing = || format!("rename {} to {}", path.display(), to.display());
    fs::rename(path, to).doing(doing)?;
    sync_dir(parent(to)?).doing(doing)
}

/// Removes a file, durably. One that is not there is fine.
///
/// # Errors
/// `Failed`, naming the path.
pub fn remove(path: &Path) -> Result<()> {
    let doing = || format!("remove {}", path.display());
    match fs::remove_file(path) {
        Ok(()) => sync_dir(parent(path)?).doing(doing),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).doing(doing),
    }
}

/// Creates a directory and those above it, each durably linked into its parent.
///
/// # Errors
/// `Failed`, naming the path.
pub fn create_dir(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let doing = || format!("create directory {}", path.display());
    let above = parent(path)?;
    create_dir(above)?;
    match fs::create_dir(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(e).doing(doing),
        _ => sync_dir(above).doing(doing),
    }
}

/// Makes the entries of a directory durable.
///
/// # Errors
/// `Failed` from the open or the flush.
pub fn sync_dir(dir: &Path) -> Result<()> {
    Ok(File::open(dir)?.sync_all()?)
}

/// The directory that holds `path`.
///
/// # Errors
/// `Failed` for `/`.
pub fn parent(path: &Path) -> Result<&Path> {
    match path.parent() {
        Some(p) if p.as_os_str().is_empty() => Ok(Path::new(".")),
        Some(p) => Ok(p),
        None => Err(Error::failed(format!("{}: not a file", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replace_leaves_only_the_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        replace(&path, b"one", 0o600).unwrap();
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_replacement_that_fails_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        replace(&path, b"old", 0o600).unwrap();
        let failing = |file: &mut File| {
            file.write_all(b"half")?;
            Err(Error::refused("no"))
        };
        assert_eq!(replace_with(&path, 0o600, failing).unwrap_err().kind(), crate::Kind::Refused);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        // A rename that cannot be: a directory is in the way.
        fs::create_dir(dir.path().join("dir")).unwrap();
        replace(&dir.path().join("dir"), b"new", 0o600).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        replace_with(&path, 0o600, |file| Ok(file.write_all(b"new")?)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn append_keeps_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        replace(&path, b"", 0o600).unwrap();
        append(&path, b"1234").unwrap();
        append(&path, b"\n\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"1234\n\n");
    }
}
