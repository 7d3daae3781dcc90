//! `autoboot.txt` as a boot chooser.

use std::ffi::CStr;

use super::autoboot::{Autoboot, LIMIT_BYTES, Section, decode};
use crate::block::Verified;
use crate::boot::resin::Partitions;
use crate::boot::{BootChooser, Store};
use crate::model::{BootPlan, Slot};
use crate::{Doing, Error, Result};

/// Its name on the first partition.
pub const FILE: &str = "autoboot.txt";

/// The bootloader EEPROM's build time from which `tryboot_a_b` is known to work, in seconds since 1970: 2023-01-11. One of
/// 2021-04-29 is known not to.
const EEPROM_SINCE: u32 = 1_673_395_200;

/// Raspberry Pi's `autoboot.txt` as a boot chooser.
///
/// The whole file is one sector, and it is overwritten in place. `[all]` names the primary's boot partition; `[tryboot]`
/// names the trial's, or the primary's when there is none. The firmware boots `[tryboot]` once, when the reboot asks for it,
/// so each try is counted in the file and started by [`BootChooser::before_reboot`]; whatever else happens, the primary boots.
#[derive(Debug)]
pub struct Tryboot<S> {
    store: S,
    partitions: Partitions,
    eeprom_built: Option<u32>,
}

impl<S: Store> Tryboot<S> {
    /// The chooser on the first partition's directory `store`. `partitions` are those of each slot's kernel, not of its
    /// root; `eeprom_built` is the firmware's build time, on boards that tell it.
    pub const fn new(store: S, partitions: Partitions, eeprom_built: Option<u32>) -> Self {
        Self { store, partitions, eeprom_built }
    }

    fn name(&self) -> String {
        format!("boot plan: {}", self.store.name(FILE))
    }

    fn read(&self) -> Result<(Vec<u8>, Autoboot)> {
        let raw = self.store.read(FILE)?.ok_or_else(|| Error::failed("No such file or directory"))?;
        let autoboot = decode(&raw)?;
        Ok((raw, autoboot))
    }

    fn slot(&self, autoboot: &Autoboot, section: Section) -> Result<Slot> {
        let Partitions { a, b } = self.partitions;
        let value = autoboot.value(section, "boot_partition").unwrap_or_default();
        match value.parse::<u32>() {
            Ok(n) if n == a => Ok(Slot::A),
            Ok(n) if n == b => Ok(Slot::B),
            _ => Err(Error::failed(format!(
                "boot_partition in {} is {value:?}, expected {a} (slot A) or {b} (slot B)",
                section.name()
            ))),
        }
    }

    fn plan_of(&self, autoboot: &Autoboot) -> Result<BootPlan> {
        match autoboot.value(Section::All, "tryboot_a_b").as_deref() {
            Some("1") => {}
            other => {
                let found = other.unwrap_or("missing");
                return Err(Error::failed(format!("tryboot_a_b in [all] is {found}, expected 1")));
            }
        }
        let primary = self.slot(autoboot, Section::All)?;
        let tried = self.slot(autoboot, Section::Tryboot)?;
        if tried == primary {
            return Ok(BootPlan::settled(primary));
        }
        Ok(BootPlan::on_trial(tried, autoboot.tries_left()?))
    }

    fn change(&mut self, change: impl FnOnce(&mut Autoboot) -> Result<()>) -> Result<()> {
        self.store.finish_fatrw(FILE)?;
        let (old, mut autoboot) = self.read()?;
        change(&mut autoboot)?;
        let new = autoboot.encode(old.len());
        if new.len() > LIMIT_BYTES {
            return Err(Error::failed(format!(
                "needs {} bytes, the firmware reads at most {LIMIT_BYTES}",
                new.len()
            )));
        }
        if new.len() > old.len() {
            self.store.pad(FILE, &vec![b'\n'; new.len() - old.len()])?;
        }
        self.store.overwrite(FILE, &new)
    }

    fn number(&self, slot: Slot) -> String {
        match slot {
            Slot::A => self.partitions.a.to_string(),
            Slot::B => self.partitions.b.to_string(),
        }
    }

    fn settle(&mut self, primary: Slot) -> Result<()> {
        let number = self.number(primary);
        self.change(|file| {
            file.set(Section::All, "boot_partition", &number)?;
            file.set(Section::Tryboot, "boot_partition", &number)
        })
    }
}

impl<S: Store> BootChooser for Tryboot<S> {
    fn plan(&self) -> Result<BootPlan> {
        self.read().and_then(|(_, autoboot)| self.plan_of(&autoboot)).doing(|| self.name())
    }

    fn arm(&mut self, slot: &Verified, tries: u8) -> Result<()> {
        if let Some(built) = self.eeprom_built.filter(|built| *built < EEPROM_SINCE) {
            return Err(Error::refused(format!(
                "the bootloader EEPROM is of {built} (seconds since 1970), older than {EEPROM_SINCE} (January 2023), and \
                 cannot try a system; update it with rpi-eeprom-update"
            )));
        }
        let (name, numbers) = (self.name(), [!slot.slot(), slot.slot()].map(|s| self.number(s)));
        let [primary, trial] = &numbers;
        self.change(|file| {
            file.set_tries_left(tries);
            file.set(Section::All, "boot_partition", primary)?;
            file.set(Section::Tryboot, "boot_partition", trial)
        })
        .doing(|| name)
    }

    fn commit(&mut self, booted: Slot) -> Result<()> {
        self.disarm(booted)
    }

    fn disarm(&mut self, primary: Slot) -> Result<()> {
        let name = self.name();
        self.settle(primary).doing(|| name)
    }

    fn give_back(&mut self) -> Result<()> {
        let Some(trial) = self.plan()?.trial.filter(|trial| trial.tries_left < 9) else { return Ok(()) };
        let name = self.name();
        self.change(|file| {
            file.set_tries_left(trial.tries_left + 1);
            Ok(())
        })
        .doing(|| name)
    }

    fn one_shot(&self) -> bool {
        true
    }

    fn before_reboot(&mut self) -> Result<Option<&'static CStr>> {
        let Some(left) = self.plan()?.trial.and_then(|t| t.tries_left.checked_sub(1)) else {
            return Ok(None);
        };
        let name = self.name();
        self.change(|file| {
            file.set_tries_left(left);
            Ok(())
        })
        .doing(|| name)?;
        Ok(Some(c"0 tryboot"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::conformance;
    use crate::sim::files::MemoryStore;

    const SETTLED: &[u8] = include_bytes!("../../../boot/raspberrypi/autoboot.txt");
    const TRIAL: &[u8] = b"# kept\n[all]\ntryboot_a_b=1\nboot_partition=2\n[pi5]\nboot_partition=9\n[tryboot]\nboot_partition=3\n\
        # twinhull: tries_left=2\n";
    const PARTITIONS: Partitions = Partitions { a: 2, b: 3 };

    fn chooser(raw: &[u8]) -> Tryboot<MemoryStore> {
        Tryboot::new(MemoryStore::of(&[(FILE, raw)]), PARTITIONS, None)
    }

    #[test]
    fn keeps_the_laws() {
        conformance::check(&mut chooser(SETTLED));
    }

    #[test]
    fn each_try_is_counted_before_its_reboot_and_asks_for_tryboot() {
        let mut chooser = chooser(TRIAL);
        for left in [1, 0] {
            assert_eq!(chooser.before_reboot().unwrap(), Some(c"0 tryboot"));
            assert_eq!(chooser.plan().unwrap(), BootPlan::on_trial(Slot::B, left));
        }
        assert_eq!(chooser.before_reboot().unwrap(), None);
        chooser.disarm(Slot::A).unwrap();
        assert_eq!(chooser.before_reboot().unwrap(), None);
    }

    #[test]
    fn foreign_lines_survive_byte_for_byte() {
        let mut chooser = chooser(TRIAL);
        let text = |chooser: &Tryboot<MemoryStore>| {
            String::from_utf8(chooser.store.read(FILE).unwrap().unwrap()).unwrap()
        };
        let expected = |all, tryboot, tries| {
            format!(
                "# kept\n[all]\ntryboot_a_b=1\nboot_partition={all}\n[pi5]\nboot_partition=9\n[tryboot]\n\
                 boot_partition={tryboot}\n# twinhull: tries_left={tries}\n"
            )
        };
        chooser.commit(Slot::B).unwrap();
        assert_eq!(text(&chooser), expected(3, 3, 2));
        chooser.arm(&Verified::for_test(Slot::A), 5).unwrap();
        assert_eq!(text(&chooser), expected(3, 2, 5));
        chooser.disarm(Slot::B).unwrap();
        assert_eq!(text(&chooser), expected(3, 3, 5));
    }

    #[test]
    fn a_file_that_the_firmware_would_not_read_whole_is_refused() {
        let long = [TRIAL, "# x\n".repeat(120).as_bytes()].concat();
        let e = chooser(&long).plan().unwrap_err().to_string();
        assert!(
            e.starts_with("boot plan: autoboot.txt: ") && e.contains("the firmware reads at most 512"),
            "{e}"
        );
        // One that is full, and lacks the line for the tries.
        let full = [SETTLED, "#".repeat(512 - SETTLED.len() - 1).as_bytes(), b"\n"].concat();
        let full =
            String::from_utf8(full).unwrap().replace("# twinhull: tries_left=0", "#23456789012345678901234");
        let mut full = chooser(full.as_bytes());
        let e = full.arm(&Verified::for_test(Slot::B), 3).unwrap_err().to_string();
        assert!(e.contains("the firmware reads at most 512"), "{e}");
        assert_eq!(full.plan().unwrap(), BootPlan::settled(Slot::A));
    }

    #[test]
    fn an_eeprom_that_is_too_old_is_refused_with_what_to_do() {
        let mut old = Tryboot::new(MemoryStore::of(&[(FILE, SETTLED)]), PARTITIONS, Some(1_619_654_400));
        let e = old.arm(&Verified::for_test(Slot::B), 3).unwrap_err();
        assert_eq!(e.kind(), crate::Kind::Refused);
        assert!(e.to_string().contains("update it with rpi-eeprom-update"), "{e}");
    }

    #[test]
    fn no_bit_and_no_byte_may_turn_into_a_default() {
        let flips = (0..TRIAL.len() * 8).map(|bit| {
            let mut raw = TRIAL.to_vec();
            raw[bit / 8] ^= 1 << (bit % 8);
            raw
        });
        for harmed in flips.chain((0..TRIAL.len()).map(|n| TRIAL[..n].to_vec())) {
            match chooser(&harmed).plan() {
                Err(e) => assert!(e.to_string().starts_with("boot plan: autoboot.txt: "), "{e}"),
                // The format has no checksum: what the plan says must stand there, word for word.
                Ok(plan) => {
                    let text = String::from_utf8_lossy(&harmed).into_owned();
                    assert!(text.contains("\ntryboot_a_b=1\n"), "{text}");
                    let (all, tryboot) = text.split_once("\n[tryboot]\n").unwrap();
                    let number = |slot| if slot == Slot::A { 2 } else { 3 };
                    assert!(all.contains(&format!("boot_partition={}\n", number(plan.primary))), "{text}");
                    let tried = plan.trial.map_or(plan.primary, |t| t.slot);
                    assert!(tryboot.starts_with(&format!("boot_partition={}\n", number(tried))), "{text}");
                }
            }
        }
    }
}
