//! Writing the image, reading it back, and making the disk bootable with the last write.

use std::io::Read;

use sha2::{Digest as _, Sha256};

use super::choose::Medium;
use crate::block::{Disk, FileDisk};
use crate::bundle::Bundle;
use crate::model::Digest;
use crate::{Doing, Error, Result};

/// What is held back of the image, and made empty on the disk first: partition table, and boot code in front of the first
/// partition. At the end of the disk it is what an older table's copy may take.
const HEAD_LEN: usize = 1024 * 1024;
const STEP: usize = 1024 * 1024;

/// The beginning of the image, which makes a disk bootable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    bytes: Vec<u8>,
}

/// Opens a medium for ourselves alone.
///
/// # Errors
/// `Refused` if it is in use.
pub fn claim(medium: &Medium) -> Result<FileDisk> {
    FileDisk::claim(&medium.device, true)
}

/// Writes the image of `bundle` to `disk` but for its beginning, and reads it back from the medium. From the first write on,
/// the disk has no partition table. `progress` is told the bytes written, and then those read back, of twice the image.
///
/// # Errors
/// `Refused` if the image is for other sectors: nothing was written then. `Failed` if the bundle is damaged, the disk cannot
/// be written, or reads back other than written: then it does not boot.
pub fn write<R: Read + Send>(
    bundle: &mut Bundle<R>,
    disk: &mut FileDisk,
    sector_bytes: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Head> {
    let (len, digest) = (bundle.manifest().root.size, bundle.manifest().root.sha256);
    let total = len.saturating_mul(2);
    let mut head = Vec::new();
    let mut put = |offset: u64, bytes: &[u8]| {
        let (first, rest) = bytes.split_at(bytes.len().min(HEAD_LEN - head.len()));
        head.extend_from_slice(first);
        if head.len() == HEAD_LEN && !first.is_empty() {
            check_sectors(&head, sector_bytes)?;
            make_unbootable(disk)?;
        }
        let offset = offset + first.len() as u64;
        match rest.iter().all(|b| *b == 0) {
            true => disk.zero_at(offset, rest.len() as u64),
            false => disk.write_at(offset, rest),
        }
    };
    bundle.write_root(&mut put, &mut |p| progress(p.done_bytes, total))?;
    disk.flush()?;
    let head = Head { bytes: head };
    head.read_back(disk, len, &digest, &mut |done| progress(len.saturating_add(done), total))?;
    Ok(head)
}

/// Gives the disk its beginning: all of it but the first sector, and that when the rest is on the medium.
///
/// # Errors
/// `Failed` if the disk cannot be written, or reads back other than written.
pub fn finish(head: &Head, disk: &mut FileDisk, sector_bytes: u64) -> Result<()> {
    let sector = usize::try_from(sector_bytes).unwrap_or(512).min(head.bytes.len());
    let (first, rest) = head.bytes.split_at(sector);
    disk.write_at(sector as u64, rest)?;
    disk.flush()?;
    disk.write_at(0, first)?;
    disk.flush()?;
    let mut found = vec![0; head.bytes.len()];
    disk.read_at(0, &mut found)?;
    if found == head.bytes {
        return Ok(());
    }
    make_unbootable(disk)?;
    Err(Error::failed("the beginning of the disk reads back other than written; it may be worn out"))
}

/// Takes the partition table off, with its copy at the end, so that the disk does not boot.
fn make_unbootable(disk: &mut FileDisk) -> Result<()> {
    let len = disk.len_bytes();
    disk.zero_at(0, (HEAD_LEN as u64).min(len))?;
    let tail = (HEAD_LEN as u64).min(len);
    disk.zero_at(len - tail, tail)?;
    disk.flush().doing(|| "take the old partition table off")
}

/// A GPT counts in sectors, and stands in the second.
fn check_sectors(head: &[u8], sector_bytes: u64) -> Result<()> {
    let has_table = |sector: usize| head.get(sector..sector + 8) == Some(b"EFI PART");
    let made_for = [512, 4096].into_iter().find(|sector| has_table(*sector));
    match made_for {
        Some(sector) if sector as u64 != sector_bytes => Err(Error::refused(format!(
            "the image is for disks with sectors of {sector} bytes, this one has sectors of {sector_bytes}; nothing was written"
        ))),
        _ => Ok(()),
    }
}

impl Head {
    /// The disk as it will be, for looking at its table.
    pub fn over<'a>(&'a self, disk: &'a mut FileDisk) -> impl Disk + 'a {
        Overlaid { head: &self.bytes, disk }
    }

    fn read_back(
        &self,
        disk: &mut FileDisk,
        len: u64,
        digest: &Digest,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let mut hash = Sha256::new();
        hash.update(&self.bytes);
        let mut buffer = vec![0; STEP];
        let mut offset = self.bytes.len() as u64;
        while offset < len {
            let n = usize::try_from(len - offset).map_or(STEP, |left| left.min(STEP));
            let step = buffer.get_mut(..n).unwrap_or_default();
            disk.read_at(offset, step)?;
            hash.update(&*step);
            offset += n as u64;
            progress(offset);
        }
        let found = Digest(hash.finalize().into());
        if found == *digest {
            return Ok(());
        }
        Err(Error::failed(format!(
            "read back: the medium holds {found}, expected {digest}; it may be worn out; it was left without a partition table"
        )))
    }
}

/// A disk whose beginning is not written yet.
struct Overlaid<'a> {
    head: &'a [u8],
    disk: &'a mut FileDisk,
}

impl Disk for Overlaid<'_> {
    fn len_bytes(&self) -> u64 {
        self.disk.len_bytes()
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.disk.read_at(offset, buffer)?;
        let held = usize::try_from(offset).ok().and_then(|at| self.head.get(at..)).unwrap_or_default();
        let n = held.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..n), held.get(..n)) {
            to.copy_from_slice(from);
        }
        Ok(())
    }

    fn write_at(&mut self, _offset: u64, _bytes: &[u8]) -> Result<()> {
        Err(Error::inconsistent("only looked at"))
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}
