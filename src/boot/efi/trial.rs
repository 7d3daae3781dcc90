//! The variable of our own: which slot is on trial, and how many tries it has left.

use crate::model::{Slot, Trial};
use crate::{Error, Result};

/// Its name; the GUID is twinhull's.
pub const TRIAL: &str = "TwinhullTrial-5f1c9c2e-6d0a-4f53-9a35-0d3e8b6c7a41";

/// `slot=B tries_left=3 crc=XXXXXXXX`: the CRC-32 of what stands before it, since firmware's store has no check of its own.
pub(super) fn encode(trial: Trial) -> Vec<u8> {
    let text = format!("slot={} tries_left={}", trial.slot, trial.tries_left);
    format!("{text} crc={:08x}", crc32fast::hash(text.as_bytes())).into_bytes()
}

/// # Errors
/// `Failed` if it is not, byte for byte, what [`encode`] writes.
pub(super) fn decode(raw: &[u8]) -> Result<Trial> {
    let all =
        Slot::ALL.into_iter().flat_map(|slot| (0..=9).map(move |tries_left| Trial { slot, tries_left }));
    all.into_iter().find(|trial| encode(*trial) == raw).ok_or_else(|| {
        Error::failed(format!(
            "{:?}: expected slot=A|B tries_left=0..9 and its CRC",
            String::from_utf8_lossy(raw)
        ))
    })
}
