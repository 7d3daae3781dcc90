//! A slot's seal: the root hash of what was installed, kept with it, where PID 1 finds it before anything is mounted.
//!
//! One sector at the end of the slot, so it is whole or not there after any cut, and never that of another slot. It is
//! written before the slot is armed. No file system is needed to read it: a damaged state or boot partition cannot keep a
//! sealed root from being checked, nor from being booted.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 16 | `twinhull-verity`, 0 |
//! | 16 | 8 | where the hash tree's superblock lies in the slot, in bytes |
//! | 24 | 32 | root hash |
//! | 56 | 4 | CRC-32 of what comes before |

use super::Disk;
use super::le::{array, put, u32_at, u64_at};
use crate::model::verity::{SEAL_BYTES, seal_at};
use crate::model::{Digest, Verity};
use crate::{Doing, Error, Result};

const MAGIC: &[u8; 16] = b"twinhull-verity\0";
const CRC_AT: usize = 56;
const SECTOR: usize = 512;
#[allow(clippy::cast_possible_truncation)]
const BLOCK: usize = SEAL_BYTES as usize;

/// The seal of a slot; `None` if it has none, or no room for one behind an image of `image_len_bytes`. Who does not know how
/// long that is says 0.
///
/// # Errors
/// `Failed` if the disk cannot be read, or the seal is damaged.
pub fn read(disk: &mut impl Disk, image_len_bytes: u64) -> Result<Option<Verity>> {
    let Some(at) = place(disk, image_len_bytes) else { return Ok(None) };
    let mut sector = [0; SECTOR];
    disk.read_at(at, &mut sector).doing(|| "seal")?;
    decode(&sector)
}

fn place(disk: &impl Disk, image_len_bytes: u64) -> Option<u64> {
    seal_at(disk.len_bytes()).filter(|at| *at >= image_len_bytes)
}

fn decode(sector: &[u8; SECTOR]) -> Result<Option<Verity>> {
    if !sector.starts_with(MAGIC) {
        return Ok(None);
    }
    let found = crc32fast::hash(sector.get(..CRC_AT).unwrap_or_default());
    if found != u32_at(sector, CRC_AT) {
        let expected = u32_at(sector, CRC_AT);
        return Err(Error::failed(format!("seal: CRC is {found:08x}, it says {expected:08x}")));
    }
    Ok(array(sector, 24)
        .map(|root_hash| Verity { root_hash: Digest(root_hash), hash_offset: u64_at(sector, 16) }))
}

/// Seals a slot that holds an image of `image_len_bytes`, or takes the seal of an earlier one away. Not durable before
/// [`Disk::flush`].
///
/// # Errors
/// `Refused` if the image leaves no room for it; `Failed` if the disk cannot be read or written.
pub fn write(disk: &mut impl Disk, verity: Option<&Verity>, image_len_bytes: u64) -> Result<()> {
    let Some(at) = place(disk, image_len_bytes) else {
        return match verity {
            None => Ok(()),
            Some(_) => Err(Error::refused("the image leaves no room for the seal at the end of the slot")),
        };
    };
    let mut sector = [0; SECTOR];
    match disk.read_at(at, &mut sector) {
        Ok(()) if verity.is_none() && !sector.starts_with(MAGIC) => return Ok(()),
        Ok(()) => sector.fill(0),
        // A cut may have spoilt it while it was written. Writing mends it: a whole block, of which nothing need be read first.
        Err(e) => {
            log::warn!("seal: {e}; it is written anew");
            disk.write_at(at, &[0; BLOCK]).doing(|| "seal")?;
        }
    }
    if let Some(Verity { root_hash, hash_offset }) = verity {
        put(&mut sector, 0, MAGIC);
        put(&mut sector, 16, &hash_offset.to_le_bytes());
        put(&mut sector, 24, &root_hash.0);
        let crc = crc32fast::hash(sector.get(..CRC_AT).unwrap_or_default());
        put(&mut sector, CRC_AT, &crc.to_le_bytes());
    }
    disk.write_at(at, &sector).doing(|| "seal")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::FileDisk;

    const VERITY: Verity = Verity { root_hash: Digest([0xa5; 32]), hash_offset: 8192 };

    fn slot(len: usize) -> (tempfile::TempDir, FileDisk) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slot");
        crate::sys::durable::replace(&path, &vec![7; len], 0o600).unwrap();
        let disk = FileDisk::open(&path).unwrap();
        (dir, disk)
    }

    fn bytes(disk: &mut FileDisk) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(disk.len_bytes()).unwrap()];
        disk.read_at(0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_seal_is_read_back_and_an_image_without_one_takes_it_away() {
        for (len, at) in [(8192, 4096), (8192 + 4095, 4096), (12288, 8192)] {
            let (_dir, mut disk) = slot(len);
            assert_eq!(read(&mut disk, 0).unwrap(), None);
            write(&mut disk, Some(&VERITY), 4096).unwrap();
            assert_eq!(read(&mut disk, 0).unwrap(), Some(VERITY));
            let now = bytes(&mut disk);
            assert!(now[..at].iter().chain(&now[at + SECTOR..]).all(|b| *b == 7), "{len}: one sector");
            write(&mut disk, None, 4096).unwrap();
            assert_eq!(read(&mut disk, 0).unwrap(), None);
        }
    }

    #[test]
    fn an_image_is_never_written_over() {
        for (len, image_len) in [(8192, 4097), (8192, 8192), (4095, 4000), (0, 0)] {
            let (_dir, mut disk) = slot(len);
            assert!(write(&mut disk, Some(&VERITY), image_len).is_err(), "{len}");
            write(&mut disk, None, image_len).unwrap();
            assert!(bytes(&mut disk).iter().all(|b| *b == 7), "{len}");
            assert_eq!(read(&mut disk, 0).unwrap(), None);
        }
    }

    /// A seal that is there and damaged is no slot without a seal.
    #[test]
    fn one_flipped_bit_behind_the_magic_is_an_error() {
        let (_dir, mut disk) = slot(8192);
        write(&mut disk, Some(&VERITY), 4096).unwrap();
        let good: [u8; SECTOR] = bytes(&mut disk)[4096..4608].try_into().unwrap();
        for bit in 0..(CRC_AT + 4) * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            match decode(&bad) {
                Ok(None) => assert!(bit < MAGIC.len() * 8, "bit {bit}"),
                Err(_) => assert!(bit >= MAGIC.len() * 8, "bit {bit}"),
                Ok(Some(_)) => panic!("bit {bit}"),
            }
        }
    }
}
