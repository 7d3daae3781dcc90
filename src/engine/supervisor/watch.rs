//! The process that keeps the supervisor container running: the only one of ours that stays resident.
//!
//! Each round looks at the container, does at most one thing about it, and waits for an event or a deadline. What
//! it knows is looked up anew after each loss of the engine, so that it may be killed and started at any point.

use std::time::Duration;

use super::NAME;
use super::compare::{Action, compare};
use super::desired::{Facts, desired};
use super::health::SupervisorHealth;
use super::image::choose;
use super::pace::Pace;
use super::record::Record;
use crate::config::Settings;
use crate::engine::{Container, Engine, Events, Progress, Wake};
use crate::feature::grant::EXTRA_FIRMWARE_VOLUME;
use crate::feature::host;
use crate::sys::clock::{BootClock, Clock};
use crate::sys::notify;
use crate::sys::termination::Termination;
use crate::{Doing, Error, Result, Root};

/// Without an event, the container is looked at this often: events can be lost.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Between two tries to reach an engine that does not answer.
const ENGINE_RETRY: Duration = Duration::from_secs(2);
const KILL_AFTER: Duration = Duration::from_secs(10);

/// Keeps the supervisor container as it should be until this process is asked to end; then stops it.
///
/// An engine that does not answer, an image that is missing and a container that crashes are waited out.
///
/// # Errors
/// `Failed` only if waiting itself does not work.
pub fn watch(settings: &Settings, root: &Root, termination: &Termination) -> Result<()> {
    let mut watcher = Watcher::new(settings, root, termination);
    while !termination.wait(Duration::ZERO)? {
        if let Err(e) = watcher.attend() {
            if termination.wait(Duration::ZERO)? {
                break;
            }
            watcher.say(&format!("waiting for the engine: {e}"));
        }
        watcher.round_done();
        termination.wait(ENGINE_RETRY)?;
    }
    watcher.stop_container();
    Ok(())
}

struct Watcher<'a> {
    settings: &'a Settings,
    root: &'a Root,
    termination: &'a Termination,
    clock: BootClock,
    pace: Pace,
    record: Record,
    /// The container was compared with the desired one since the engine was last found.
    compared: bool,
    /// It was last seen running.
    running: bool,
    /// Not to be started before this.
    start_at: Duration,
    unhealthy_since: Option<Duration>,
    archives_loaded: bool,
    ready: bool,
    said: String,
    noted: Vec<String>,
}

impl<'a> Watcher<'a> {
    fn new(settings: &'a Settings, root: &'a Root, termination: &'a Termination) -> Self {
        // A watcher that systemd starts again goes on counting. What cannot be read is of no use: start at zero.
        let record = Record::load(root).unwrap_or_else(|e| {
            log::warn!("supervisor: {e}");
            Record::default()
        });
        Self {
            settings,
            root,
            termination,
            clock: BootClock,
            pace: Pace::default(),
            record,
            compared: false,
            running: false,
            start_at: Duration::ZERO,
            unhealthy_since: None,
            archives_loaded: false,
            ready: false,
            said: String::new(),
            noted: Vec::new(),
        }
    }

    /// Stays with one engine until it goes away (an error) or we are asked to end.
    fn attend(&mut self) -> Result<()> {
        (self.compared, self.running) = (false, false);
        let engine = Engine::connect(&self.settings.engine, self.root)?;
        if let Err(e) = make_host_side(self.root, &engine) {
            log::warn!("host side of the feature labels: {e}; `twinhull features check` says what it means");
        }
        let mut events = engine.events(NAME, self.termination)?;
        log::debug!("engine {} at {}, API {}", engine.version(), engine.socket().display(), engine.api());
        loop {
            let container = engine.container(NAME)?;
            let rest = match self.tend(&engine, container.as_ref()) {
                Ok(rest) => rest,
                // Not the container's fault, if the engine itself is away.
                Err(e) => engine.ping().map(|()| self.failed(e))?,
            };
            if self.wait(&mut events, rest)? {
                return Ok(());
            }
        }
    }

    /// Does what is to be done now. Gives how long nothing more will be, if nothing happens.
    fn tend(&mut self, engine: &Engine, container: Option<&Container>) -> Result<Duration> {
        let now = self.clock.since_boot();
        let health = SupervisorHealth::of(container);
        match &health {
            SupervisorHealth::Missing | SupervisorHealth::Stopped { .. } => {
                if self.running {
                    self.ended(now, &health);
                }
                let rest = self.start_at.saturating_sub(now);
                return if rest.is_zero() { self.converge(engine) } else { Ok(rest) };
            }
            _ if !self.compared => return self.converge(engine),
            SupervisorHealth::Unhealthy { .. } => return self.unhealthy(engine, now, &health),
            SupervisorHealth::Starting => {}
            SupervisorHealth::Healthy | SupervisorHealth::Running => {
                self.unhealthy_since = None;
                self.pace.runs_well(now);
            }
        }
        self.runs(&health);
        Ok(LOOK_EVERY)
    }

    /// It ran, and does no longer.
    fn ended(&mut self, now: Duration, how: &SupervisorHealth) {
        self.running = false;
        self.unhealthy_since = None;
        let rest = self.pace.ended(now);
        self.start_at = now.saturating_add(rest);
        self.restarts(how.to_string());
        self.say(&format!("{how}; starts again in {} s", rest.as_secs()));
    }

    /// It runs but does not work: gives it time, then starts it again.
    fn unhealthy(&mut self, engine: &Engine, now: Duration, health: &SupervisorHealth) -> Result<Duration> {
        self.pace.runs_badly();
        let since = *self.unhealthy_since.get_or_insert(now);
        self.say(&health.to_string());
        let limit = Duration::from_secs(self.settings.supervisor.unhealthy_s);
        let rest = (since + limit).saturating_sub(now);
        if !rest.is_zero() {
            return Ok(rest.min(LOOK_EVERY));
        }
        log::warn!("supervisor: unhealthy for {} s: started again", limit.as_secs());
        self.restarts(health.to_string());
        self.unhealthy_since = None;
        engine.restart(NAME, KILL_AFTER).doing(|| "start the unhealthy supervisor again")?;
        Ok(Duration::ZERO)
    }

    /// Makes the container that exists the one that should.
    fn converge(&mut self, engine: &Engine) -> Result<Duration> {
        let termination = self.termination;
        let mut on_progress = |progress: &Progress| load_goes_on(termination, progress);
        let settings = &self.settings.supervisor;
        let chosen = choose(engine, settings, self.root, self.archives_loaded, &mut on_progress)?;
        self.archives_loaded = true;
        if chosen.notes != self.noted {
            chosen.notes.iter().for_each(|note| log::warn!("supervisor: {note}"));
            self.noted.clone_from(&chosen.notes);
        }
        let facts = Facts::gather(chosen.conf, engine, self.settings, self.root);
        let spec = desired(&facts);
        let found = engine.container(NAME)?;
        let action = compare(&spec, &chosen.image, found.as_ref());
        match &action {
            Action::Keep => log::info!("supervisor: the container that runs is kept"),
            Action::Start => log::info!("supervisor: the container that exists is started"),
            Action::Create => log::info!("supervisor: container created from {}", spec.image),
            Action::Replace { why } => log::info!("supervisor: container replaced: {why}"),
        }
        if matches!(action, Action::Replace { .. }) {
            engine.remove(NAME).doing(|| "replace the supervisor container")?;
            self.round_done();
        }
        if matches!(action, Action::Replace { .. } | Action::Create) {
            facts.make_directories().doing(|| "create the supervisor container")?;
            engine.create(&spec).doing(|| "create the supervisor container")?;
            self.round_done();
        }
        if action != Action::Keep {
            engine.start(NAME).doing(|| "start the supervisor container")?;
        }
        (self.compared, self.running) = (true, true);
        self.trouble(None);
        Ok(Duration::ZERO)
    }

    /// The container could not be made or started, with an engine that answers.
    fn failed(&mut self, e: Error) -> Duration {
        self.running = false;
        let now = self.clock.since_boot();
        let rest = self.pace.ended(now);
        self.start_at = now.saturating_add(rest);
        self.say(&format!("{e}; tried again until it works"));
        self.trouble(Some(e.to_string()));
        rest
    }

    /// Tells systemd, the first time, that the container runs, and how it does.
    fn runs(&mut self, health: &SupervisorHealth) {
        self.running = true;
        if !self.ready {
            notify::notify("READY=1");
            self.ready = true;
        }
        self.say(&health.to_string());
    }

    /// Waits for an event of the container or for `limit`; says whether we are asked to end.
    fn wait(&mut self, events: &mut Events, limit: Duration) -> Result<bool> {
        let end = self.clock.since_boot().saturating_add(limit);
        let tick = notify::watchdog_interval().unwrap_or(LOOK_EVERY).min(LOOK_EVERY);
        loop {
            self.round_done();
            if self.termination.wait(Duration::ZERO)? {
                return Ok(true);
            }
            let left = end.saturating_sub(self.clock.since_boot());
            if left.is_zero() {
                return Ok(false);
            }
            match events.next(left.min(tick))? {
                Wake::Event(what) => {
                    log::debug!("container {NAME}: {what}");
                    return Ok(false);
                }
                Wake::Tick => {}
                Wake::End => return Err(Error::failed("it closed the stream of events")),
            }
        }
    }

    fn stop_container(&mut self) {
        notify::notify("STOPPING=1");
        let stopped =
            Engine::connect(&self.settings.engine, self.root).and_then(|e| e.stop(NAME, KILL_AFTER));
        match stopped {
            Ok(()) => log::info!("supervisor: container stopped"),
            // The machine goes down, and the engine with it stops its containers.
            Err(e) => log::warn!("supervisor: container not stopped by us: {e}"),
        }
    }

    fn restarts(&mut self, why: String) {
        self.record.restarts = self.record.restarts.saturating_add(1);
        self.record.last_restart = Some(why);
        self.save();
    }

    fn trouble(&mut self, trouble: Option<String>) {
        if self.record.trouble != trouble {
            self.record.trouble = trouble;
            self.save();
        }
    }

    fn save(&self) {
        if let Err(e) = self.record.save(self.root) {
            log::warn!("supervisor: {e}");
        }
    }

    /// Tells log and systemd how things are, if that is new.
    fn say(&mut self, text: &str) {
        if self.said != text {
            log::info!("supervisor: {text}");
            notify::status(text);
            text.clone_into(&mut self.said);
        }
    }

    /// We made progress: every wait and every call above is bounded, so the watchdog may know.
    fn round_done(&self) {
        if notify::watchdog_interval().is_some() {
            notify::notify("WATCHDOG=1");
        }
    }
}

/// What containers expect of their host, as far as it takes an engine to make it.
fn make_host_side(root: &Root, engine: &Engine) -> Result<()> {
    host::make(root, engine.socket())?;
    match engine.volume_dir(EXTRA_FIRMWARE_VOLUME)? {
        Some(dir) => host::use_extra_firmware(root, &dir),
        None => Ok(()),
    }
}

fn load_goes_on(termination: &Termination, progress: &Progress) -> Result<()> {
    if termination.wait(Duration::ZERO)? {
        return Err(Error::failed("asked to end"));
    }
    match progress {
        // Only whole MiB: systemd need not hear of each buffer.
        Progress::Sent(bytes) if bytes % (1024 * 1024) < 16 * 1024 => {
            notify::notify(&format!(
                "WATCHDOG=1\nSTATUS=loading the supervisor's image: {} MiB",
                bytes >> 20
            ));
        }
        Progress::Sent(_) => {}
        Progress::Says(text) => {
            log::debug!("supervisor: {text}");
            notify::notify("WATCHDOG=1");
        }
    }
    Ok(())
}
