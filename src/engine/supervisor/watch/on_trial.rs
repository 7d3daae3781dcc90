//! What the watcher does about a new supervisor: begins its trial, keeps it, or goes back.

use std::time::Duration;

use super::super::conf::Conf;
use super::super::pace::Pace;
use super::super::trial::{Outcome, Request, Trial};
use super::Watcher;
use crate::engine::Engine;

impl Watcher<'_> {
    /// Begins the trial that somebody asks for. A watcher that was started again goes on with it.
    pub(super) fn look_for_request(&mut self) {
        let request = Request::load(self.root).unwrap_or_else(|e| {
            log::warn!("supervisor: {e}; not tried");
            let _ = Request::remove(self.root).inspect_err(|e| log::warn!("supervisor: {e}"));
            None
        });
        if request.as_ref() == self.trial.as_ref().map(|t| &t.request) {
            return;
        }
        if let Some(request) = &request {
            log::info!("supervisor: {} is tried", request.named.image);
            // A crash loop of the old one is nothing that the new one should wait for.
            (self.pace, self.start_at) = (Pace::default(), Duration::ZERO);
        }
        self.trial = request.map(Trial::new);
        self.compared = false;
    }

    /// The new supervisor has passed: one durable write makes it the device's own.
    pub(super) fn keep_new(&mut self, engine: &Engine) -> Duration {
        let Some(tried) = self.trial.as_ref().map(|t| t.request.named.clone()) else { return Duration::ZERO };
        let settings = &self.settings.supervisor;
        let now =
            Conf::load(settings, self.root).map(|(found, _)| found.into_iter().next().unwrap_or_default());
        let stored = now.and_then(|now| {
            Conf::store(settings, self.root, &tried, &now.named())?;
            Ok(now)
        });
        let before = match stored {
            Ok(before) => before,
            Err(e) => return self.go_back(format!("it cannot be recorded: {e}")),
        };
        log::info!("supervisor: {} has passed its trial", tried.image);
        let oldest = before.previous.image.clone();
        self.settled(Outcome { tried: tried.clone(), before: before.named(), went_back: None });
        // Two are kept, so that there is one to go back to.
        if !oldest.is_empty() && oldest != tried.image && oldest != before.image {
            remove_image(engine, &oldest);
        }
        Duration::ZERO
    }

    /// The new supervisor has failed: the next comparison finds that the old one is wanted.
    pub(super) fn go_back(&mut self, why: String) -> Duration {
        let Some(tried) = self.trial.as_ref().map(|t| t.request.named.clone()) else { return Duration::ZERO };
        log::warn!("supervisor: {} has failed its trial: {why}; the old one returns", tried.image);
        let before = Conf::load(&self.settings.supervisor, self.root).unwrap_or_default().0;
        let before = before.first().map(Conf::named).unwrap_or_default();
        self.failed_image = Some(tried.image.clone());
        self.settled(Outcome { tried, before, went_back: Some(why) });
        (self.pace, self.start_at) = (Pace::default(), Duration::ZERO);
        Duration::ZERO
    }

    /// The verdict first, then the request goes: whoever asked sees it go and reads the verdict.
    fn settled(&mut self, outcome: Outcome) {
        self.record.update = Some(outcome);
        self.save();
        if let Err(e) = Request::remove(self.root) {
            log::warn!("supervisor: {e}");
        }
        self.trial = None;
        (self.compared, self.unhealthy_since) = (false, None);
    }
}

/// Frees the place of an image that is not wanted any more. That it stays is no reason to stop.
pub(super) fn remove_image(engine: &Engine, name: &str) {
    match engine.remove_image(name) {
        Ok(true) => log::info!("supervisor: image {name} removed"),
        Ok(false) => log::debug!("supervisor: image {name} is in use"),
        Err(e) => log::warn!("supervisor: {e}"),
    }
}
