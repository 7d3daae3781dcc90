//! What of this host goes into the container, gathered.

use serde_json::Value;

use super::conf::Conf;
use super::desired::Facts;
use crate::config::apply::FLEET_CA;
use crate::config::{ConfigJson, Settings};
use crate::engine::Engine;
use crate::{Result, Root, sys};

const BALENA_DATA: &str = "/resin-data";
const DATA: &str = "/mnt/data/resin-data";
const LOGS: &str = "/var/log/supervisor-log";
const CA: &str = "/usr/share/ca-certificates/balena/balenaRootCA.crt";

impl Facts {
    /// Looks at this host.
    ///
    /// A `config.json` that cannot be read is told in the log and no more: the supervisor must run all the same,
    /// as it is what repairs it.
    pub(super) fn gather(conf: Conf, engine: &Engine, settings: &Settings, root: &Root) -> Self {
        let config = ConfigJson::peek(root, &settings.provision.config_json).unwrap_or_else(|e| {
            log::warn!("supervisor: start without the values of config.json: {e}");
            None
        });
        let config = config.as_ref();
        // Without a slash at the end: the engine cuts it off, and then the two would differ.
        let host = |path: &str| match root.path(path).display().to_string() {
            root if root == "/" => root,
            other => other.trim_end_matches('/').to_owned(),
        };
        let data = if root.path(BALENA_DATA).is_dir() { BALENA_DATA } else { DATA };
        let boot = settings.provision.config_json.parent().map(|p| p.display().to_string());
        Self {
            conf,
            socket: engine.socket().display().to_string(),
            host_root: host("/"),
            data: host(&format!("{data}/balena-supervisor")),
            logs: host(LOGS),
            boot_mountpoint: boot.unwrap_or_default(),
            ca_certificate: ca_certificate(root),
            mixpanel_token: text(config, "mixpanelToken"),
            delta_endpoint: text(config, "deltaEndpoint"),
            listen_port: text(config, "listenPort"),
        }
    }

    /// Makes the directories that are bound into the container; the engine would make them without telling.
    ///
    /// # Errors
    /// `Failed`, naming the path, such as a data partition that is not mounted or is read-only.
    pub(super) fn make_directories(&self) -> Result<()> {
        sys::durable::create_dir(self.data.as_ref())?;
        sys::durable::create_dir(self.logs.as_ref())
    }
}

/// The fleet's own certificates, where the container sees them: the image's file, else what `config apply` made.
fn ca_certificate(root: &Root) -> String {
    // Two slashes, as balenaOS writes it: another spelling would replace every container once.
    let found = [CA, FLEET_CA].into_iter().find(|path| root.path(path).is_file());
    found.map_or_else(String::new, |path| format!("/mnt/root/{path}"))
}

/// A value as the shell would see it; config.json may hold a port as number or text.
fn text(config: Option<&ConfigJson>, key: &str) -> String {
    match config.and_then(|c| c.value(key)) {
        Some(Value::String(s)) => s,
        Some(Value::Number(n)) => n.to_string(),
        Some(Value::Bool(b)) => b.to_string(),
        Some(Value::Null | Value::Array(_) | Value::Object(_)) | None => String::new(),
    }
}
