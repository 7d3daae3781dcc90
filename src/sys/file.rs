//! Reading files with a limit, and opening devices.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::{Doing, Error, Result};

/// Reads a whole file of at most `limit_bytes`; `None` if there is none.
///
/// # Errors
/// `Failed`, naming the path, if it cannot be read or is longer.
pub fn read_if_exists(path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>> {
    let doing = || format!("read {}", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).doing(doing),
    };
    let mut bytes = Vec::new();
    file.take(limit_bytes.saturating_add(1)).read_to_end(&mut bytes).doing(doing)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(Error::failed(format!("longer than {limit_bytes} bytes")).within(doing()));
    }
    Ok(Some(bytes))
}

/// Reads a whole file of at most `limit_bytes`.
///
/// # Errors
/// `Failed`, naming the path, if it is missing, cannot be read or is longer.
pub fn read(path: &Path, limit_bytes: u64) -> Result<Vec<u8>> {
    read_if_exists(path, limit_bytes)?
        .ok_or_else(|| Error::failed("No such file or directory").within(format!("read {}", path.display())))
}

/// Reads a text file of at most `limit_bytes`, such as one of `/proc` or `/sys`, without trailing white space.
///
/// # Errors
/// As [`read`], or if it is not UTF-8.
pub fn read_text(path: &Path, limit_bytes: u64) -> Result<String> {
    let text = String::from_utf8(read(path, limit_bytes)?)
        .map_err(|_| Error::failed("not UTF-8").within(format!("read {}", path.display())))?;
    Ok(text.trim_end().to_owned())
}

/// When a file was last changed, as time since 1970; `None` if there is none, or nobody knows.
pub fn modified(path: &Path) -> Option<std::time::Duration> {
    let time = std::fs::metadata(path).and_then(|m| m.modified()).ok()?;
    time.duration_since(std::time::UNIX_EPOCH).ok()
}

/// Opens an existing file or device for reading and writing.
///
/// # Errors
/// `Failed`, naming the path.
pub fn open_read_write(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).open(path).doing(|| format!("open {}", path.display()))
}

/// Opens an existing file or device as [`open_read_write`] or [`open_read`] does; a block device for ourselves alone,
/// as mounting does: the kernel then gives it to nobody else. `None` if it is mounted or otherwise taken.
///
/// # Errors
/// `Failed`, naming the path.
pub fn claim(path: &Path, writable: bool) -> Result<Option<File>> {
    use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
    let doing = || format!("open {}", path.display());
    // What O_EXCL alone means is laid down for block devices only: open(2).
    let is_block_device = std::fs::metadata(path).doing(doing)?.file_type().is_block_device();
    let flags = if is_block_device { libc::O_EXCL } else { 0 };
    match OpenOptions::new().read(true).write(writable).custom_flags(flags).open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => Ok(None),
        opened => opened.map(Some).doing(doing),
    }
}

/// Writes one value to an existing file of `/sys` or `/proc`, in one call, without a newline.
///
/// # Errors
/// `Failed`, naming the path.
pub fn write_setting(path: &Path, value: &str) -> Result<()> {
    use std::io::Write;
    let mut file = OpenOptions::new().write(true).open(path).doing(|| format!("open {}", path.display()))?;
    file.write_all(value.as_bytes()).doing(|| format!("write {value:?} to {}", path.display()))
}

/// Opens an existing file or device for reading.
///
/// # Errors
/// `Failed`, naming the path.
pub fn open_read(path: &Path) -> Result<File> {
    File::open(path).doing(|| format!("open {}", path.display()))
}

/// The entries of a directory, by name; none if there is no such directory.
///
/// # Errors
/// `Failed`, naming the path.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let doing = || format!("list {}", dir.display());
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).doing(doing),
    };
    let mut paths = entries.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>().doing(doing)?;
    paths.sort();
    Ok(paths)
}

/// The files `*.EXTENSION` of a directory whose files are taken together, by name; none if there is no such directory. What
/// is hidden was not meant to be there: an editor's copy, for example.
///
/// # Errors
/// `Failed`, naming the path, for what is no file: reading a pipe there would never end.
pub fn fragments(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = list(dir)?;
    let is_hidden = |f: &Path| f.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    files.retain(|f| f.extension().is_some_and(|e| e == extension) && !is_hidden(f));
    match files.iter().find(|f| f.metadata().is_ok_and(|m| !m.is_file())) {
        Some(odd) => Err(Error::failed(format!("{}: not a file; take it away from there", odd.display()))),
        None => Ok(files),
    }
}

/// The size of a file or block device, in bytes.
///
/// # Errors
/// `Failed` if it cannot be told.
pub fn len_bytes(file: &File) -> Result<u64> {
    // Seeking works for both; a block device's metadata says 0.
    Ok(rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?)
}

/// The next stretch of a file, from `offset` on, that is not a hole: its start and its end. `None` if only holes
/// follow. A file system or device that cannot tell has none.
///
/// # Errors
/// `Failed` if the file cannot be asked.
pub fn next_data(file: &File, offset: u64) -> Result<Option<(u64, u64)>> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    let start = match seek(file, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((offset, u64::MAX))),
        Err(e) => return Err(e.into()),
    };
    Ok(Some((start, seek(file, SeekFrom::Hole(start))?)))
}

/// What is free on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that can be written.
    pub bytes: u64,
    /// Files that can be made; `None` if there is no limit.
    pub inodes: Option<u64>,
}

/// What is free on the file system that holds `path`.
///
/// # Errors
/// `Failed`, naming the path.
pub fn room(path: &Path) -> Result<Room> {
    let found = rustix::fs::statvfs(path).doing(|| format!("look for room on {}", path.display()))?;
    let inodes = (found.f_files > 0).then_some(found.f_ffree);
    Ok(Room { bytes: found.f_bavail.saturating_mul(found.f_frsize), inodes })
}

/// What a symbolic link says.
///
/// # Errors
/// `Failed`, naming the path.
#[cfg(feature = "build-host")]
pub fn link_target(path: &Path) -> Result<PathBuf> {
    std::fs::read_link(path).doing(|| format!("read the link {}", path.display()))
}

/// Major and minor number of a device, out of its metadata.
#[cfg(feature = "build-host")]
pub fn device_numbers(rdev: u64) -> (u32, u32) {
    (rustix::fs::major(rdev), rustix::fs::minor(rdev))
}

/// Makes `len` bytes of a file or block device read as zeros: by a hole or a discard if it then surely does, else by writing.
///
/// # Errors
/// `Failed` if they cannot be written.
pub fn zero(file: &File, offset: u64, len: u64) -> Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use std::os::unix::fs::FileExt;
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    if len == 0 {
        return Ok(());
    }
    for mode in [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE] {
        if fallocate(file, mode | FallocateFlags::KEEP_SIZE, offset, len).is_ok() {
            return Ok(());
        }
    }
    let mut done = 0;
    while done < len {
        let n = usize::try_from(len - done).unwrap_or(ZEROS.len()).min(ZEROS.len());
        file.write_all_at(ZEROS.get(..n).unwrap_or_default(), offset + done)?;
        done += n as u64;
    }
    Ok(())
}

/// Drops the page cache of a flushed file or block device, so that reads come from the medium.
///
/// # Errors
/// `Failed` if the kernel refuses.
pub fn drop_cache(file: &File) -> Result<()> {
    Ok(rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?)
}

/// Whether there is a socket at `path`, or behind a link there.
pub fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|m| m.file_type().is_socket())
}

/// `path` without links, or itself if that cannot be told.
pub fn without_links(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Whether something is mounted on the directory `path`.
///
/// # Errors
/// `Failed`, naming the path, if it cannot be looked at. A missing directory is no mount point.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let doing = || format!("look at {}", path.display());
    let here = match std::fs::metadata(path) {
        Ok(here) => here,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e).doing(doing),
    };
    let above = std::fs::metadata(path.join("..")).doing(doing)?;
    Ok(here.dev() != above.dev())
}
