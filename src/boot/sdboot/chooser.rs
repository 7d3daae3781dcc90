//! The entries as a boot chooser.

use super::entry::{Entry, EntryName, LETTERS, template_name};
use crate::block::Verified;
use crate::boot::{BootChooser, Store};
use crate::model::{BootPlan, Slot};
use crate::{Doing, Error, Result};

/// systemd-boot's entries as a boot chooser.
///
/// systemd-boot starts the entry with the highest version that has tries left or is not counted. The primary has one that
/// is not counted. A trial has a counted one of a higher version: making that file arms it. A commit makes one of a still
/// higher version that is not counted. Each has a name that is new, and after a cut it is there whole, empty or not at all; what is
/// left over only goes afterwards. Entries that are not ours are not touched.
#[derive(Debug)]
pub struct SystemdBoot<S> {
    /// `loader/entries` of the boot partition.
    entries: S,
}

impl<S: Store> SystemdBoot<S> {
    /// The chooser with its entries in this directory.
    pub const fn new(entries: S) -> Self {
        Self { entries }
    }

    fn load(&self) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        for file in self.entries.list()? {
            let Some(name) = EntryName::parse(&file) else { continue };
            let content = self.entries.read(&file)?.unwrap_or_default();
            if content.is_empty() {
                // A cut while it was made. systemd-boot passes over what names nothing to start.
                continue;
            }
            found.push(Entry::parse(name, &content).doing(|| self.entries.name(&file))?);
        }
        Ok(found)
    }

    /// The entry of the primary slot: the highest version of those that are not counted.
    fn primary(&self, all: &[Entry]) -> Result<Entry> {
        let settled = all.iter().filter(|e| e.name.counter.is_none());
        settled.max_by_key(|e| e.version).copied().ok_or_else(|| {
            Error::failed(format!(
                "{}: no entry without a counter, expected twinhull-a.conf or twinhull-b.conf",
                self.entries.name("")
            ))
        })
    }

    fn make(&mut self, name: EntryName, version: u32) -> Result<()> {
        let template = template_name(name.slot);
        let made = self
            .entries
            .read(&template)
            .and_then(|raw| raw.ok_or_else(|| Error::failed("No such file or directory")))
            .and_then(|raw| Entry::content(&raw, version))
            .doing(|| self.entries.name(&template))?;
        self.entries.create(&name.file(), &made)
    }

    fn remove(&mut self, all: &[Entry], which: impl Fn(&Entry) -> bool) -> Result<()> {
        all.iter().filter(|e| which(e)).try_for_each(|e| self.entries.remove(&e.name.file()))
    }

    fn settle(&mut self, slot: Slot) -> Result<()> {
        let all = self.load()?;
        let mut primary = self.primary(&all)?;
        if primary.name.slot != slot {
            let version = all.iter().map(|e| e.version).max().unwrap_or(0) + 1;
            primary = Entry { name: EntryName { slot, counter: None }, version };
            // An old one of that name does not boot: it is not the highest.
            self.remove(&all, |e| e.name == primary.name)?;
            self.make(primary.name, version)?;
        }
        // Empty ones too, which were loaded as none: the directory would fill up with them.
        for file in self.entries.list()? {
            if EntryName::parse(&file).is_some_and(|name| name != primary.name) {
                self.entries.remove(&file)?;
            }
        }
        Ok(())
    }
}

impl<S: Store> BootChooser for SystemdBoot<S> {
    fn plan(&self) -> Result<BootPlan> {
        let all = self.load().doing(|| "boot plan")?;
        let primary = self.primary(&all).doing(|| "boot plan")?;
        let slot = primary.name.slot;
        // A rename of systemd-boot that was cut short may leave two: it starts the one with more tries left.
        let trial = all.iter().filter(|e| e.name.slot != slot && e.version > primary.version);
        let left = trial.filter_map(|e| e.name.counter).map(|(left, _)| left).max();
        Ok(left.map_or(BootPlan::settled(slot), |left| {
            BootPlan::on_trial(!slot, u8::try_from(left).unwrap_or(u8::MAX))
        }))
    }

    fn arm(&mut self, slot: &Verified, tries: u8) -> Result<()> {
        let plan = self.plan()?;
        if plan == BootPlan::on_trial(slot.slot(), tries) {
            return Ok(());
        }
        if plan.primary == slot.slot() {
            return Err(Error::inconsistent(format!(
                "boot plan: slot {} is the primary, only the other can be on trial",
                plan.primary
            )));
        }
        // What is left of an earlier trial would not be counted from the beginning.
        self.settle(plan.primary).doing(|| "boot plan")?;
        // For the trial's entry, which systemd-boot gives another name, and then for the one of the commit.
        self.entries.check_room(2, LETTERS).doing(|| "boot plan")?;
        let version = self.primary(&self.load()?)?.version + 1;
        self.make(EntryName { slot: slot.slot(), counter: Some((tries.into(), 0)) }, version)
            .doing(|| "boot plan")
    }

    fn commit(&mut self, booted: Slot) -> Result<()> {
        self.settle(booted).doing(|| "boot plan")
    }

    fn disarm(&mut self, primary: Slot) -> Result<()> {
        self.settle(primary).doing(|| "boot plan")
    }

    fn give_back(&mut self) -> Result<()> {
        let Some(trial) = self.plan()?.trial else { return Ok(()) };
        let counted = |e: &Entry| e.name.slot == trial.slot && e.name.counter.is_some();
        let all = self.load().doing(|| "boot plan")?;
        let last = all.iter().filter(|e| counted(e)).max_by_key(|e| (e.version, e.name.counter));
        let Some((last, (left, done @ 1..))) = last.and_then(|e| Some((*e, e.name.counter?))) else {
            return Ok(());
        };
        // Of two with the same version systemd-boot takes the one with more tries left: the new one.
        let given = EntryName { counter: Some((left + 1, done - 1)), ..last.name };
        self.make(given, last.version)
            .and_then(|()| self.remove(&all, |e| counted(e) && e.name != given))
            .doing(|| "boot plan")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{Directory, conformance};
    use crate::sim::files::MemoryStore;
    use crate::sys;

    const TEMPLATES: [(&str, &[u8]); 2] = [
        ("twinhull.a", b"title A\nlinux /slot-a/vmlinuz\noptions root=PARTUUID=aa quiet\n"),
        ("twinhull.b", b"title B\nlinux /slot-b/vmlinuz\noptions root=PARTUUID=bb quiet\n"),
    ];
    const A_4: &[u8] = b"title A\nlinux /slot-a/vmlinuz\nsort-key 0-twinhull\nversion 4\n";
    const B_5: &[u8] = b"title B\nlinux /slot-b/vmlinuz\nsort-key 0-twinhull\nversion 5\n";

    fn entries(files: &[(&str, &[u8])]) -> SystemdBoot<MemoryStore> {
        SystemdBoot::new(MemoryStore::of(&[&TEMPLATES, files].concat()))
    }

    #[test]
    fn keeps_the_laws_in_memory_and_on_a_file_system() {
        conformance::check(&mut entries(&[("twinhull-a.conf", A_4)]));
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in TEMPLATES.into_iter().chain([("twinhull-a.conf", A_4)]) {
            sys::durable::replace(&dir.path().join(name), content, 0o644).unwrap();
        }
        conformance::check(&mut SystemdBoot::new(Directory::new(dir.path())));
    }

    #[test]
    fn plans() {
        for (files, expected) in [
            (vec![("twinhull-a.conf", A_4)], BootPlan::settled(Slot::A)),
            (vec![("twinhull-a.conf", A_4), ("twinhull-b+3.conf", B_5)], BootPlan::on_trial(Slot::B, 3)),
            (vec![("twinhull-a.conf", A_4), ("twinhull-b+0-3.conf", B_5)], BootPlan::on_trial(Slot::B, 0)),
            // What systemd-bless-boot makes of a trial is a commit.
            (vec![("twinhull-a.conf", A_4), ("twinhull-b.conf", B_5)], BootPlan::settled(Slot::B)),
            // A commit that was cut short before it had removed what was left over.
            (
                vec![("twinhull-a.conf", A_4), ("twinhull-b.conf", B_5), ("twinhull-b+2-1.conf", B_5)],
                BootPlan::settled(Slot::B),
            ),
        ] {
            assert_eq!(entries(&files).plan().unwrap(), expected, "{files:?}");
        }
    }

    #[test]
    fn foreign_entries_and_templates_survive() {
        let foreign: (&str, &[u8]) = ("memtest+2.conf", b"title Memtest\nefi /memtest.efi\n");
        let mut chooser = entries(&[("twinhull-a.conf", A_4), foreign]);
        chooser.arm(&Verified::for_test(Slot::B), 3).unwrap();
        let armed = chooser.entries.read("twinhull-b+3.conf").unwrap().unwrap();
        assert!(armed.starts_with(b"title B\nlinux /slot-b/vmlinuz\noptions root=PARTUUID=bb quiet\n"));
        chooser.commit(Slot::B).unwrap();
        assert_eq!(
            chooser.entries.list().unwrap(),
            ["memtest+2.conf", "twinhull-b.conf", "twinhull.a", "twinhull.b"]
        );
        assert_eq!(chooser.entries.read(foreign.0).unwrap().unwrap(), foreign.1);
    }

    #[test]
    fn every_harm_to_an_entry_is_an_error_that_names_it_or_leaves_the_plan() {
        let flips = (0..B_5.len() * 8).map(|bit| {
            let mut raw = B_5.to_vec();
            raw[bit / 8] ^= 1 << (bit % 8);
            raw
        });
        for harmed in flips.chain((1..B_5.len()).map(|n| B_5[..n].to_vec())) {
            match entries(&[("twinhull-a.conf", A_4), ("twinhull-b+3.conf", &harmed)]).plan() {
                Err(e) => assert!(e.to_string().starts_with("boot plan: twinhull-b+3.conf: "), "{e}"),
                // Another version, as it stands there: a trial only if it is higher than the primary's.
                Ok(plan) => {
                    let text = String::from_utf8_lossy(&harmed).into_owned();
                    let version: u32 = text.trim_end().rsplit(' ').next().unwrap().parse().unwrap();
                    assert_eq!(plan.trial.is_some(), version > 4, "{text}");
                }
            }
        }
    }

    #[test]
    fn an_entry_that_a_cut_left_empty_is_none() {
        let mut chooser = entries(&[("twinhull-a.conf", A_4), ("twinhull-b+3.conf", b"")]);
        assert_eq!(chooser.plan().unwrap(), BootPlan::settled(Slot::A));
        chooser.arm(&Verified::for_test(Slot::B), 3).unwrap();
        assert_eq!(chooser.plan().unwrap(), BootPlan::on_trial(Slot::B, 3));
        let mut chooser = entries(&[("twinhull-a.conf", A_4), ("twinhull-b+3.conf", b"")]);
        chooser.disarm(Slot::A).unwrap();
        assert_eq!(chooser.entries.list().unwrap(), ["twinhull-a.conf", "twinhull.a", "twinhull.b"]);
    }

    #[test]
    fn no_primary_and_no_template_are_errors_that_name_what_is_missing() {
        let e = entries(&[("twinhull-b+3.conf", B_5)]).plan().unwrap_err().to_string();
        assert!(e.contains("no entry without a counter, expected twinhull-a.conf or twinhull-b.conf"), "{e}");
        let mut chooser = SystemdBoot::new(MemoryStore::of(&[("twinhull-a.conf", A_4)]));
        let e = chooser.arm(&Verified::for_test(Slot::B), 3).unwrap_err().to_string();
        assert_eq!(e, "boot plan: twinhull.b: No such file or directory");
        let e = chooser.arm(&Verified::for_test(Slot::A), 3).unwrap_err();
        assert_eq!(e.kind(), crate::Kind::Inconsistent);
    }
}
