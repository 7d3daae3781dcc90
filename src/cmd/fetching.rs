//! The progress of images that are loaded or pulled: a line on a terminal, JSON lines with `--json`, the log else.

use std::time::Duration;

use serde_json::json;

use crate::engine::Progress;
use crate::sys;
use crate::sys::clock::{BootClock, Clock};

/// Shows at most this often.
const EVERY: Duration = Duration::from_millis(250);
/// A log that nobody watches needs less.
const EVERY_LOG: Duration = Duration::from_secs(10);

/// What is shown of fetching one image.
pub struct Fetching {
    json: bool,
    image: String,
    shown: Duration,
    drawn: bool,
}

impl Fetching {
    /// For the image of that name.
    pub fn new(json: bool, image: &str) -> Self {
        Self { json, image: image.to_owned(), shown: Duration::ZERO, drawn: false }
    }

    /// Shows how it goes on.
    pub fn show(&mut self, progress: &Progress) {
        let (event, text) = match progress {
            Progress::Sent(bytes) => (
                json!({ "event": "load", "image": self.image, "sent": bytes }),
                format!("{}: loading, {} MiB", self.image, bytes >> 20),
            ),
            Progress::Pulled { done, total } => (
                json!({ "event": "pull", "image": self.image, "pulled": done, "of": total }),
                format!("{}: pulling, {} of {} MiB", self.image, done >> 20, total >> 20),
            ),
            Progress::Says(text) => return log::debug!("{}: {text}", self.image),
        };
        let now = BootClock.since_boot();
        let every = if self.json || sys::out::is_terminal() { EVERY } else { EVERY_LOG };
        if now < self.shown + every {
            return;
        }
        self.shown = now;
        sys::notify::status(&text);
        if self.json {
            sys::out::line(&event.to_string());
        } else if sys::out::is_terminal() {
            sys::out::redraw(&text);
            self.drawn = true;
        } else {
            log::info!("{text}");
        }
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        if self.drawn {
            sys::out::redraw("");
        }
    }
}
