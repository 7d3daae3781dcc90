//! GUID partition tables: reading with every check, and the bytes of each copy for writing.
//!
//! Written here and not taken from a crate because the order of the writes under a power cut is what matters
//! (see `grow`), and the crates found write the header before its entries, the primary before the backup, and
//! leave the protective MBR as it was.
//!
//! Source: UEFI specification 2.10, section 5.3; checked with sgdisk 1.0.9 and sfdisk 2.38 (`tests/block.rs`).

use super::disk::Disk;
use super::le::{array, put, u32_at, u64_at};
use super::table::TableEntry;
use crate::{Doing, Error, Result};

const SIGNATURE: &[u8] = b"EFI PART";
/// Bytes of the header that the specification defines.
const HEADER_BYTES: usize = 92;
/// The least that UEFI lets an entry have; others are this times a power of two.
const ENTRY_BYTES: u32 = 128;
/// A table larger than this is not one that any tool makes.
const ENTRIES_LIMIT_BYTES: u64 = 1024 * 1024;
/// LBA of the primary header.
pub(super) const PRIMARY_LBA: u64 = 1;
/// LBA where every usual tool puts the primary entries.
pub(super) const ENTRIES_LBA: u64 = 2;

/// Which of the two copies was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The one at LBA 1.
    Primary,
    /// The one at the end of the disk, because the primary is damaged. Linux does not look there by itself.
    Backup,
}

/// A table that passed every check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpt {
    /// Bytes per LBA.
    pub(super) sector_bytes: u64,
    /// LBAs on the disk.
    pub(super) disk_sectors: u64,
    /// Which copy this is.
    pub(super) source: Source,
    /// The header as read, `header size` bytes: what we do not know is kept.
    header: Vec<u8>,
    /// The entries as read.
    entries: Vec<u8>,
}

impl Gpt {
    /// Reads the primary table, or the backup at the last LBA if the primary is damaged.
    ///
    /// # Errors
    /// `Failed`, saying what is wrong with each copy, if neither passes.
    pub fn read(disk: &mut impl Disk, sector_bytes: u64) -> Result<Self> {
        let disk_sectors = disk.len_bytes() / sector_bytes;
        let primary = match Self::read_copy(disk, sector_bytes, PRIMARY_LBA) {
            Ok(table) => return Ok(table),
            Err(e) => e,
        };
        Self::read_copy(disk, sector_bytes, disk_sectors.saturating_sub(1))
            .map_err(|backup| Error::failed(format!("GPT: both copies are damaged: {primary}; {backup}")))
    }

    /// Reads the copy whose header is at `lba`.
    pub(super) fn read_copy(disk: &mut impl Disk, sector_bytes: u64, lba: u64) -> Result<Self> {
        let doing = || format!("header at LBA {lba}");
        let disk_sectors = disk.len_bytes() / sector_bytes;
        if disk_sectors < 6 || lba >= disk_sectors {
            return Err(Error::failed("the disk is too small for a table").within(doing()));
        }
        let mut sector = vec![0; to_usize(sector_bytes)?];
        disk.read_at(lba * sector_bytes, &mut sector).doing(doing)?;
        let header = check_header(&sector, lba).doing(doing)?;
        let mut table = Self {
            sector_bytes,
            disk_sectors,
            source: if lba == PRIMARY_LBA { Source::Primary } else { Source::Backup },
            header,
            entries: Vec::new(),
        };
        table.check_geometry().doing(doing)?;
        let mut entries = vec![0; to_usize(table.entries_bytes())?];
        disk.read_at(table.entries_lba() * sector_bytes, &mut entries).doing(doing)?;
        let (found, expected) = (crc32fast::hash(&entries), u32_at(&table.header, 88));
        if found != expected {
            let text = format!("CRC of the entries is {found:08x}, the header says {expected:08x}");
            return Err(Error::failed(text).within(doing()));
        }
        table.entries = entries;
        table.check_partitions().doing(doing)?;
        Ok(table)
    }

    /// LBA of the entries that this header points to.
    pub(super) fn entries_lba(&self) -> u64 {
        u64_at(&self.header, 72)
    }

    /// LBA of the other header.
    pub(super) fn alternate_lba(&self) -> u64 {
        u64_at(&self.header, 32)
    }

    /// The first LBA that a partition may have.
    fn first_usable(&self) -> u64 {
        u64_at(&self.header, 40)
    }

    /// The last LBA that a partition may have.
    pub(super) fn last_usable(&self) -> u64 {
        u64_at(&self.header, 48)
    }

    /// Bytes of all entries.
    fn entries_bytes(&self) -> u64 {
        u64::from(u32_at(&self.header, 80)) * u64::from(u32_at(&self.header, 84))
    }

    /// LBAs that the entries fill.
    pub(super) fn entries_sectors(&self) -> u64 {
        self.entries_bytes().div_ceil(self.sector_bytes)
    }

    fn check_geometry(&self) -> Result<()> {
        let (size, count) = (u32_at(&self.header, 84), u32_at(&self.header, 80));
        if size % ENTRY_BYTES != 0 || !(size / ENTRY_BYTES).is_power_of_two() {
            return Err(Error::failed(format!("entries of {size} bytes, expected 128 times a power of two")));
        }
        if count == 0 || self.entries_bytes() > ENTRIES_LIMIT_BYTES {
            return Err(Error::failed(format!(
                "{count} entries of {size} bytes: not a size that tools make"
            )));
        }
        let (first, last) = (self.first_usable(), self.last_usable());
        if first > last || first < ENTRIES_LBA || last >= self.disk_sectors {
            return Err(Error::failed(format!(
                "usable LBAs {first} to {last} do not fit a disk of {}",
                self.disk_sectors
            )));
        }
        let start = self.entries_lba();
        let end = start.checked_add(self.entries_sectors()).filter(|e| *e <= self.disk_sectors);
        match end {
            Some(end) if start >= ENTRIES_LBA && (end <= first || start > last) => Ok(()),
            _ => Err(Error::failed(format!("entries at LBA {start} lie where partitions are, or outside"))),
        }
    }

    fn check_partitions(&self) -> Result<()> {
        let mut taken: Vec<(u64, u64, u32)> = Vec::new();
        for (number, entry) in self.used() {
            let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
            if first > last || first < self.first_usable() || last > self.last_usable() {
                return Err(Error::failed(format!(
                    "partition {number} has LBAs {first} to {last}, outside the usable {} to {}",
                    self.first_usable(),
                    self.last_usable()
                )));
            }
            if let Some((_, _, other)) = taken.iter().find(|(f, l, _)| first <= *l && *f <= last) {
                return Err(Error::failed(format!("partitions {other} and {number} overlap")));
            }
            taken.push((first, last, number));
        }
        Ok(())
    }

    /// The entries that hold a partition, with their numbers from 1.
    fn used(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let size = usize::try_from(u32_at(&self.header, 84)).unwrap_or(usize::MAX);
        (1..).zip(self.entries.chunks_exact(size.max(1))).filter(|(_, e)| e.iter().take(16).any(|b| *b != 0))
    }

    /// The partitions, by number.
    pub fn partitions(&self) -> Vec<TableEntry> {
        self.used()
            .map(|(number, entry)| {
                let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
                TableEntry {
                    number,
                    start_bytes: first * self.sector_bytes,
                    len_bytes: (last - first + 1) * self.sector_bytes,
                    partuuid: guid(entry.get(16..32).unwrap_or_default()),
                    name: name(entry.get(56..128).unwrap_or_default()),
                }
            })
            .collect()
    }

    /// The first and last LBA of partition `number`.
    pub(super) fn extent(&self, number: u32) -> Option<(u64, u64)> {
        self.used().find(|(n, _)| *n == number).map(|(_, e)| (u64_at(e, 32), u64_at(e, 40)))
    }

    /// The same table with another end of partition `number` and another last usable LBA.
    #[must_use]
    pub(super) fn resized(&self, number: u32, last: u64, last_usable: u64) -> Self {
        let mut table = self.clone();
        let size = usize::try_from(u32_at(&self.header, 84)).unwrap_or(usize::MAX);
        let entry =
            usize::try_from(number).ok().and_then(|n| n.checked_sub(1)).and_then(|n| n.checked_mul(size));
        if let Some(at) = entry {
            put(&mut table.entries, at.saturating_add(40), &last.to_le_bytes());
        }
        put(&mut table.header, 48, &last_usable.to_le_bytes());
        table
    }

    /// Whether another copy describes the same partitions.
    pub(super) fn same_entries(&self, other: &Self) -> bool {
        self.entries == other.entries
    }

    /// The entries, filled up to whole sectors.
    pub(super) fn encode_entries(&self) -> Vec<u8> {
        let mut bytes = self.entries.clone();
        bytes.resize(usize::try_from(self.entries_sectors() * self.sector_bytes).unwrap_or(bytes.len()), 0);
        bytes
    }

    /// One header, as one whole sector.
    ///
    /// `lba` is its own place, `alternate_lba` the other header's, `entries_lba` that of the entries it vouches
    /// for.
    pub(super) fn encode_header(&self, lba: u64, alternate_lba: u64, entries_lba: u64) -> Vec<u8> {
        let mut bytes = self.header.clone();
        put(&mut bytes, 24, &lba.to_le_bytes());
        put(&mut bytes, 32, &alternate_lba.to_le_bytes());
        put(&mut bytes, 72, &entries_lba.to_le_bytes());
        put(&mut bytes, 88, &crc32fast::hash(&self.entries).to_le_bytes());
        put(&mut bytes, 16, &[0; 4]);
        let crc = crc32fast::hash(&bytes);
        put(&mut bytes, 16, &crc.to_le_bytes());
        bytes.resize(usize::try_from(self.sector_bytes).unwrap_or(bytes.len()), 0);
        bytes
    }
}

/// Checks what needs only the header's own sector; the result is its `header size` bytes.
fn check_header(sector: &[u8], lba: u64) -> Result<Vec<u8>> {
    if !sector.starts_with(SIGNATURE) {
        return Err(Error::failed("no \"EFI PART\""));
    }
    let revision = u32_at(sector, 8);
    if revision != 0x0001_0000 {
        return Err(Error::failed(format!("revision {revision:08x}, expected 00010000")));
    }
    let size = u32_at(sector, 12);
    let mut header = usize::try_from(size)
        .ok()
        .filter(|s| *s >= HEADER_BYTES)
        .and_then(|s| sector.get(..s))
        .map(<[u8]>::to_vec)
        .ok_or_else(|| Error::failed(format!("header of {size} bytes, expected 92 to {}", sector.len())))?;
    let expected = u32_at(&header, 16);
    put(&mut header, 16, &[0; 4]);
    let found = crc32fast::hash(&header);
    if found != expected {
        return Err(Error::failed(format!("CRC of the header is {found:08x}, it says {expected:08x}")));
    }
    put(&mut header, 16, &expected.to_le_bytes());
    let own = u64_at(&header, 24);
    if own != lba {
        return Err(Error::failed(format!("says that it belongs at LBA {own}")));
    }
    Ok(header)
}

fn to_usize(n: u64) -> Result<usize> {
    usize::try_from(n).map_err(|_| Error::failed(format!("{n} bytes: too large for this machine")))
}

/// A GUID as text, lower case: the first three fields are little-endian, the rest is in order.
fn guid(bytes: &[u8]) -> String {
    let Some(b) = array::<16>(bytes, 0) else { return String::new() };
    let (first, rest) = (u32_at(&b, 0), b.get(8..).unwrap_or_default());
    let tail: String = rest.iter().map(|b| format!("{b:02x}")).collect();
    let (node_hi, node_lo) = tail.split_at(4);
    format!(
        "{first:08x}-{:04x}-{:04x}-{node_hi}-{node_lo}",
        super::le::u16_at(&b, 4),
        super::le::u16_at(&b, 6)
    )
}

/// A partition's name: UTF-16LE, ended by a zero or the field.
fn name(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|c| super::le::u16_at(c, 0)).take_while(|u| *u != 0);
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guid_text_is_mixed_endian() {
        // UEFI specification 2.10, appendix A: the EFI system partition's type.
        let bytes =
            [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
        assert_eq!(guid(&bytes), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
    }

    #[test]
    fn names_end_at_zero_or_field() {
        let wide = |s: &str| s.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
        assert_eq!(name(&wide("resin-boot\0junk")), "resin-boot");
        assert_eq!(name(&wide("Größe")), "Größe");
        assert_eq!(name(&[0, 0xd8]), "\u{fffd}");
    }
}
