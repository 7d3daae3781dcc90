//! The progress of an install: a bar on a terminal, JSON lines with `--json`, a status line under systemd.

use std::time::Duration;

use serde_json::json;

use crate::bundle::Progress;
use crate::model::{Slot, Version};
use crate::sys;
use crate::sys::clock::{BootClock, Clock};
use crate::update::Armed;

/// Shows at most this often.
const EVERY: Duration = Duration::from_millis(250);
/// A log that nobody watches needs less.
const EVERY_LOG: Duration = Duration::from_secs(10);
const WIDTH: u64 = 30;

/// One install's progress.
pub struct Bar {
    json: bool,
    total: Option<u64>,
    image: u64,
    fetched: u64,
    started: Duration,
    shown: Duration,
}

impl Bar {
    /// For a bundle of `total` bytes, if that is known.
    pub fn new(json: bool, total: Option<u64>) -> Self {
        let now = BootClock.since_boot();
        Self { json, total, image: 0, fetched: 0, started: now, shown: Duration::ZERO }
    }

    /// The bundle is accepted, writing begins.
    pub fn begin(&mut self, version: &Version, slot: Slot, image_bytes: u64) {
        self.image = image_bytes;
        if self.json {
            let line = json!({ "event": "begin", "version": version, "slot": slot, "image_bytes": image_bytes,
                "bundle_bytes": self.total });
            sys::out::line(&line.to_string());
        } else {
            log::info!("installing {version} into slot {slot}: {} MiB", image_bytes >> 20);
        }
    }

    /// So much was fetched and written.
    pub fn progress(&mut self, p: Progress) {
        self.fetched = p.read_bytes;
        let event = json!({ "event": "progress", "fetched": p.read_bytes, "written": p.done_bytes, "image_bytes": self.image,
            "bundle_bytes": self.total });
        self.show("writing", p.done_bytes, &event);
    }

    /// So much was read back.
    pub fn read_back(&mut self, bytes: u64, of: u64) {
        let event = json!({ "event": "read-back", "read": bytes, "image_bytes": of });
        self.show("reading back", bytes, &event);
    }

    /// The end.
    pub fn armed(&mut self, armed: &Armed, took: Duration) {
        if self.json {
            let line = json!({ "event": "armed", "slot": armed.slot, "tries": armed.tries, "fetched": self.fetched,
                "written": self.image, "seconds": took.as_secs_f32() });
            sys::out::line(&line.to_string());
            return;
        }
        if sys::out::is_terminal() {
            sys::out::redraw("");
        }
        let seconds = took.as_secs_f32();
        log::info!("fetched {} bytes, wrote {} bytes in {seconds:.1} s", self.fetched, self.image);
    }

    fn show(&mut self, what: &str, done: u64, event: &serde_json::Value) {
        let now = BootClock.since_boot();
        let every = if self.json || sys::out::is_terminal() { EVERY } else { EVERY_LOG };
        if done < self.image && now < self.shown + every {
            return;
        }
        self.shown = now;
        let percent = done.saturating_mul(100).checked_div(self.image).unwrap_or(100);
        let text = self.describe(what, percent, now);
        sys::notify::status(&text);
        if self.json {
            sys::out::line(&event.to_string());
        } else if sys::out::is_terminal() {
            let filled = usize::try_from(percent * WIDTH / 100).unwrap_or(0);
            sys::out::redraw(&format!("[{:<width$}] {text}", "#".repeat(filled), width = 30));
        } else {
            log::info!("{text}");
        }
    }

    fn describe(&self, what: &str, percent: u64, now: Duration) -> String {
        let elapsed = now.saturating_sub(self.started).as_secs().max(1);
        let rate = self.fetched / elapsed;
        let left = self.total.map_or(String::new(), |total| {
            let seconds = total.saturating_sub(self.fetched) / rate.max(1);
            format!(", {seconds} s left")
        });
        let fetched = self.fetched >> 20;
        let total = self.total.map_or(String::new(), |t| format!(" of {}", t >> 20));
        format!("{what} {percent:3} %, fetched {fetched}{total} MiB at {} KiB/s{left}", rate >> 10)
    }
}
