//! Before an update of the host: the services that run here, judged against the OS that is to come.

use super::contracts;
use crate::cli::Context;
use crate::config::Settings;
use crate::contract::{Requirement, Service, Unmet, lost_by};
use crate::engine::{Engine, Summary};
use crate::feature::label;
use crate::model::Manifest;
use crate::{Error, Result};

const SUPERVISED: &str = "io.balena.supervised";
const SERVICE_NAME: &str = "io.balena.service-name";

/// Refuses an update that takes from a service what it requires and has today.
///
/// Requirements are the labels of the containers that run, or that the supervisor looks after. What a bundle does not
/// say of its kernel and L4T counts as not there. An optional service does not hold an update up; neither does an engine
/// that does not answer, as an update may be what mends it. Both are told.
///
/// # Errors
/// `Refused`, naming each service and requirement, unless `force`: then they are told.
pub(super) fn check(context: &Context, settings: &Settings, manifest: &Manifest, force: bool) -> Result<()> {
    if !settings.engine.enabled {
        return Ok(());
    }
    let containers = match Engine::connect(&settings.engine, &context.root).and_then(|e| e.containers()) {
        Ok(containers) => containers,
        Err(e) => {
            log::warn!("whether the new OS has what the services here require is not known: {e}");
            return Ok(());
        }
    };
    let now = contracts::of_device(&context.root, settings)?;
    let then = now.after_update(&manifest.version, &manifest.provides);
    let lost = lost_by(&services(&containers), &now, &then);
    for told in lost.iter().filter(|u| u.optional || force).flat_map(sentences) {
        log::warn!("{told}");
    }
    let refused: Vec<_> = lost.iter().filter(|u| !u.optional).flat_map(sentences).collect();
    if refused.is_empty() || force {
        return Ok(());
    }
    Err(Error::refused(format!(
        "{}; update these services first, or install with --force and lose them",
        refused.join("; ")
    )))
}

fn sentences(unmet: &Unmet) -> Vec<String> {
    let optional = if unmet.optional { " (optional: it will be left out)" } else { "" };
    let lacks = unmet.lacks.iter().map(|l| l.describe("the new OS"));
    lacks.map(|l| format!("service {}{optional} runs here and {l}", unmet.service)).collect()
}

/// The services that these containers belong to. One that stands still counts if the supervisor will start it again.
fn services(containers: &[Summary]) -> Vec<Service> {
    let mut services: Vec<Service> = Vec::new();
    for container in containers {
        let labels = label::normalize(&container.labels);
        let is_true = |name: &str| labels.get(name).is_some_and(|v| label::is_true(v));
        let runs = matches!(container.state.as_str(), "running" | "paused" | "restarting");
        if !(runs || is_true(SUPERVISED)) {
            continue;
        }
        let own_name = || container.names.first().map(|n| n.trim_start_matches('/').to_owned());
        let name =
            labels.get(SERVICE_NAME).cloned().or_else(own_name).unwrap_or_else(|| container.id.clone());
        match Requirement::of_labels(&labels) {
            Ok(requires) => {
                let service = Service { name, requires, optional: is_true(label::OPTIONAL) };
                // Two containers of one service, in a hand-over.
                if !services.contains(&service) {
                    services.push(service);
                }
            }
            Err(e) => log::warn!("service {name}: {e}; what it requires cannot be checked"),
        }
    }
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, state: &str, labels: &[(&str, &str)]) -> Summary {
        Summary {
            id: "0123".into(),
            names: vec![format!("/{name}")],
            state: state.into(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Summary::default()
        }
    }

    #[test]
    fn containers_that_run_or_are_looked_after_count() {
        let l4t = ("io.balena.features.requires.sw.l4t", "32");
        let supervised = (SUPERVISED, "true");
        let found = services(&[
            container("runs", "running", &[l4t]),
            container("main_1_2_c", "exited", &[l4t, supervised, (SERVICE_NAME, "main")]),
            container("old_main_1_2_c", "running", &[l4t, supervised, (SERVICE_NAME, "main")]),
            container("left", "exited", &[l4t]),
            container("may-go", "restarting", &[("io.resin.features.optional", "on")]),
            container("wrong", "running", &[("io.balena.features.requires.sw.l4t", "x.y")]),
        ]);
        let told: Vec<_> = found.iter().map(|s| (s.name.as_str(), s.requires.len(), s.optional)).collect();
        assert_eq!(told, [("runs", 1, false), ("main", 1, false), ("may-go", 0, true)]);
    }
}
