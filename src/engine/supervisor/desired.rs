//! What the supervisor container should be.

use super::NAME;
use super::conf::Conf;
use crate::engine::{Bind, ContainerSpec};

/// Where supervisors expect the engine.
const SOCKET: &str = "/var/run/balena-engine.sock";

/// What of this host decides how the supervisor container looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `supervisor.conf`.
    pub conf: Conf,
    /// The engine's socket on this host.
    pub socket: String,
    /// The host's root directory; `/` on a device.
    pub host_root: String,
    /// The supervisor's own data on this host.
    pub data: String,
    /// Where its logs go on this host.
    pub logs: String,
    /// Where the boot partition is mounted on this host.
    pub boot_mountpoint: String,
    /// The certificate of the fleet's own authority, as the container sees it; empty if there is none.
    pub ca_certificate: String,
    /// `mixpanelToken` of config.json; may be empty.
    pub mixpanel_token: String,
    /// `deltaEndpoint` of config.json; may be empty.
    pub delta_endpoint: String,
    /// `listenPort` of config.json; may be empty: the supervisor's default.
    pub listen_port: String,
}

/// The container that balenaOS would make on such a host.
///
/// Unlike there, the engine's socket may have another name; the container finds it under both.
pub fn desired(facts: &Facts) -> ContainerSpec {
    let mut binds = vec![
        Bind::new(&facts.socket, SOCKET),
        Bind::new(&facts.data, "/data"),
        Bind::new(&facts.logs, "/var/log"),
        Bind::new(&facts.host_root, "/mnt/root"),
    ];
    // /run and /var/run are one directory in most images: the same mount twice would be in vain.
    if facts.socket != SOCKET && facts.socket != SOCKET.trim_start_matches("/var") {
        binds.push(Bind::new(&facts.socket, &facts.socket));
    }
    let env = [
        ("DOCKER_SOCKET", SOCKET),
        ("BOOT_MOUNTPOINT", &facts.boot_mountpoint),
        ("MIXPANEL_TOKEN", &facts.mixpanel_token),
        ("DELTA_ENDPOINT", &facts.delta_endpoint),
        ("LED_FILE", &facts.conf.led_file),
        ("LISTEN_PORT", &facts.listen_port),
        ("NODE_EXTRA_CA_CERTS", &facts.ca_certificate),
        ("SUPERVISOR_IMAGE", &facts.conf.image),
    ];
    ContainerSpec {
        name: NAME.into(),
        image: facts.conf.image.clone(),
        env: env.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        binds,
        privileged: true,
        network: "host".into(),
        id_env: Some("SUPERVISOR_CONTAINER_ID".into()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn facts() -> Facts {
        Facts {
            conf: Conf {
                image: "lab/supervisor:1.0.0".into(),
                version: "v1.0.0".into(),
                led_file: "/dev/null".into(),
                ..Conf::default()
            },
            socket: "/run/docker.sock".into(),
            host_root: "/".into(),
            data: "/resin-data/balena-supervisor".into(),
            logs: "/var/log/supervisor-log".into(),
            boot_mountpoint: "/mnt/boot".into(),
            ca_certificate: "/mnt/root//usr/share/ca-certificates/balena/balenaRootCA.crt".into(),
            mixpanel_token: "token".into(),
            delta_endpoint: "https://delta.example.com".into(),
            listen_port: String::new(),
        }
    }

    /// Golden: flags, binds and environment of `start-balena-supervisor` (meta-balena v8.0.2), and the socket's own
    /// name beside.
    #[test]
    fn is_what_balena_os_makes() {
        let expected = serde_json::json!({
            "Image": "lab/supervisor:1.0.0",
            "Env": [
                "DOCKER_SOCKET=/var/run/balena-engine.sock",
                "BOOT_MOUNTPOINT=/mnt/boot",
                "MIXPANEL_TOKEN=token",
                "DELTA_ENDPOINT=https://delta.example.com",
                "LED_FILE=/dev/null",
                "LISTEN_PORT=",
                "NODE_EXTRA_CA_CERTS=/mnt/root//usr/share/ca-certificates/balena/balenaRootCA.crt",
                "SUPERVISOR_IMAGE=lab/supervisor:1.0.0",
            ],
            "HostConfig": {
                "Binds": [
                    "/run/docker.sock:/var/run/balena-engine.sock",
                    "/resin-data/balena-supervisor:/data",
                    "/var/log/supervisor-log:/var/log",
                    "/:/mnt/root",
                    "/run/docker.sock:/run/docker.sock",
                ],
                "NetworkMode": "host",
                "Privileged": true,
                "RestartPolicy": { "Name": "no" },
                "ContainerIDEnv": "SUPERVISOR_CONTAINER_ID",
            },
        });
        let spec = desired(&facts());
        assert_eq!(spec.name, "balena_supervisor");
        assert_eq!(spec.create_body(), expected);
    }

    #[test]
    fn balenas_own_socket_is_mounted_once() {
        for socket in ["/run/balena-engine.sock", "/var/run/balena-engine.sock"] {
            let spec = desired(&Facts { socket: socket.into(), ..facts() });
            let of_socket: Vec<_> = spec.binds.iter().filter(|b| b.source == socket).collect();
            assert_eq!(of_socket, [&Bind::new(socket, "/var/run/balena-engine.sock")]);
        }
    }
}
