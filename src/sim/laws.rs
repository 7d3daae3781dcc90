//! Law 4 for every chooser: wherever a change is cut, the plan is the one before or the one after, and the bootloader
//! does what the plan says.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::files::MemoryStore;
use super::loader::Loader;
use super::power::Power;
use crate::block::Verified;
use crate::boot::efi::BOOT_NEXT;
use crate::model::{BootPlan, Slot};

#[derive(Debug, Clone, Copy)]
enum Change {
    Arm(Slot),
    Commit(Slot),
    Disarm(Slot),
}

/// What may be asked for in a plan.
fn changes(plan: BootPlan) -> Vec<Change> {
    match plan.trial {
        // The last is how somebody goes back to the system before.
        None => {
            [Change::Arm(!plan.primary), Change::Disarm(plan.primary), Change::Disarm(!plan.primary)].into()
        }
        Some(trial) => [Change::Commit(trial.slot), Change::Disarm(plan.primary)].into(),
    }
}

/// The slot that boots by this plan after an orderly reboot: also with the last try, if that was asked for already.
fn next(plan: BootPlan, files: &BTreeMap<String, Vec<u8>>) -> Slot {
    let asked = files.contains_key(BOOT_NEXT);
    plan.trial.filter(|t| t.tries_left > 0 || asked).map_or(plan.primary, |t| t.slot)
}

/// The slot that boots after an orderly reboot, which is when a one-shot is asked for the trial.
fn rebooted(loader: Loader, files: &BTreeMap<String, Vec<u8>>) -> Slot {
    let files = Rc::new(RefCell::new(files.clone()));
    let mut chooser = loader.chooser(MemoryStore::new(files.clone(), Power::default()));
    let asked = chooser.before_reboot().unwrap().is_some();
    loader.choose(&files.borrow(), asked).slot
}

/// A counted boot of a trial that ends in order.
#[test]
fn an_orderly_reboot_gives_the_try_back_wherever_it_is_cut() {
    for loader in Loader::ALL {
        let mut files = loader.seed();
        let open = |files: &BTreeMap<String, Vec<u8>>, power: &Power| {
            let files = Rc::new(RefCell::new(files.clone()));
            (files.clone(), loader.chooser(MemoryStore::new(files, power.clone())))
        };
        let (armed, mut chooser) = open(&files, &Power::default());
        chooser.give_back().unwrap();
        assert_eq!(*armed.borrow(), files, "{loader:?}: nothing to give back");
        chooser.arm(&Verified::for_test(Slot::B), 3).unwrap();
        files = armed.borrow().clone();
        for tries in (1..=3).rev() {
            let (counted, mut chooser) = open(&files, &Power::default());
            let asked = chooser.before_reboot().unwrap().is_some();
            let choice = loader.choose(&counted.borrow(), asked);
            choice.save_into(&mut counted.borrow_mut());
            assert_eq!(choice.slot, Slot::B);
            let counted = counted.borrow().clone();
            for after_steps in 0.. {
                let power = Power::default();
                power.set(Some(after_steps));
                let (given, mut chooser) = open(&counted, &power);
                let result = chooser.give_back();
                let found = chooser.plan().unwrap();
                let story = format!("{loader:?}, try {tries} cut after {after_steps}");
                let left = found.tries(Slot::B).unwrap();
                assert!(left == tries || left == tries - 1, "{story}: {found:?}");
                assert_eq!(rebooted(loader, &given.borrow()), next(found, &given.borrow()), "{story}");
                if result.is_ok() {
                    assert_eq!(found, BootPlan::on_trial(Slot::B, tries), "{story}");
                    break;
                }
            }
            files = counted;
        }
    }
}

#[test]
fn wherever_a_change_is_cut_the_plan_is_the_one_before_or_the_one_after() {
    for loader in Loader::ALL {
        let mut cuts = 0;
        let mut worlds = vec![loader.seed()];
        // Long enough for each change from each state, with every number of boots used.
        for _ in 0..6 {
            let mut after_all = Vec::new();
            for seed in worlds {
                let open = |power: &Power| {
                    let files = Rc::new(RefCell::new(seed.clone()));
                    (files.clone(), loader.chooser(MemoryStore::new(files, power.clone())))
                };
                let (files, mut chooser) = open(&Power::default());
                if chooser.one_shot() {
                    chooser.before_reboot().unwrap();
                    after_all.push(files.borrow().clone());
                }
                let before = open(&Power::default()).1.plan().unwrap();
                assert_eq!(rebooted(loader, &seed), next(before, &seed), "{loader:?} {before:?}");
                for change in changes(before) {
                    for after_steps in 0.. {
                        let power = Power::default();
                        power.set(Some(after_steps));
                        let (files, mut chooser) = open(&power);
                        let (result, expected) = match change {
                            Change::Arm(slot) => {
                                (chooser.arm(&Verified::for_test(slot), 2), BootPlan::on_trial(slot, 2))
                            }
                            Change::Commit(slot) => (chooser.commit(slot), BootPlan::settled(slot)),
                            Change::Disarm(slot) => (chooser.disarm(slot), BootPlan::settled(slot)),
                        };
                        let found = chooser.plan().unwrap();
                        let story = format!("{loader:?}, {before:?}, {change:?} cut after {after_steps}");
                        assert!(found == before || found == expected, "{story}: {found:?}");
                        let files = files.borrow().clone();
                        assert_eq!(rebooted(loader, &files), next(found, &files), "{story}: {found:?}");
                        // What a cut left is where the next change begins.
                        after_all.push(files);
                        if result.is_ok() {
                            assert_eq!(found, expected, "{story}");
                            break;
                        }
                        cuts += 1;
                    }
                }
                let mut booted = seed.clone();
                if loader.choose(&seed, false).save_into(&mut booted) {
                    after_all.push(booted);
                }
            }
            after_all.sort();
            after_all.dedup();
            worlds = after_all;
        }
        crate::sys::out::line(&format!("sim: {loader:?}: {cuts} cuts of single changes"));
        assert!(cuts > 10, "{loader:?}: {cuts}");
    }
}
