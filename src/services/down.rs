//! Takes an application away from the engine, but for its volumes.

use std::collections::BTreeSet;

use super::app::{APP, App, service_of};
use super::change;
use super::folder::Folder;
use crate::engine::Engine;
use crate::{Doing, Result, Root};

/// Removes an application's containers and networks. Its volumes stay.
///
/// # Errors
/// `Refused` if a service holds an update lock, unless `force`; `Failed` with the engine's message.
pub fn down(app: &App, engine: &Engine, root: &Root, force: bool) -> Result<Vec<String>> {
    let all = app.containers(engine)?;
    let services: BTreeSet<_> = all.iter().map(service_of).collect();
    let lock = |name: &&str| Folder::of(root, app, name).lock(force).doing(|| format!("service {name}"));
    let _locks: Vec<_> = services.iter().map(lock).collect::<Result<_>>()?;
    for container in &all {
        change::remove(engine, &container.id).doing(|| format!("service {}", service_of(container)))?;
    }
    for network in
        engine.networks()?.iter().filter(|n| n.labels.get(APP).map(String::as_str) == Some(app.name()))
    {
        engine.remove_network(&network.name)?;
    }
    Ok(services.into_iter().map(str::to_owned).collect())
}
