//! The image of a payload of files: one after the other, each filled up with zeros to whole blocks.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::model::payload::{BOOT_FILES_MAX_BYTES, is_safe_path};
use crate::model::{Digest, FileEntry};
use crate::{Doing, Error, Result, sys};

/// Directories are gone into this far: deeper than any path of a bundle.
const DEPTH_MAX: usize = 50;
const PIECE_LEN: usize = 64 * 1024;

/// A file of the build host, and what it is called in the bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    /// Its path in the set.
    pub path: String,
    /// Where it is.
    pub file: PathBuf,
    /// Hooks only: the seconds that it may take.
    pub deadline_s: Option<u64>,
}

/// Every file below a directory, by its path in it, in order.
///
/// # Errors
/// `Failed`, naming it, for what is neither a file nor a directory, and for a name that no bundle may hold.
pub fn of_directory(dir: &Path) -> Result<Vec<NamedFile>> {
    if !dir.is_dir() {
        return Err(Error::failed(format!("{}: no such directory", dir.display())));
    }
    let mut found = Vec::new();
    below(dir, "", DEPTH_MAX, &mut found)?;
    if found.is_empty() {
        return Err(Error::failed(format!("{}: no files in it", dir.display())));
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn below(dir: &Path, above: &str, depth: usize, found: &mut Vec<NamedFile>) -> Result<()> {
    for entry in sys::file::list(dir)? {
        let wrong = |what: &str| Err(Error::failed(format!("{}: {what}", entry.display())));
        let Some(name) = entry.file_name().and_then(|n| n.to_str()) else {
            return wrong("its name is not UTF-8");
        };
        let path = if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") };
        if !is_safe_path(&path) {
            return wrong(
                "a bundle's files have names of letters, digits and \"._-+,@=\", not beginning with '.'",
            );
        }
        let kind = std::fs::symlink_metadata(&entry).doing(|| entry.display().to_string())?.file_type();
        if kind.is_dir() && depth > 0 {
            below(&entry, &path, depth - 1, found)?;
        } else if kind.is_file() {
            found.push(NamedFile { path, file: entry, deadline_s: None });
        } else {
            return wrong("neither a file nor a directory; FAT has no links");
        }
    }
    Ok(())
}

/// Writes the files into `image`. Gives their description and the image's length.
///
/// # Errors
/// `Failed`, naming the file, if one cannot be read or is too large.
pub fn lay_out(files: &[NamedFile], mut image: &File) -> Result<(Vec<FileEntry>, u64)> {
    let mut entries = Vec::new();
    let mut end = 0;
    for NamedFile { path, file, deadline_s } in files {
        let (size, sha256) = copy(file, image).doing(|| format!("file {}", file.display()))?;
        let entry = FileEntry { path: path.clone(), size, sha256, deadline_s: *deadline_s };
        end += entry.padded();
        image.set_len(end)?;
        image.seek(std::io::SeekFrom::Start(end))?;
        entries.push(entry);
    }
    Ok((entries, end))
}

fn copy(from: &Path, mut to: &File) -> Result<(u64, Digest)> {
    let mut file = sys::file::open_read(from)?;
    let (mut sum, mut size, mut piece) = (Sha256::new(), 0, vec![0; PIECE_LEN]);
    loop {
        let n = file.read(&mut piece)?;
        let bytes = piece.get(..n).unwrap_or_default();
        if bytes.is_empty() {
            return Ok((size, Digest(sum.finalize().into())));
        }
        size += n as u64;
        if size > BOOT_FILES_MAX_BYTES {
            return Err(Error::failed(format!("more than {BOOT_FILES_MAX_BYTES} bytes")));
        }
        sum.update(bytes);
        to.write_all(bytes)?;
    }
}
