//! An engine that does not answer: waited for, and then asked to be started again.

use std::time::Duration;

use super::Watcher;
use crate::engine::reserve;
use crate::engine::supervisor::RESTART_REQUEST;
use crate::sys::clock::Clock;
use crate::{Result, sys};

impl Watcher<'_> {
    /// Where something fails: on a full disk everything does. Whether there is room now.
    pub(super) fn make_room(&self) -> bool {
        reserve::give_up(self.root).unwrap_or_else(|e| {
            log::warn!("supervisor: {e}");
            false
        })
    }

    /// While all is well: room for when it is not.
    pub(super) fn keep_room(&mut self) {
        if let Err(e) = reserve::keep(self.root) {
            let text = e.to_string();
            if self.noted_room != text {
                log::warn!("supervisor: {text}");
                self.noted_room = text;
            }
        }
    }

    /// It does not answer, or is stuck. A unit of its own starts it again: this process may do no such thing.
    pub(super) fn engine_is_silent(&mut self) {
        let limit = Duration::from_secs(self.settings.engine.silent_s);
        if limit.is_zero() {
            return;
        }
        // Without /proc, as on an idle machine.
        let load = load(self.root).unwrap_or(0.0);
        let Some(silent) = self.silence.goes_on(self.clock.since_boot(), limit, load) else { return };
        log::warn!("engine: no answer for {} s: it is to be started again", silent.as_secs());
        self.record.engine_restarts = self.record.engine_restarts.saturating_add(1);
        self.save();
        let request = self.root.path(RESTART_REQUEST);
        if let Err(e) = sys::durable::replace(&request, b"", 0o600) {
            log::error!("engine: {e}");
        }
    }
}

/// Tasks that run or wait for a disk, for each processor, over the last minute.
fn load(root: &crate::Root) -> Result<f64> {
    let text = sys::file::read_text(&root.path("/proc/loadavg"), 4096)?;
    let all: f64 = text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Ok(all / processors as f64)
}
