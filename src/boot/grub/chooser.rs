//! The GRUB boot chooser: the block's store, and the laws kept.

use std::path::PathBuf;

use super::{BLOCK_BYTES, Block, decode, encode};
use crate::block::Verified;
use crate::boot::resin::{self, Partitions};
use crate::boot::{BootChooser, Variables};
use crate::model::{BootPlan, Slot};
use crate::{Doing, Error, Result, sys};

/// The unit that a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// GRUB's environment block as a boot chooser.
///
/// The file is overwritten in place, never truncated and never renamed (`grub-editenv` truncates first, and on FAT a
/// rename is not atomic): its clusters and directory entry stay, and one write changes bytes of one sector only, so a
/// power cut leaves the old block or the new one.
#[derive(Debug)]
pub struct Grub {
    file: PathBuf,
    partitions: Partitions,
}

impl Grub {
    /// The chooser whose block is the file `file`, on a disk where the slots have these partition numbers.
    pub const fn new(file: PathBuf, partitions: Partitions) -> Self {
        Self { file, partitions }
    }

    fn name(&self) -> String {
        format!("boot plan: {}", self.file.display())
    }

    fn read(&self) -> Result<(Vec<u8>, Block)> {
        let raw = sys::file::read(&self.file, BLOCK_BYTES as u64)?;
        let block = decode(&raw)?;
        Ok((raw, block))
    }

    fn change(&self, change: impl FnOnce(&mut Variables)) -> Result<()> {
        let (old, mut block) = self.read()?;
        change(&mut block.variables);
        let new = encode(&block)?;
        if old == new {
            return Ok(());
        }
        check_one_sector(&old, &new)?;
        sys::durable::overwrite(&self.file, &new)
    }
}

/// Refuses a change that a power cut could leave half done.
fn check_one_sector(old: &[u8], new: &[u8]) -> Result<()> {
    let changed = old.chunks(SECTOR_BYTES).zip(new.chunks(SECTOR_BYTES)).filter(|(a, b)| a != b).count();
    if changed > 1 {
        return Err(Error::failed(
            "the change would touch both sectors of the block; move resin_root_part, upgrade_available, bootcount and \
             os_bc_lim to its start",
        ));
    }
    Ok(())
}

impl BootChooser for Grub {
    fn plan(&self) -> Result<BootPlan> {
        self.read()
            .and_then(|(_, block)| resin::plan(&block.variables, self.partitions))
            .doing(|| self.name())
    }

    fn arm(&mut self, slot: &Verified, tries: u8) -> Result<()> {
        self.change(|v| resin::arm(v, self.partitions, slot.slot(), tries)).doing(|| self.name())
    }

    fn commit(&mut self, booted: Slot) -> Result<()> {
        self.change(|v| resin::settle(v, self.partitions, booted)).doing(|| self.name())
    }

    fn disarm(&mut self, primary: Slot) -> Result<()> {
        self.change(|v| resin::settle(v, self.partitions, primary)).doing(|| self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::conformance;

    const SEED: &[u8] = include_bytes!("../../../tests/fixtures/grub/seed.grubenv");

    fn chooser(dir: &tempfile::TempDir, raw: &[u8]) -> Grub {
        let file = dir.path().join("grubenv");
        sys::durable::replace(&file, raw, 0o644).unwrap();
        Grub::new(file, Partitions { a: 2, b: 3 })
    }

    #[test]
    fn keeps_the_laws() {
        let dir = tempfile::tempdir().unwrap();
        conformance::check(&mut chooser(&dir, SEED));
    }

    #[test]
    fn foreign_variables_survive_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut block = Block::default();
        for (name, value) in
            [("first", "1"), ("resin_root_part", "2"), ("saved_entry", "a\nb"), ("bootcount", "0")]
        {
            block.variables.set(name, value);
        }
        let mut grub = chooser(&dir, &encode(&block).unwrap());
        grub.arm(&Verified::for_test(Slot::B), 3).unwrap();
        grub.commit(Slot::B).unwrap();
        let names: Vec<_> =
            grub.read().unwrap().1.variables.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(
            names,
            [
                "first=1",
                "resin_root_part=3",
                "saved_entry=a\nb",
                "bootcount=0",
                "upgrade_available=0",
                "os_bc_lim=3"
            ]
        );
    }

    #[test]
    fn a_change_across_two_sectors_is_refused_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut block = Block::default();
        for (name, value) in [("resin_root_part", "2"), ("padding", &"x".repeat(500)), ("bootcount", "0")] {
            block.variables.set(name, value);
        }
        let mut grub = chooser(&dir, &encode(&block).unwrap());
        let before = grub.plan().unwrap();
        let e = grub.arm(&Verified::for_test(Slot::B), 3).unwrap_err().to_string();
        assert!(e.contains("both sectors"), "{e}");
        assert_eq!(grub.plan().unwrap(), before);
    }

    #[test]
    fn an_unreadable_block_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let e = chooser(&dir, &SEED[..1000]).plan().unwrap_err().to_string();
        let expected =
            format!("boot plan: {}: 1000 bytes, expected 1024", dir.path().join("grubenv").display());
        assert_eq!(e, expected);
    }
}
