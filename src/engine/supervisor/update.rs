//! Another supervisor: fetched here, while the old one runs; then tried by the watcher, which alone touches the container.

use std::time::Duration;

use super::conf::{Conf, Named, is_image_name};
use super::health::SupervisorHealth;
use super::record::Record;
use super::trial::{Outcome, Request};
use super::{NAME, watch};
use crate::config::Settings;
use crate::engine::{Engine, OnProgress, Sources};
use crate::sys::clock::{BootClock, Clock};
use crate::sys::lock::{Lock, try_lock};
use crate::{Error, Result, Root};

const LOCK: &str = "/run/twinhull/supervisor-update.lock";
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The watcher may need this much longer than the deadline: to stop a container, to reach the engine.
const PATIENCE: Duration = Duration::from_secs(180);

/// One update. There is one at a time.
#[derive(Debug)]
pub struct Update<'a> {
    settings: &'a Settings,
    root: &'a Root,
    engine: Engine,
    _lock: Lock,
}

impl<'a> Update<'a> {
    /// # Errors
    /// `Refused` if no supervisor belongs on this host, or an update goes on; `Failed` if nobody keeps the supervisor
    /// running, or the engine does not answer.
    pub fn begin(settings: &'a Settings, root: &'a Root) -> Result<Self> {
        if !settings.supervisor.enabled || !settings.engine.enabled {
            return Err(Error::refused(
                "none belongs on this host (supervisor.enabled or engine.enabled is false)",
            ));
        }
        let goes_on = || Error::refused("another update goes on; `twinhull supervisor status` shows it");
        let lock = try_lock(&root.path(LOCK))?.ok_or_else(goes_on)?;
        if Request::load(root)?.is_some() {
            return Err(goes_on());
        }
        if !watch::is_watched(root)? {
            return Err(Error::failed(
                "nobody keeps the supervisor running; start `twinhull supervisor run` (twinhull-supervisor.service)",
            ));
        }
        Ok(Self { settings, root, engine: Engine::connect(&settings.engine, root)?, _lock: lock })
    }

    /// The supervisor that should run now.
    ///
    /// # Errors
    /// As [`Conf::load`].
    pub fn present(&self) -> Result<Conf> {
        present(self.settings, self.root)
    }

    /// Fetches the image called `name`, while the old supervisor runs on.
    ///
    /// # Errors
    /// `Usage` for what cannot be a name; else as [`Sources::fetch`].
    pub fn fetch(
        &self,
        name: &str,
        sources: &mut Sources<'_>,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<()> {
        if !is_image_name(name) {
            return Err(Error::usage(format!("{name:?} is not the name of an image")));
        }
        sources.fetch(&self.engine, name, on_progress).map(drop)
    }

    /// The engine that is spoken to.
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Asks the watcher to try `named`, whose image the engine has, and waits for the end. `say` is told how it goes on.
    ///
    /// # Errors
    /// `Failed` if the watcher goes away or does not answer; then the trial may still go on.
    pub fn try_out(&self, named: Named, say: &mut dyn FnMut(&str)) -> Result<Outcome> {
        let limit = Duration::from_secs(self.settings.supervisor.update_deadline_s);
        let deadline = BootClock.since_boot().saturating_add(limit);
        let request = Request { named, deadline_s: deadline.as_secs() };
        request.save(self.root)?;
        let mut said = String::new();
        while Request::load(self.root)?.as_ref() == Some(&request) {
            let now = BootClock.since_boot();
            if now > deadline.saturating_add(PATIENCE) {
                return Err(Error::failed("the watcher does not answer; look into its log"));
            }
            // An engine that is away is the watcher's to wait for.
            if let Ok(found) = self.engine.container(NAME) {
                let health = SupervisorHealth::of(found.as_ref()).to_string();
                if health != said {
                    say(&health);
                    said = health;
                }
            }
            BootClock.sleep(LOOK_EVERY);
        }
        match Record::load(self.root)?.update {
            Some(outcome) if outcome.tried == request.named => Ok(outcome),
            _ => Err(Error::failed("the trial ended without a verdict; look into the watcher's log")),
        }
    }
}

fn present(settings: &Settings, root: &Root) -> Result<Conf> {
    let (found, _) = Conf::load(&settings.supervisor, root)?;
    found.into_iter().next().ok_or_else(|| Error::inconsistent("no supervisor.conf"))
}

/// The supervisor to roll back to: the one before the last update, else the one that the OS image names.
///
/// # Errors
/// `Refused` if there is no other.
pub fn previous(settings: &Settings, root: &Root) -> Result<Named> {
    let (found, _) = Conf::load(&settings.supervisor, root)?;
    let Some((now, others)) = found.split_first() else {
        return Err(Error::inconsistent("no supervisor.conf"));
    };
    let other = others.first().map(Conf::named).filter(|named| named.image != now.image);
    let before = Some(now.previous.clone()).filter(|named| !named.image.is_empty());
    before.or(other).ok_or_else(|| {
        Error::refused(format!(
            "there is nothing before {}; name one with `supervisor update IMAGE`",
            now.image
        ))
    })
}

/// The supervisor that the OS image names.
///
/// # Errors
/// `Refused` if it names none.
pub fn of_os_image(settings: &Settings, root: &Root) -> Result<Named> {
    let path = root.path(&settings.supervisor.default_conf);
    Conf::read(&path)?.map(|conf| conf.named()).ok_or_else(|| {
        Error::refused(format!(
            "there is no {}, so name the image: `supervisor update IMAGE`",
            path.display()
        ))
    })
}
