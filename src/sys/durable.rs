//! Durable writes: after `Ok` the bytes survive a power cut; before it, the old ones do.
//!
//! What ends in `_on_fat` keeps that promise on FAT, and on other file systems too. Linux writes where a file of FAT is, and how
//! long, into its directory, but only when the file itself is flushed; a flush of the directory leaves that as it is, and flushes
//! the tables of clusters. (`fs/fat/file.c`, `fat_file_fsync`; `qemu/run block-log` replays what it comes to.)

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::{Doing, Error, Result};

/// Replaces the file at `path` by `bytes` with mode `mode`: old or new after a cut at any point, never a mix.
///
/// For file systems whose rename is atomic (ext4). On FAT use [`replace_on_fat`], [`super::fatrw`] for what other programs replace as
/// well, or `boot::Store` for what a bootloader reads.
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
/// `Failed`, naming the path, if something else than a regular file is there; as [`replace`], and whatever `fill` fails with.
pub fn replace_with(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    check_replaceable(path)?;
    swap_in(path, mode, fill)
}

/// Sees that at `path` is a regular file or nothing. A rename would put a file in the place of anything else: of
/// `/dev/null` too, and then the machine has none any more.
///
/// # Errors
/// `Failed`, naming the path and what is there.
fn check_replaceable(path: &Path) -> Result<()> {
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

/// Sees that `out` may be made, and is none of the files that it is made from: they would be gone.
///
/// # Errors
/// `Failed`, naming the path, if something else than a regular file is there; `Usage` for an input.
pub fn check_output<'a>(out: &Path, inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    check_replaceable(out)?;
    let identity = |path: &Path| fs::metadata(path).ok().map(|facts| (facts.dev(), facts.ino()));
    let Some(there) = identity(out) else { return Ok(()) };
    match inputs.into_iter().find(|input| identity(input) == Some(there)) {
        Some(input) => Err(Error::usage(format!(
            "write {}: that is {}, which is read; give another name",
            out.display(),
            input.display()
        ))),
        None => Ok(()),
    }
}

/// Makes a file on FAT: after a cut it is there whole, empty or not at all. One that is there must be empty, as an earlier cut
/// leaves it.
///
/// It has its name from the beginning. First that is durable, with no cluster; then the clusters and what is in them, which nothing
/// refers to yet; then where the file begins and how long it is, within one sector. A temporary name would need more room in the
/// directory, and a cut in its rename leaves two names with the same clusters: to remove one of them frees those of the other.
///
/// # Errors
/// As [`replace`].
pub fn create_on_fat(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let doing = || format!("write {}", path.display());
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(mode).open(path).doing(doing)?;
    if file.metadata().doing(doing)?.len() > 0 {
        return Err(Error::failed("is there already").within(doing()));
    }
    file.sync_all().doing(doing)?;
    let dir = parent(path)?;
    sync_dir(dir).doing(doing)?;
    let written = lengthen(&file, dir, 0, bytes).inspect_err(|_| {
        // Empty again; the error that counts is the one above.
        let _ = file.set_len(0);
    });
    written.doing(doing)
}

/// Replaces a file on FAT: the old or the new one is there after a cut at any point; if there was none, none or an empty one.
///
/// # Errors
/// As [`replace`].
pub fn replace_on_fat(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    if fs::metadata(path).map_or(0, |old| old.len()) == 0 {
        return create_on_fat(path, bytes, mode);
    }
    let temporary = temporary(path)?;
    remove(&temporary)?;
    create_on_fat(&temporary, bytes, mode)?;
    rename_on_fat(&temporary, path)
}

/// Gives a durable file the name of another on FAT, which is gone then: that name is the old or the new file after a cut at any
/// point, or an empty one if there was none.
///
/// First the file's own name goes, while the other still is where the old file is: never two names have the same clusters. The old
/// file is open until nothing refers to its clusters, which are freed only then.
///
/// # Errors
/// `Failed`, naming the path.
pub fn rename_on_fat(from: &Path, to: &Path) -> Result<()> {
    let doing = || format!("rename {} to {}", from.display(), to.display());
    let file = File::open(from).doing(doing)?;
    let old = match File::open(to) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        old => Some(old.doing(doing)?),
    };
    fs::rename(from, to).doing(doing)?;
    sync_dir(parent(to)?).doing(doing)?;
    file.sync_all().doing(doing)?;
    drop(old);
    Ok(())
}

/// Writes `bytes` at the end of a file of `end` bytes: nothing of them is in it after a cut, or all.
///
/// The clusters and what is in them are durable before the file's length is. A name on the medium whose clusters are free there
/// would be an error for who removes it, which makes Linux take the file system for damaged.
fn lengthen(file: &File, dir: &Path, end: u64, bytes: &[u8]) -> Result<()> {
    file.write_all_at(bytes, end)?;
    write_back(file)?;
    sync_dir(dir)?;
    Ok(file.sync_all()?)
}

/// Writes what is in a file to the disk, not what is about it; without a flush of the disk's own cache.
fn write_back(file: &File) -> Result<()> {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: sync_file_range(2) takes an open descriptor and numbers, and no pointer.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

fn swap_in(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let doing = || format!("write {}", path.display());
    let temporary = temporary(path)?;
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
    sync_dir(parent(path)?).doing(doing)
}

fn temporary(path: &Path) -> Result<PathBuf> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    Ok(parent(path)?.join(name))
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

/// Appends `bytes` to an existing file: after a cut all of them are there, or none.
///
/// The file's last sector is first written once more as it is: behind the file's end the kernel writes zeros. So if somebody's
/// sync(2) at the wrong moment makes the new length durable before the new bytes, there are zeros, not what the cluster held before.
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
    lengthen(&file, parent(path)?, end, bytes).doing(doing)
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
/// It stays open until its name is gone from the medium: only then does FAT free its clusters. A name whose clusters are free
/// cannot be removed any more without an error that makes the file system read-only.
///
/// # Errors
/// `Failed`, naming the path.
pub fn remove(path: &Path) -> Result<()> {
    let doing = || format!("remove {}", path.display());
    // What cannot be opened (a socket, a link to nothing) has no clusters.
    let _open = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path);
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
    fn a_file_on_fat_is_made_once_and_what_a_cut_left_empty_is_filled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, b"").unwrap();
        create_on_fat(&path, b"new", 0o600).unwrap();
        let e = create_on_fat(&path, b"other", 0o600).unwrap_err().to_string();
        assert_eq!(e, format!("write {}: is there already", path.display()));
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_replacement_on_fat_takes_the_place_of_whatever_a_cut_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for content in [b"one".as_slice(), b"two", b"three"] {
            fs::write(dir.path().join("a.new"), b"left").unwrap();
            replace_on_fat(&path, content, 0o600).unwrap();
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
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
