//! THE PROCEDURE: install, journal, resume, health.
//!
//! Each line is one durable operation:
//!
//! ```text
//! disarm · journal Installing · write … · flush · read back from the medium · journal Trial · ARM · reboot
//! … new system … health · hooks · COMMIT · journal Idle
//! ```
//!
//! What is written is the root image, then the boot files and hooks that belong to it, each to the place of the slot that
//! nothing can boot yet.
//!
//! Journal before switch on the way in, switch before journal on the way out. What a power cut leaves is told apart
//! by [`crate::model::phase::classify`] at the next start; recovery is the normal path. `sim` cuts the power, or kills
//! the process, at every step, up to three times in a row.

mod assemble;
pub mod health;
mod install;
mod journal;
mod lookup;
mod machine;
mod moved;
mod reuse;

pub use assemble::{Plan, use_delta};
pub use install::{Armed, Goal, Image, Install, Unbootable, Written};
pub use journal::{FileJournal, JournalStore};
#[cfg(test)]
pub use journal::{decode as decode_record, encode as encode_record};
pub use machine::{Machine, Next};
pub use reuse::{Place, Reuse};
