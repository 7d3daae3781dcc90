//! Directory trees: copying one with its owners and modes, and removing one.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::{Doing, Result};

/// Copies the file or tree `from` to `to`, which must not exist, and flushes the file system that holds `to`.
///
/// Mode, owner and symbolic links are kept; hard links become files of their own; extended attributes, sockets,
/// devices and FIFOs are left out: it is for configuration.
///
/// # Errors
/// `Failed`, naming the path; `to` may then be there in part.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    copy_entry(from, to)?;
    sync(to.parent().unwrap_or(to))
}

fn copy_entry(from: &Path, to: &Path) -> Result<()> {
    let doing = || format!("copy {} to {}", from.display(), to.display());
    let metadata = fs::symlink_metadata(from).doing(doing)?;
    let kind = metadata.file_type();
    if kind.is_symlink() {
        symlink(fs::read_link(from).doing(doing)?, to).doing(doing)?;
    } else if kind.is_dir() {
        fs::create_dir(to).doing(doing)?;
        for entry in super::file::list(from)? {
            if let Some(name) = entry.file_name() {
                copy_entry(&entry, &to.join(name))?;
            }
        }
    } else if kind.is_file() {
        fs::copy(from, to).doing(doing)?;
    } else {
        return Ok(());
    }
    std::os::unix::fs::lchown(to, Some(metadata.uid()), Some(metadata.gid())).doing(doing)?;
    if !kind.is_symlink() {
        // After the owner: changing that clears set-user-id.
        fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777)).doing(doing)?;
    }
    Ok(())
}

/// The extended attributes of what is at `path`, of a link itself, in the order of their names.
///
/// # Errors
/// `Failed`, naming the path.
#[cfg(feature = "build-host")]
pub fn xattrs(path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    use rustix::io::Errno;
    /// The kernel's own limit for the list and for a value.
    const LIMIT: usize = 64 * 1024;
    let doing = || format!("attributes of {}", path.display());
    let mut list = vec![0; LIMIT];
    let n = match rustix::fs::llistxattr(path, &mut list) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        n => n.doing(doing)?,
    };
    let mut names: Vec<_> =
        list.get(..n).unwrap_or_default().split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
    // Labels of the build host's policy mean nothing elsewhere.
    names.retain(|name| *name != b"security.selinux");
    names.sort_unstable();
    let mut value = vec![0; LIMIT];
    let mut found = Vec::new();
    for name in names {
        let n = rustix::fs::lgetxattr(path, name, &mut value).doing(doing)?;
        found.push((name.to_vec(), value.get(..n).unwrap_or_default().to_vec()));
    }
    Ok(found)
}

/// Makes every change to the file system that holds `dir` durable.
///
/// # Errors
/// `Failed`, naming the directory.
pub fn sync(dir: &Path) -> Result<()> {
    let doing = || format!("flush {}", dir.display());
    rustix::fs::syncfs(File::open(dir).doing(doing)?).doing(doing)
}

/// Removes a file or tree; none is fine. Not durable by itself.
///
/// # Errors
/// `Failed`, naming the path.
pub fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(m) if m.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).doing(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Makes `name` a symbolic link to `target`, in place of another link but of nothing else. Not durable: for `/run`.
///
/// # Errors
/// `Failed`, naming both; something that is no link is in the way.
pub fn link(name: &Path, target: &Path) -> Result<()> {
    let doing = || format!("link {} to {}", name.display(), target.display());
    match fs::read_link(name) {
        Ok(found) if found == target => return Ok(()),
        Ok(_) => fs::remove_file(name).doing(doing)?,
        Err(_) => {}
    }
    symlink(target, name).doing(doing)
}

/// Renames a file or tree within its directory, durably: it appears whole or not at all.
///
/// # Errors
/// `Failed`, naming both.
pub fn publish(from: &Path, to: &Path) -> Result<()> {
    let doing = || format!("rename {} to {}", from.display(), to.display());
    fs::rename(from, to).doing(doing)?;
    super::durable::sync_dir(to.parent().unwrap_or(to)).doing(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_replaces_a_link_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("name");
        for target in ["a", "a", "b"] {
            link(&name, Path::new(target)).unwrap();
            assert_eq!(fs::read_link(&name).unwrap(), Path::new(target));
        }
        let file = dir.path().join("file");
        fs::write(&file, "kept").unwrap();
        assert!(link(&file, Path::new("a")).is_err());
        assert_eq!(fs::read(&file).unwrap(), b"kept");
    }

    #[test]
    fn copies_tree_with_modes_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("sub/file"), "text").unwrap();
        fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o4750)).unwrap();
        fs::set_permissions(from.join("sub"), fs::Permissions::from_mode(0o711)).unwrap();
        symlink("sub/file", from.join("link")).unwrap();
        symlink("/nowhere", from.join("dangling")).unwrap();

        let to = dir.path().join("to");
        copy(&from, &to).unwrap();
        assert_eq!(fs::read(to.join("sub/file")).unwrap(), b"text");
        assert_eq!(fs::metadata(to.join("sub/file")).unwrap().mode() & 0o7777, 0o4750);
        assert_eq!(fs::metadata(to.join("sub")).unwrap().mode() & 0o7777, 0o711);
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("sub/file"));
        assert_eq!(fs::read_link(to.join("dangling")).unwrap(), Path::new("/nowhere"));

        remove(&to).unwrap();
        remove(&to).unwrap();
        assert!(!to.exists());
    }
}
