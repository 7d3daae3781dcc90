//! An environment in U-Boot's format as a boot chooser.

use super::copy::{EnvCopy, decode, newer};
use crate::block::Verified;
use crate::boot::resin::{self, Notation, Partitions};
use crate::boot::{BootChooser, Entries, Environment};
use crate::model::{BootPlan, Slot};
use crate::{Doing, Error, Result};

/// The variables that the boot plan consists of.
const OURS: [&str; 4] = ["resin_root_part", "upgrade_available", "bootcount", "os_bc_lim"];

/// The copies of an environment, one or two. The simulated world has some that lose power.
pub trait Copies {
    /// How many: two if the environment is redundant.
    fn count(&self) -> usize;

    /// What to call a copy in messages.
    fn name(&self, copy: usize) -> String;

    /// All bytes of a copy.
    ///
    /// # Errors
    /// `Failed` if it cannot be read.
    fn read(&self, copy: usize) -> Result<Vec<u8>>;

    /// Writes a whole copy and reads it back. A cut leaves anything.
    ///
    /// # Errors
    /// `Failed` if it was not written.
    fn write(&mut self, copy: usize, raw: &[u8]) -> Result<()>;

    /// Overwrites `old` by `new`, which differs in one sector only: a cut leaves one of them.
    ///
    /// # Errors
    /// `Failed`, with nothing written, if more would change.
    fn overwrite(&mut self, copy: usize, old: &[u8], new: &[u8]) -> Result<()>;
}

/// U-Boot's native environment as a boot chooser.
///
/// A redundant one is safe by its nature: the copy that is not in use is written, and counts once its CRC is right.
/// After a commit or disarm the other copy is written as well, so that a damaged one cannot bring the trial back. A
/// single one is changed only if all that changes, its CRC included, is in one sector.
#[derive(Debug)]
pub struct UbootEnv<C> {
    copies: C,
    notation: Notation,
}

/// The copy in use, and which it is.
struct Loaded {
    index: usize,
    copy: EnvCopy,
    other_is_same: bool,
}

impl<C: Copies> UbootEnv<C> {
    /// The chooser of these copies, on a disk where the slots have these partition numbers.
    pub const fn new(copies: C, partitions: Partitions) -> Self {
        Self { copies, notation: Notation::Hex(partitions) }
    }

    fn name(&self) -> String {
        format!("boot plan: {}", self.copies.name(0))
    }

    fn redundant(&self) -> bool {
        self.copies.count() > 1
    }

    fn load_copy(&self, copy: usize) -> Result<EnvCopy> {
        let loaded = self.copies.read(copy).and_then(|raw| decode(&raw, self.redundant()))?;
        match OURS.into_iter().find(|name| loaded.entries.count(name) > 1) {
            Some(name) => Err(Error::failed(format!("variable {name} stands twice"))),
            None => Ok(loaded),
        }
    }

    fn load(&self) -> Result<Loaded> {
        let first = self.load_copy(0);
        if !self.redundant() {
            return Ok(Loaded { index: 0, copy: first?, other_is_same: true });
        }
        match (first, self.load_copy(1)) {
            (Ok(a), Ok(b)) => {
                let other_is_same = a.entries == b.entries;
                let (index, copy) = if newer(a.flag, b.flag) { (1, b) } else { (0, a) };
                Ok(Loaded { index, copy, other_is_same })
            }
            (Ok(copy), Err(_)) => Ok(Loaded { index: 0, copy, other_is_same: false }),
            (Err(_), Ok(copy)) => Ok(Loaded { index: 1, copy, other_is_same: false }),
            (Err(a), Err(b)) => Err(Error::failed(format!("{a}; {}: {b}", self.copies.name(1)))),
        }
    }

    /// Writes `entries` where the bootloader finds them or, after a cut, what was there before.
    fn store(&mut self, loaded: &Loaded, entries: &Entries) -> Result<()> {
        if self.redundant() {
            let raw = loaded.copy.encode(entries, loaded.copy.flag.wrapping_add(1))?;
            self.copies.write(1 - loaded.index, &raw)
        } else {
            let old = loaded.copy.encode(&loaded.copy.entries, 0)?;
            self.copies.overwrite(0, &old, &loaded.copy.encode(entries, 0)?)
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut Entries)) -> Result<()> {
        let loaded = self.load()?;
        let mut entries = loaded.copy.entries.clone();
        change(&mut entries);
        if entries != loaded.copy.entries { self.store(&loaded, &entries) } else { Ok(()) }
    }

    fn settle(&mut self, primary: Slot) -> Result<()> {
        let notation = self.notation;
        self.change(|e| resin::settle(e, notation, primary))?;
        let loaded = self.load()?;
        if loaded.other_is_same { Ok(()) } else { self.store(&loaded, &loaded.copy.entries) }
    }

    /// What the boot script does, for boards whose firmware cannot count: the slot to boot now. A boot of a trial is
    /// counted, durably, before this returns; without tries left it is the primary.
    ///
    /// # Errors
    /// As [`BootChooser::plan`], and if the boot cannot be counted; the trial must then not be booted.
    pub fn count_boot(&mut self) -> Result<Slot> {
        let plan = self.plan()?;
        let Some(trial) = plan.trial.filter(|t| t.tries_left > 0) else { return Ok(plan.primary) };
        let notation = self.notation;
        let name = self.name();
        self.change(|entries| {
            let used = notation.count(entries, "bootcount").ok().flatten().unwrap_or(0);
            entries.set("bootcount", &format!("{:x}", used + 1));
        })
        .doing(|| name)?;
        Ok(trial.slot)
    }
}

impl<C: Copies> BootChooser for UbootEnv<C> {
    fn plan(&self) -> Result<BootPlan> {
        self.load().and_then(|l| resin::plan(&l.copy.entries, self.notation)).doing(|| self.name())
    }

    fn arm(&mut self, slot: &Verified, tries: u8) -> Result<()> {
        let (name, notation) = (self.name(), self.notation);
        self.change(|e| resin::arm(e, notation, slot.slot(), tries)).doing(|| name)
    }

    fn commit(&mut self, booted: Slot) -> Result<()> {
        self.disarm(booted)
    }

    fn disarm(&mut self, primary: Slot) -> Result<()> {
        let name = self.name();
        self.settle(primary).doing(|| name)
    }

    fn give_back(&mut self) -> Result<()> {
        if self.plan()?.trial.is_none() {
            return Ok(());
        }
        let (name, notation) = (self.name(), self.notation);
        self.change(|e| resin::give_back(e, notation)).doing(|| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::conformance;
    use crate::sim::files::MemoryStore;

    /// Made by tests/fixtures/uboot/make with fw_setenv 0.3.2: slot B on trial, one boot used; the second copy is the
    /// newer one, the first says that A is settled.
    const SINGLE: &[u8] = include_bytes!("../../../tests/fixtures/uboot/single.env");
    const FIRST: &[u8] = include_bytes!("../../../tests/fixtures/uboot/redundant-0.env");
    const SECOND: &[u8] = include_bytes!("../../../tests/fixtures/uboot/redundant-1.env");
    const PARTITIONS: Partitions = Partitions { a: 2, b: 3 };

    fn env(copies: &[&[u8]]) -> UbootEnv<MemoryStore> {
        let names = ["env.0", "env.1"];
        let files: Vec<_> = names.into_iter().zip(copies.iter().copied()).collect();
        UbootEnv::new(MemoryStore::of(&files), PARTITIONS)
    }

    #[test]
    fn keeps_the_laws() {
        for copies in [&[SINGLE][..], &[FIRST, SECOND]] {
            let mut env = env(copies);
            assert_eq!(env.plan().unwrap(), BootPlan::on_trial(Slot::B, 2));
            env.disarm(Slot::A).unwrap();
            conformance::check(&mut env);
        }
    }

    #[test]
    fn after_a_disarm_no_copy_knows_of_the_trial() {
        let mut env = env(&[FIRST, SECOND]);
        env.disarm(Slot::A).unwrap();
        for copy in 0..2 {
            let entries = env.load_copy(copy).unwrap().entries;
            assert_eq!(resin::plan(&entries, env.notation).unwrap(), BootPlan::settled(Slot::A));
        }
    }

    #[test]
    fn foreign_variables_survive_byte_for_byte_and_in_order() {
        let mut env = env(&[SINGLE]);
        let foreign = |env: &UbootEnv<MemoryStore>| -> Vec<Vec<u8>> {
            let Entries(all) = env.load().unwrap().copy.entries;
            all.into_iter().filter(|e| !OURS.iter().any(|n| e.starts_with(n.as_bytes()))).collect()
        };
        let before = foreign(&env);
        assert!(before.len() > 2);
        env.commit(Slot::B).unwrap();
        env.arm(&Verified::for_test(Slot::A), 5).unwrap();
        env.disarm(Slot::B).unwrap();
        assert_eq!(foreign(&env), before);
    }

    fn harmed(whole: &[u8]) -> impl Iterator<Item = Vec<u8>> {
        let flips = (0..whole.len() * 8).map(|bit| {
            let mut raw = whole.to_vec();
            raw[bit / 8] ^= 1 << (bit % 8);
            raw
        });
        flips.chain((0..whole.len()).map(|n| whole[..n].to_vec()))
    }

    #[test]
    fn every_harm_to_a_single_environment_is_an_error_that_names_it() {
        for raw in harmed(SINGLE) {
            let e = env(&[&raw]).plan().unwrap_err().to_string();
            assert!(e.starts_with("boot plan: env.0: "), "{e}");
        }
    }

    #[test]
    fn every_harm_to_one_copy_leaves_the_other_and_both_are_an_error() {
        for raw in harmed(SECOND) {
            // A flag is not covered by the CRC: one that fell over makes the other copy the newer one.
            let found = env(&[FIRST, &raw]).plan().unwrap();
            assert!(found == BootPlan::settled(Slot::A) || raw[5..] == SECOND[5..], "{found:?}");
        }
        for raw in harmed(FIRST) {
            let flag_only = raw.len() == FIRST.len() && raw[5..] == FIRST[5..] && raw[..4] == FIRST[..4];
            let found = env(&[&raw, SECOND]).plan().unwrap();
            assert!(found == BootPlan::on_trial(Slot::B, 2) || flag_only, "{found:?}");
        }
        let e = env(&[&FIRST[..100], &[0; 512]]).plan().unwrap_err().to_string();
        assert!(
            e.starts_with("boot plan: env.0: its CRC-32 is ") && e.contains("; env.1: its CRC-32 is "),
            "{e}"
        );
    }

    #[test]
    fn a_single_environment_that_would_change_in_two_sectors_is_left_alone() {
        let mut env = env(&[SINGLE]);
        env.change(|e| {
            e.0.insert(0, format!("aaa={}", "x".repeat(600)).into_bytes());
        })
        .unwrap_err();
        let loaded = env.load().unwrap();
        let mut entries = loaded.copy.entries.clone();
        entries.0.insert(0, format!("aaa={}", "x".repeat(600)).into_bytes());
        let raw = loaded.copy.encode(&entries, 0).unwrap();
        env.copies.write(0, &raw).unwrap();
        let e = env.disarm(Slot::A).unwrap_err().to_string();
        assert!(e.contains("the change would touch two sectors"), "{e}");
        assert_eq!(env.plan().unwrap(), BootPlan::on_trial(Slot::B, 2));
    }

    #[test]
    fn boots_are_counted_before_they_happen() {
        let mut env = env(&[FIRST, SECOND]);
        env.disarm(Slot::A).unwrap();
        assert_eq!(env.count_boot().unwrap(), Slot::A);
        env.arm(&Verified::for_test(Slot::B), 2).unwrap();
        for expected in [(Slot::B, 1), (Slot::B, 0), (Slot::A, 0), (Slot::A, 0)] {
            let slot = env.count_boot().unwrap();
            assert_eq!((slot, env.plan().unwrap().tries(Slot::B).unwrap()), expected);
        }
    }
}
