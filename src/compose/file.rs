//! The services of a Compose file: image, labels, and what features and contracts need besides.
//!
//! A bind mount in a Compose file gives nothing: labels are the only way to the host. Binds of well-known places stand
//! for their label, as balena's own tools have it; the others are told.
//!
//! Source: balena-compose-parser v0.3.0, `lib/compose.ts`; the Compose specification for long and short forms.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::shared::{self, Shared};
use super::yaml::{Content, Node};
use crate::feature::grant::Own;
use crate::feature::{Feature, Labels};
use crate::{Doing, Result, sys};

const LIMIT_BYTES: u64 = 1024 * 1024;
const CONTRACT: &str = "contract.yml";

/// A Compose file, as far as it is read here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Composition {
    /// In the order of the file.
    pub services: Vec<Service>,
    /// Networks that they may name.
    pub networks: Vec<Shared>,
    /// Volumes that they may name.
    pub volumes: Vec<Shared>,
}

/// One service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// The image that it runs, unless it is built.
    pub image: Option<String>,
    /// The directory that it is built from.
    pub build: Option<PathBuf>,
    /// Its labels as they are written, and those that its binds stand for.
    pub labels: Labels,
    /// What its grants depend on.
    pub own: Own,
    /// Bind mounts that it does not get: their sources.
    pub refused_binds: Vec<String>,
    /// All of its fields, for [`Definition`](super::Definition).
    pub node: Node,
}

impl Composition {
    /// Reads a file.
    ///
    /// # Errors
    /// `Failed`, naming file and line.
    pub fn load(path: &Path) -> Result<Self> {
        let dir = path.parent().unwrap_or(Path::new(""));
        load(path)
            .and_then(|node| node.ok_or_else(|| crate::Error::failed("there is no such file")))
            .and_then(|node| parse(&node, dir))
            .doing(|| path.display().to_string())
    }

    /// Reads the text of a file that lies where we are.
    #[cfg(test)]
    pub fn parse(text: &str) -> Result<Self> {
        Node::parse(text).and_then(|node| parse(&node, Path::new("")))
    }

    /// The services, or the one called `name`.
    ///
    /// # Errors
    /// `Failed`, naming those that there are, if there is none of that name.
    pub fn select(&self, name: Option<&str>) -> Result<Vec<&Service>> {
        let Some(name) = name else { return Ok(self.services.iter().collect()) };
        match self.services.iter().find(|s| s.name == name) {
            Some(service) => Ok(vec![service]),
            None => {
                let all: Vec<_> = self.services.iter().map(|s| s.name.as_str()).collect();
                Err(crate::Error::failed(format!("no service {name:?}; there are: {}", all.join(", "))))
            }
        }
    }
}

impl Service {
    /// The `contract.yml` in the directory that the service is built from; `None` if there is none.
    ///
    /// # Errors
    /// `Failed`, naming file and line.
    pub fn contract(&self) -> Result<Option<Value>> {
        let Some(dir) = &self.build else { return Ok(None) };
        let path = dir.join(CONTRACT);
        Ok(load(&path).doing(|| path.display().to_string())?.map(|node| node.to_json()))
    }
}

/// A YAML file, if there is one.
fn load(path: &Path) -> Result<Option<Node>> {
    let Some(bytes) = sys::file::read_if_exists(path, LIMIT_BYTES)? else { return Ok(None) };
    let text = String::from_utf8(bytes).map_err(|_| crate::Error::failed("not UTF-8"))?;
    Node::parse(&text).map(Some)
}

/// Reads a YAML or JSON file.
///
/// # Errors
/// `Failed`, naming file and line.
pub fn load_json(path: &Path) -> Result<Value> {
    let node = load(path).doing(|| path.display().to_string())?;
    node.map(|n| n.to_json())
        .ok_or_else(|| crate::Error::failed(format!("{}: there is no such file", path.display())))
}

fn parse(root: &Node, dir: &Path) -> Result<Composition> {
    let services = match root.get("services") {
        Some(services) if !services.entries().is_empty() => services.entries(),
        Some(services) => return Err(services.error("services: expected a mapping of services")),
        None => return Err(root.error("no services; is this a Compose file of version 2 or later?")),
    };
    let services = services.iter().map(|(name, node)| service(name, node, dir));
    Ok(Composition {
        services: services.collect::<Result<_>>()?,
        networks: shared::networks(root)?,
        volumes: shared::volumes(root)?,
    })
}

fn service(name: &str, node: &Node, dir: &Path) -> Result<Service> {
    let doing = || format!("service {name}");
    if !matches!(node.content, Content::Map(_)) {
        return Err(node.error("expected a mapping")).doing(doing);
    }
    // It becomes the name of a directory of the host, and of a container.
    let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !is_name || name.is_empty() || name.starts_with('.') {
        return Err(node.error("expected a name of letters, digits, dots, dashes and underscores"))
            .doing(|| format!("service {name:?}"));
    }
    if let Some(extends) = node.get("extends") {
        return Err(extends.error("extends is not supported; write the service out")).doing(doing);
    }
    let mut service = Service { name: name.into(), node: node.clone(), ..Service::default() };
    service.image = text(node, "image").doing(doing)?;
    service.build = build(node).doing(doing)?.map(|context| dir.join(context));
    service.labels = pairs(node, "labels").doing(doing)?;
    service.own = Own {
        host_network: text(node, "network_mode").doing(doing)?.as_deref() == Some("host"),
        sets_docker_host: pairs(node, "environment").doing(doing)?.contains_key("DOCKER_HOST"),
    };
    let sources = bind_sources(node).doing(doing)?;
    service.refused_binds = labels_for(&sources, &mut service.labels);
    Ok(service)
}

fn text(node: &Node, key: &str) -> Result<Option<String>> {
    let Some(value) = node.get(key).filter(|v| !v.is_null()) else { return Ok(None) };
    value.text().map(|t| Some(t.to_owned())).ok_or_else(|| value.error(&format!("{key}: expected text")))
}

fn build(node: &Node) -> Result<Option<String>> {
    match node.get("build") {
        Some(build) if matches!(build.content, Content::Map(_)) => {
            Ok(Some(text(build, "context")?.unwrap_or_else(|| ".".into())))
        }
        _ => text(node, "build"),
    }
}

/// A mapping, or a list of `KEY=VALUE`.
fn pairs(node: &Node, key: &str) -> Result<Labels> {
    let Some(value) = node.get(key).filter(|v| !v.is_null()) else { return Ok(Labels::new()) };
    let expected = |n: &Node| n.error(&format!("{key}: expected KEY: VALUE, or a list of KEY=VALUE"));
    match &value.content {
        Content::Map(entries) => entries
            .iter()
            .map(|(k, v)| v.text().map(|t| (k.clone(), t.to_owned())).ok_or_else(|| expected(v)))
            .collect(),
        Content::List(list) => list
            .iter()
            .map(|one| {
                let text = one.text().ok_or_else(|| expected(one))?;
                let (k, v) = text.split_once('=').unwrap_or((text, ""));
                Ok((k.to_owned(), v.to_owned()))
            })
            .collect(),
        Content::Scalar { .. } => Err(expected(value)),
    }
}

/// The paths of the host that the service wants to see.
fn bind_sources(node: &Node) -> Result<Vec<String>> {
    let Some(volumes) = node.get("volumes").filter(|v| !v.is_null()) else { return Ok(Vec::new()) };
    let Content::List(list) = &volumes.content else {
        return Err(volumes.error("volumes: expected a list"));
    };
    let mut sources = Vec::new();
    for volume in list {
        let source = match volume.text() {
            Some(short) => short.split_once(':').map(|(source, _)| source.to_owned()),
            None if text(volume, "type")?.as_deref() == Some("bind") => text(volume, "source")?,
            None => None,
        };
        // Anything else is the name of a volume.
        sources.extend(source.filter(|s| s.starts_with(['/', '.', '~'])));
    }
    Ok(sources)
}

/// Sets the labels that binds stand for, unless they are set; gives the sources that stand for none.
fn labels_for(sources: &[String], labels: &mut Labels) -> Vec<String> {
    const JOURNAL: [&str; 3] = ["/var/log/journal", "/run/log/journal", "/etc/machine-id"];
    let has = |path: &str| sources.iter().any(|s| s.trim_end_matches('/') == path);
    let all_of_journal = JOURNAL.iter().all(|p| has(p));
    let mut refused = Vec::new();
    for source in sources {
        let feature = match source.trim_end_matches('/') {
            "/var/run/docker.sock" | "/var/run/balena-engine.sock" => Feature::BalenaSocket,
            "/run/dbus" => Feature::Dbus,
            "/sys" => Feature::Sysfs,
            "/proc" => Feature::Procfs,
            "/lib/modules" => Feature::KernelModules,
            "/lib/firmware" => Feature::Firmware,
            // One part of it alone is of no use.
            path if all_of_journal && JOURNAL.contains(&path) => Feature::JournalLogs,
            _ => {
                refused.push(source.clone());
                continue;
            }
        };
        labels.entry(feature.label()).or_insert_with(|| "1".into());
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::label;

    fn read(text: &str) -> Result<Composition> {
        Node::parse(text).and_then(|n| parse(&n, Path::new("/app")))
    }

    const TEXT: &str = "
version: '2.4'
x-common: &common
  labels: &labels
    io.balena.features.dbus: 1
    io.balena.features.sysfs: 'true'
services:
  one:
    <<: *common
    image: a/b:1
    network_mode: host
    environment: [DOCKER_HOST=tcp://x, OTHER]
  two:
    build: {context: ./two, dockerfile: x}
    labels:
      - io.balena.features.procfs=1
      - bare
    environment: {A: 1, B: }
    volumes:
      - data:/data
      - /var/run/docker.sock:/var/run/docker.sock
      - /home/x:/x:ro
      - {type: bind, source: /sys/, target: /sys}
      - {type: volume, source: data, target: /y}
      - /anonymous
  three:
    build: .
volumes: {data: }
";

    #[test]
    fn services_are_read_in_both_forms() {
        let all = read(TEXT).unwrap();
        let [one, two, three] = all.services.as_slice() else { panic!("{all:?}") };
        assert_eq!((one.image.as_deref(), one.build.as_deref()), (Some("a/b:1"), None));
        assert_eq!(label::features(&one.labels), [Feature::Dbus, Feature::Sysfs]);
        assert_eq!(one.own, Own { host_network: true, sets_docker_host: true });
        assert_eq!(two.build.as_deref(), Some(Path::new("/app/./two")));
        assert_eq!(label::features(&two.labels), [Feature::BalenaSocket, Feature::Sysfs, Feature::Procfs]);
        assert_eq!(two.labels.get("bare").map(String::as_str), Some(""));
        assert_eq!(two.refused_binds, ["/home/x"]);
        assert_eq!(two.own, Own::default());
        assert_eq!((three.labels.len(), three.build.as_deref()), (0, Some(Path::new("/app/."))));
        assert_eq!(all.select(Some("two")).unwrap(), [two]);
        assert!(all.select(Some("four")).unwrap_err().to_string().ends_with("there are: one, two, three"));
    }

    #[test]
    fn the_journal_is_given_for_all_of_its_parts_only() {
        let with = |binds: &[&str]| {
            let list: String = binds.iter().map(|b| format!("    - {b}:{b}:ro\n")).collect();
            read(&format!("services:\n  s:\n    volumes:\n{list}")).unwrap().services[0].clone()
        };
        let all = with(&["/var/log/journal", "/run/log/journal", "/etc/machine-id"]);
        assert_eq!((label::features(&all.labels), all.refused_binds.len()), (vec![Feature::JournalLogs], 0));
        let part = with(&["/var/log/journal", "/etc/machine-id"]);
        assert_eq!((part.labels.len(), part.refused_binds.len()), (0, 2));
    }

    #[test]
    fn a_bind_does_not_switch_on_what_a_label_switches_off() {
        let text = "services:\n  s:\n    labels: {io.balena.features.dbus: 0}\n    volumes: ['/run/dbus:/host/run/dbus']\n";
        assert_eq!(label::features(&read(text).unwrap().services[0].labels), []);
    }

    #[test]
    fn what_is_no_compose_file_is_told_with_its_line() {
        for (text, expected) in [
            ("", "line 1: no services"),
            ("web:\n  image: x\n", "no services"),
            ("services:\n", "line 1: services: expected a mapping"),
            ("services: [a]\n", "expected a mapping of services"),
            ("services:\n  ../../etc: {image: x}\n", "service \"../../etc\": line 2: expected a name"),
            ("services:\n  ..: {image: x}\n", "expected a name"),
            ("services:\n  'a b': {image: x}\n", "expected a name"),
            ("services:\n  '': {image: x}\n", "expected a name"),
            ("services:\n  a: text\n", "service a: line 2: expected a mapping"),
            ("services:\n  a:\n    labels: x\n", "service a: line 3: labels: expected"),
            ("services:\n  a:\n    labels: {x: [1]}\n", "line 3: labels: expected"),
            ("services:\n  a:\n    image: {x: 1}\n", "line 3: image: expected text"),
            ("services:\n  a:\n    volumes: x\n", "line 3: volumes: expected a list"),
            ("services:\n  a:\n    extends: {service: b}\n", "line 3: extends is not supported"),
        ] {
            let e = read(text).unwrap_err().to_string();
            assert!(e.contains(expected), "{text:?}: {e}");
        }
    }
}
