//! One container takes the place of another. Each step may be the last before a cut: [`settle`] tidies up after it.

use std::time::Duration;

use serde_json::json;

use super::app::{App, find};
use super::body::Wanted;
use super::folder::Folder;
use crate::engine::{Engine, Summary};
use crate::sys::clock::{BootClock, Clock};
use crate::{Doing, Result};

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Puts right what a cut has left of an earlier change.
///
/// A container that has not taken its place is removed; one that is set aside in a hand-over gets its place back if nobody
/// took it, or if the one that took it does not run; else its time is over.
///
/// # Errors
/// `Failed` with the engine's message.
pub fn settle(engine: &Engine, app: &App, service: &str, all: &[Summary]) -> Result<()> {
    if find(all, &app.new_of(service)).is_some() {
        engine.remove(&app.new_of(service))?;
    }
    let (name, old) = (app.of(service), app.old_of(service));
    if find(all, &old).is_none() {
        return Ok(());
    }
    match find(all, &name) {
        Some(c) if c.state == "running" => engine.remove(&old),
        taken => {
            if taken.is_some() {
                engine.remove(&name)?;
            }
            give_back(engine, app, service)
        }
    }
}

/// Makes a container and starts it; nothing is in its place.
///
/// # Errors
/// `Failed` with the engine's message.
pub fn create(engine: &Engine, app: &App, wanted: &Wanted) -> Result<()> {
    make_new(engine, app, wanted)?;
    let name = app.of(&wanted.service);
    engine.rename(&app.new_of(&wanted.service), &name)?;
    engine.start(&name)
}

/// Ends the old container and starts the new one, which is made before: what the engine does not accept costs nothing.
///
/// # Errors
/// `Failed` with the engine's message.
pub fn replace(engine: &Engine, app: &App, wanted: &Wanted) -> Result<()> {
    make_new(engine, app, wanted)?;
    let name = app.of(&wanted.service);
    engine.stop_as_made(&name)?;
    engine.remove(&name)?;
    engine.rename(&app.new_of(&wanted.service), &name)?;
    engine.start(&name)
}

/// Starts the new container beside the old one, which ends when the new one says so, or the time is over.
///
/// # Errors
/// `Failed` with the engine's message. If the new one does not start, the old one has its place again and runs on.
pub fn hand_over(
    engine: &Engine,
    app: &App,
    wanted: &Wanted,
    folder: &Folder,
    limit: Duration,
) -> Result<()> {
    make_new(engine, app, wanted)?;
    let (name, old) = (app.of(&wanted.service), app.old_of(&wanted.service));
    folder.forget()?;
    // Else a reboot would start both.
    engine.set_restart_policy(&name, &json!({ "Name": "no" }))?;
    engine.rename(&name, &old)?;
    engine.rename(&app.new_of(&wanted.service), &name)?;
    if let Err(e) = engine.start(&name) {
        engine.remove(&name)?;
        give_back(engine, app, &wanted.service)?;
        return Err(e).doing(|| "the old container runs on");
    }
    let end = BootClock.since_boot().saturating_add(limit);
    while !folder.is_complete() {
        if BootClock.since_boot() >= end {
            log::warn!(
                "{}: no hand-over within {} s; the old container ends now",
                wanted.service,
                limit.as_secs_f32()
            );
            break;
        }
        BootClock.sleep(LOOK_EVERY);
    }
    engine.stop_as_made(&old)?;
    engine.remove(&old)?;
    folder.forget()
}

/// Ends and removes a container.
///
/// # Errors
/// `Failed` with the engine's message.
pub fn remove(engine: &Engine, name: &str) -> Result<()> {
    engine.stop_as_made(name)?;
    engine.remove(name)
}

fn make_new(engine: &Engine, app: &App, wanted: &Wanted) -> Result<()> {
    let name = app.new_of(&wanted.service);
    engine.create_container(&name, &wanted.body)?;
    wanted.connect.iter().try_for_each(|(network, endpoint)| engine.connect_to(network, &name, endpoint))
}

/// Its restart policy is not known any more; `always` is the default, and the next comparison does not look at it.
fn give_back(engine: &Engine, app: &App, service: &str) -> Result<()> {
    let name = app.of(service);
    engine.rename(&app.old_of(service), &name)?;
    engine.set_restart_policy(&name, &json!({ "Name": "always" }))
}
