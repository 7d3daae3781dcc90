//! Files of the boot partition, written so that the bootloader itself finds the old or the new content after a cut.
//!
//! FAT has no atomic rename and no journal. What it has is sectors: a file that is overwritten in place, within one
//! sector of 512 bytes, keeps its clusters and its directory entry, and holds the old or the new bytes. fatrw's way
//! is for files that only programs read: after a cut in its rename the target may be missing until somebody finishes the
//! write (`sys::fatrw`), and a bootloader never does.

use std::path::{Path, PathBuf};

use crate::block::{Disk, FileDisk};
use crate::{Doing, Error, Result, sys};

/// The unit that a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// No environment is longer.
const LIMIT_BYTES: u64 = 64 * 1024;

/// Files in one directory of the boot partition. The simulated world has one that loses power.
pub trait Store {
    /// The names of the files, sorted.
    ///
    /// # Errors
    /// `Failed`, naming the directory.
    fn list(&self) -> Result<Vec<String>>;

    /// The content of a file, as the bootloader sees it; `None` if there is no such file.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>>;

    /// Overwrites a file in place: same length, and only bytes of one sector change.
    ///
    /// # Errors
    /// `Failed` if more would change; nothing is then written.
    fn overwrite(&mut self, name: &str, new: &[u8]) -> Result<()>;

    /// Appends `padding` to a file. A cut leaves the old bytes, and behind them nothing, the padding or zeros; in a file that was
    /// empty nothing or the padding.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    fn pad(&mut self, name: &str, padding: &[u8]) -> Result<()>;

    /// Makes a file that was not there, or was empty. After a cut it is there whole, empty or not at all.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    fn create(&mut self, name: &str, content: &[u8]) -> Result<()>;

    /// Sees that so many new names of so many letters fit into the directory without making it longer, which is no single write.
    ///
    /// # Errors
    /// `Refused`, saying what to do.
    fn check_room(&self, names: u64, letters: usize) -> Result<()>;

    /// Removes a file; one that is not there is fine.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    fn remove(&mut self, name: &str) -> Result<()>;

    /// Finishes what somebody else began to write with fatrw: left alone it would undo a later change.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    fn finish_fatrw(&mut self, name: &str) -> Result<()>;

    /// What to call a file in messages.
    fn name(&self, name: &str) -> String;
}

/// A real directory, on FAT.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// The directory `path`, which must be there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory of a file, and the file's name.
    ///
    /// # Errors
    /// `Failed` if `file` is not the name of a file.
    pub fn of_file(file: &Path) -> Result<(Self, String)> {
        let name = file
            .file_name()
            .and_then(|n| n.to_str())
            .ok_or_else(|| Error::failed(format!("{}: not the name of a file", file.display())))?;
        Ok((Self(sys::durable::parent(file)?.to_owned()), name.to_owned()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Store for Directory {
    fn list(&self) -> Result<Vec<String>> {
        let files = sys::file::list(&self.0)?;
        Ok(files.iter().filter_map(|p| p.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        sys::file::read_if_exists(&self.path(name), LIMIT_BYTES)
    }

    fn overwrite(&mut self, name: &str, new: &[u8]) -> Result<()> {
        let path = self.path(name);
        let old = sys::file::read(&path, LIMIT_BYTES)?;
        if old != new {
            overwrite_one_sector(&mut FileDisk::open(&path)?, 0, &old, new)
                .doing(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    fn pad(&mut self, name: &str, padding: &[u8]) -> Result<()> {
        sys::durable::append(&self.path(name), padding)
    }

    fn create(&mut self, name: &str, content: &[u8]) -> Result<()> {
        sys::durable::create_on_fat(&self.path(name), content, 0o644)
    }

    fn check_room(&self, names: u64, letters: usize) -> Result<()> {
        sys::fat_room::check(&self.0, names, letters)
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        sys::durable::remove(&self.path(name))
    }

    fn finish_fatrw(&mut self, name: &str) -> Result<()> {
        sys::fatrw::read(&self.path(name), LIMIT_BYTES).map(drop)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

/// Writes what differs between `old` and `new`, which stand at byte `offset`, and reads it back from the medium.
///
/// # Errors
/// `Failed` if the length or more than one sector would change, with nothing written; or if the medium holds
/// something else afterwards.
pub fn overwrite_one_sector(disk: &mut impl Disk, offset: u64, old: &[u8], new: &[u8]) -> Result<()> {
    let Some(at) = changed_sector(offset, old, new)? else { return Ok(()) };
    let changed = new.get(at..).unwrap_or_default();
    let changed = changed.get(..SECTOR_BYTES.min(changed.len())).unwrap_or_default();
    let place = offset + at as u64;
    disk.write_at(place, changed)?;
    disk.flush()?;
    let mut found = vec![0; changed.len()];
    disk.read_at(place, &mut found)?;
    if found != changed {
        return Err(Error::failed("reads back other than written; the medium may be failing"));
    }
    Ok(())
}

/// Where in `old` the one sector begins in which `new` differs; `None` if they are equal.
///
/// # Errors
/// `Failed` if the length or more than one sector would change.
pub fn changed_sector(offset: u64, old: &[u8], new: &[u8]) -> Result<Option<usize>> {
    if !offset.is_multiple_of(SECTOR_BYTES as u64) {
        return Err(Error::failed(format!("byte {offset} is not the start of a sector")));
    }
    if old.len() != new.len() {
        return Err(Error::failed(format!("{} bytes, expected {}", old.len(), new.len())));
    }
    let sectors = old.chunks(SECTOR_BYTES).zip(new.chunks(SECTOR_BYTES)).enumerate();
    let mut changed = sectors.filter(|(_, (a, b))| a != b).map(|(i, _)| i * SECTOR_BYTES);
    match (changed.next(), changed.next()) {
        (first, None) => Ok(first),
        (_, Some(_)) => Err(Error::failed(
            "the change would touch two sectors, and a power cut between them would leave neither the old nor the new \
             state; move resin_root_part, upgrade_available, bootcount and os_bc_lim to its first 500 bytes",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_sector_may_change() {
        let old = vec![0; 1024];
        for (offset, changes, expected) in [
            (0, vec![], Ok(None)),
            (0, vec![0, 511], Ok(Some(0))),
            (512, vec![512, 600], Ok(Some(512))),
            (0, vec![511, 512], Err("the change would touch two sectors")),
            (100, vec![0], Err("byte 100 is not the start of a sector")),
        ] {
            let mut new = old.clone();
            for at in changes {
                new[at] = 1;
            }
            match (changed_sector(offset, &old, &new), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(e), Err(expected)) => assert!(e.to_string().starts_with(expected), "{e}"),
                (found, expected) => panic!("{found:?}, expected {expected:?}"),
            }
        }
        assert_eq!(changed_sector(0, b"ab", b"abc").unwrap_err().to_string(), "2 bytes, expected 3");
    }
}
