//! Makes the container that exists the one that should, in steps of which each may be the last before a cut.
//!
//! While a new supervisor is on trial the old container is only stopped and set aside under another name. To go back is to
//! remove the new one and give the old one its name again, which a full disk does not prevent.

use super::NAME;
use super::compare::{Action, compare};
use super::desired::{Facts, desired};
use crate::engine::{Engine, Image};
use crate::{Doing, Result};

/// The old container, while a new supervisor is on trial.
pub(super) const ASIDE: &str = "balena_supervisor_before";
pub(super) const KILL_AFTER: std::time::Duration = std::time::Duration::from_secs(10);

/// Compares, and does what the comparison asks for. `tick` is called between steps that may take long.
///
/// # Errors
/// `Failed` with the engine's message. What was done stays done: the next call goes on from there.
pub(super) fn make_so(
    engine: &Engine,
    facts: &Facts,
    image: &Image,
    on_trial: bool,
    tick: &dyn Fn(),
) -> Result<Action> {
    let spec = desired(facts);
    let found = engine.container(NAME)?;
    let aside = engine.container(ASIDE)?;
    let action = compare(&spec, image, found.as_ref());
    if matches!(action, Action::Create | Action::Replace { .. }) {
        let is_right = |old| matches!(compare(&spec, image, Some(old)), Action::Keep | Action::Start);
        if !on_trial && aside.as_ref().is_some_and(is_right) {
            log::info!("supervisor: the container from before the update returns");
            engine.remove(NAME).doing(|| "go back to the old supervisor")?;
            tick();
            engine.rename(ASIDE, NAME).doing(|| "go back to the old supervisor")?;
            engine.start(NAME).doing(|| "go back to the old supervisor")?;
            return Ok(Action::Start);
        }
    }
    match &action {
        Action::Keep => log::info!("supervisor: the container that runs is kept"),
        Action::Start => log::info!("supervisor: the container that exists is started"),
        Action::Create => log::info!("supervisor: container created from {}", spec.image),
        Action::Replace { why } => log::info!("supervisor: container replaced: {why}"),
    }
    if matches!(action, Action::Replace { .. }) {
        let doing = || "replace the supervisor container";
        if on_trial && aside.is_none() {
            engine.stop(NAME, KILL_AFTER).doing(doing)?;
            engine.rename(NAME, ASIDE).doing(doing)?;
        } else {
            engine.remove(NAME).doing(doing)?;
        }
        tick();
    }
    if matches!(action, Action::Replace { .. } | Action::Create) {
        let doing = || "create the supervisor container";
        facts.make_directories().doing(doing)?;
        engine.create(&spec).doing(doing)?;
        tick();
    }
    if action != Action::Keep {
        engine.start(NAME).doing(|| "start the supervisor container")?;
    }
    if !on_trial && aside.is_some() {
        engine.remove(ASIDE).doing(|| "remove the old supervisor container")?;
    }
    Ok(action)
}
