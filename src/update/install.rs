//! Writing a new system into the other slot, and the files that go with it, as types: what is not yet checked cannot be
//! armed.
//!
//! ```text
//! Install<Unbootable> --write--> Install<Written> --read_back--> Install<Verified> --arm--> Armed
//! ```

use sha2::{Digest as _, Sha256};

use super::{JournalStore, Machine};
use crate::block::{Disk, Verified, digest_of, read_back, seal};
use crate::boot::BootChooser;
use crate::model::record::{Before, Hook, Outcome, Record, Release, State};
use crate::model::{BootPlan, Boots, Digest, Slot, Verity};
use crate::{Error, Result};

/// What a slot, or a set of files, must hold in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// Length in bytes.
    pub len_bytes: u64,
    /// SHA-256 of all of it.
    pub digest: Digest,
}

impl Image {
    /// Nothing at all.
    pub fn empty() -> Self {
        Self { len_bytes: 0, digest: Digest(Sha256::digest([]).into()) }
    }
}

/// All that an install writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goal {
    /// The root image, for the slot.
    pub root: Image,
    /// What the slot is sealed with; without, it loses the seal that an earlier image had.
    pub verity: Option<Verity>,
    /// The sets of files, each for a disk of its own; see [`crate::block::FileSet`].
    pub sets: Vec<Image>,
    /// What the new system runs before it is committed.
    pub hooks: Vec<Hook>,
}

/// The target holds anything; nothing points to it.
#[derive(Debug)]
pub struct Unbootable(());

/// Every block was written and flushed.
#[derive(Debug)]
pub struct Written(());

/// The new system boots next.
#[derive(Debug, PartialEq, Eq)]
pub struct Armed {
    /// The slot that boots next.
    pub slot: Slot,
    /// Boots that it may use.
    pub tries: u8,
}

/// An install under way, in state `S`. Dropping it (a crash does the same) leaves the journal at Installing, which the
/// next start settles; an error ends it in order.
#[derive(Debug)]
pub struct Install<'m, C, J, S> {
    machine: &'m mut Machine<C, J>,
    release: Release,
    goal: Goal,
    state: S,
}

impl<'m, C: BootChooser, J: JournalStore> Install<'m, C, J, Unbootable> {
    /// Begins: no trial stays armed, and the journal says what is being written where.
    ///
    /// # Errors
    /// As [`Machine::check_may_install`] and [`Machine::settle`]; `Failed` if a write did not land.
    pub fn begin(machine: &'m mut Machine<C, J>, release: Release, goal: Goal) -> Result<Self> {
        machine.check_may_install()?;
        machine.settle()?;
        let (record, plan, _) = machine.observe()?;
        if plan != BootPlan::settled(machine.booted) {
            machine.chooser.disarm(machine.booted)?;
        }
        let target = machine.target();
        let state = State::Installing { target, release: release.clone() };
        machine.journal.store(&Record { state, ..record })?;
        Ok(Self { machine, release, goal, state: Unbootable(()) })
    }

    /// Lets `feed` write the whole image to `disk` and the sets of files to `sets`, and flushes them. A set that `feed` does
    /// not write to is put in order by its flush all the same.
    ///
    /// # Errors
    /// What `feed` or the disks say; the update is then abandoned and the journal says why.
    pub fn write<D: Disk>(
        self,
        disk: &mut D,
        sets: &mut [&mut dyn Disk],
        feed: impl FnOnce(&mut D, &mut [&mut dyn Disk]) -> Result<()>,
    ) -> Result<Install<'m, C, J, Written>> {
        let written = feed(disk, sets)
            .and_then(|()| seal::write(disk, self.goal.verity.as_ref(), self.goal.root.len_bytes))
            .and_then(|()| disk.flush())
            .and_then(|()| sets.iter_mut().try_for_each(|set| set.flush()));
        self.then(written, |()| Written(()))
    }
}

impl<'m, C: BootChooser, J: JournalStore> Install<'m, C, J, Written> {
    /// Reads image and files back from the medium; `progress` is told the bytes of the image read so far.
    ///
    /// # Errors
    /// As [`read_back`]; the update is then abandoned.
    pub fn read_back(
        self,
        disk: &mut impl Disk,
        sets: &mut [&mut dyn Disk],
        progress: impl FnMut(u64),
    ) -> Result<Install<'m, C, J, Verified>> {
        let Image { len_bytes, digest } = self.goal.root;
        let verified = read_back_sets(&self.goal.sets, sets)
            .and_then(|()| read_back_seal(self.goal.verity, len_bytes, disk))
            .and_then(|()| read_back(disk, self.machine.target(), len_bytes, &digest, progress));
        self.then(verified, |v| v)
    }
}

fn read_back_seal(expected: Option<Verity>, image_len_bytes: u64, disk: &mut impl Disk) -> Result<()> {
    if seal::read(disk, image_len_bytes)? != expected {
        return Err(Error::failed("read back the seal: the medium holds another; it may be worn out"));
    }
    Ok(())
}

fn read_back_sets(images: &[Image], sets: &mut [&mut dyn Disk]) -> Result<()> {
    if images.len() != sets.len() {
        return Err(Error::inconsistent(format!("{} sets of files for {} places", images.len(), sets.len())));
    }
    for (Image { len_bytes, digest }, set) in images.iter().zip(sets) {
        let found = digest_of(set, *len_bytes, |_| ())?;
        if found != *digest {
            return Err(Error::failed(format!(
                "read back files: the medium holds {found}, expected {digest}; it may be worn out"
            )));
        }
    }
    Ok(())
}

impl<C: BootChooser, J: JournalStore> Install<'_, C, J, Verified> {
    /// Arms the new system for `tries` boots. The journal knows of the trial before the bootloader does.
    ///
    /// # Errors
    /// `Failed` if a write did not land; the update is then abandoned.
    pub fn arm(self, tries: u8, before: Before) -> Result<Armed> {
        let slot = self.state.slot();
        let record = self.machine.journal.load()?;
        let state = State::Trial {
            target: slot,
            release: self.release.clone(),
            armed_in: self.machine.boot_id.clone(),
            before,
            hooks: self.goal.hooks.clone(),
            boots: Boots::default(),
            verdict: None,
        };
        let armed = self
            .machine
            .journal
            .store(&Record { state, ..record })
            .and_then(|()| self.machine.chooser.arm(&self.state, tries));
        self.then(armed, |()| ())?;
        Ok(Armed { slot, tries })
    }
}

impl<'m, C: BootChooser, J: JournalStore, S> Install<'m, C, J, S> {
    /// The next state, or the end of the install if its step failed.
    fn then<T, N>(self, step: Result<T>, next: impl FnOnce(T) -> N) -> Result<Install<'m, C, J, N>> {
        match step {
            Ok(value) => Ok(Install {
                machine: self.machine,
                release: self.release,
                goal: self.goal,
                state: next(value),
            }),
            Err(e) => {
                abandon(self.machine, &e);
                Err(e)
            }
        }
    }
}

/// Ends a failed install in order. What fails here as well is left to the next start: the journal still says
/// Installing or Trial, and both lead back to the running slot.
fn abandon<C: BootChooser, J: JournalStore>(machine: &mut Machine<C, J>, why: &Error) {
    let ended = machine.chooser.disarm(machine.booted).and_then(|()| {
        let record = machine.journal.load()?;
        machine.end(record, Outcome::Abandoned, why.to_string())
    });
    if let Err(e) = ended {
        log::error!("ending the failed install: {e}");
    }
}
