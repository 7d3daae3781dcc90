//! Raspberry Pi firmware: `autoboot.txt` names the boot partition of each slot, and the one-shot flag of `reboot` with
//! `0 tryboot` picks the other one. The firmware does not count, so the tries are counted here.

mod autoboot;
mod chooser;

pub use autoboot::{Autoboot, LIMIT_BYTES, Section, decode};
pub use chooser::{FILE, Tryboot};
