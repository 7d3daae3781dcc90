//! The process that keeps the supervisor container running: the only one of ours that stays resident.
//!
//! Each round looks at the container, does at most one thing about it, and waits for an event or a deadline. What
//! it knows is looked up anew after each loss of the engine, so that it may be killed and started at any point.

use std::cell::Cell;
use std::time::Duration;

mod on_trial;
mod silent;

use super::NAME;
use super::conf::Conf;
use super::desired::Facts;
use super::health::SupervisorHealth;
use super::image::{Chosen, choose};
use super::pace::Pace;
use super::record::Record;
use super::replace::{KILL_AFTER, make_so};
use super::silence::Silence;
use super::trial::{Request, Trial, Verdict};
use crate::config::Settings;
use crate::engine::client::is_timeout;
use crate::engine::{Container, Engine, Events, Progress, Wake};
use crate::feature::grant::EXTRA_FIRMWARE_VOLUME;
use crate::feature::host;
use crate::sys::clock::{BootClock, Clock};
use crate::sys::lock::try_lock;
use crate::sys::notify;
use crate::sys::termination::Termination;
use crate::{Doing, Error, Result, Root};

/// Without an event, the container is looked at this often: events can be lost.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Between two tries to reach an engine that does not answer.
const ENGINE_RETRY: Duration = Duration::from_secs(2);
/// How often it is looked whether somebody asks for an update, and how a trial goes on: one `stat` each.
const REQUEST_EVERY: Duration = Duration::from_secs(2);
/// Held for as long as a watcher lives.
const LOCK: &str = "/run/twinhull/supervisor.lock";

/// Whether a watcher runs.
///
/// # Errors
/// `Failed`, naming the lock, if that cannot be told.
pub(super) fn is_watched(root: &Root) -> Result<bool> {
    Ok(try_lock(&root.path(LOCK))?.is_none())
}

/// Keeps the supervisor container as it should be until this process is asked to end; then stops it.
///
/// An engine that does not answer, an image that is missing and a container that crashes are waited out.
///
/// # Errors
/// `Failed` if another watcher runs; else only if waiting itself does not work.
pub fn watch(settings: &Settings, root: &Root, termination: &Termination) -> Result<()> {
    // Twice: whoever asks whether a watcher runs holds it for a moment.
    let lock = match try_lock(&root.path(LOCK))? {
        None if !termination.wait(ENGINE_RETRY)? => try_lock(&root.path(LOCK))?,
        other => other,
    };
    let Some(_lock) = lock else {
        return Err(Error::failed("another `twinhull supervisor run` keeps the supervisor running"));
    };
    let mut watcher = Watcher::new(settings, root, termination);
    while !termination.wait(Duration::ZERO)? {
        if let Err(e) = watcher.attend() {
            if termination.wait(Duration::ZERO)? {
                break;
            }
            watcher.say(&format!("waiting for the engine: {e}"));
            watcher.make_room();
            watcher.engine_is_silent();
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
    /// How long the engine itself has been no use.
    silence: Silence,
    archives_loaded: bool,
    /// A new supervisor that is being tried.
    trial: Option<Trial>,
    /// The image of one that failed its trial: removed when the old one runs again.
    failed_image: Option<String>,
    ready: bool,
    /// When systemd was last told that we live.
    fed: Cell<Duration>,
    said: String,
    noted: Vec<String>,
    /// Why no room can be kept on the data partition.
    noted_room: String,
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
            silence: Silence::default(),
            archives_loaded: false,
            trial: None,
            failed_image: None,
            ready: false,
            fed: Cell::default(),
            said: String::new(),
            noted: Vec::new(),
            noted_room: String::new(),
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
            self.silence.answered(self.clock.since_boot());
            let rest = match self.tend(&engine, container.as_ref()) {
                Ok(rest) => rest,
                Err(e) => {
                    if is_timeout(&e) {
                        self.silence.is_stuck();
                    }
                    // Not the container's fault, if the engine itself is away.
                    engine.ping().map(|()| self.failed(e))?
                }
            };
            if self.silence.stuck() {
                self.engine_is_silent();
            }
            if self.wait(&mut events, rest)? {
                return Ok(());
            }
        }
    }

    /// Does what is to be done now. Gives how long nothing more will be, if nothing happens.
    fn tend(&mut self, engine: &Engine, container: Option<&Container>) -> Result<Duration> {
        let now = self.clock.since_boot();
        let health = SupervisorHealth::of(container);
        self.look_for_request();
        if !health.runs() && self.running {
            self.ended(now, &health);
        }
        let settle = Duration::from_secs(self.settings.supervisor.update_settle_s);
        if self.compared
            && let Some(trial) = &mut self.trial
        {
            match trial.judge(&health, now, settle) {
                Verdict::Wait => {}
                Verdict::Keep => return Ok(self.keep_new(engine)),
                Verdict::Back(why) => return Ok(self.go_back(why)),
            }
        }
        match &health {
            SupervisorHealth::Missing | SupervisorHealth::Stopped { .. } => {
                let rest = self.start_at.saturating_sub(now);
                return if rest.is_zero() { self.converge(engine) } else { Ok(rest) };
            }
            _ if !self.compared => return self.converge(engine),
            SupervisorHealth::Unhealthy { .. } => return self.unhealthy(engine, now, &health),
            SupervisorHealth::Starting => {}
            SupervisorHealth::Healthy | SupervisorHealth::Running => {
                self.unhealthy_since = None;
                self.pace.runs_well(now);
                self.keep_room();
            }
        }
        self.runs(&health);
        Ok(LOOK_EVERY)
    }

    /// It ran, and does no longer.
    fn ended(&mut self, now: Duration, how: &SupervisorHealth) {
        self.running = false;
        self.unhealthy_since = None;
        if let Some(trial) = &mut self.trial {
            trial.ended();
        }
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
        self.silence.worked();
        Ok(Duration::ZERO)
    }

    /// Makes the container that exists the one that should.
    fn converge(&mut self, engine: &Engine) -> Result<Duration> {
        let chosen = self.chosen(engine)?;
        if chosen.notes != self.noted {
            chosen.notes.iter().for_each(|note| log::warn!("supervisor: {note}"));
            self.noted.clone_from(&chosen.notes);
        }
        let facts = Facts::gather(chosen.conf, engine, self.settings, self.root);
        let tick = || self.round_done();
        make_so(engine, &facts, &chosen.image, self.trial.is_some(), &tick)?;
        (self.compared, self.running) = (true, true);
        self.silence.worked();
        self.trouble(None);
        if let Some(image) = self.failed_image.take().filter(|image| *image != facts.conf.image) {
            on_trial::remove_image(engine, &image);
        }
        Ok(Duration::ZERO)
    }

    /// Which image runs: the one on trial, else the one of `supervisor.conf`.
    fn chosen(&mut self, engine: &Engine) -> Result<Chosen> {
        let settings = &self.settings.supervisor;
        if let Some(trial) = &self.trial {
            let named = trial.request.named.clone();
            let now = Conf::load(settings, self.root)?.0.into_iter().next().unwrap_or_default();
            let image = engine.image(&named.image)?;
            let image = image.ok_or_else(|| Error::failed(format!("there is no image {}", named.image)))?;
            let conf = Conf { image: named.image, version: named.version, ..now };
            return Ok(Chosen { conf, image, notes: Vec::new() });
        }
        let termination = self.termination;
        let mut on_progress = |progress: &Progress| load_goes_on(termination, progress);
        let chosen = choose(engine, settings, self.root, self.archives_loaded, &mut on_progress)?;
        self.archives_loaded = true;
        Ok(chosen)
    }

    /// The container could not be made or started, with an engine that answers.
    fn failed(&mut self, e: Error) -> Duration {
        self.running = false;
        if self.trial.is_some() {
            return self.go_back(e.to_string());
        }
        let now = self.clock.since_boot();
        let rest = if self.make_room() { Duration::ZERO } else { self.pace.ended(now) };
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
        let end = if self.trial.is_some() { end.min(self.clock.since_boot() + REQUEST_EVERY) } else { end };
        let tick = notify::watchdog_interval().unwrap_or(REQUEST_EVERY).min(REQUEST_EVERY);
        loop {
            self.round_done();
            if self.termination.wait(Duration::ZERO)? {
                return Ok(true);
            }
            if self.trial.is_none() && Request::is_there(self.root) {
                return Ok(false);
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

    /// We made progress: every wait and every call above is bounded, so the watchdog may know; not at each look.
    fn round_done(&self) {
        let Some(interval) = notify::watchdog_interval() else { return };
        let now = self.clock.since_boot();
        if self.fed.get().is_zero() || now.saturating_sub(self.fed.get()) >= interval / 2 {
            notify::notify("WATCHDOG=1");
            self.fed.set(now);
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
        Progress::Sent(_) | Progress::Pulled { .. } => {}
        Progress::Says(text) => {
            log::debug!("supervisor: {text}");
            notify::notify("WATCHDOG=1");
        }
    }
    Ok(())
}
