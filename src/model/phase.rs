//! Where the device stands, derived from disk at each start and never stored.

use super::record::{Outcome, State};
use super::{BootFailure, BootId, BootPlan, Slot};

/// All that decides the phase: the journal, the boot plan, and which boot of which slot this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// From the journal.
    pub state: State,
    /// From the bootloader's environment.
    pub plan: BootPlan,
    /// From the kernel's command line.
    pub booted: Slot,
    /// From the kernel.
    pub boot_id: BootId,
    /// The note of a boot that PID 1 gave up, if there is one.
    pub boot_failure: Option<BootFailure>,
    /// Whether each try of a trial must be started by the running system, because the firmware tries only once.
    pub one_shot: bool,
}

/// Where the device stands, and with it what has to happen next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// No update under way; the plan agrees. Nothing to do.
    Steady,
    /// Writing was cut short. Disarm, then the journal says abandoned.
    InstallInterrupted,
    /// No update is known, the old system runs, but a trial is armed: the journal was lost. Disarm.
    StrayTrial,
    /// The target is whole and armed, and this is still the boot that wrote it. Reboot.
    ReadyToReboot,
    /// The old system runs again, the trial has tries left, and the firmware tries only when it is told to. Reboot, into
    /// the next try.
    TryAgain {
        /// Boots that the trial may still use.
        tries_left: u8,
    },
    /// The old system runs again after a trial. Disarm, then the journal keeps the outcome and why.
    TrialFailed {
        /// Rolled back, or abandoned if the new system never had a try.
        outcome: Outcome,
        /// Why, for people.
        why: String,
    },
    /// The new system runs on trial: check its health, then commit, or condemn it.
    OnTrial {
        /// Boots that it may still use after this one.
        tries_left: u8,
    },
    /// The new system runs, but its trial is lost: disarm if still armed, and reboot.
    Condemned {
        /// Why, for people.
        why: String,
    },
    /// A system runs on trial, and the journal does not know of it: it was lost. Reboot, until the tries are used up: to
    /// disarm first would, after a cut, leave a system running that neither journal nor plan know of.
    UnknownTrial,
    /// The commit landed, the journal does not know yet.
    CommitLanded,
    /// Journal and plan contradict each other. Report, touch nothing.
    Inconsistent {
        /// What contradicts what.
        what: String,
    },
}

impl Phase {
    /// The phase's name, as `status` shows it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::InstallInterrupted => "install-interrupted",
            Self::StrayTrial => "stray-trial",
            Self::ReadyToReboot => "ready-to-reboot",
            Self::TryAgain { .. } => "try-again",
            Self::TrialFailed { .. } => "trial-failed",
            Self::OnTrial { .. } => "on-trial",
            Self::Condemned { .. } => "condemned",
            Self::UnknownTrial => "unknown-trial",
            Self::CommitLanded => "commit-landed",
            Self::Inconsistent { .. } => "inconsistent",
        }
    }
}

/// Derives the phase. Total: every combination has one answer.
///
/// A trial that is missing from the plan is never armed again: after a failed health check that would loop for ever.
/// Every doubt leads back to the old system, and the next install finds what was written and reuses it.
pub fn classify(seen: &Observed) -> Phase {
    let Observed { state, plan, booted, boot_id, boot_failure, one_shot } = seen;
    let known = matches!(state, State::Trial { target, .. } if target == booted);
    if plan.tries(*booted).is_some() && !known {
        return Phase::UnknownTrial;
    }
    match state {
        State::Idle => idle(*plan, *booted),
        State::Installing { target, .. } if booted == target => Phase::Inconsistent {
            what: format!("the journal says that slot {target} is being written, but it is running"),
        },
        State::Installing { .. } => Phase::InstallInterrupted,
        State::Trial { target, armed_in, boots, verdict, .. } => {
            let this_boot = armed_in == boot_id;
            match (booted == target, this_boot) {
                (true, true) => {
                    Phase::Inconsistent { what: format!("slot {target} runs in the very boot that armed it") }
                }
                // A verdict in the boot that armed the trial: it was called off before the reboot.
                (false, true) => match verdict {
                    Some(why) => Phase::TrialFailed { outcome: Outcome::Abandoned, why: why.clone() },
                    None if plan.tries(*target).is_some() => Phase::ReadyToReboot,
                    None => Phase::TrialFailed {
                        outcome: Outcome::Abandoned,
                        why: "the install was stopped before the new system was armed".to_owned(),
                    },
                },
                (false, false) => {
                    // PID 1's own words say more than what a boot leaves behind by itself.
                    let note = boot_failure.as_ref().filter(|n| n.slot == Some(*target));
                    let failure = note.map(|note| &note.reason).or(boots.failure.as_ref());
                    back_on_old(*plan, *target, verdict.as_deref(), failure, *one_shot)
                }
                (true, false) => on_target(*plan, *target, verdict.as_deref()),
            }
        }
    }
}

fn idle(plan: BootPlan, booted: Slot) -> Phase {
    match plan.trial {
        None if plan.primary == booted => Phase::Steady,
        None => Phase::Inconsistent {
            what: format!(
                "slot {booted} runs, the boot plan's primary is {}, no update is under way",
                plan.primary
            ),
        },
        Some(_) => Phase::StrayTrial,
    }
}

fn back_on_old(
    plan: BootPlan,
    target: Slot,
    verdict: Option<&str>,
    failure: Option<&String>,
    one_shot: bool,
) -> Phase {
    let (outcome, why) = match (verdict, plan.tries(target)) {
        (Some(why), _) => (Outcome::RolledBack, why.to_owned()),
        (None, None) if plan.primary == target => {
            return Phase::Inconsistent {
                what: format!("slot {target} is committed, but slot {} runs", !target),
            };
        }
        (None, None) => (Outcome::Abandoned, "power was lost before the new system was armed".to_owned()),
        (None, Some(0)) => {
            let last = match failure {
                Some(reason) => format!("; its last boot failed: {reason}"),
                None => " without passing its health checks".to_owned(),
            };
            (Outcome::RolledBack, format!("slot {target} used up its tries{last}"))
        }
        // The next try is ours to start; the count goes down with each, so this ends.
        (None, Some(tries_left @ 1..)) if one_shot => return Phase::TryAgain { tries_left },
        (None, Some(left)) => (
            Outcome::RolledBack,
            format!("the bootloader chose slot {} although slot {target} had {left} tries left", !target),
        ),
    };
    Phase::TrialFailed { outcome, why }
}

fn on_target(plan: BootPlan, target: Slot, verdict: Option<&str>) -> Phase {
    match (plan.tries(target), verdict) {
        (_, Some(why)) if plan.primary != target => Phase::Condemned { why: why.to_owned() },
        (Some(tries_left), _) => Phase::OnTrial { tries_left },
        (None, _) if plan.primary == target => Phase::CommitLanded,
        (None, _) => Phase::Condemned { why: "the trial was called off from outside".to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Boots;
    use crate::model::record::{Before, Release};

    fn release() -> Release {
        Release { version: "2.0.0".parse().unwrap(), manifest: crate::model::Digest([7; 32]), counter: 0 }
    }

    fn trial(verdict: Option<&str>) -> State {
        State::Trial {
            target: Slot::B,
            release: release(),
            armed_in: BootId("first".into()),
            before: Before::default(),
            hooks: Vec::new(),
            boots: Boots::default(),
            verdict: verdict.map(Into::into),
        }
    }

    /// The kind of a phase, without its words.
    fn kind(state: State, plan: BootPlan, booted: Slot, boot: &str) -> &'static str {
        match classify(&Observed {
            state,
            plan,
            booted,
            boot_id: BootId(boot.into()),
            boot_failure: None,
            one_shot: false,
        }) {
            Phase::Steady => "steady",
            Phase::InstallInterrupted => "interrupted",
            Phase::StrayTrial => "stray",
            Phase::ReadyToReboot => "ready",
            Phase::TryAgain { .. } => "again",
            Phase::TrialFailed { outcome: Outcome::Abandoned, .. } => "abandoned",
            Phase::TrialFailed { .. } => "failed",
            Phase::OnTrial { .. } => "on-trial",
            Phase::Condemned { .. } => "condemned",
            Phase::UnknownTrial => "unknown",
            Phase::CommitLanded => "landed",
            Phase::Inconsistent { .. } => "inconsistent",
        }
    }

    #[test]
    fn the_note_of_a_failed_boot_is_the_reason_if_it_is_of_the_same_slot() {
        for (slot, expected) in [
            (Slot::B, "slot B used up its tries; its last boot failed: no init"),
            (Slot::A, "slot B used up its tries without passing its health checks"),
        ] {
            let note =
                BootFailure { slot: Some(slot), boot_id: BootId("second".into()), reason: "no init".into() };
            let seen = Observed {
                state: trial(None),
                plan: BootPlan::on_trial(Slot::B, 0),
                booted: Slot::A,
                boot_id: BootId("later".into()),
                boot_failure: Some(note),
                one_shot: false,
            };
            let why = expected.to_owned();
            assert_eq!(classify(&seen), Phase::TrialFailed { outcome: Outcome::RolledBack, why });
        }
    }

    #[test]
    fn one_shot_firmware_is_asked_again_until_the_tries_are_used_up() {
        for (tries_left, verdict, again) in
            [(2, None, true), (1, None, true), (0, None, false), (2, Some("no"), false)]
        {
            let seen = Observed {
                state: trial(verdict),
                plan: BootPlan::on_trial(Slot::B, tries_left),
                booted: Slot::A,
                boot_id: BootId("later".into()),
                boot_failure: None,
                one_shot: true,
            };
            assert_eq!(classify(&seen) == Phase::TryAgain { tries_left }, again, "{tries_left} {verdict:?}");
        }
    }

    #[test]
    fn table() {
        use Slot::{A, B};
        let installing = || State::Installing { target: B, release: release() };
        let (on_a, on_b, trying_b, used_up) =
            (BootPlan::settled(A), BootPlan::settled(B), BootPlan::on_trial(B, 2), BootPlan::on_trial(B, 0));
        for (state, plan, booted, boot, expected) in [
            (State::Idle, on_a, A, "x", "steady"),
            (State::Idle, on_b, B, "x", "steady"),
            (State::Idle, on_b, A, "x", "inconsistent"),
            (State::Idle, trying_b, A, "x", "stray"),
            (State::Idle, trying_b, B, "x", "unknown"),
            (installing(), on_a, A, "x", "interrupted"),
            (installing(), trying_b, A, "x", "interrupted"),
            (installing(), on_a, B, "x", "inconsistent"),
            (installing(), trying_b, B, "x", "unknown"),
            (trial(None), trying_b, A, "first", "ready"),
            (trial(None), on_a, A, "first", "abandoned"),
            (trial(Some("no")), on_a, A, "first", "abandoned"),
            (trial(None), trying_b, B, "first", "inconsistent"),
            (trial(None), on_a, A, "later", "abandoned"),
            (trial(None), used_up, A, "later", "failed"),
            (trial(None), trying_b, A, "later", "failed"),
            (trial(Some("no")), on_a, A, "later", "failed"),
            (trial(None), on_b, A, "later", "inconsistent"),
            (trial(None), trying_b, B, "later", "on-trial"),
            (trial(None), used_up, B, "later", "on-trial"),
            (trial(Some("no")), trying_b, B, "later", "condemned"),
            (trial(Some("no")), on_a, B, "later", "condemned"),
            (trial(None), on_a, B, "later", "condemned"),
            (trial(None), on_b, B, "later", "landed"),
            (trial(Some("no")), on_b, B, "later", "landed"),
        ] {
            let shown = format!("{state:?} {plan:?} booted {booted} in {boot}");
            assert_eq!(kind(state, plan, booted, boot), expected, "{shown}");
        }
    }
}
