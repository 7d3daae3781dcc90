//! What a service's container should be: the body of `POST /containers/create`, and what is to be connected afterwards.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::app::{APP, App, SERVICE, SPEC};
use super::folder::Folder;
use super::strategy::Strategy;
use crate::compose::{Definition, Network, Service};
use crate::engine::Image;
use crate::feature::{Facts, Grant, Labels, grant, label};

const SERVICE_NAME: &str = "io.balena.service-name";
const DATA: &str = "/data";
/// The volume of a service that is alone, as the first balenaOS had it.
const DATA_VOLUME: &str = "resin-data";
/// The application's own network.
pub const DEFAULT_NETWORK: &str = "default";

/// What an application's services are made of, besides the file.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// The application.
    pub app: &'a App,
    /// There is one service only.
    pub alone: bool,
    /// What of the host goes into grants.
    pub facts: &'a Facts,
    /// Variables that each service has twice: with `BALENA_` and with `RESIN_` before the name.
    pub device: &'a [(String, String)],
}

/// A container as it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The service's name.
    pub service: String,
    /// The image's id.
    pub image: String,
    /// The body of the request, with [`SPEC`] among its labels.
    pub body: Value,
    /// Networks to connect it to before it is started, with the fields of the endpoint.
    pub connect: Vec<(String, Value)>,
    /// Digest of all of it.
    pub spec: String,
    /// How it takes the place of another.
    pub strategy: Strategy,
}

/// The labels of a service's container: its own over those of its image, with today's names.
pub fn labels(service: &Service, image: Option<&Image>) -> Labels {
    label::of_container(&service.labels, &image.map_or_else(Labels::new, |i| i.config.labels.clone()))
}

/// The volumes of the file that a service mounts, each as `VOLUME:/PATH[:ro]`.
pub fn mounts(definition: &Definition, alone: bool) -> Vec<(String, String)> {
    let mut all: Vec<_> = definition.volumes.iter().map(|m| (m.volume.clone(), m.target.clone())).collect();
    let has_data = all.iter().any(|(_, target)| target.split(':').next() == Some(DATA));
    if alone && !has_data {
        all.push((DATA_VOLUME.into(), DATA.into()));
    }
    all
}

/// The networks of the file that a service is on.
pub fn networks(definition: &Definition) -> Vec<(String, Map<String, Value>)> {
    match &definition.network {
        Network::Default => vec![(DEFAULT_NETWORK.into(), Map::new())],
        Network::Named(all) => all.clone(),
        Network::Mode(_) | Network::Service(_) => Vec::new(),
    }
}

impl Wanted {
    /// Of a service whose image is there. `beside` is the id of the container whose network it shares, if it does that.
    pub fn of(
        given: &Given<'_>,
        service: &Service,
        definition: &Definition,
        image: &Image,
        folder: &Folder,
        beside: Option<&str>,
    ) -> Self {
        let labels = labels(service, Some(image));
        let granted = grant(&labels, &service.own, given.facts);
        let mut body = Value::Object(definition.config.clone());
        let mut connect = Vec::new();
        body["Image"] = json!(image.id);
        body["StopTimeout"] = json!(definition.stop_grace_s);
        body["Env"] = json!(env(given, service, definition, &granted));
        body["HostConfig"] = Value::Object(host(given, definition, granted, folder));
        match &definition.network {
            Network::Mode(mode) => body["HostConfig"]["NetworkMode"] = json!(mode),
            Network::Service(_) => {
                body["HostConfig"]["NetworkMode"] =
                    json!(format!("container:{}", beside.unwrap_or_default()));
            }
            Network::Default | Network::Named(_) => {
                let mut endpoints = endpoints(given.app, service, definition).into_iter();
                // Engines before API 1.44 take one network in this request.
                if let Some((network, endpoint)) = endpoints.next() {
                    body["HostConfig"]["NetworkMode"] = json!(network);
                    let first = Map::from_iter([(network, endpoint)]);
                    body["NetworkingConfig"] = json!({ "EndpointsConfig": first });
                }
                connect = endpoints.collect();
            }
        }
        let own = [
            (APP, given.app.name()),
            (SERVICE, service.name.as_str()),
            (SERVICE_NAME, service.name.as_str()),
        ];
        let mut all: Map<_, _> = labels.into_iter().map(|(k, v)| (k, json!(v))).collect();
        all.extend(own.map(|(k, v)| (k.to_owned(), json!(v))));
        body["Labels"] = Value::Object(all);
        let spec = digest(&json!([body, connect]));
        body["Labels"][SPEC] = json!(spec);
        let strategy = Strategy::of(&self::labels(service, Some(image)));
        Self { service: service.name.clone(), image: image.id.clone(), body, connect, spec, strategy }
    }
}

/// A digest that changes when the request does. Short: it is compared, not trusted.
pub fn digest(request: &Value) -> String {
    Sha256::digest(request.to_string()).iter().take(16).map(|b| format!("{b:02x}")).collect()
}

/// The service's own variables win over those of its labels, and these over what every service has.
fn env(given: &Given<'_>, service: &Service, definition: &Definition, granted: &Grant) -> Vec<String> {
    let mut all: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match all.iter_mut().find(|(k, _)| k == name) {
        Some((_, old)) => value.clone_into(old),
        None => all.push((name.to_owned(), value.to_owned())),
    };
    for prefix in ["BALENA", "RESIN"] {
        set(prefix, "1");
        for (name, value) in [
            ("APP_NAME", given.app.name()),
            ("SERVICE_NAME", service.name.as_str()),
            ("APP_LOCK_PATH", "/tmp/balena/updates.lock"),
        ] {
            set(&format!("{prefix}_{name}"), value);
        }
        for (name, value) in given.device {
            set(&format!("{prefix}_{name}"), value);
        }
    }
    set("BALENA_SERVICE_HANDOVER_COMPLETE_PATH", "/tmp/balena/handover-complete");
    set("RESIN_SERVICE_KILL_ME_PATH", "/tmp/balena/handover-complete");
    let own = granted.env.iter().chain(&definition.env);
    own.for_each(|(name, value)| set(name, value));
    all.into_iter().map(|(k, v)| format!("{k}={v}")).collect()
}

fn host(given: &Given<'_>, definition: &Definition, granted: Grant, folder: &Folder) -> Map<String, Value> {
    let mut host = definition.host.clone();
    let volumes = mounts(definition, given.alone);
    let mut binds = granted.binds;
    binds.extend(volumes.iter().map(|(volume, target)| format!("{}:{target}", given.app.of(volume))));
    binds.extend(["/tmp/balena", "/tmp/resin"].map(|target| format!("{}:{target}", folder.path())));
    host.insert("Binds".into(), json!(binds));
    for (key, list) in [("Mounts", granted.mounts), ("DeviceRequests", granted.device_requests)] {
        if !list.is_empty() {
            host.insert(key.into(), json!(list));
        }
    }
    host
}

fn endpoints(app: &App, service: &Service, definition: &Definition) -> Vec<(String, Value)> {
    let one = |(network, mut endpoint): (String, Map<String, Value>)| {
        // Its name is how the others find it.
        let aliases = endpoint.entry("Aliases").or_insert_with(|| json!([]));
        if let Some(aliases) = aliases.as_array_mut() {
            aliases.insert(0, json!(service.name));
        }
        (app.of(&network), Value::Object(endpoint))
    };
    networks(definition).into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Root;
    use crate::compose::Composition;

    fn wanted(text: &str, name: &str) -> Wanted {
        let composition = Composition::parse(text).unwrap();
        let service = composition.select(Some(name)).unwrap()[0];
        let (definition, _) = Definition::of(&service.node).unwrap();
        let app = App::named("a").unwrap();
        let image: Image = serde_json::from_str(
            r#"{"Id":"sha256:00","Config":{"Labels":{"io.resin.features.sysfs":"1","from":"image"}}}"#,
        )
        .unwrap();
        let facts = Facts { engine_socket: "/run/e.sock".into(), ..Facts::default() };
        let device = [("DEVICE_TYPE".to_owned(), "intel-nuc".to_owned())];
        let alone = composition.services.len() == 1;
        let given = Given { app: &app, alone, facts: &facts, device: &device };
        let folder = Folder::of(&Root::default(), &app, name);
        Wanted::of(&given, service, &definition, &image, &folder, Some("0123"))
    }

    /// Golden: a service that is alone, with a label of its own and one of its image.
    #[test]
    fn one_service_with_a_label() {
        let found = wanted(
            "services: {s: {image: x, labels: {io.balena.features.balena-socket: 1}, environment: [A=1, BALENA=2]}}",
            "s",
        );
        let socket = |target| json!({ "Type": "bind", "Source": "/run/e.sock", "Target": target });
        let expected = json!({
            "Image": "sha256:00",
            "StopTimeout": 10,
            "Env": [
                "BALENA=2", "BALENA_APP_NAME=a", "BALENA_SERVICE_NAME=s",
                "BALENA_APP_LOCK_PATH=/tmp/balena/updates.lock", "BALENA_DEVICE_TYPE=intel-nuc",
                "RESIN=1", "RESIN_APP_NAME=a", "RESIN_SERVICE_NAME=s",
                "RESIN_APP_LOCK_PATH=/tmp/balena/updates.lock", "RESIN_DEVICE_TYPE=intel-nuc",
                "BALENA_SERVICE_HANDOVER_COMPLETE_PATH=/tmp/balena/handover-complete",
                "RESIN_SERVICE_KILL_ME_PATH=/tmp/balena/handover-complete",
                "DOCKER_HOST=unix:///host/run/balena-engine.sock", "A=1",
            ],
            "HostConfig": {
                "RestartPolicy": { "Name": "always" },
                "Ulimits": [{ "Name": "core", "Soft": 0, "Hard": 0 }],
                "Binds": [
                    "/sys:/sys", "a_resin-data:/data",
                    "/tmp/balena-supervisor/services/a/s:/tmp/balena",
                    "/tmp/balena-supervisor/services/a/s:/tmp/resin",
                ],
                "Mounts": [socket("/host/run/balena-engine.sock"), socket("/run/e.sock"), socket("/var/run/balena.sock")],
                "NetworkMode": "a_default",
            },
            "NetworkingConfig": { "EndpointsConfig": { "a_default": { "Aliases": ["s"] } } },
            "Labels": {
                "from": "image", "io.balena.features.balena-socket": "1", "io.balena.features.sysfs": "1",
                "io.balena.service-name": "s", "io.twinhull.app": "a", "io.twinhull.service": "s",
                "io.twinhull.spec": found.spec,
            },
        });
        assert_eq!(found.body, expected);
        assert_eq!((found.spec.len(), found.connect.len()), (32, 0));
    }

    #[test]
    fn more_networks_are_connected_afterwards_and_a_mode_needs_none() {
        let text = "services:\n  s: {image: x, networks: {b: {aliases: [web]}, c: }, volumes: ['d:/data:ro']}\n  \
                    t: {image: x, network_mode: 'service:s'}\n  u: {image: x, network_mode: host}\n";
        let s = wanted(text, "s");
        assert_eq!(
            s.body["NetworkingConfig"]["EndpointsConfig"],
            json!({ "a_b": { "Aliases": ["s", "web"] } })
        );
        assert_eq!(s.connect, [("a_c".to_owned(), json!({ "Aliases": ["s"] }))]);
        assert_eq!(s.body["HostConfig"]["Binds"][1], "a_d:/data:ro");
        for (name, mode) in [("t", "container:0123"), ("u", "host")] {
            let found = wanted(text, name);
            assert_eq!(found.body["HostConfig"]["NetworkMode"], mode);
            assert_eq!(found.body["NetworkingConfig"], Value::Null);
        }
    }

    #[test]
    fn whatever_changes_the_container_changes_its_digest() {
        let of = |fields: &str| wanted(&format!("services: {{s: {{image: x{fields}}}}}"), "s").spec;
        let plain = of("");
        assert_eq!(of(""), plain);
        for fields in
            [", tty: true", ", environment: [A=]", ", networks: [default, b]", ", stop_grace_period: 11s"]
        {
            assert_ne!(of(fields), plain, "{fields}");
        }
    }
}
