//! One device as the procedure sees it, and taking up where the disk says it stands.

use std::ffi::CStr;

use super::JournalStore;
use crate::boot::BootChooser;
use crate::model::phase::{Observed, Phase, classify};
use crate::model::record::{Before, Ended, Hook, Outcome, Record, Release, State};
use crate::model::{BootFailure, BootId, BootPlan, Boots, Evidence, GIVEN_BACK_MAX, Slot};
use crate::{Error, Result};

/// The bootloader, the journal, and which boot of which slot this is.
#[derive(Debug)]
pub struct Machine<C, J> {
    /// Who boots next.
    pub chooser: C,
    /// The journal.
    pub journal: J,
    /// The slot that runs.
    pub booted: Slot,
    /// The boot that runs.
    pub boot_id: BootId,
    /// What PID 1 kept of a boot that it gave up.
    pub boot_failure: Option<BootFailure>,
}

/// What the caller has to do after [`Machine::settle`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing: no update is under way.
    Nothing,
    /// Check the new system's health, then [`Machine::commit`] or [`Machine::condemn`].
    CheckHealth {
        /// Boots that the trial may still use after this one.
        tries_left: u8,
    },
    /// Reboot into the next try of the trial, which the firmware must be asked for. If it cannot be, [`Machine::condemn`]: the
    /// reboot would only lead back here.
    TryAgain {
        /// For people, why.
        why: String,
    },
    /// Reboot: for people, why.
    Reboot {
        /// Into what, or away from what.
        why: String,
    },
}

impl<C, J> Machine<C, J> {
    /// The slot that an install writes, with all that belongs to it.
    pub fn target(&self) -> Slot {
        !self.booted
    }
}

impl<C: BootChooser, J: JournalStore> Machine<C, J> {
    /// The journal's record and the phase that follows from it.
    ///
    /// # Errors
    /// `Failed` if journal or boot plan cannot be read.
    pub fn observe(&self) -> Result<(Record, BootPlan, Phase)> {
        let record = self.journal.load()?;
        let plan = self.chooser.plan()?;
        let phase = classify(&Observed {
            state: record.state.clone(),
            plan,
            booted: self.booted,
            boot_id: self.boot_id.clone(),
            boot_failure: self.boot_failure.clone(),
            one_shot: self.chooser.one_shot(),
        });
        Ok((record, plan, phase))
    }

    /// Finishes what was cut short, and says what comes next. May be repeated at any time.
    ///
    /// # Errors
    /// `Inconsistent`, with nothing touched, if journal and boot plan contradict each other; `Failed` if one of them
    /// cannot be read or written.
    pub fn settle(&mut self) -> Result<Next> {
        self.chooser.restore(self.booted)?;
        let (record, _, phase) = self.observe()?;
        match phase {
            Phase::Steady => Ok(Next::Nothing),
            Phase::StrayTrial => {
                log::warn!("a trial is armed that the journal does not know: disarming it");
                self.chooser.disarm(self.booted)?;
                Ok(Next::Nothing)
            }
            Phase::InstallInterrupted => {
                self.chooser.disarm(self.booted)?;
                self.end(record, Outcome::Abandoned, "the install was interrupted".into())?;
                Ok(Next::Nothing)
            }
            Phase::ReadyToReboot => {
                Ok(Next::Reboot { why: format!("slot {} is armed; the next boot tries it", !self.booted) })
            }
            Phase::TryAgain { tries_left } => Ok(Next::TryAgain {
                why: format!("slot {} has {tries_left} tries left; trying it again", !self.booted),
            }),
            Phase::TrialFailed { outcome, why } => {
                let record = self.remember(record, outcome, &why)?;
                self.chooser.disarm(self.booted)?;
                self.end(record, outcome, why)?;
                Ok(Next::Nothing)
            }
            Phase::OnTrial { tries_left } => Ok(Next::CheckHealth { tries_left }),
            Phase::Condemned { why } => {
                self.chooser.disarm(!self.booted)?;
                Ok(Next::Reboot { why: format!("back to slot {}: {why}", !self.booted) })
            }
            Phase::UnknownTrial => Ok(Next::Reboot {
                why: format!("slot {} runs on trial, but the journal does not know of it", self.booted),
            }),
            Phase::CommitLanded => {
                self.end(
                    record,
                    Outcome::Committed,
                    "by its health checks or by hand: a cut came before the note".into(),
                )?;
                Ok(Next::Nothing)
            }
            Phase::Inconsistent { what } => Err(contradiction(&what)),
        }
    }

    /// Sees that an install may begin now. Changes nothing.
    ///
    /// # Errors
    /// `Refused` on a trial (its health decides first), `RebootNeeded` when the running slot is about to be left,
    /// `Inconsistent` and `Failed` as [`Machine::settle`].
    pub fn check_may_install(&self) -> Result<()> {
        match self.observe()?.2 {
            Phase::Steady
            | Phase::StrayTrial
            | Phase::ReadyToReboot
            | Phase::TryAgain { .. }
            | Phase::InstallInterrupted
            | Phase::TrialFailed { .. }
            | Phase::CommitLanded => Ok(()),
            Phase::OnTrial { .. } => Err(Error::refused(format!(
                "slot {} is on trial; wait for its health checks (`twinhull status`), or end it with `twinhull commit` or \
                 `twinhull rollback`",
                self.booted
            ))),
            Phase::Condemned { .. } | Phase::UnknownTrial => {
                let text =
                    format!("slot {} lost its trial and is about to be left; reboot first", self.booted);
                Err(Error::new(crate::Kind::RebootNeeded, text))
            }
            Phase::Inconsistent { what } => Err(contradiction(&what)),
        }
    }

    /// Makes the running trial permanent, and keeps `why`. The boot plan is switched first: the journal only follows.
    ///
    /// # Errors
    /// `Refused` if the running slot is not on trial; `Failed` if a write did not land.
    pub fn commit(&mut self, why: &str) -> Result<()> {
        let (record, _, phase) = self.observe()?;
        match phase {
            Phase::OnTrial { .. } => {
                self.chooser.commit(self.booted)?;
                self.end(record, Outcome::Committed, why.into())
            }
            Phase::CommitLanded => self.settle().map(drop),
            Phase::Steady
            | Phase::StrayTrial
            | Phase::InstallInterrupted
            | Phase::ReadyToReboot
            | Phase::TryAgain { .. }
            | Phase::TrialFailed { .. }
            | Phase::Condemned { .. }
            | Phase::UnknownTrial
            | Phase::Inconsistent { .. } => Err(Error::refused(format!(
                "slot {} is not on trial: the phase is {}",
                self.booted,
                phase.name()
            ))),
        }
    }

    /// Calls the trial off, or the update that waits for its reboot. The reason is durable before the switch.
    ///
    /// # Errors
    /// `Refused` if there is nothing to call off; `Failed` if a write did not land.
    pub fn condemn(&mut self, why: &str) -> Result<Next> {
        let (record, _, phase) = self.observe()?;
        match (&phase, record.state) {
            (
                Phase::OnTrial { .. } | Phase::ReadyToReboot | Phase::TryAgain { .. },
                State::Trial { target, release, armed_in, before, hooks, boots, verdict: None },
            ) => {
                let verdict = Some(why.to_owned());
                let state = State::Trial { target, release, armed_in, before, hooks, boots, verdict };
                self.journal.store(&Record { state, ..record })?;
                self.settle()
            }
            _ => Err(Error::refused(format!("no update to call off: the phase is {}", phase.name()))),
        }
    }

    /// Keeps why a trial failed before the disarm wipes the evidence: used-up tries are seen only in the boot plan.
    fn remember(&mut self, record: Record, outcome: Outcome, why: &str) -> Result<Record> {
        match record.state {
            State::Trial { target, release, armed_in, before, hooks, boots, verdict: None }
                if outcome == Outcome::RolledBack =>
            {
                let verdict = Some(why.to_owned());
                let state = State::Trial { target, release, armed_in, before, hooks, boots, verdict };
                let record = Record { state, ..record };
                self.journal.store(&record)?;
                Ok(record)
            }
            state => Ok(Record { state, ..record }),
        }
    }

    /// Keeps what the boot before this one has left behind, while an update is tried. To be called early in every boot.
    ///
    /// # Errors
    /// `Failed` if the journal cannot be read or written.
    pub fn begin_boot(&mut self, evidence: &Evidence) -> Result<()> {
        let now = self.boot_id.clone();
        let booted = self.booted;
        self.change_boots(|target, armed_in, boots| match *armed_in == now {
            true => boots.clone(),
            false => boots.begun(&now, booted == target, evidence),
        })
    }

    /// To be called when this boot ends because it was asked to. On a trial its try is given back; a reboot is then the
    /// next try of what is armed, also where the firmware must be asked for it. Gives the argument that the reboot must
    /// carry ([`BootChooser::before_reboot`]).
    ///
    /// # Errors
    /// `Failed` if journal or boot plan cannot be read or written: the try is then used up, or the primary boots.
    pub fn end_boot(&mut self, reboots: bool) -> Result<Option<&'static CStr>> {
        let (record, _, phase) = self.observe()?;
        if let (Phase::OnTrial { .. }, State::Trial { boots, .. }) = (&phase, &record.state) {
            let given_back = boots.given_back.saturating_add(1);
            let counts = given_back > GIVEN_BACK_MAX;
            if counts {
                log::warn!("this trial was given back {GIVEN_BACK_MAX} tries: this one counts");
            }
            // The journal first: a cut between the two costs a try, and none is given back twice.
            self.change_boots(|_, _, boots| Boots {
                open: None,
                given_back: given_back.min(GIVEN_BACK_MAX),
                failure: boots.failure.clone(),
            })?;
            if !counts {
                self.chooser.give_back()?;
            }
        }
        if reboots { self.chooser.before_reboot() } else { Ok(None) }
    }

    fn change_boots(&mut self, change: impl FnOnce(Slot, &BootId, &Boots) -> Boots) -> Result<()> {
        let mut record = self.journal.load()?;
        let State::Trial { target, armed_in, boots, .. } = &mut record.state else { return Ok(()) };
        let changed = change(*target, armed_in, boots);
        if changed == *boots {
            return Ok(());
        }
        *boots = changed;
        self.journal.store(&record)
    }

    /// Writes the end of the update that `record` is about.
    pub(super) fn end(&mut self, record: Record, result: Outcome, reason: String) -> Result<()> {
        let (State::Installing { target, release } | State::Trial { target, release, .. }) = &record.state
        else {
            return Ok(());
        };
        let (target, release) = (*target, release.clone());
        log::info!("update to {} in slot {target}: {result}: {reason}", release.version);
        self.journal.store(&record.ended(Ended { result, target, release, reason }))
    }

    /// Whether an armed system only waits for the reboot.
    ///
    /// # Errors
    /// As [`Machine::observe`].
    pub fn waits_for_reboot(&self) -> Result<bool> {
        Ok(self.observe()?.2 == Phase::ReadyToReboot)
    }

    /// Whether `release` is armed and only waits for the reboot.
    ///
    /// # Errors
    /// As [`Machine::observe`].
    pub fn waits_for(&self, release: &Release) -> Result<bool> {
        let (record, _, phase) = self.observe()?;
        Ok(phase == Phase::ReadyToReboot
            && matches!(record.state, State::Trial { release: armed, .. } if armed == *release))
    }

    /// The lowest release counter that may still be installed, as far as the journal knows.
    ///
    /// # Errors
    /// `Failed` if the journal cannot be read.
    pub fn release_floor(&self) -> Result<u64> {
        Ok(self.journal.load()?.release_floor)
    }

    /// What the trial must run before it is committed; nothing without one.
    ///
    /// # Errors
    /// `Failed` if the journal cannot be read.
    pub fn hooks(&self) -> Result<Vec<Hook>> {
        Ok(match self.journal.load()?.state {
            State::Trial { hooks, .. } => hooks,
            State::Idle | State::Installing { .. } => Vec::new(),
        })
    }

    /// What was true before the update that is on trial; nothing without one.
    ///
    /// # Errors
    /// `Failed` if the journal cannot be read.
    pub fn before(&self) -> Result<Before> {
        Ok(match self.journal.load()?.state {
            State::Trial { before, .. } => before,
            State::Idle | State::Installing { .. } => Before::default(),
        })
    }
}

fn contradiction(what: &str) -> Error {
    Error::inconsistent(format!(
        "{what}; nothing was touched. Reboot; if this stays, see the journal and the bootloader's environment"
    ))
}
