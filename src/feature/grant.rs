//! The table: what each label adds to a container.

use serde_json::{Map, Value, json};

use super::label::{self, Feature, Labels};

/// Where a container finds the engine's socket; the old names are kept beside.
const SOCKET_IN_CONTAINER: &str = "/host/run/balena-engine.sock";
/// The supervisor's own network, on which its API is reached.
pub const SUPERVISOR_NETWORK: &str = "supervisor0";
const SUPERVISOR_GATEWAY: &str = "10.114.104.1";
/// The volume that extra firmware is put into. Its name has no application in it.
pub const EXTRA_FIRMWARE_VOLUME: &str = "extra-firmware";

/// What of the device goes into the grants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The engine's socket on the host, as the supervisor names it.
    pub engine_socket: String,
    /// `/lib/modules` exists.
    pub has_modules: bool,
    /// `/lib/firmware` exists.
    pub has_firmware: bool,
    /// The supervisor's API, if there is one.
    pub supervisor_api: Option<SupervisorApi>,
    /// Address and key of the cloud API, if the device has them.
    pub cloud_api: Option<(String, String)>,
    /// `BALENA_BOARD_REV` of os-release.
    pub board_rev: Option<String>,
}

/// How the supervisor's API is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SupervisorApi {
    /// Its port, as text.
    pub port: String,
    /// The service's own key.
    pub key: String,
}

/// What a container is given, in the fields of the engine's `POST /containers/create`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// `HostConfig.Binds`: `HOST:CONTAINER` or `HOST:CONTAINER:ro`.
    pub binds: Vec<String>,
    /// `HostConfig.Mounts`.
    pub mounts: Vec<Value>,
    /// `HostConfig.DeviceRequests`.
    pub device_requests: Vec<Value>,
    /// `Env`, in this order. A variable that the service sets itself is not here.
    pub env: Vec<(String, String)>,
    /// Names for `NetworkingConfig.EndpointsConfig`. Engines before API 1.44 take one network at creation; the
    /// container joins the others afterwards.
    pub networks: Vec<String>,
}

/// What a service has of its own that grants depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// `network_mode: host`.
    pub host_network: bool,
    /// It sets `DOCKER_HOST` itself.
    pub sets_docker_host: bool,
}

/// What a container with these labels gets on such a device. Labels of any age; see [`label::of_container`].
pub fn grant(labels: &Labels, own: &Own, facts: &Facts) -> Grant {
    let mut all = Grant::default();
    for feature in label::features(&label::normalize(labels)) {
        all.add(feature, own, facts);
    }
    all
}

impl Grant {
    fn add(&mut self, feature: Feature, own: &Own, facts: &Facts) {
        match feature {
            Feature::JournalLogs => {
                for path in ["/var/log/journal", "/run/log/journal", "/etc/machine-id"] {
                    self.binds.push(format!("{path}:{path}:ro"));
                }
            }
            Feature::Dbus => self.bind("/run/dbus", "/host/run/dbus"),
            Feature::KernelModules if facts.has_modules => self.bind("/lib/modules", "/lib/modules"),
            Feature::Firmware if facts.has_firmware => self.bind("/lib/firmware", "/lib/firmware"),
            // The engine would make the missing directory; nothing is better than an empty one.
            Feature::KernelModules | Feature::Firmware => {}
            Feature::BalenaSocket => self.socket(&facts.engine_socket, own),
            Feature::Sysfs => self.bind("/sys", "/sys"),
            Feature::Procfs => self.bind("/proc", "/proc"),
            Feature::Gpu => self.device_requests.push(json!({
                "Driver": "",
                "Count": 1,
                "DeviceIDs": [],
                "Capabilities": [["gpu"]],
                "Options": {},
            })),
            Feature::ExtraFirmware => self.mounts.push(json!({
                "Type": "volume",
                "Source": EXTRA_FIRMWARE_VOLUME,
                "Target": "/extra-firmware",
            })),
            Feature::SupervisorApi => {
                if let Some(api) = &facts.supervisor_api {
                    self.supervisor_api(api, own);
                }
            }
            Feature::BalenaApi => {
                if let Some((url, key)) = &facts.cloud_api {
                    self.set("API_KEY", key);
                    self.set("API_URL", url);
                }
            }
            Feature::BoardRev => {
                if let Some(revision) = &facts.board_rev {
                    self.set("HOST_OS_BOARD_REV", revision);
                    self.set("HOST_OS_BUILD", revision);
                }
            }
        }
    }

    fn bind(&mut self, host: &str, container: &str) {
        self.binds.push(format!("{host}:{container}"));
    }

    /// Mounts, not binds: a bind whose source is missing would leave a directory where the socket belongs.
    fn socket(&mut self, source: &str, own: &Own) {
        let mut targets = vec![SOCKET_IN_CONTAINER, source];
        if source != "/var/run/balena.sock" {
            targets.push("/var/run/balena.sock");
        }
        for target in targets {
            self.mounts.push(json!({ "Type": "bind", "Source": source, "Target": target }));
        }
        if !own.sets_docker_host {
            self.env.push(("DOCKER_HOST".into(), format!("unix://{SOCKET_IN_CONTAINER}")));
        }
    }

    fn supervisor_api(&mut self, api: &SupervisorApi, own: &Own) {
        let host = if own.host_network {
            "127.0.0.1"
        } else {
            self.networks.push(SUPERVISOR_NETWORK.into());
            SUPERVISOR_GATEWAY
        };
        self.set("SUPERVISOR_API_KEY", &api.key);
        self.set("SUPERVISOR_PORT", &api.port);
        self.set("SUPERVISOR_HOST", host);
        self.set("SUPERVISOR_ADDRESS", &format!("http://{host}:{}", api.port));
    }

    /// Under the old name and today's.
    fn set(&mut self, name: &str, value: &str) {
        for prefix in ["RESIN", "BALENA"] {
            self.env.push((format!("{prefix}_{name}"), value.to_owned()));
        }
    }

    /// The part of the body of `POST /containers/create`; what is empty is left out.
    pub fn create_fields(&self) -> Value {
        let mut host = Map::new();
        let lists = [("Binds", json!(self.binds)), ("Mounts", json!(self.mounts))];
        for (key, list) in lists.into_iter().chain([("DeviceRequests", json!(self.device_requests))]) {
            if list.as_array().is_some_and(|l| !l.is_empty()) {
                host.insert(key.into(), list);
            }
        }
        let mut body = Map::new();
        if !self.env.is_empty() {
            let env: Vec<_> = self.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
            body.insert("Env".into(), json!(env));
        }
        if !host.is_empty() {
            body.insert("HostConfig".into(), Value::Object(host));
        }
        if !self.networks.is_empty() {
            let endpoints: Map<_, _> = self.networks.iter().map(|n| (n.clone(), json!({}))).collect();
            body.insert("NetworkingConfig".into(), json!({ "EndpointsConfig": endpoints }));
        }
        Value::Object(body)
    }
}

#[cfg(test)]
mod tests {
    use super::super::label::tests::labels;
    use super::*;

    fn facts() -> Facts {
        Facts {
            engine_socket: "/var/run/balena-engine.sock".into(),
            has_modules: true,
            has_firmware: true,
            supervisor_api: Some(SupervisorApi { port: "48484".into(), key: "secret".into() }),
            cloud_api: Some(("https://api.balena-cloud.com".into(), "device-key".into())),
            board_rev: Some("7d1e2f3".into()),
        }
    }

    fn fields(names: &[&str], own: &Own, facts: &Facts) -> Value {
        let given: Vec<_> = names.iter().map(|n| (format!("io.balena.features.{n}"), "1")).collect();
        let given: Vec<_> = given.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        grant(&labels(&given), own, facts).create_fields()
    }

    fn bind(source: &str, target: &str) -> Value {
        json!({ "Type": "bind", "Source": source, "Target": target })
    }

    /// Golden: each label's effect in balena-supervisor v19.0.5.
    #[test]
    fn each_label_gives_what_the_supervisor_gives() {
        let socket = "/var/run/balena-engine.sock";
        for (name, expected) in [
            (
                "journal-logs",
                json!({ "HostConfig": { "Binds": [
                    "/var/log/journal:/var/log/journal:ro",
                    "/run/log/journal:/run/log/journal:ro",
                    "/etc/machine-id:/etc/machine-id:ro",
                ] } }),
            ),
            ("dbus", json!({ "HostConfig": { "Binds": ["/run/dbus:/host/run/dbus"] } })),
            ("kernel-modules", json!({ "HostConfig": { "Binds": ["/lib/modules:/lib/modules"] } })),
            ("firmware", json!({ "HostConfig": { "Binds": ["/lib/firmware:/lib/firmware"] } })),
            (
                "balena-socket",
                json!({
                    "Env": ["DOCKER_HOST=unix:///host/run/balena-engine.sock"],
                    "HostConfig": { "Mounts": [
                        bind(socket, "/host/run/balena-engine.sock"),
                        bind(socket, socket),
                        bind(socket, "/var/run/balena.sock"),
                    ] },
                }),
            ),
            ("sysfs", json!({ "HostConfig": { "Binds": ["/sys:/sys"] } })),
            ("procfs", json!({ "HostConfig": { "Binds": ["/proc:/proc"] } })),
            (
                "gpu",
                json!({ "HostConfig": { "DeviceRequests": [{
                    "Driver": "", "Count": 1, "DeviceIDs": [], "Capabilities": [["gpu"]], "Options": {},
                }] } }),
            ),
            (
                "extra-firmware",
                json!({ "HostConfig": { "Mounts": [
                    { "Type": "volume", "Source": "extra-firmware", "Target": "/extra-firmware" },
                ] } }),
            ),
            (
                "supervisor-api",
                json!({
                    "Env": [
                        "RESIN_SUPERVISOR_API_KEY=secret",
                        "BALENA_SUPERVISOR_API_KEY=secret",
                        "RESIN_SUPERVISOR_PORT=48484",
                        "BALENA_SUPERVISOR_PORT=48484",
                        "RESIN_SUPERVISOR_HOST=10.114.104.1",
                        "BALENA_SUPERVISOR_HOST=10.114.104.1",
                        "RESIN_SUPERVISOR_ADDRESS=http://10.114.104.1:48484",
                        "BALENA_SUPERVISOR_ADDRESS=http://10.114.104.1:48484",
                    ],
                    "NetworkingConfig": { "EndpointsConfig": { "supervisor0": {} } },
                }),
            ),
            (
                "balena-api",
                json!({ "Env": [
                    "RESIN_API_KEY=device-key",
                    "BALENA_API_KEY=device-key",
                    "RESIN_API_URL=https://api.balena-cloud.com",
                    "BALENA_API_URL=https://api.balena-cloud.com",
                ] }),
            ),
            (
                "host-os.board-rev",
                json!({ "Env": [
                    "RESIN_HOST_OS_BOARD_REV=7d1e2f3",
                    "BALENA_HOST_OS_BOARD_REV=7d1e2f3",
                    "RESIN_HOST_OS_BUILD=7d1e2f3",
                    "BALENA_HOST_OS_BUILD=7d1e2f3",
                ] }),
            ),
            ("optional", json!({})),
            ("requires.sw.l4t", json!({})),
            ("no-such-feature", json!({})),
        ] {
            assert_eq!(fields(&[name], &Own::default(), &facts()), expected, "{name}");
        }
    }

    #[test]
    fn every_feature_has_its_line_above() {
        // The golden table must name each: a feature without a grant on a full host would be a hole in it.
        for feature in Feature::ALL {
            assert_ne!(fields(&[feature.name()], &Own::default(), &facts()), json!({}), "{}", feature.name());
        }
    }

    #[test]
    fn all_labels_together_give_the_sum_in_order() {
        let names: Vec<_> = Feature::ALL.iter().map(|f| f.name()).collect();
        let all = fields(&names, &Own::default(), &facts());
        assert_eq!(
            all["HostConfig"]["Binds"],
            json!([
                "/var/log/journal:/var/log/journal:ro",
                "/run/log/journal:/run/log/journal:ro",
                "/etc/machine-id:/etc/machine-id:ro",
                "/run/dbus:/host/run/dbus",
                "/lib/modules:/lib/modules",
                "/lib/firmware:/lib/firmware",
                "/sys:/sys",
                "/proc:/proc",
            ])
        );
        assert_eq!(all["HostConfig"]["Mounts"].as_array().unwrap().len(), 4);
        assert_eq!(all["Env"].as_array().unwrap().len(), 17);
    }

    #[test]
    fn what_the_host_lacks_is_not_given() {
        let bare = Facts { engine_socket: "/run/docker.sock".into(), ..Facts::default() };
        let names = ["kernel-modules", "firmware", "supervisor-api", "balena-api", "host-os.board-rev"];
        assert_eq!(fields(&names, &Own::default(), &bare), json!({}));
    }

    #[test]
    fn a_service_keeps_its_own_docker_host_and_the_hosts_network_is_local() {
        let own = Own { host_network: true, sets_docker_host: true };
        let all = fields(&["balena-socket", "supervisor-api"], &own, &facts());
        let env = all["Env"].as_array().unwrap();
        assert!(!env.iter().any(|e| e.as_str().unwrap().starts_with("DOCKER_HOST")), "{env:?}");
        assert!(env.contains(&json!("BALENA_SUPERVISOR_ADDRESS=http://127.0.0.1:48484")), "{env:?}");
        assert_eq!(all["NetworkingConfig"], Value::Null);
    }

    #[test]
    fn the_oldest_socket_name_is_mounted_once() {
        let old = Facts { engine_socket: "/var/run/balena.sock".into(), ..facts() };
        let all = fields(&["balena-socket"], &Own::default(), &old);
        let expected = [
            bind("/var/run/balena.sock", "/host/run/balena-engine.sock"),
            bind("/var/run/balena.sock", "/var/run/balena.sock"),
        ];
        assert_eq!(all["HostConfig"]["Mounts"], json!(expected));
    }

    #[test]
    fn old_label_names_and_values_that_are_not_true() {
        let old = labels(&[("io.resin.features.resin-api", "true"), ("io.resin.features.dbus", "yes")]);
        let given = grant(&old, &Own::default(), &facts());
        assert_eq!((given.binds.len(), given.env.len()), (0, 4));
    }
}
