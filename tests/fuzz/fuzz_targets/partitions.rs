//! Partition tables and superblocks: the bytes are pieces of a disk, each with its sector before it.
#![no_main]
use libfuzzer_sys::fuzz_target;
use twinhull::block::{Disk, Gpt, Mbr, probe};
use twinhull::{Error, Result};

const SECTORS: usize = 4096;

/// A disk in memory that can only be read.
struct Memory(Vec<u8>);

impl Disk for Memory {
    fn len_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = from.checked_add(buffer.len()).and_then(|to| self.0.get(from..to));
        buffer.copy_from_slice(bytes.ok_or_else(|| Error::failed("behind the end"))?);
        Ok(())
    }

    fn write_at(&mut self, _: u64, _: &[u8]) -> Result<()> {
        Err(Error::failed("reading wrote"))
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut disk = Memory(vec![0; SECTORS * 512]);
    for piece in bytes.chunks(2 + 512) {
        if let Some((sector, content)) = piece.split_first_chunk::<2>() {
            let at = usize::from(u16::from_le_bytes(*sector)) % SECTORS * 512;
            disk.0[at..at + content.len()].copy_from_slice(content);
        }
    }
    for sector_bytes in [512, 4096] {
        if let Ok(table) = Gpt::read(&mut disk, sector_bytes) {
            let _ = table.partitions();
        }
        // Checksums are no secret.
        let mut sealed = Memory(disk.0.clone());
        seal(&mut sealed.0, sector_bytes as usize);
        if let Ok(table) = Gpt::read(&mut sealed, sector_bytes) {
            let _ = table.partitions();
        }
        if let Ok(table) = Mbr::read(&mut disk, sector_bytes) {
            let _ = table.partitions();
        }
    }
    let _ = probe(&mut disk, 0, (SECTORS * 512) as u64);
});

/// Gives the primary GPT header its right checksums (UEFI 2.10, 5.3.2).
fn seal(disk: &mut [u8], sector: usize) {
    let number = |at: usize| u32::from_le_bytes(disk[at..at + 4].try_into().unwrap()) as usize;
    let entries = u64::from_le_bytes(disk[sector + 72..sector + 80].try_into().unwrap());
    let from = usize::try_from(entries).unwrap_or(usize::MAX).saturating_mul(sector);
    let len = number(sector + 80).saturating_mul(number(sector + 84));
    if let Some(table) = from.checked_add(len).and_then(|to| disk.get(from..to)) {
        let sum = crc32(table).to_le_bytes();
        disk[sector + 88..sector + 92].copy_from_slice(&sum);
    }
    disk[sector + 16..sector + 20].fill(0);
    let len = u32::from_le_bytes(disk[sector + 12..sector + 16].try_into().unwrap()) as usize;
    if let Some(header) = disk.get(sector..sector.saturating_add(len)) {
        let sum = crc32(header).to_le_bytes();
        disk[sector + 16..sector + 20].copy_from_slice(&sum);
    }
}

/// As zlib has it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}
