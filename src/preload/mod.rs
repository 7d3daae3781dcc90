//! WHAT A DEVICE IS DELIVERED WITH: an archive of the data partition's content, such as the engine's storage with its images,
//! unpacked on the first boot.
//!
//! `FORMAT.md` beside this file lays down the archive. The laws:
//!
//! 1. Nothing looks into a chunk before it matched its signed digest.
//! 2. Nothing counts before all of it is on the medium: it is made in a place of its own and then moved. A cut anywhere is
//!    gone on from, and only a record that is whole and names this archive says how far it was.
//! 3. What is on the data partition is never replaced.
//! 4. The archive goes last, and only if it lies on the data partition itself.

mod archive;
mod entry;
mod manifest;
#[cfg(feature = "build-host")]
pub mod pack;
mod stage;
mod unpack;

pub use archive::Archive;
pub use entry::{Entry, Kind};
pub use manifest::Manifest;
pub use unpack::{End, Observer, State, Step, give_up, look, unpack, verify};

#[cfg(all(test, feature = "build-host"))]
#[allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]
// Clippy does not take this for a test.
mod tests;
