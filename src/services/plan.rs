//! What is to be done: in which order, and about which container. Pure.

use std::collections::BTreeSet;

use super::app::SPEC;
use super::body::Wanted;
use crate::compose::{Condition, Definition, Network};
use crate::engine::Summary;
use crate::{Error, Result};

/// What makes the found container the wanted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is the right one and runs.
    Keep,
    /// It is the right one but does not run.
    Start,
    /// There is none.
    Create,
    /// It is another.
    Replace,
}

impl Action {
    /// One word for people and programs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Keep => "kept",
            Self::Start => "started",
            Self::Create => "created",
            Self::Replace => "replaced",
        }
    }
}

/// Compares the container that exists with the one that is wanted.
pub fn compare(wanted: &Wanted, found: Option<&Summary>) -> Action {
    match found {
        None => Action::Create,
        Some(c) if c.labels.get(SPEC) != Some(&wanted.spec) => Action::Replace,
        Some(c) if matches!(c.state.as_str(), "running" | "restarting") => Action::Keep,
        Some(c) if matches!(c.state.as_str(), "created" | "exited") => Action::Start,
        // Paused, dead or being removed: nothing that a start would mend.
        Some(_) => Action::Replace,
    }
}

/// The services that one needs before it.
pub fn needs(definition: &Definition) -> Vec<(&str, Condition)> {
    let mut all: Vec<_> = definition.depends_on.iter().map(|(name, how)| (name.as_str(), *how)).collect();
    if let Network::Service(name) = &definition.network {
        all.push((name.as_str(), Condition::Started));
    }
    all
}

/// The order in which services are started: each after those that it needs, else as in the file. Needs of services that
/// are `left_out` do not count.
///
/// # Errors
/// `Failed` for a service that is not there, and for services that need each other.
pub fn order(services: &[(&str, &Definition)], left_out: &BTreeSet<String>) -> Result<Vec<usize>> {
    for (name, definition) in services {
        for (other, _) in needs(definition) {
            if !services.iter().any(|(n, _)| *n == other) && !left_out.contains(other) {
                return Err(Error::failed(format!(
                    "service {name} needs {other}, which the file does not have"
                )));
            }
        }
    }
    let mut order: Vec<usize> = Vec::new();
    while order.len() < services.len() {
        let is_done = |name: &str| {
            left_out.contains(name) || order.iter().any(|i| services.get(*i).is_some_and(|(n, _)| *n == name))
        };
        let next = services.iter().enumerate().position(|(i, (_, definition))| {
            !order.contains(&i) && needs(definition).iter().all(|(name, _)| is_done(name))
        });
        let Some(next) = next else {
            let left =
                services.iter().enumerate().filter(|(i, _)| !order.contains(i)).map(|(_, (name, _))| *name);
            let left: Vec<_> = left.collect();
            return Err(Error::failed(format!("services need each other: {}", left.join(", "))));
        };
        order.push(next);
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::strategy::Strategy;

    fn definition(needs: &[&str], beside: Option<&str>) -> Definition {
        Definition {
            depends_on: needs.iter().map(|n| ((*n).to_owned(), Condition::Started)).collect(),
            network: beside.map_or(Network::Default, |name| Network::Service(name.into())),
            ..Definition::default()
        }
    }

    #[test]
    fn each_comes_after_what_it_needs() {
        let (web, cache, db, side) = (
            definition(&["db", "cache"], None),
            definition(&[], None),
            definition(&["cache"], None),
            definition(&[], Some("web")),
        );
        let all = [("side", &side), ("web", &web), ("cache", &cache), ("db", &db)];
        assert_eq!(order(&all, &BTreeSet::new()).unwrap(), [2, 3, 1, 0]);
        let without = [("side", &side), ("web", &web), ("cache", &cache)];
        let e = order(&without, &BTreeSet::new()).unwrap_err().to_string();
        assert_eq!(e, "service web needs db, which the file does not have");
        assert_eq!(order(&without, &BTreeSet::from(["db".to_owned()])).unwrap(), [2, 1, 0]);
        let (a, b) = (definition(&["b"], None), definition(&["a"], None));
        let e = order(&[("a", &a), ("cache", &cache), ("b", &b)], &BTreeSet::new()).unwrap_err().to_string();
        assert_eq!(e, "services need each other: a, b");
    }

    #[test]
    fn only_another_digest_replaces() {
        let wanted = Wanted {
            service: "s".into(),
            image: "sha256:1".into(),
            body: serde_json::Value::Null,
            connect: Vec::new(),
            spec: "11".into(),
            strategy: Strategy::DownloadThenKill,
        };
        let found = |spec: &str, state: &str| Summary {
            labels: [(SPEC.to_owned(), spec.to_owned())].into(),
            state: state.into(),
            ..Summary::default()
        };
        assert_eq!(compare(&wanted, None), Action::Create);
        for (spec, state, expected) in [
            ("11", "running", Action::Keep),
            ("11", "restarting", Action::Keep),
            ("11", "exited", Action::Start),
            ("11", "created", Action::Start),
            ("11", "paused", Action::Replace),
            ("22", "running", Action::Replace),
        ] {
            assert_eq!(compare(&wanted, Some(&found(spec, state))), expected, "{spec} {state}");
        }
    }
}
