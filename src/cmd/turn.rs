//! One procedure at a time: whoever changes journal or boot plan holds one lock.

use std::time::Duration;

use crate::sys::clock::{BootClock, Clock};
use crate::sys::lock::{Lock, is_held, try_lock};
use crate::{Error, Kind, Result, Root};

const LOCK: &str = "/run/twinhull/install.lock";

/// Takes the lock. Whoever only looks has it for a moment: so this waits for a second.
///
/// # Errors
/// `Refused` if an install holds it.
pub fn take(root: &Root) -> Result<Lock> {
    for _ in 0..10 {
        if let Some(lock) = try_lock(&root.path(LOCK))? {
            return Ok(lock);
        }
        BootClock.sleep(Duration::from_millis(100));
    }
    Err(Error::refused("an install is under way; wait for it (`twinhull status`)"))
}

/// As [`take`], but waits for as long as the install takes.
///
/// # Errors
/// `Failed` if there can be no lock.
pub fn wait(root: &Root) -> Result<Lock> {
    let mut told = false;
    loop {
        match take(root) {
            Err(e) if e.kind() == Kind::Refused => {
                if !std::mem::replace(&mut told, true) {
                    log::info!("waiting: {e}");
                }
            }
            taken => return taken,
        }
    }
}

/// Whether somebody holds the lock now. Without the right to look nobody is seen.
pub fn is_taken(root: &Root) -> bool {
    is_held(&root.path(LOCK)).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_until_the_first_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        assert!(!is_taken(&root));
        let first = take(&root).unwrap();
        assert!(is_taken(&root));
        assert_eq!(take(&root).unwrap_err().kind(), Kind::Refused);
        std::thread::scope(|s| {
            let second = s.spawn(|| wait(&root).map(drop));
            BootClock.sleep(Duration::from_millis(50));
            drop(first);
            second.join().unwrap().unwrap();
        });
    }
}
