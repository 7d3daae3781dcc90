//! Where the copies of an environment really are: a stretch of a file or device each.

use std::path::PathBuf;

use super::Copies;
use crate::block::{Disk, FileDisk};
use crate::boot::overwrite_one_sector;
use crate::{Doing, Error, Result};

/// One stretch of a file or device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file or device.
    pub device: PathBuf,
    /// Where it begins, in bytes; below zero from the end.
    pub offset: i64,
    /// Its length in bytes.
    pub len_bytes: usize,
}

impl Place {
    fn start(&self, disk: &FileDisk) -> Result<u64> {
        let start = match u64::try_from(self.offset) {
            Ok(offset) => Some(offset),
            Err(_) => disk.len_bytes().checked_sub(self.offset.unsigned_abs()),
        };
        let fits =
            |start: &u64| start.checked_add(self.len_bytes as u64).is_some_and(|end| end <= disk.len_bytes());
        start.filter(fits).ok_or_else(|| {
            Error::failed(format!("{} bytes long, which does not reach to its end", disk.len_bytes()))
        })
    }
}

/// One place, or two.
#[derive(Debug)]
pub struct Places(pub Vec<Place>);

impl Places {
    fn place(&self, copy: usize) -> Result<&Place> {
        self.0.get(copy).ok_or_else(|| Error::failed(format!("there is no copy {copy}")))
    }
}

impl Copies for Places {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn name(&self, copy: usize) -> String {
        self.0.get(copy).map_or_else(String::new, |p| {
            let sign = if p.offset < 0 { "-" } else { "" };
            format!("{} at {sign}{:#x}", p.device.display(), p.offset.unsigned_abs())
        })
    }

    fn read(&self, copy: usize) -> Result<Vec<u8>> {
        let place = self.place(copy)?;
        let mut disk = FileDisk::open_read_only(&place.device)?;
        let start = place.start(&disk)?;
        let mut raw = vec![0; place.len_bytes];
        disk.read_at(start, &mut raw)?;
        Ok(raw)
    }

    fn write(&mut self, copy: usize, raw: &[u8]) -> Result<()> {
        let place = self.place(copy)?;
        let mut disk = FileDisk::open(&place.device)?;
        let start = place.start(&disk)?;
        disk.write_at(start, raw)?;
        disk.flush()?;
        let mut found = vec![0; raw.len()];
        disk.read_at(start, &mut found)?;
        if found != raw {
            return Err(Error::failed("reads back other than written; the medium may be failing"));
        }
        Ok(())
    }

    fn overwrite(&mut self, copy: usize, old: &[u8], new: &[u8]) -> Result<()> {
        let place = self.place(copy)?;
        let mut disk = FileDisk::open(&place.device)?;
        let start = place.start(&disk)?;
        overwrite_one_sector(&mut disk, start, old, new).doing(|| self.name(copy))
    }
}
