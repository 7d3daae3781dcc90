//! The journal's record: where an update stands, and how the last one ended.

use super::{BootId, Boots, Digest, Slot, Version};

/// Which bundle an update is about.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Release {
    /// The OS version that the bundle carries.
    pub version: Version,
    /// The digest of the bundle's manifest: two bundles are the same if and only if these are equal.
    pub manifest: Digest,
    /// The bundle's release counter; 0 if it has none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub counter: u64,
}

/// The one durable record on the state partition.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Record {
    /// Where an update stands.
    pub state: State,
    /// How the update before this one ended; kept until the next one ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Ended>,
    /// The highest release counter that was ever committed: nothing below it is installed any more.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub release_floor: u64,
}

/// Where an update stands.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum State {
    /// No update is under way.
    Idle,
    /// `target` is being written; what it holds is not whole.
    Installing {
        /// The slot being written.
        target: Slot,
        /// What is being written.
        release: Release,
    },
    /// `target` holds a whole, checked image and was armed, or is about to be.
    Trial {
        /// The slot on trial.
        target: Slot,
        /// What it holds.
        release: Release,
        /// The boot during which the trial was armed: only another boot can be the trial.
        armed_in: BootId,
        /// What was true of the old system, which the new one must match.
        before: Before,
        /// What the new system runs before it is committed, in order.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        hooks: Vec<Hook>,
        /// How its boots ended so far.
        #[serde(default, skip_serializing_if = "Boots::is_unknown")]
        boots: Boots,
        /// Why the trial is to end badly; set before it is called off, so that the reason survives the cut.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        verdict: Option<String>,
    },
}

/// A program that came with the bundle and lies on the state partition.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Hook {
    /// Its name.
    pub name: String,
    /// What it must be.
    pub sha256: Digest,
    /// Seconds that it may take.
    pub deadline_s: u64,
}

/// What was true before an update: health asks of the new system what the old one could do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Before {
    /// The cloud API answered.
    pub api_reachable: bool,
    /// The supervisor container was running and healthy.
    pub supervisor_healthy: bool,
}

/// How an update ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Ended {
    /// Which way.
    pub result: Outcome,
    /// The slot that was written.
    pub target: Slot,
    /// What was to be installed.
    pub release: Release,
    /// Why, for people: for a rollback, the check that failed and its output.
    pub reason: String,
}

/// The three ends of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The new system is the primary one.
    Committed,
    /// The new system was tried and the old one is back.
    RolledBack,
    /// The new system was never started.
    Abandoned,
}

impl Record {
    /// No update under way, none remembered: what a device without a journal has.
    pub const fn new() -> Self {
        Self { state: State::Idle, last: None, release_floor: 0 }
    }

    /// No update under way any more; this one ended so. A commit raises the floor of the release counter.
    #[must_use]
    pub fn ended(self, last: Ended) -> Self {
        let committed = if last.result == Outcome::Committed { last.release.counter } else { 0 };
        Self { state: State::Idle, release_floor: self.release_floor.max(committed), last: Some(last) }
    }
}

// serde wants a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Default for Record {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Committed => "committed",
            Self::RolledBack => "rolled back",
            Self::Abandoned => "abandoned",
        })
    }
}
