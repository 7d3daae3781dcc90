//! What a service runs as: the fields of Compose 2.1 to 2.4 in the words of the engine's `POST /containers/create`.
//!
//! Most fields are a line of a table; those with forms of their own are read in `forms`. What is not known is ignored, and
//! named. Source: Compose file reference, version 2.4; balena's list of supported fields; Docker Engine API v1.41.

use serde_json::{Map, Value, json};

use super::forms;
use super::values::{bytes, words};
use super::yaml::{Content, Node};
use crate::{Doing, Error, Result};

/// A service as it is to run, but for what its host and its application add.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Definition {
    /// Fields of the request itself.
    pub config: Map<String, Value>,
    /// Fields of its `HostConfig`.
    pub host: Map<String, Value>,
    /// Its own environment.
    pub env: Vec<(String, String)>,
    /// Services that must be there before it, and how.
    pub depends_on: Vec<(String, Condition)>,
    /// How it is connected.
    pub network: Network,
    /// Named volumes that it mounts.
    pub volumes: Vec<Mount>,
    /// Seconds between the request to end and the kill.
    pub stop_grace_s: u64,
}

/// How far another service must have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It was started.
    Started,
    /// Its health check passes.
    Healthy,
}

/// How a service is connected.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Network {
    /// To the application's own network.
    #[default]
    Default,
    /// To these networks of the file, each with the fields of its endpoint.
    Named(Vec<(String, Map<String, Value>)>),
    /// `bridge`, `host` or `none`.
    Mode(String),
    /// As another service is.
    Service(String),
}

/// A named volume in a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The volume's name in the file.
    pub volume: String,
    /// Where, in the container; and behind a colon how (`ro`).
    pub target: String,
}

/// How the value of a field is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Flag,
    Number,
    Bytes,
    List,
    Pairs,
    /// A command line, or a list of its words.
    Words,
}

/// Whether a field of the API stands in the request itself or in its `HostConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Config,
    Host,
}

use Kind::{Bytes, Flag, List, Number, Pairs, Text, Words};
use Place::{Config, Host};

/// Field of Compose, how it is written, and the field of the API.
const FIELDS: &[(&str, Kind, Place, &str)] = &[
    ("command", Words, Config, "Cmd"),
    ("entrypoint", Words, Config, "Entrypoint"),
    ("hostname", Text, Config, "Hostname"),
    ("domainname", Text, Config, "Domainname"),
    ("mac_address", Text, Config, "MacAddress"),
    ("user", Text, Config, "User"),
    ("working_dir", Text, Config, "WorkingDir"),
    ("stop_signal", Text, Config, "StopSignal"),
    ("tty", Flag, Config, "Tty"),
    ("stdin_open", Flag, Config, "OpenStdin"),
    ("cap_add", List, Host, "CapAdd"),
    ("cap_drop", List, Host, "CapDrop"),
    ("cgroup_parent", Text, Host, "CgroupParent"),
    ("cpu_period", Number, Host, "CpuPeriod"),
    ("cpu_quota", Number, Host, "CpuQuota"),
    ("cpu_shares", Number, Host, "CpuShares"),
    ("cpuset", Text, Host, "CpusetCpus"),
    ("device_cgroup_rules", List, Host, "DeviceCgroupRules"),
    ("dns", List, Host, "Dns"),
    ("dns_opt", List, Host, "DnsOptions"),
    ("dns_search", List, Host, "DnsSearch"),
    ("group_add", List, Host, "GroupAdd"),
    ("init", Flag, Host, "Init"),
    ("ipc", Text, Host, "IpcMode"),
    ("mem_limit", Bytes, Host, "Memory"),
    ("mem_reservation", Bytes, Host, "MemoryReservation"),
    ("mem_swappiness", Number, Host, "MemorySwappiness"),
    ("memswap_limit", Bytes, Host, "MemorySwap"),
    ("oom_kill_disable", Flag, Host, "OomKillDisable"),
    ("oom_score_adj", Number, Host, "OomScoreAdj"),
    ("pid", Text, Host, "PidMode"),
    ("pids_limit", Number, Host, "PidsLimit"),
    ("privileged", Flag, Host, "Privileged"),
    ("read_only", Flag, Host, "ReadonlyRootfs"),
    ("runtime", Text, Host, "Runtime"),
    ("security_opt", List, Host, "SecurityOpt"),
    ("shm_size", Bytes, Host, "ShmSize"),
    ("storage_opt", Pairs, Host, "StorageOpt"),
    ("sysctls", Pairs, Host, "Sysctls"),
    ("userns_mode", Text, Host, "UsernsMode"),
];

/// Fields that are read elsewhere, or in a form of their own.
const OTHERS: &[&str] = &[
    "build",
    "cpus",
    "depends_on",
    "devices",
    "environment",
    "expose",
    "extra_hosts",
    "healthcheck",
    "image",
    "labels",
    "network_mode",
    "networks",
    "ports",
    "restart",
    "stop_grace_period",
    "tmpfs",
    "ulimits",
    "volumes",
];

impl Definition {
    /// Reads the fields of a service; gives also those that are ignored, with their lines.
    ///
    /// # Errors
    /// `Failed`, naming line and field, for a value that makes no sense.
    pub fn of(service: &Node) -> Result<(Self, Vec<String>)> {
        let mut all = Self { stop_grace_s: 10, ..Self::default() };
        let mut ignored = Vec::new();
        for (key, value) in service.entries() {
            if value.is_null() || key.starts_with("x-") {
                continue;
            }
            match FIELDS.iter().find(|(name, ..)| name == key) {
                Some((_, kind, place, name)) => {
                    let value = read(value, *kind).doing(|| key.clone())?;
                    let into = if *place == Config { &mut all.config } else { &mut all.host };
                    into.insert((*name).to_owned(), value);
                }
                None if OTHERS.contains(&key.as_str()) => {
                    forms::read(&mut all, key, value).doing(|| key.clone())?;
                }
                None => ignored.push(format!("{key} (line {})", value.line)),
            }
        }
        forms::complete(&mut all, service)?;
        Ok((all, ignored))
    }
}

fn read(node: &Node, kind: Kind) -> Result<Value> {
    Ok(match kind {
        Text => json!(text(node)?),
        Flag => json!(flag(node)?),
        Number => json!(number(node)?),
        Bytes => {
            let text = text(node)?;
            // -1 is no limit, of memswap_limit.
            let size = if text == "-1" { Some(-1) } else { bytes(&text) };
            json!(size.ok_or_else(|| node.error("expected a size, such as 512m"))?)
        }
        List => json!(list(node)?),
        Pairs => pairs(node)?.into_iter().map(|(k, v)| (k, json!(v))).collect::<Map<_, _>>().into(),
        Words => json!(command(node)?),
    })
}

/// A scalar; `$$` is a dollar.
pub(super) fn text(node: &Node) -> Result<String> {
    let text = node.text().ok_or_else(|| node.error("expected text"))?;
    let plain = text.replace("$$", "");
    if plain.contains("${") {
        return Err(node.error("variables are not replaced here: write the value, and $$ for a dollar sign"));
    }
    Ok(text.replace("$$", "$"))
}

pub(super) fn flag(node: &Node) -> Result<bool> {
    match node.text().unwrap_or_default() {
        "true" | "True" | "TRUE" => Ok(true),
        "false" | "False" | "FALSE" => Ok(false),
        _ => Err(node.error("expected true or false")),
    }
}

pub(super) fn number(node: &Node) -> Result<i64> {
    let number = node.text().and_then(|t| t.parse().ok());
    number.ok_or_else(|| node.error("expected a whole number"))
}

/// A list of scalars, or one alone.
pub(super) fn list(node: &Node) -> Result<Vec<String>> {
    match &node.content {
        Content::List(all) => all.iter().map(text).collect(),
        Content::Scalar { .. } => Ok(vec![text(node)?]),
        Content::Map(_) => Err(node.error("expected a list")),
    }
}

/// A mapping, or a list of `KEY=VALUE`.
pub(super) fn pairs(node: &Node) -> Result<Vec<(String, String)>> {
    match &node.content {
        Content::Map(all) => all.iter().map(|(k, v)| Ok((k.clone(), text(v)?))).collect(),
        Content::List(all) => all
            .iter()
            .map(|one| {
                let text = text(one)?;
                let (k, v) = text.split_once('=').unwrap_or((text.as_str(), ""));
                Ok((k.to_owned(), v.to_owned()))
            })
            .collect(),
        Content::Scalar { .. } => Err(node.error("expected KEY: VALUE, or a list of KEY=VALUE")),
    }
}

pub(super) fn command(node: &Node) -> Result<Vec<String>> {
    match &node.content {
        Content::List(_) => list(node),
        _ => words(&text(node)?).ok_or_else(|| node.error("a quote is not closed")),
    }
}

/// The mistake of a word that is none of those expected.
pub(super) fn unexpected(node: &Node, expected: &str) -> Error {
    node.error(&format!("{:?}: expected {expected}", node.text().unwrap_or("a list or mapping")))
}
