//! What the bootloader will do.

use super::Slot;

/// Who boots next: the primary slot, and at most one trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct BootPlan {
    /// The slot that boots when no trial has tries left.
    pub primary: Slot,
    /// The slot on trial, if any. Never the primary.
    pub trial: Option<Trial>,
}

/// A slot armed for a number of boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Trial {
    /// The slot on trial.
    pub slot: Slot,
    /// Boots that it may still use; 0: used up, the next boot is the primary's.
    pub tries_left: u8,
}

impl BootPlan {
    /// Only `primary`, no trial.
    pub const fn settled(primary: Slot) -> Self {
        Self { primary, trial: None }
    }

    /// The other slot of `primary` on trial.
    pub fn on_trial(slot: Slot, tries_left: u8) -> Self {
        Self { primary: !slot, trial: Some(Trial { slot, tries_left }) }
    }

    /// Whether `slot` is on trial, with or without tries left.
    pub fn tries(&self, slot: Slot) -> Option<u8> {
        self.trial.filter(|t| t.slot == slot).map(|t| t.tries_left)
    }
}
