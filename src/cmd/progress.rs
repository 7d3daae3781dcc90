//! The progress of an install, and of other long work: a bar on a terminal, JSON lines with `--json`, a status line under systemd.

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
    /// Bytes of the bundle that will be fetched or read, if that is known.
    total: Option<u64>,
    image: u64,
    fetched: u64,
    reused: u64,
    started: Duration,
    ticker: Ticker,
}

/// Shows a line of progress, not too often.
pub struct Ticker {
    json: bool,
    on_terminal: bool,
    shown: Duration,
}

impl Ticker {
    /// One that shows nothing yet.
    pub fn new(json: bool) -> Self {
        Self { json, on_terminal: sys::out::is_terminal(), shown: Duration::ZERO }
    }

    /// Shows `text` with a bar of `percent`, or `event`; `last` in any case.
    pub fn show(&mut self, text: &str, percent: u64, last: bool, event: &serde_json::Value) {
        let now = BootClock.since_boot();
        let every = if self.json || self.on_terminal { EVERY } else { EVERY_LOG };
        if !last && now < self.shown + every {
            return;
        }
        self.shown = now;
        sys::notify::status(text);
        if self.json {
            sys::out::line(&event.to_string());
        } else if self.on_terminal {
            let filled = usize::try_from(percent * WIDTH / 100).unwrap_or(0);
            sys::out::redraw(&format!("[{:<width$}] {text}", "#".repeat(filled), width = 30));
        } else {
            log::info!("{text}");
        }
    }

    /// Takes the bar off the terminal.
    pub fn end(&self) {
        if !self.json && self.on_terminal {
            sys::out::redraw("");
        }
    }
}

impl Bar {
    /// For an image of `image` bytes from a bundle of `total` bytes, if that is known.
    pub fn new(json: bool, image: u64, total: Option<u64>) -> Self {
        let now = BootClock.since_boot();
        Self { json, total, image, fetched: 0, reused: 0, started: now, ticker: Ticker::new(json) }
    }

    /// So much of both slots was looked at, of `total`.
    pub fn look(&mut self, read: u64, total: u64) {
        let event = json!({ "event": "look", "read": read, "of": total });
        let percent = read.saturating_mul(100).checked_div(total).unwrap_or(100);
        self.ticker.show(&format!("looking at what is there {percent:3} %"), percent, false, &event);
    }

    /// It is known what will be fetched, and what is in place or will be copied.
    pub fn planned(&mut self, fetch: u64, (in_place, copied): (u64, u64)) {
        self.total = Some(fetch);
        if self.json {
            let line = json!({ "event": "plan", "fetch_bytes": fetch, "in_place_bytes": in_place,
                "copied_bytes": copied, "image_bytes": self.image });
            sys::out::line(&line.to_string());
        } else {
            log::info!(
                "{} MiB to fetch, {} MiB are in place, {} MiB are copied from the running slot",
                fetch >> 20,
                in_place >> 20,
                copied >> 20
            );
        }
    }

    /// The bundle is accepted, writing begins.
    pub fn begin(&mut self, version: &Version, slot: Slot) {
        self.started = BootClock.since_boot();
        if self.json {
            let line = json!({ "event": "begin", "version": version, "slot": slot, "image_bytes": self.image,
                "bundle_bytes": self.total });
            sys::out::line(&line.to_string());
        } else {
            log::info!("installing {version} into slot {slot}: {} MiB", self.image >> 20);
        }
    }

    /// So much was fetched and written.
    pub fn progress(&mut self, p: Progress) {
        (self.fetched, self.reused) = (p.read_bytes, p.reused_bytes);
        let event = json!({ "event": "progress", "fetched": p.read_bytes, "reused": p.reused_bytes,
            "written": p.done_bytes, "image_bytes": self.image, "bundle_bytes": self.total });
        let percent = p.done_bytes.saturating_mul(100).checked_div(self.image).unwrap_or(100);
        let text = self.describe(percent);
        self.ticker.show(&text, percent, p.done_bytes >= self.image, &event);
    }

    /// So much was fetched in all; the image is written.
    pub const fn fetched(&mut self, bytes: u64) {
        self.fetched = bytes;
    }

    /// All is written and flushed.
    pub fn flushed(&self) {
        if self.json {
            sys::out::line(&json!({ "event": "flushed", "image_bytes": self.image }).to_string());
        }
    }

    /// So much was read back.
    pub fn read_back(&mut self, bytes: u64) {
        let event = json!({ "event": "read-back", "read": bytes, "image_bytes": self.image });
        let percent = bytes.saturating_mul(100).checked_div(self.image).unwrap_or(100);
        self.ticker.show(&format!("reading back {percent:3} %"), percent, bytes >= self.image, &event);
    }

    /// The end.
    pub fn armed(&mut self, armed: &Armed, took: Duration) {
        if self.json {
            let line = json!({ "event": "armed", "slot": armed.slot, "tries": armed.tries, "fetched": self.fetched,
                "reused": self.reused, "written": self.image, "seconds": took.as_secs_f32() });
            sys::out::line(&line.to_string());
            return;
        }
        self.ticker.end();
        let seconds = took.as_secs_f32();
        log::info!(
            "fetched {} bytes, reused {}, the image has {}; {seconds:.1} s",
            self.fetched,
            self.reused,
            self.image
        );
    }

    fn describe(&self, percent: u64) -> String {
        let elapsed = BootClock.since_boot().saturating_sub(self.started).as_secs().max(1);
        let rate = self.fetched / elapsed;
        let left = self.total.filter(|_| rate > 0).map_or(String::new(), |total| {
            let seconds = total.saturating_sub(self.fetched) / rate;
            format!(", {seconds} s left")
        });
        let fetched = self.fetched >> 20;
        let total = self.total.map_or(String::new(), |t| format!(" of {}", t >> 20));
        let reused = match self.reused {
            0 => String::new(),
            n => format!(", reused {} MiB", n >> 20),
        };
        format!("writing {percent:3} %, fetched {fetched}{total} MiB at {} KiB/s{reused}{left}", rate >> 10)
    }
}
