//! How the boots of a trial ended: kept in the journal, so that a rollback has its reason.

use super::BootId;

/// Tries that one trial may be given back: a system that reboots itself in order each time (`FailureAction=reboot`) would
/// otherwise stay on trial for ever.
pub const GIVEN_BACK_MAX: u8 = 9;

/// What is known of the boots of a trial.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Boots {
    /// The one that began last, until it ends in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<BootId>,
    /// Tries given back because a boot ended in order.
    #[serde(default)]
    pub given_back: u8,
    /// How the last one ended that did not end in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl Boots {
    /// Nothing is known: no boot of the trial has begun.
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }

    /// What is known now that the boot `now` has begun; `evidence` is what the one before it has left, and `on_trial` says
    /// whether this is a boot of the trial.
    #[must_use]
    pub fn begun(&self, now: &BootId, on_trial: bool, evidence: &Evidence) -> Self {
        if self.open.as_ref() == Some(now) {
            return self.clone();
        }
        // One that did not even get so far as to be noted leaves evidence all the same; that there is none says nothing.
        let ended = match self.open {
            Some(_) => Some(evidence.told()),
            None => evidence.found(),
        };
        Self {
            open: on_trial.then(|| now.clone()),
            failure: ended.or_else(|| self.failure.clone()),
            given_back: self.given_back,
        }
    }
}

/// What a boot that did not end in order leaves behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The last lines of a kernel that panicked.
    pub panic: Option<String>,
    /// The watchdog says that it reset the machine.
    pub watchdog: bool,
}

impl Evidence {
    fn found(&self) -> Option<String> {
        match (&self.panic, self.watchdog) {
            (Some(lines), _) => Some(format!("kernel panic: {lines}")),
            (None, true) => Some("it hung and the watchdog reset the machine".into()),
            (None, false) => None,
        }
    }

    fn told(&self) -> String {
        self.found().unwrap_or_else(|| "power was lost, or somebody reset the machine".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> BootId {
        BootId(text.into())
    }

    #[test]
    fn a_boot_that_did_not_end_in_order_is_explained_by_what_it_left() {
        let panic = Evidence { panic: Some("not syncing: x".into()), watchdog: true };
        let hang = Evidence { panic: None, watchdog: true };
        let nothing = Evidence::default();
        for (open, evidence, expected) in [
            (Some("a"), &panic, Some("kernel panic: not syncing: x")),
            (Some("a"), &hang, Some("it hung and the watchdog reset the machine")),
            (Some("a"), &nothing, Some("power was lost, or somebody reset the machine")),
            (None, &panic, Some("kernel panic: not syncing: x")),
            (None, &hang, Some("it hung and the watchdog reset the machine")),
            (None, &nothing, None),
            (Some("now"), &panic, None),
        ] {
            let before = Boots { open: open.map(id), ..Boots::default() };
            let after = before.begun(&id("now"), true, evidence);
            assert_eq!(
                (after.failure.as_deref(), after.open),
                (expected, Some(id("now"))),
                "{open:?} {evidence:?}"
            );
        }
    }

    #[test]
    fn an_earlier_failure_stays_until_there_is_a_later_one() {
        let before = Boots { failure: Some("first".into()), ..Boots::default() };
        let after = before.begun(&id("now"), true, &Evidence::default());
        assert_eq!(after.failure.as_deref(), Some("first"));
        let after = after.begun(&id("later"), false, &Evidence::default());
        assert_eq!(
            (after.failure.as_deref(), after.open),
            (Some("power was lost, or somebody reset the machine"), None)
        );
    }
}
