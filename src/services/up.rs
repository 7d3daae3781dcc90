//! Makes the engine hold what a Compose file says, service by service.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::app::{APP, App, SPEC, find, service_of};
use super::body::{self, DEFAULT_NETWORK, Given, Wanted};
use super::change;
use super::folder::{Folder, Locked};
use super::plan::{self, Action};
use super::strategy::Strategy;
use crate::compose::{Condition, Definition, Network, Service, Shared};
use crate::engine::{Engine, Image, Progress, Sources, Summary};
use crate::feature::Facts;
use crate::sys::clock::{BootClock, Clock};
use crate::{Doing, Error, Result, Root};

/// How long another service may take to become healthy.
const HEALTHY_WITHIN: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// An application as it is to run on this host.
#[derive(Debug)]
pub struct Application<'a> {
    /// Its name.
    pub app: App,
    /// Its services, in the order of the file.
    pub services: Vec<(&'a Service, Definition)>,
    /// Optional ones that this device cannot run.
    pub left_out: BTreeSet<String>,
    /// Networks of the file.
    pub networks: Vec<Shared>,
    /// Volumes of the file.
    pub volumes: Vec<Shared>,
    /// What goes into grants.
    pub facts: Facts,
    /// Variables of the device that every service has.
    pub device: Vec<(String, String)>,
    /// Update locks do not count.
    pub force: bool,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Report {
    /// To which service.
    pub services: Vec<(String, Action)>,
    /// Services that are not in the file any more.
    pub removed: Vec<String>,
}

/// Called for what goes on: of which image.
pub type OnImage<'a> = dyn FnMut(&str, &Progress) + 'a;

/// Makes it so. What runs as it should is not touched.
///
/// # Errors
/// `Refused`, with nothing touched, if a service holds an update lock; `Failed`, naming the service.
pub fn up(
    application: &Application<'_>,
    engine: &Engine,
    root: &Root,
    sources: &mut Sources<'_>,
    on_image: &mut OnImage<'_>,
) -> Result<Report> {
    let named: Vec<_> = application.services.iter().map(|(s, d)| (s.name.as_str(), d)).collect();
    let order = plan::order(&named, &application.left_out)?;
    check_names(application)?;
    let mut work = Work { application, engine, root, images: BTreeMap::new(), replaced: BTreeSet::new() };
    let all = application.app.containers(engine)?;
    for (service, _) in &application.services {
        change::settle(engine, &application.app, &service.name, &all).doing(|| service.name.clone())?;
    }
    work.fetch(sources, on_image)?;
    let found = application.app.containers(engine)?;
    let networks = work.changed_networks()?;
    let _locks = work.lock(&found, &networks)?;

    let removed = work.remove_others(&found)?;
    work.kill_first(&found, sources, on_image)?;
    work.make_shared(&networks)?;
    let mut report = Report { removed, ..Report::default() };
    for index in order {
        if let Some((service, definition)) = application.services.get(index) {
            let action = work.attend(service, definition).doing(|| format!("service {}", service.name))?;
            log::info!("{}: {}", service.name, action.word());
            report.services.push((service.name.clone(), action));
        }
    }
    work.remove_networks()?;
    work.clean_up();
    Ok(report)
}

/// That networks and volumes which the services name are in the file.
fn check_names(application: &Application<'_>) -> Result<()> {
    let has = |all: &[Shared], name: &str| all.iter().any(|(n, _)| n == name);
    for (service, definition) in &application.services {
        let wrong = |what: &str, name: &str| {
            Err(Error::failed(format!(
                "service {}: no {what} {name:?} under {what}s: of the file",
                service.name
            )))
        };
        for mount in &definition.volumes {
            if !has(&application.volumes, &mount.volume) {
                return wrong("volume", &mount.volume);
            }
        }
        for (network, _) in body::networks(definition) {
            if network != DEFAULT_NETWORK && !has(&application.networks, &network) {
                return wrong("network", &network);
            }
        }
    }
    Ok(())
}

struct Work<'a> {
    application: &'a Application<'a>,
    engine: &'a Engine,
    root: &'a Root,
    /// By service, as far as they are there.
    images: BTreeMap<String, Image>,
    /// Ids of images whose containers were removed.
    replaced: BTreeSet<String>,
}

impl Work<'_> {
    fn folder(&self, service: &str) -> Folder {
        Folder::of(self.root, &self.application.app, service)
    }

    /// The images of services that keep running meanwhile; of the others only what is there already.
    fn fetch(&mut self, sources: &mut Sources<'_>, on_image: &mut OnImage<'_>) -> Result<()> {
        for (service, _) in &self.application.services {
            let doing = || format!("service {}", service.name);
            let name = service.image.as_deref().ok_or_else(|| {
                Error::failed(
                    "it has no image; services are not built on the device: build it, and name the image",
                )
            });
            let name = name.doing(doing)?;
            let image = if Strategy::of(&body::labels(service, None)).kills_first() && !sources.anew {
                self.engine.image(name).doing(doing)?
            } else {
                let mut progress = |p: &Progress| {
                    on_image(name, p);
                    Ok(())
                };
                Some(sources.fetch(self.engine, name, &mut progress).doing(doing)?)
            };
            self.images.extend(image.map(|image| (service.name.clone(), image)));
        }
        Ok(())
    }

    fn wanted(&self, service: &Service, definition: &Definition, image: &Image) -> Result<Wanted> {
        let application = self.application;
        let given = Given {
            app: &application.app,
            alone: application.services.len() + application.left_out.len() == 1,
            facts: &application.facts,
            device: &application.device,
        };
        let beside = match &definition.network {
            Network::Service(other) => self.engine.container(&application.app.of(other))?.map(|c| c.id),
            Network::Default | Network::Named(_) | Network::Mode(_) => None,
        };
        Ok(Wanted::of(&given, service, definition, image, &self.folder(&service.name), beside.as_deref()))
    }

    /// Networks of the engine that are ours and differ from those of the file.
    fn changed_networks(&self) -> Result<BTreeSet<String>> {
        let wanted = self.networks();
        let there = self.engine.networks()?;
        let differs = |name: &str| {
            let labels = there.iter().find(|n| n.name == name).map(|n| &n.labels);
            let spec = wanted.get(name).map(|body| &body["Labels"][SPEC]);
            labels
                .zip(spec)
                .is_some_and(|(labels, spec)| spec.as_str() != labels.get(SPEC).map(String::as_str))
        };
        Ok(wanted.keys().filter(|name| differs(name)).cloned().collect())
    }

    /// The bodies that make the networks which are used, by name.
    fn networks(&self) -> BTreeMap<String, Value> {
        let application = self.application;
        let used = application.services.iter().flat_map(|(_, d)| body::networks(d)).map(|(name, _)| name);
        let one = |name: String| {
            let found =
                application.networks.iter().find(|(n, _)| *n == name).map(|(_, fields)| fields.clone());
            let mut body = Value::Object(found.unwrap_or_default());
            body["Name"] = json!(application.app.of(&name));
            body["CheckDuplicate"] = json!(true);
            (application.app.of(&name), labelled(body, &application.app))
        };
        used.collect::<BTreeSet<_>>().into_iter().map(one).collect()
    }

    /// What is to be done about a service, as far as it can be told before the others are attended to.
    fn first_look(&self, service: &Service, definition: &Definition, found: &[Summary]) -> Result<Action> {
        let container = find(found, &self.application.app.of(&service.name));
        let Some(image) = self.images.get(&service.name) else {
            return Ok(if container.is_some() { Action::Replace } else { Action::Create });
        };
        Ok(plan::compare(&self.wanted(service, definition, image)?, container))
    }

    fn uses(&self, definition: &Definition, networks: &BTreeSet<String>) -> bool {
        body::networks(definition).iter().any(|(name, _)| networks.contains(&self.application.app.of(name)))
    }

    /// Locks every service whose container is to go.
    fn lock(&self, found: &[Summary], networks: &BTreeSet<String>) -> Result<Vec<Locked>> {
        let mut names: BTreeSet<String> = self.others(found).map(|c| service_of(c).to_owned()).collect();
        for (service, definition) in &self.application.services {
            let goes = self.first_look(service, definition, found)? == Action::Replace
                || (self.uses(definition, networks)
                    && find(found, &self.application.app.of(&service.name)).is_some());
            if goes {
                names.insert(service.name.clone());
            }
            self.folder(&service.name).make()?;
        }
        let lock = |name: &String| {
            self.folder(name).lock(self.application.force).doing(|| format!("service {name}"))
        };
        names.iter().map(lock).collect()
    }

    /// Containers of services that the file does not have.
    fn others<'b>(&'b self, found: &'b [Summary]) -> impl Iterator<Item = &'b Summary> {
        let known = |name: &str| self.application.services.iter().any(|(s, _)| s.name == name);
        found.iter().filter(move |c| !known(service_of(c)))
    }

    fn remove_others(&mut self, found: &[Summary]) -> Result<Vec<String>> {
        let (mut names, mut images) = (Vec::new(), Vec::new());
        for container in self.others(found) {
            change::remove(self.engine, &container.id)
                .doing(|| format!("service {}", service_of(container)))?;
            log::info!("{}: removed", service_of(container));
            names.push(service_of(container).to_owned());
            images.push(container.image_id.clone());
        }
        self.replaced.extend(images);
        Ok(names)
    }

    /// Removes the containers of services whose images come only then, and fetches these.
    fn kill_first(
        &mut self,
        found: &[Summary],
        sources: &mut Sources<'_>,
        on_image: &mut OnImage<'_>,
    ) -> Result<()> {
        for (service, definition) in &self.application.services {
            let doing = || format!("service {}", service.name);
            let strategy = Strategy::of(&body::labels(service, self.images.get(&service.name)));
            let action = self.first_look(service, definition, found)?;
            if strategy.kills_first()
                && action == Action::Replace
                && let Some(container) = find(found, &self.application.app.of(&service.name))
            {
                change::remove(self.engine, &container.id).doing(doing)?;
                self.replaced.insert(container.image_id.clone());
                if strategy == Strategy::DeleteThenDownload {
                    self.clean_up();
                }
            }
            if let (None, Some(name)) = (self.images.get(&service.name), &service.image) {
                let mut progress = |p: &Progress| {
                    on_image(name, p);
                    Ok(())
                };
                let image = sources.fetch(self.engine, name, &mut progress).doing(doing)?;
                self.images.insert(service.name.clone(), image);
            }
        }
        Ok(())
    }

    /// Networks and volumes. A network that changed is made anew, without the containers that were on it.
    fn make_shared(&mut self, changed: &BTreeSet<String>) -> Result<()> {
        if !changed.is_empty() {
            for container in self.application.app.containers(self.engine)? {
                let service =
                    self.application.services.iter().find(|(s, _)| s.name == service_of(&container));
                if service.is_some_and(|(_, definition)| self.uses(definition, changed)) {
                    change::remove(self.engine, &container.id)?;
                    self.replaced.insert(container.image_id);
                }
            }
            changed.iter().try_for_each(|name| self.engine.remove_network(name))?;
        }
        let there = self.engine.networks()?;
        for (name, body) in self.networks() {
            if !there.iter().any(|n| n.name == name) {
                self.engine.create_network(&body).doing(|| format!("network {name}"))?;
            }
        }
        let application = self.application;
        let alone = application.services.len() + application.left_out.len() == 1;
        let used =
            application.services.iter().flat_map(|(_, d)| body::mounts(d, alone)).map(|(volume, _)| volume);
        for volume in used.collect::<BTreeSet<_>>() {
            let name = application.app.of(&volume);
            if self.engine.volume_dir(&name)?.is_none() {
                let fields = application.volumes.iter().find(|(n, _)| *n == volume).map(|(_, f)| f.clone());
                let mut body = Value::Object(fields.unwrap_or_default());
                body["Name"] = json!(name);
                self.engine
                    .create_volume(&labelled(body, &application.app))
                    .doing(|| format!("volume {name}"))?;
            }
        }
        Ok(())
    }

    /// Removes the application's networks that nothing is on any more.
    fn remove_networks(&self) -> Result<()> {
        let used = self.networks();
        let there = self.engine.networks()?;
        let ours = there
            .iter()
            .filter(|n| n.labels.get(APP).map(String::as_str) == Some(self.application.app.name()));
        ours.filter(|n| !used.contains_key(&n.name)).try_for_each(|n| self.engine.remove_network(&n.name))
    }

    /// Gives one service the container that it should have.
    fn attend(&mut self, service: &Service, definition: &Definition) -> Result<Action> {
        let (engine, app) = (self.engine, &self.application.app);
        self.wait_for(definition)?;
        let image = self.images.get(&service.name).ok_or_else(|| Error::inconsistent("its image is gone"))?;
        let wanted = self.wanted(service, definition, image)?;
        let all = app.containers(engine)?;
        let found = find(&all, &app.of(&service.name));
        let action = plan::compare(&wanted, found);
        if action == Action::Start
            && let Err(e) = engine.start(&app.of(&service.name))
        {
            // Its network may be another by now, with the same name: a container knows its networks by their ids.
            log::warn!("{}: {e}; its container is made anew", service.name);
            change::replace(engine, app, &wanted)?;
            return Ok(Action::Replace);
        }
        match (action, wanted.strategy) {
            (Action::Keep | Action::Start, _) => {}
            (Action::Create, _) => change::create(engine, app, &wanted)?,
            (Action::Replace, Strategy::HandOver(limit)) => {
                change::hand_over(engine, app, &wanted, &self.folder(&service.name), limit)?;
            }
            (Action::Replace, _) => change::replace(engine, app, &wanted)?,
        }
        if action == Action::Replace {
            self.replaced.extend(found.map(|c| c.image_id.clone()));
        }
        Ok(action)
    }

    /// Waits until what a service needs is healthy, where it asks for that.
    fn wait_for(&self, definition: &Definition) -> Result<()> {
        let end = BootClock.since_boot() + HEALTHY_WITHIN;
        for (other, condition) in plan::needs(definition) {
            if condition != Condition::Healthy || self.application.left_out.contains(other) {
                continue;
            }
            loop {
                let container = self.engine.container(&self.application.app.of(other))?;
                let health = container.and_then(|c| c.state.health).map(|h| h.status);
                match health.as_deref() {
                    Some("healthy") => break,
                    None | Some("none" | "") => {
                        return Err(Error::failed(format!(
                            "{other}, which it needs healthy, has no health check"
                        )));
                    }
                    Some(status) if BootClock.since_boot() >= end => {
                        return Err(Error::failed(format!("{other}, which it needs healthy, is {status}")));
                    }
                    Some(_) => BootClock.sleep(LOOK_EVERY),
                }
            }
        }
        Ok(())
    }

    /// Removes images that nothing of the application uses any more.
    fn clean_up(&mut self) {
        let used: BTreeSet<_> = self.images.values().map(|i| i.id.clone()).collect();
        for id in std::mem::take(&mut self.replaced).difference(&used) {
            match self.engine.remove_image(id) {
                Ok(true) => log::info!("image {id} removed"),
                Ok(false) => log::debug!("image {id} is in use, or has other names"),
                Err(e) => log::warn!("{e}"),
            }
        }
    }
}

/// The body with our labels beside its own.
fn labelled(mut body: Value, app: &App) -> Value {
    let spec = body::digest(&body);
    body["Labels"][APP] = json!(app.name());
    body["Labels"][SPEC] = json!(spec);
    body
}
