//! Room for names in a directory of FAT: one that is full grows by a cluster, in several writes, and what a cut leaves of these is
//! a directory that is damaged from there on.
//!
//! A name takes an entry of 32 bytes, and one more for each 13 letters if it is longer than 8.3 or needs its case kept; all of them
//! next to each other. Linux tells where each begins (`d_off` of the one before), and a directory's length is that of its clusters.
//! Source: `fs/fat/dir.c`, `__fat_readdir` and `fat_add_entries`.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FsWord, RawDir};

use crate::{Doing, Error, Result};

const ENTRY_BYTES: u64 = 32;
const LETTERS: u64 = 13;
/// What each of the names begins at, in bytes, and its letters.
type Names = Vec<(u64, u64)>;

/// Sees that so many new names of so many letters fit into the directory without making it longer. Without letters it is an
/// upper-case name of 8.3.
///
/// # Errors
/// `Refused`, saying what to do.
pub fn check(dir: &Path, names: u64, letters: usize) -> Result<()> {
    match fitting(dir, letters)? {
        Some(fitting) if fitting < names => Err(Error::refused(format!(
            "{}: room for {fitting} new names, expected {names}: a power cut while a directory of FAT grows damages it; remove \
             files from it",
            dir.display()
        ))),
        _ => Ok(()),
    }
}

/// How many names of so many letters fit into the directory as it is; `None` if it is not on FAT.
///
/// # Errors
/// `Failed`, naming the directory.
fn fitting(dir: &Path, letters: usize) -> Result<Option<u64>> {
    const MSDOS_SUPER_MAGIC: FsWord = 0x4d44;
    let doing = || format!("list {}", dir.display());
    let opened = File::open(dir).doing(doing)?;
    if rustix::fs::fstatfs(&opened).doing(doing)?.f_type != MSDOS_SUPER_MAGIC {
        return Ok(None);
    }
    let len_bytes = opened.metadata().doing(doing)?.size();
    let mut buffer = Vec::with_capacity(8192);
    let mut raw = RawDir::new(&opened, buffer.spare_capacity_mut());
    let mut names = Names::new();
    let mut begins = 0;
    while let Some(entry) = raw.next() {
        let entry = entry.doing(doing)?;
        names.push((begins, entry.file_name().to_bytes().len() as u64));
        begins = entry.next_entry_cookie();
    }
    Ok(Some(count(&names, len_bytes, letters as u64)))
}

/// How many stretches for a name of so many letters are free between the names that are there.
fn count(names: &Names, len_bytes: u64, letters: u64) -> u64 {
    let size = |letters: u64| ENTRY_BYTES * (1 + letters.div_ceil(LETTERS));
    let ends = names.iter().map(|(begins, letters)| begins + size(*letters));
    let next = names.iter().map(|(begins, _)| *begins).skip(1).chain([len_bytes]);
    ends.zip(next).map(|(end, next)| next.saturating_sub(end) / size(letters)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_where_enough_entries_are_free_next_to_each_other() {
        // `.` and `..` have no long name, which is not known here: the next name shows it.
        let dots = [(0, 1), (32, 2)];
        for (names, len_bytes, expected) in [
            // 14 letters: three entries; from 4 on, as `..` may have two, 12 of 16 are free.
            (vec![], 512, 4),
            (vec![(64, 15)], 512, 3),
            // One was removed: a hole of three entries.
            (vec![(64, 15), (256, 15)], 512, 2),
            // Two holes of two entries are none of three.
            (vec![(64, 15), (224, 15), (384, 19)], 512, 0),
            (vec![(64, 15), (160, 15), (256, 19), (352, 19), (448, 8)], 512, 0),
            (vec![(64, 15), (160, 15), (256, 19), (352, 19), (448, 8)], 1024, 5),
        ] {
            let names = [&dots[..], &names].concat();
            assert_eq!(count(&names, len_bytes, 14), expected, "{names:?}");
        }
    }
}
