//! Making files below one directory, whatever their names say: no name and no link leads out of it.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::{Doing, Error, Result};

/// A directory, and what may be made below it.
///
/// Each name is walked from the top, one directory at a time, and links are never followed: openat2 would do that in one
/// call, but kernels of 4.9 are still in use.
#[derive(Debug)]
pub struct Beneath {
    top: OwnedFd,
}

/// What a file has beside its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Permissions, with set-user-id and the like.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change, in seconds since 1970.
    pub mtime_s: i64,
    /// Extended attributes: full name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a node of the file system stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

const DIR: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Beneath {
    /// What is below `dir`.
    ///
    /// # Errors
    /// `Failed`, naming the directory.
    pub fn open(dir: &Path) -> Result<Self> {
        let top = rustix::fs::open(dir, DIR, Mode::empty()).doing(|| format!("open {}", dir.display()))?;
        Ok(Self { top })
    }

    /// Makes a directory; one that is there is fine.
    ///
    /// # Errors
    /// `Failed`, naming the path, as all of these: a name that leads elsewhere, something else in the way, a full disk.
    pub fn make_dir(&self, path: &Path) -> Result<()> {
        self.at(path, |dir, name| match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
            Err(Errno::EXIST) => Ok(rustix::fs::openat(dir, name, DIR, Mode::empty()).map(drop)?),
            made => Ok(made?),
        })
    }

    /// Makes an empty file in place of whatever is there, but of a directory.
    ///
    /// # Errors
    /// As [`Beneath::make_dir`].
    pub fn make_file(&self, path: &Path) -> Result<File> {
        self.instead(path, |dir, name| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            Ok(File::from(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?))
        })
    }

    /// Makes a symbolic link to anything, in place of whatever is there.
    ///
    /// # Errors
    /// As [`Beneath::make_dir`].
    pub fn make_link(&self, path: &Path, target: &OsStr) -> Result<()> {
        self.instead(path, |dir, name| Ok(rustix::fs::symlinkat(target, dir, name)?))
    }

    /// Gives the file at `existing`, below the same directory, another name.
    ///
    /// # Errors
    /// As [`Beneath::make_dir`].
    pub fn make_hard_link(&self, path: &Path, existing: &Path) -> Result<()> {
        self.at(existing, |from, old| {
            self.instead(path, |dir, name| Ok(rustix::fs::linkat(from, old, dir, name, AtFlags::empty())?))
        })
    }

    /// Makes a device or FIFO in place of whatever is there.
    ///
    /// # Errors
    /// As [`Beneath::make_dir`].
    pub fn make_node(&self, path: &Path, kind: NodeKind, (major, minor): (u32, u32)) -> Result<()> {
        let device = rustix::fs::makedev(major, minor);
        let kind = match kind {
            NodeKind::Char => FileType::CharacterDevice,
            NodeKind::Block => FileType::BlockDevice,
            NodeKind::Fifo => FileType::Fifo,
        };
        self.instead(path, |dir, name| Ok(rustix::fs::mknodat(dir, name, kind, Mode::RUSR, device)?))
    }

    /// Gives what is at `path` (a link itself, not what it leads to) its owner, mode, attributes and time.
    ///
    /// # Errors
    /// As [`Beneath::make_dir`].
    pub fn set_facts(&self, path: &Path, facts: &Facts, is_link: bool) -> Result<()> {
        self.at(path, |dir, name| {
            let (uid, gid) = (Uid::from_raw(facts.uid), Gid::from_raw(facts.gid));
            rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            // After the owner: changing that clears set-user-id and capabilities.
            if !is_link {
                rustix::fs::chmodat(dir, name, Mode::from_raw_mode(facts.mode & 0o7777), AtFlags::empty())?;
            }
            let mut through = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
            through.extend(name.as_bytes());
            for (key, value) in &facts.xattrs {
                let key = CString::new(key.as_slice()).map_err(|_| Error::failed("NUL in an attribute"))?;
                rustix::fs::lsetxattr(
                    OsStr::from_bytes(&through),
                    key.as_c_str(),
                    value,
                    XattrFlags::empty(),
                )
                .doing(|| format!("attribute {}", key.to_string_lossy()))?;
            }
            let time = Timespec { tv_sec: facts.mtime_s, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            Ok(rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
        })
    }

    /// Runs `make` where `path` is free: what an interrupted run left there goes first.
    fn instead<T>(&self, path: &Path, make: impl FnOnce(&OwnedFd, &OsStr) -> Result<T>) -> Result<T> {
        self.at(path, |dir, name| {
            match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            }
            make(dir, name)
        })
    }

    /// Runs `act` in the directory of `path`, which is there, with the last name of it.
    fn at<T>(&self, path: &Path, act: impl FnOnce(&OwnedFd, &OsStr) -> Result<T>) -> Result<T> {
        let doing = || format!("make {}", path.display());
        let mut names = Vec::new();
        for part in path.components() {
            match part {
                Component::Normal(name) => names.push(name),
                _ => return Err(Error::failed("a name that leads elsewhere").within(doing())),
            }
        }
        let Some((last, above)) = names.split_last() else {
            return Err(Error::failed("an empty name").within(doing()));
        };
        let mut dir = rustix::fs::openat(&self.top, ".", DIR, Mode::empty()).doing(doing)?;
        for name in above {
            dir = rustix::fs::openat(&dir, *name, DIR, Mode::empty())
                .doing(|| format!("{} is no directory of its own", name.display()))
                .doing(doing)?;
        }
        act(&dir, last).doing(doing)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn no_name_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        fs::create_dir_all(&outside).unwrap();
        fs::create_dir_all(&inside).unwrap();
        fs::write(outside.join("secret"), "kept").unwrap();
        let top = Beneath::open(&inside).unwrap();
        top.make_link(Path::new("link"), OsStr::new("../out")).unwrap();
        for path in ["link/new", "../out/new", "/etc/new", "", "a/../../out/new", "."] {
            assert!(top.make_file(Path::new(path)).is_err(), "{path}");
            assert!(top.make_dir(Path::new(path)).is_err(), "{path}");
        }
        assert!(top.make_hard_link(Path::new("stolen"), Path::new("../out/secret")).is_err());
        assert!(top.make_hard_link(Path::new("stolen"), Path::new("link/secret")).is_err());
        // A link that is in the way is replaced, not followed.
        top.make_link(Path::new("file"), OsStr::new("../out/secret")).unwrap();
        top.make_file(Path::new("file")).unwrap();
        assert!(top.make_dir(Path::new("link")).is_err());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(fs::read(outside.join("secret")).unwrap(), b"kept");
    }

    #[test]
    fn each_can_be_made_twice() {
        let dir = tempfile::tempdir().unwrap();
        let top = Beneath::open(dir.path()).unwrap();
        let facts = Facts { mode: 0o750, mtime_s: 1_000_000_000, ..Facts::default() };
        for _ in 0..2 {
            top.make_dir(Path::new("d")).unwrap();
            top.make_file(Path::new("d/f")).unwrap();
            top.make_hard_link(Path::new("d/h"), Path::new("d/f")).unwrap();
            top.make_link(Path::new("d/l"), OsStr::new("nowhere")).unwrap();
            top.make_node(Path::new("d/p"), NodeKind::Fifo, (0, 0)).unwrap();
        }
        if rustix::process::geteuid().is_root() {
            top.set_facts(Path::new("d/l"), &facts, true).unwrap();
            top.set_facts(Path::new("d"), &facts, false).unwrap();
            use std::os::unix::fs::MetadataExt;
            let d = fs::metadata(dir.path().join("d")).unwrap();
            assert_eq!((d.mode() & 0o7777, d.mtime()), (0o750, 1_000_000_000));
        }
    }
}
