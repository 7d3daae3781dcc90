//! The GRUB boot chooser: the block's store, and the laws kept.

use super::{Block, decode, encode};
use crate::block::Verified;
use crate::boot::resin::{self, Notation};
use crate::boot::{BootChooser, Store, Variables};
use crate::model::{BootPlan, Slot};
use crate::{Doing, Error, Result};

/// An environment block in GRUB's format as a boot chooser: GRUB's own, and balena-bootloader's `bootenv`.
///
/// The file is overwritten in place, never truncated and never renamed (`grub-editenv` truncates first, and on FAT a
/// rename is not atomic): its clusters and directory entry stay, and one write changes bytes of one sector only, so a
/// power cut leaves the old block or the new one.
#[derive(Debug)]
pub struct Grub<S> {
    store: S,
    file: String,
    notation: Notation,
}

impl<S: Store> Grub<S> {
    /// The chooser whose block is `file` in `store`, in a bootloader's notation.
    pub fn new(store: S, file: impl Into<String>, notation: Notation) -> Self {
        Self { store, file: file.into(), notation }
    }

    fn name(&self) -> String {
        format!("boot plan: {}", self.store.name(&self.file))
    }

    fn read(&self) -> Result<Block> {
        let raw = self.store.read(&self.file)?.ok_or_else(|| Error::failed("No such file or directory"))?;
        decode(&raw)
    }

    fn change(&mut self, change: impl FnOnce(&mut Variables)) -> Result<()> {
        // balenaOS's programs write `bootenv` and `grubenv` with fatrw; the bootloader sees only the block itself.
        self.store.finish_fatrw(&self.file)?;
        let mut block = self.read()?;
        change(&mut block.variables);
        self.store.overwrite(&self.file, &encode(&block)?)
    }
}

impl<S: Store> BootChooser for Grub<S> {
    fn plan(&self) -> Result<BootPlan> {
        self.read().and_then(|block| resin::plan(&block.variables, self.notation)).doing(|| self.name())
    }

    fn arm(&mut self, slot: &Verified, tries: u8) -> Result<()> {
        let (name, notation) = (self.name(), self.notation);
        self.change(|v| resin::arm(v, notation, slot.slot(), tries)).doing(|| name)
    }

    fn commit(&mut self, booted: Slot) -> Result<()> {
        self.disarm(booted)
    }

    fn disarm(&mut self, primary: Slot) -> Result<()> {
        let (name, notation) = (self.name(), self.notation);
        self.change(|v| resin::settle(v, notation, primary)).doing(|| name)
    }

    fn give_back(&mut self) -> Result<()> {
        if self.plan()?.trial.is_none() {
            return Ok(());
        }
        let (name, notation) = (self.name(), self.notation);
        self.change(|v| resin::give_back(v, notation)).doing(|| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::resin::Partitions;
    use crate::boot::{Directory, Environment, conformance};
    use crate::sim::files::MemoryStore;
    use crate::sys;

    const SEED: &[u8] = include_bytes!("../../../tests/fixtures/grub/seed.grubenv");
    const ESCAPES: &[u8] = include_bytes!("../../../tests/fixtures/grub/escapes.grubenv");
    const BOOTENV: &[u8] = include_bytes!("../../../tests/fixtures/grub/bootenv.grubenv");

    const NOTATION: Notation = Notation::Decimal(Partitions { a: 2, b: 3 });

    fn chooser(dir: &tempfile::TempDir, raw: &[u8]) -> Grub<Directory> {
        sys::durable::replace(&dir.path().join("grubenv"), raw, 0o644).unwrap();
        Grub::new(Directory::new(dir.path()), "grubenv", NOTATION)
    }

    #[test]
    fn keeps_the_laws() {
        let dir = tempfile::tempdir().unwrap();
        conformance::check(&mut chooser(&dir, SEED));
    }

    #[test]
    fn balena_bootloader_s_block_keeps_the_laws() {
        let dir = tempfile::tempdir().unwrap();
        let mut bootenv = chooser(&dir, BOOTENV);
        bootenv.notation = Notation::Letters;
        conformance::check(&mut bootenv);
        bootenv.arm(&Verified::for_test(Slot::B), 3).unwrap();
        let values: Vec<_> =
            bootenv.read().unwrap().variables.iter().map(|(n, v)| format!("{n}={v}")).collect();
        let expected = [
            "bootcount=-1",
            "resin_root_part=B",
            "upgrade_available=1",
            "kernel_override_abi=",
            "extra_os_firmware_class_path=",
        ];
        assert_eq!(values, expected);
    }

    #[test]
    fn no_bit_and_no_byte_may_go_unnoticed_or_turn_into_a_default() {
        for (raw, notation) in [(SEED, NOTATION), (ESCAPES, NOTATION), (BOOTENV, Notation::Letters)] {
            let harms = (0..raw.len() * 8).map(|bit| {
                let mut raw = raw.to_vec();
                raw[bit / 8] ^= 1 << (bit % 8);
                raw
            });
            for harmed in harms.chain((0..raw.len()).map(|n| raw[..n].to_vec())) {
                let store = MemoryStore::of(&[("grubenv", &harmed)]);
                match Grub::new(store, "grubenv", notation).plan() {
                    Err(e) => assert!(e.to_string().starts_with("boot plan: grubenv: "), "{e}"),
                    // The format has no checksum: what it says must then stand there, word for word.
                    Ok(plan) => {
                        let mark = notation.mark(plan.trial.map_or(plan.primary, |t| t.slot));
                        let trial = u8::from(plan.trial.is_some());
                        let text = String::from_utf8_lossy(&harmed).into_owned();
                        assert_eq!(harmed.len(), 1024);
                        assert!(text.contains(&format!("\nresin_root_part={mark}\n")), "{text}");
                        assert!(text.contains(&format!("\nupgrade_available={trial}\n")), "{text}");
                    }
                }
            }
        }
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
        let names: Vec<_> = grub.read().unwrap().variables.iter().map(|(n, v)| format!("{n}={v}")).collect();
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
        for (name, value) in [
            ("resin_root_part", "2"),
            ("padding", &"x".repeat(500)),
            ("bootcount", "0"),
            ("upgrade_available", "0"),
        ] {
            block.variables.set(name, value);
        }
        let mut grub = chooser(&dir, &encode(&block).unwrap());
        let before = grub.plan().unwrap();
        let e = grub.arm(&Verified::for_test(Slot::B), 3).unwrap_err().to_string();
        assert!(e.contains("two sectors"), "{e}");
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
