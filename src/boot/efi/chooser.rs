//! The variables as a boot chooser.

use std::ffi::CStr;

use super::load_option::LoadOption;
use super::trial::{self, TRIAL};
use crate::block::Verified;
use crate::boot::BootChooser;
use crate::model::{BootPlan, Slot, Trial};
use crate::{Doing, Error, Result};

/// The list of entries that the firmware tries by itself: numbers (u16, little-endian).
pub const BOOT_ORDER: &str = "BootOrder-8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// The entry that it tries once, before all others; it removes the variable first.
pub const BOOT_NEXT: &str = "BootNext-8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// `NON_VOLATILE`, `BOOTSERVICE_ACCESS`, `RUNTIME_ACCESS`: what a variable of ours has; others keep what they have.
const ATTRIBUTES: u32 = 7;

/// The firmware's variables. The simulated world has some that lose power.
pub trait VariableStore {
    /// Their names, `NAME-GUID`, sorted.
    ///
    /// # Errors
    /// `Failed` if they cannot be listed.
    fn list(&self) -> Result<Vec<String>>;

    /// A variable's attributes (u32, little-endian) and then its value; `None` if there is none.
    ///
    /// # Errors
    /// `Failed`, naming the variable.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>>;

    /// Sets a variable: after a cut the old or the new value is there.
    ///
    /// # Errors
    /// `Failed`, naming the variable.
    fn write(&mut self, name: &str, raw: &[u8]) -> Result<()>;

    /// Removes a variable; one that is not there is fine.
    ///
    /// # Errors
    /// `Failed`, naming the variable.
    fn remove(&mut self, name: &str) -> Result<()>;

    /// What to call a variable in messages.
    fn name(&self, name: &str) -> String;
}

/// UEFI's boot manager as a boot chooser.
///
/// The primary is the first of our entries in `BootOrder`, and the only one there. A trial is a variable of our own, which
/// arms it in one write; each try is counted in it and then started with `BootNext` by [`BootChooser::before_reboot`]. The
/// firmware removes `BootNext` before it starts anything, so whatever else happens, the primary boots. Entries and variables
/// that are not ours are not touched.
#[derive(Debug)]
pub struct EfiBoot<S> {
    store: S,
    wanted: [LoadOption; 2],
}

/// An entry of ours, as it was or as it should be.
struct Entry {
    number: u16,
    slot: Slot,
    /// Whether it is as it should be.
    sound: bool,
}

/// The name of the variable of entry `number`.
pub fn entry_file(number: u16) -> String {
    format!("Boot{number:04X}-8be4df61-93ca-11d2-aa0d-00e098032b8c")
}

/// The numbers in a value, and what is left at its end.
fn numbers(value: &[u8]) -> (Vec<u16>, &[u8]) {
    let (pairs, rest) = value.as_chunks::<2>();
    (pairs.iter().copied().map(u16::from_le_bytes).collect(), rest)
}

impl<S: VariableStore> EfiBoot<S> {
    /// The chooser with these entries for slot A and slot B.
    pub const fn new(store: S, wanted: [LoadOption; 2]) -> Self {
        Self { store, wanted }
    }

    fn wanted(&self, slot: Slot) -> &LoadOption {
        let [a, b] = &self.wanted;
        match slot {
            Slot::A => a,
            Slot::B => b,
        }
    }

    /// Attributes and value of a variable.
    fn load(&self, name: &str) -> Result<Option<(u32, Vec<u8>)>> {
        let Some(raw) = self.store.read(name)? else { return Ok(None) };
        let short = || {
            Error::failed(format!("{} bytes, expected 4 of attributes first", raw.len()))
                .within(self.store.name(name))
        };
        let (attributes, value) = raw.split_first_chunk::<4>().ok_or_else(short)?;
        Ok(Some((u32::from_le_bytes(*attributes), value.to_vec())))
    }

    /// Sets a variable, if it has another value.
    fn save(&mut self, name: &str, value: &[u8]) -> Result<()> {
        let attributes = match self.load(name) {
            Ok(Some((_, old))) if old == value => return Ok(()),
            Ok(Some((attributes, _))) => attributes,
            Ok(None) | Err(_) => ATTRIBUTES,
        };
        self.store.write(name, &[&attributes.to_le_bytes()[..], value].concat())
    }

    /// The numbers in `BootOrder` or `BootNext`; `None` if there is no such variable.
    fn numbers(&self, name: &str) -> Result<Option<Vec<u16>>> {
        let Some((_, value)) = self.load(name)? else { return Ok(None) };
        match numbers(&value) {
            (numbers, []) => Ok(Some(numbers)),
            (_, _rest) => {
                let what = format!("{} bytes, expected two for each entry", value.len());
                Err(Error::failed(what).within(self.store.name(name)))
            }
        }
    }

    fn order(&self) -> Result<Vec<u16>> {
        self.numbers(BOOT_ORDER)?.ok_or_else(|| {
            Error::failed("No such variable; was this system started by UEFI, and is efivarfs mounted?")
                .within(self.store.name(BOOT_ORDER))
        })
    }

    fn save_order(&mut self, order: &[u16]) -> Result<()> {
        let value: Vec<u8> = order.iter().copied().flat_map(u16::to_le_bytes).collect();
        self.save(BOOT_ORDER, &value)
    }

    /// Our entries, by number. What cannot be read is nobody's.
    fn entries(&self) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        for name in self.store.list()? {
            let digits = name.strip_prefix("Boot").and_then(|n| n.get(..4)).unwrap_or_default();
            let Some(number) = u16::from_str_radix(digits, 16).ok().filter(|n| entry_file(*n) == name) else {
                continue;
            };
            let Ok(Some((_, value))) = self.load(&name) else { continue };
            let Ok(option) = LoadOption::decode(&value) else { continue };
            let slot = Slot::ALL.into_iter().find(|slot| option.is_for(self.wanted(*slot)));
            found.extend(slot.map(|slot| Entry { number, slot, sound: option.is_as(self.wanted(slot)) }));
        }
        Ok(found)
    }

    /// Those of our entries that `BootOrder` names, in its order.
    fn named<'e>(order: &[u16], entries: &'e [Entry]) -> Vec<&'e Entry> {
        order.iter().filter_map(|number| entries.iter().find(|e| e.number == *number)).collect()
    }

    fn primary(&self) -> Result<Slot> {
        let (order, entries) = (self.order()?, self.entries()?);
        let what = match Self::named(&order, &entries).as_slice() {
            [one] if one.sound => return Ok(one.slot),
            [one] => format!("the entry of slot {} is not as its template says", one.slot),
            [] => "no entry of slot A or B".into(),
            [_, _, ..] => {
                "two entries of slot A or B, the second of which the firmware could fall back to".into()
            }
        };
        let what = format!("{what}; `twinhull resume` puts it right");
        Err(Error::failed(what).within(self.store.name(BOOT_ORDER)))
    }

    /// Our variable, if there is one.
    fn trial(&self) -> Result<Option<Trial>> {
        let Some((_, value)) = self.load(TRIAL)? else { return Ok(None) };
        trial::decode(&value).map(Some).doing(|| self.store.name(TRIAL))
    }

    fn current_plan(&self) -> Result<BootPlan> {
        let primary = self.primary()?;
        let trial = self.trial()?.filter(|trial| trial.slot != primary);
        Ok(BootPlan { primary, trial })
    }

    /// The number of the slot's entry, which is made, or made right, if need be.
    fn entry(&mut self, slot: Slot, order: &[u16]) -> Result<u16> {
        let entries = self.entries()?;
        let mut ours = entries.iter().filter(|e| e.slot == slot);
        let number = match ours.clone().find(|e| e.sound).or_else(|| ours.next()) {
            Some(entry) if entry.sound => return Ok(entry.number),
            Some(entry) => Some(entry.number),
            None => {
                let names = self.store.list()?;
                (0..=u16::MAX).find(|n| !order.contains(n) && !names.contains(&entry_file(*n)))
            }
        };
        let number = number.ok_or_else(|| Error::failed("every number of a boot entry is taken"))?;
        log::info!("boot entry {number:04X} is made for slot {slot}");
        let value = self.wanted(slot).encode()?;
        self.save(&entry_file(number), &value)?;
        Ok(number)
    }

    /// Puts the slot's entry where the first of ours stands in `BootOrder`, or in front, and takes the others out.
    fn make_primary(&mut self, slot: Slot, order: &[u16]) -> Result<()> {
        let number = self.entry(slot, order)?;
        let ours: Vec<u16> = self.entries()?.iter().map(|e| e.number).collect();
        let place = order.iter().position(|n| ours.contains(n)).unwrap_or(0);
        let mut new: Vec<u16> = order.iter().copied().filter(|n| !ours.contains(n)).collect();
        new.insert(place.min(new.len()), number);
        self.save_order(&new)
    }

    fn settle(&mut self, slot: Slot) -> Result<()> {
        self.forget_next()?;
        let (order, before) = (self.order()?, self.primary()?);
        // A trial of what is the primary by now is left from a commit that was cut short: with another primary it would
        // mean something again.
        if self.trial()?.is_some_and(|trial| trial.slot == before) {
            self.store.remove(TRIAL)?;
        }
        self.make_primary(slot, &order)?;
        self.store.remove(TRIAL)
    }

    /// Removes a `BootNext` that is ours.
    fn forget_next(&mut self) -> Result<()> {
        let Some(next) = self.numbers(BOOT_NEXT)? else { return Ok(()) };
        match self.entries()?.iter().any(|e| next.contains(&e.number)) {
            true => self.store.remove(BOOT_NEXT),
            false => Ok(()),
        }
    }
}

impl<S: VariableStore> BootChooser for EfiBoot<S> {
    fn plan(&self) -> Result<BootPlan> {
        self.current_plan().doing(|| "boot plan")
    }

    fn arm(&mut self, slot: &Verified, tries_left: u8) -> Result<()> {
        let plan = self.plan()?;
        let slot = slot.slot();
        if plan.primary == slot {
            return Err(Error::inconsistent(format!(
                "boot plan: slot {slot} is the primary, only the other can be on trial"
            )));
        }
        let mut armed = || -> Result<()> {
            self.forget_next()?;
            let order = self.order()?;
            self.make_primary(plan.primary, &order)?;
            self.entry(slot, &order)?;
            self.save(TRIAL, &trial::encode(Trial { slot, tries_left }))
        };
        armed().doing(|| "boot plan")
    }

    fn commit(&mut self, booted: Slot) -> Result<()> {
        self.disarm(booted)
    }

    fn disarm(&mut self, primary: Slot) -> Result<()> {
        self.settle(primary).doing(|| "boot plan")
    }

    fn give_back(&mut self) -> Result<()> {
        let Some(trial) = self.plan()?.trial.filter(|trial| trial.tries_left < 9) else { return Ok(()) };
        let given = Trial { tries_left: trial.tries_left + 1, ..trial };
        self.save(TRIAL, &trial::encode(given)).doing(|| "boot plan")
    }

    fn one_shot(&self) -> bool {
        true
    }

    fn before_reboot(&mut self) -> Result<Option<&'static CStr>> {
        let Some(trial) = self.plan()?.trial else { return Ok(None) };
        let Some(tries_left) = trial.tries_left.checked_sub(1) else { return Ok(None) };
        let mut started = || -> Result<()> {
            let order = self.order()?;
            let number = self.entry(trial.slot, &order)?;
            // Also if it is asked for already: firmware that passes `BootNext` over would be asked for ever.
            self.save(TRIAL, &trial::encode(Trial { tries_left, ..trial }))?;
            self.save(BOOT_NEXT, &number.to_le_bytes())
        };
        started().doing(|| "boot plan")?;
        Ok(None)
    }

    fn restore(&mut self, booted: Slot) -> Result<()> {
        if let Err(e) = self.trial() {
            log::warn!("boot plan: {e}; it is removed: in doubt the primary boots");
            self.store.remove(TRIAL)?;
        }
        if let Err(e) = self.numbers(BOOT_NEXT) {
            log::warn!("boot plan: {e}; it is removed");
            self.store.remove(BOOT_NEXT)?;
        }
        let Err(lost) = self.primary() else { return Ok(()) };
        if self.store.list()?.is_empty() {
            return Err(lost).doing(|| "boot plan");
        }
        // Half a number at its end is no reason to forget those before it.
        let order = self.store.read(BOOT_ORDER)?.unwrap_or_default();
        let order = numbers(order.get(4..).unwrap_or_default()).0;
        let entries = self.entries()?;
        let trial = self.trial()?;
        // Without an entry the firmware has started what it finds by itself: that is what runs, unless it is on trial.
        let primary = match (Self::named(&order, &entries).as_slice(), trial) {
            ([one], _) | ([one, ..], None) => one.slot,
            (_, Some(trial)) => !trial.slot,
            ([], None) => booted,
        };
        log::warn!("boot plan: {lost}; slot {primary} is made the primary");
        self.make_primary(primary, &order).doing(|| "boot plan")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::boot::conformance;
    use crate::sim::efi_model::{seed, wanted};
    use crate::sim::files::MemoryStore;

    type Variables = BTreeMap<String, Vec<u8>>;

    fn chooser(variables: &Variables) -> EfiBoot<MemoryStore> {
        let all: Vec<_> = variables.iter().map(|(name, raw)| (name.as_str(), raw.as_slice())).collect();
        EfiBoot::new(MemoryStore::of(&all), wanted())
    }

    fn variables(chooser: &EfiBoot<MemoryStore>) -> Variables {
        let names = chooser.store.list().unwrap();
        names.into_iter().map(|n| (n.clone(), chooser.store.read(&n).unwrap().unwrap())).collect()
    }

    /// Made by tests/fixtures/efi/make with efibootmgr 17: a stick's entry and slot A's in the order, slot B's asked for.
    fn fixture() -> Variables {
        macro_rules! file {
            ($name:literal) => {{
                let name = concat!($name, "-8be4df61-93ca-11d2-aa0d-00e098032b8c");
                (
                    name.to_owned(),
                    include_bytes!(concat!(
                        "../../../tests/fixtures/efi/",
                        $name,
                        "-8be4df61-93ca-11d2-aa0d-00e098032b8c"
                    ))
                    .to_vec(),
                )
            }};
        }
        let entries = [file!("Boot0000"), file!("Boot0001"), file!("Boot0003")];
        entries.into_iter().chain([file!("BootNext"), file!("BootOrder")]).collect()
    }

    /// The same, with the variable of ours: slot B on trial with two tries left.
    fn on_trial() -> Variables {
        let mut chooser = chooser(&fixture());
        chooser.arm(&Verified::for_test(Slot::B), 3).unwrap();
        chooser.before_reboot().unwrap();
        variables(&chooser)
    }

    #[test]
    fn an_armed_trial_is_what_the_tool_wrote_and_one_variable_more() {
        let mut found = on_trial();
        let trial = found.remove(TRIAL).unwrap();
        assert_eq!(found, fixture());
        let crc = crc32fast::hash(b"slot=B tries_left=2");
        assert_eq!(trial, [b"\x07\0\0\0", format!("slot=B tries_left=2 crc={crc:08x}").as_bytes()].concat());
    }

    #[test]
    fn keeps_the_laws() {
        conformance::check(&mut chooser(&seed()));
    }

    #[test]
    fn each_try_is_counted_before_it_is_asked_for_whether_or_not_the_firmware_takes_it() {
        for takes in [true, false] {
            let mut chooser = chooser(&seed());
            chooser.arm(&Verified::for_test(Slot::B), 2).unwrap();
            for left in [1, 0] {
                assert_eq!(chooser.before_reboot().unwrap(), None);
                assert_eq!(chooser.plan().unwrap(), BootPlan::on_trial(Slot::B, left));
                assert!(chooser.numbers(BOOT_NEXT).unwrap().is_some());
                if takes {
                    chooser.store.remove(BOOT_NEXT).unwrap();
                }
                chooser.restore(Slot::A).unwrap();
            }
            chooser.before_reboot().unwrap();
            assert_eq!(chooser.numbers(BOOT_NEXT).unwrap().is_some(), !takes);
            chooser.disarm(Slot::A).unwrap();
            assert_eq!(chooser.numbers(BOOT_NEXT).unwrap(), None);
        }
    }

    #[test]
    fn what_is_not_ours_survives_byte_for_byte_and_in_order() {
        let lang = "Lang-8be4df61-93ca-11d2-aa0d-00e098032b8c";
        let mut before = on_trial();
        before.insert(lang.into(), b"\x07\0\0\0eng".into());
        let mut chooser = chooser(&before);
        chooser.commit(Slot::B).unwrap();
        chooser.arm(&Verified::for_test(Slot::A), 5).unwrap();
        chooser.disarm(Slot::B).unwrap();
        let after = variables(&chooser);
        for name in [lang, entry_file(0).as_str()] {
            assert_eq!(after[name], before[name]);
        }
        // The stick's entry is still before ours, and the other slot's is not there to fall back to.
        assert_eq!(chooser.order().unwrap(), [0, 1]);
        assert_eq!((after.get(BOOT_NEXT), after.get(TRIAL)), (None, None));
    }

    #[test]
    fn a_bootnext_of_somebody_else_stays() {
        let mut with = seed();
        with.insert(BOOT_NEXT.into(), b"\x07\0\0\0\0\0".into());
        let mut chooser = chooser(&with);
        chooser.disarm(Slot::A).unwrap();
        assert_eq!(variables(&chooser), with);
    }

    #[test]
    fn attributes_stay_as_they_are() {
        let mut with = seed();
        with.get_mut(BOOT_ORDER).unwrap()[0] = 0x27;
        let mut chooser = chooser(&with);
        chooser.commit(Slot::B).unwrap();
        assert_eq!(variables(&chooser)[BOOT_ORDER], b"\x27\0\0\0\0\0\x01\0");
    }

    #[test]
    fn what_the_firmware_has_lost_is_an_error_and_is_made_again() {
        let whole = seed();
        let primary = entry_file(3);
        let without = |names: &[&str]| {
            let mut left = whole.clone();
            left.retain(|name, _| !names.contains(&name.as_str()));
            left
        };
        let with = |name: &str, raw: &[u8]| {
            let mut other = whole.clone();
            other.insert(name.into(), raw.into());
            other
        };
        let mut inactive = whole[&primary].clone();
        inactive[4] = 0;
        for (lost, expected) in [
            (without(&[&primary]), "no entry of slot A or B"),
            (without(&[BOOT_ORDER]), "No such variable"),
            (without(&[BOOT_ORDER, &primary]), "No such variable"),
            (with(BOOT_ORDER, b"\x07\0\0\0\0\0"), "no entry of slot A or B"),
            (with(BOOT_ORDER, b"\x07\0\0\0\x03\0\0\0\x03\0"), "two entries of slot A or B"),
            (with(BOOT_ORDER, b"\x07\0\0\0\0\0\x03"), "3 bytes, expected two for each entry"),
            (with(&primary, &inactive), "the entry of slot A is not as its template says"),
            (with(TRIAL, b"\x07\0\0\0slot=B tries_left=3 crc=00000000"), "and its CRC"),
        ] {
            let mut chooser = chooser(&lost);
            let e = chooser.plan().unwrap_err().to_string();
            assert!(e.starts_with("boot plan: ") && e.contains(expected), "{e}");
            for _twice in 0..2 {
                chooser.restore(Slot::A).unwrap();
                assert_eq!(chooser.plan().unwrap(), BootPlan::settled(Slot::A), "{expected}");
            }
            assert_eq!(chooser.order().unwrap().contains(&0), lost.contains_key(BOOT_ORDER));
        }
        let nothing = Variables::new();
        let e = chooser(&nothing).restore(Slot::A).unwrap_err().to_string();
        assert!(e.ends_with("is efivarfs mounted?"), "{e}");
    }

    #[test]
    fn entries_that_are_lost_while_the_trial_runs_leave_the_other_slot_the_primary() {
        let mut lost = on_trial();
        lost.retain(|name, _| name == TRIAL || name == &entry_file(0) || name == BOOT_ORDER);
        let mut chooser = chooser(&lost);
        chooser.restore(Slot::B).unwrap();
        assert_eq!(chooser.plan().unwrap(), BootPlan::on_trial(Slot::B, 2));
    }

    #[test]
    fn every_harm_is_an_error_that_names_the_variable_or_changes_nothing_that_boots() {
        let whole = on_trial();
        let plan = chooser(&whole).plan().unwrap();
        let mut harmless = 0;
        for (name, raw) in &whole {
            let flips = (0..raw.len() * 8).map(|bit| {
                let mut raw = raw.clone();
                raw[bit / 8] ^= 1 << (bit % 8);
                raw
            });
            for harmed in flips.chain((0..raw.len()).map(|n| raw[..n].to_vec())) {
                let mut variables = whole.clone();
                variables.insert(name.clone(), harmed.clone());
                match chooser(&variables).plan() {
                    Err(e) => assert!(e.to_string().starts_with("boot plan: "), "{e}"),
                    // Nothing checks the order: what the plan says must stand there.
                    Ok(found) if found == BootPlan::settled(Slot::B) => {
                        assert_eq!((name.as_str(), &harmed[4..]), (BOOT_ORDER, &[0, 0, 1, 0][..]));
                    }
                    // Attributes, and what is not of the primary; nothing has another meaning.
                    Ok(found) => {
                        assert_eq!(found, plan, "{name} {harmed:02x?}");
                        let of_primary = [BOOT_ORDER, TRIAL, &entry_file(3)].contains(&name.as_str());
                        let passed_over = harmed.get(4..) == raw.get(4..)
                            || name == &entry_file(3)
                                && harmed[4] & 1 == 1
                                && harmed.get(8..) == raw.get(8..)
                            || name == BOOT_ORDER && harmed.get(6..) == raw.get(6..);
                        assert!(!of_primary || passed_over, "{name} {harmed:02x?}");
                        harmless += 1;
                    }
                }
            }
        }
        assert!(harmless > 0);
    }
}
