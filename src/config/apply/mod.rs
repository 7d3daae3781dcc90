//! Telling the host's daemons what `config.json` says: `twinhull config apply`, run at boot and after each change.
//!
//! # Laws
//! 1. What a daemon was told is seen from its file: only what differs is written, and only the units behind a file
//!    that changed are told. A second run changes nothing.
//! 2. One wrong value, or one daemon that fails, is reported and leaves the other subjects as good as they are.
//! 3. The container engine is never restarted for a setting: that would stop every container.

mod run;
#[cfg(test)]
mod tests;
mod topics;

pub use run::{Applied, Outcome, Runner, apply, runner};
pub use topics::{Action, FLEET_CA, Facts, File, HOST_NAME, Topic, host_name_of, topics};
