//! What is to be done about the container that exists.

use std::collections::BTreeSet;

use crate::engine::{Bind, Container, ContainerSpec, Image};

/// What makes the found container the desired one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// There is none: create and start it.
    Create,
    /// It is the right one and runs.
    Keep,
    /// It is the right one but does not run.
    Start,
    /// It is another: remove it, create and start the right one.
    Replace {
        /// What differs, for people.
        why: String,
    },
}

/// Compares the container that exists with the one that should. `image` is the desired image as the engine has it.
///
/// What the engine adds by itself (the image's environment, the container's id) is no difference; neither is the
/// engine's own restart policy, which balenaOS's older containers have.
pub fn compare(desired: &ContainerSpec, image: &Image, found: Option<&Container>) -> Action {
    let Some(found) = found else { return Action::Create };
    if let Some(why) = difference(desired, image, found) {
        return Action::Replace { why };
    }
    match found.state.status.as_str() {
        "running" | "restarting" => Action::Keep,
        "created" | "exited" | "" => Action::Start,
        other => Action::Replace { why: format!("it is {other}") },
    }
}

fn difference(desired: &ContainerSpec, image: &Image, found: &Container) -> Option<String> {
    if image.id != found.image {
        return Some(format!("its image is {}, not {}", short(&found.image), short(&image.id)));
    }
    if desired.privileged != found.host_config.privileged {
        return Some(format!("privileged is {}", found.host_config.privileged));
    }
    if desired.network != found.host_config.network_mode {
        return Some(format!(
            "its network is {:?}, not {:?}",
            found.host_config.network_mode, desired.network
        ));
    }
    environment(desired, image, found).or_else(|| binds(desired, found))
}

fn environment(desired: &ContainerSpec, image: &Image, found: &Container) -> Option<String> {
    for (key, value) in &desired.env {
        match found.config.env.iter().find_map(|e| e.strip_prefix(key.as_str())?.strip_prefix('=')) {
            Some(v) if v == value => {}
            Some(v) => return Some(format!("{key} is {v:?}, not {value:?}")),
            None => return Some(format!("{key} is not set")),
        }
    }
    for entry in &found.config.env {
        let key = entry.split('=').next().unwrap_or(entry);
        let wanted = desired.env.iter().any(|(k, _)| k == key) || desired.id_env.as_deref() == Some(key);
        // Podman gives every container these.
        let added = ["container", "HOME", "HOSTNAME", "TERM", "PATH"].contains(&key);
        if !wanted && !added && !image.config.env.contains(entry) {
            return Some(format!("{key} is set"));
        }
    }
    None
}

fn binds(desired: &ContainerSpec, found: &Container) -> Option<String> {
    let wanted: BTreeSet<_> = desired.binds.iter().cloned().collect();
    let there: BTreeSet<_> = found
        .mounts
        .iter()
        .filter(|m| m.kind == "bind" && m.writable)
        .map(|m| Bind::new(&m.source, &m.destination))
        .collect();
    let say = |b: &Bind, what: &str| format!("bind {}:{} is {what}", b.source, b.target);
    let missing = wanted.difference(&there).next().map(|b| say(b, "missing"));
    missing.or_else(|| there.difference(&wanted).next().map(|b| say(b, "there")))
}

/// The first 12 digits of an id, as the engines show it.
pub(super) fn short(id: &str) -> String {
    id.strip_prefix("sha256:").unwrap_or(id).chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::super::desired::tests::facts;
    use super::super::{Facts, desired};
    use super::*;

    fn image() -> Image {
        let text = r#"{"Id":"sha256:1111222233334444","RepoTags":null,"Config":{"Env":["PATH=/","LAB_SUPERVISOR_VERSION=1.0.0"]}}"#;
        serde_json::from_str(text).unwrap()
    }

    /// What dockerd 20.10.24 says of a container made from the golden body, cut down to what matters.
    fn found() -> Container {
        serde_json::from_value(serde_json::json!({
            "Id": "45c7c2fe2aa2e99c", "Image": "sha256:1111222233334444", "Name": "/balena_supervisor",
            "State": { "Status": "running", "Running": true, "ExitCode": 0, "Error": "" },
            "Config": {
                "Image": "lab/supervisor:1.0.0",
                "Env": [
                    "DOCKER_SOCKET=/var/run/balena-engine.sock", "BOOT_MOUNTPOINT=/mnt/boot", "MIXPANEL_TOKEN=token",
                    "DELTA_ENDPOINT=https://delta.example.com", "LED_FILE=/dev/null", "LISTEN_PORT=",
                    "NODE_EXTRA_CA_CERTS=/mnt/root//usr/share/ca-certificates/balena/balenaRootCA.crt",
                    "SUPERVISOR_IMAGE=lab/supervisor:1.0.0", "PATH=/", "LAB_SUPERVISOR_VERSION=1.0.0",
                ],
            },
            "HostConfig": { "NetworkMode": "host", "Privileged": true, "RestartPolicy": { "Name": "no" } },
            "Mounts": [
                { "Type": "bind", "Source": "/run/docker.sock", "Destination": "/var/run/balena-engine.sock", "RW": true },
                { "Type": "bind", "Source": "/run/docker.sock", "Destination": "/run/docker.sock", "RW": true },
                { "Type": "bind", "Source": "/resin-data/balena-supervisor", "Destination": "/data", "RW": true },
                { "Type": "bind", "Source": "/var/log/supervisor-log", "Destination": "/var/log", "RW": true },
                { "Type": "bind", "Source": "/", "Destination": "/mnt/root", "RW": true },
                { "Type": "volume", "Source": "/x/_data", "Destination": "/cache", "RW": true },
            ],
        }))
        .unwrap()
    }

    fn verdict(change: impl FnOnce(&mut Container)) -> Action {
        let mut container = found();
        change(&mut container);
        compare(&desired(&facts()), &image(), Some(&container))
    }

    #[test]
    fn the_right_one_is_kept_or_started() {
        assert_eq!(compare(&desired(&facts()), &image(), None), Action::Create);
        assert_eq!(verdict(|_| {}), Action::Keep);
        assert_eq!(verdict(|c| c.state.status = "exited".into()), Action::Start);
        assert_eq!(verdict(|c| c.state.status = "created".into()), Action::Start);
        assert_eq!(verdict(|c| c.config.env.push("SUPERVISOR_CONTAINER_ID=45c7".into())), Action::Keep);
        assert_eq!(verdict(|c| c.host_config.restart_policy.name = "always".into()), Action::Keep);
    }

    type Change = Box<dyn FnOnce(&mut Container)>;

    #[test]
    fn every_difference_replaces_and_says_why() {
        let cases: Vec<(Change, &str)> = vec![
            (Box::new(|c| c.image = "sha256:5555".into()), "its image is 5555, not 111122223333"),
            (Box::new(|c| c.host_config.privileged = false), "privileged is false"),
            (
                Box::new(|c| c.host_config.network_mode = "default".into()),
                "its network is \"default\", not \"host\"",
            ),
            (Box::new(|c| c.config.env.retain(|e| !e.starts_with("LISTEN"))), "LISTEN_PORT is not set"),
            (Box::new(|c| c.config.env[4] = "LED_FILE=/x".into()), "LED_FILE is \"/x\", not \"/dev/null\""),
            (Box::new(|c| c.config.env.push("DEBUG=1".into())), "DEBUG is set"),
            (Box::new(|c| drop(c.mounts.remove(2))), "bind /resin-data/balena-supervisor:/data is missing"),
            (Box::new(|c| c.mounts[4].writable = false), "bind /:/mnt/root is missing"),
            (Box::new(|c| c.mounts[5].kind = "bind".into()), "bind /x/_data:/cache is there"),
            (Box::new(|c| c.state.status = "paused".into()), "it is paused"),
            (Box::new(|c| c.state.status = "dead".into()), "it is dead"),
        ];
        for (change, why) in cases {
            assert_eq!(verdict(change), Action::Replace { why: why.into() });
        }
    }

    #[test]
    fn a_changed_host_replaces() {
        let changed = Facts { listen_port: "48485".into(), ..facts() };
        let why = "LISTEN_PORT is \"\", not \"48485\"".to_owned();
        assert_eq!(compare(&desired(&changed), &image(), Some(&found())), Action::Replace { why });
    }
}
