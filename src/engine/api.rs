//! The engine's own words: the fields we read, each with a default, so that engines may leave out or add.
//!
//! Source: Docker Engine API v1.41 reference; checked with dockerd 20.10.24.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// The fields of `GET /version`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Version {
    /// The engine's own version.
    #[serde(deserialize_with = "or_default")]
    pub version: String,
    #[serde(deserialize_with = "or_default")]
    pub api_version: String,
    #[serde(rename = "MinAPIVersion")]
    pub min_api_version: Option<String>,
}

/// `GET /images/NAME/json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Image {
    /// `sha256:…` of its configuration.
    #[serde(deserialize_with = "or_default")]
    pub id: String,
    /// Its names with tags.
    #[serde(deserialize_with = "or_default")]
    pub repo_tags: Vec<String>,
    /// What its containers inherit.
    #[serde(deserialize_with = "or_default")]
    pub config: Config,
}

/// `Config` of an image or a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    /// The image's name as it was asked for (containers only).
    #[serde(deserialize_with = "or_default")]
    pub image: String,
    /// `KEY=value`; in a container the image's own are merged in.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Labels; in a container the image's own are merged in.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// Seconds that it has to end, once it is asked to; `None`: the engine's 10 s.
    pub stop_timeout: Option<u64>,
}

/// `GET /containers/NAME/json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Container {
    /// 64 hex digits.
    #[serde(deserialize_with = "or_default")]
    pub id: String,
    /// With a leading slash.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// `sha256:…` of the image it was made from.
    #[serde(deserialize_with = "or_default")]
    pub image: String,
    /// Starts by the engine's own restart policy.
    #[serde(deserialize_with = "or_default")]
    pub restart_count: u64,
    /// What it does now.
    #[serde(deserialize_with = "or_default")]
    pub state: ContainerState,
    /// What it was made with.
    #[serde(deserialize_with = "or_default")]
    pub config: Config,
    /// What of the host it was given.
    #[serde(deserialize_with = "or_default")]
    pub host_config: HostConfig,
    /// What is mounted into it, binds and volumes alike.
    #[serde(deserialize_with = "or_default")]
    pub mounts: Vec<Mount>,
}

/// `State` of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerState {
    /// `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
    #[serde(deserialize_with = "or_default")]
    pub status: String,
    /// Whether its first process lives (also while paused).
    #[serde(deserialize_with = "or_default")]
    pub running: bool,
    /// Exit code of the last run.
    #[serde(deserialize_with = "or_default")]
    pub exit_code: i64,
    /// Whether the kernel killed it for want of memory.
    #[serde(rename = "OOMKilled", deserialize_with = "or_default")]
    pub oom_killed: bool,
    /// Why the last start did not work.
    #[serde(deserialize_with = "or_default")]
    pub error: String,
    /// When it was started, RFC 3339.
    #[serde(deserialize_with = "or_default")]
    pub started_at: String,
    /// `None` if the image has no HEALTHCHECK. Podman names it `Healthcheck` in its own API, `Health` in Docker's.
    pub health: Option<ContainerHealth>,
}

/// `State.Health` of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerHealth {
    /// `none`, `starting`, `healthy` or `unhealthy`.
    #[serde(deserialize_with = "or_default")]
    pub status: String,
    /// The last probes, oldest first.
    #[serde(deserialize_with = "or_default")]
    pub log: Vec<Probe>,
}

/// One run of the HEALTHCHECK.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Probe {
    /// 0 is healthy.
    #[serde(deserialize_with = "or_default")]
    pub exit_code: i64,
    /// What it printed, or why it could not be run.
    #[serde(deserialize_with = "or_default")]
    pub output: String,
}

/// `HostConfig` of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    /// `host`, `default`, …
    #[serde(deserialize_with = "or_default")]
    pub network_mode: String,
    /// All of the host's devices and capabilities.
    #[serde(deserialize_with = "or_default")]
    pub privileged: bool,
    /// What the engine does when it exits.
    #[serde(deserialize_with = "or_default")]
    pub restart_policy: RestartPolicy,
}

/// `HostConfig.RestartPolicy`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    /// Empty or `no`: never.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
}

/// One of `Mounts`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Mount {
    /// `bind`, `volume` or `tmpfs`.
    #[serde(rename = "Type", deserialize_with = "or_default")]
    pub kind: String,
    /// Path on the host.
    #[serde(deserialize_with = "or_default")]
    pub source: String,
    /// Path in the container.
    #[serde(deserialize_with = "or_default")]
    pub destination: String,
    /// Whether it may be written.
    #[serde(rename = "RW", deserialize_with = "or_default")]
    pub writable: bool,
}

/// One entry of `GET /containers/json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Summary {
    /// 64 hex digits.
    #[serde(deserialize_with = "or_default")]
    pub id: String,
    /// Each with a leading slash.
    #[serde(deserialize_with = "or_default")]
    pub names: Vec<String>,
    /// The image's name.
    #[serde(deserialize_with = "or_default")]
    pub image: String,
    /// Its id.
    #[serde(rename = "ImageID", deserialize_with = "or_default")]
    pub image_id: String,
    /// The container's labels, with those of its image.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// As `State.Status` of a container.
    #[serde(deserialize_with = "or_default")]
    pub state: String,
    /// For people: `Up 3 minutes (healthy)`.
    #[serde(deserialize_with = "or_default")]
    pub status: String,
}

/// The engines write `null` for an empty list or object as they please.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    d: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}
