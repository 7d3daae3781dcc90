//! What the device says of itself when it registers.

use std::path::Path;

use crate::config::{ConfigJson, Settings};
use crate::{Result, Root, sys};

const LIMIT_BYTES: u64 = 256 * 1024;

/// What the device says of itself; what is not known is not said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct About {
    pub device_type: Option<String>,
    pub os_version: Option<String>,
    pub os_variant: &'static str,
    pub supervisor_version: Option<String>,
    pub mac_address: Option<String>,
}

impl About {
    /// Reads it from the host. Only `config.json`'s own types can be wrong; other files that are missing or damaged
    /// leave a field out, because a device that is online can be repaired and one that is not cannot.
    pub fn read(root: &Root, settings: &Settings, config: &ConfigJson) -> Result<Self> {
        let supervisor = &settings.supervisor;
        Ok(Self {
            device_type: match slug(&root.path(&settings.provision.device_type_json)) {
                Some(slug) => Some(slug),
                None => config.device_type()?,
            },
            os_version: text(&root.path("/etc/os-release")).and_then(|t| os_version(&t)),
            os_variant: if config.development_mode()? { "dev" } else { "prod" },
            supervisor_version: [&supervisor.conf, &supervisor.default_conf]
                .into_iter()
                .find_map(|conf| supervisor_version(&text(&root.path(conf))?)),
            mac_address: mac_addresses(&root.path("/sys/class/net")),
        })
    }
}

fn text(path: &Path) -> Option<String> {
    if !path.exists() {
        return None;
    }
    sys::file::read_text(path, LIMIT_BYTES).inspect_err(|e| log::warn!("{e}; going on without it")).ok()
}

/// `slug` of `device-type.json`, if the file is there and makes sense.
pub(super) fn slug(path: &Path) -> Option<String> {
    let json: serde_json::Value = serde_json::from_str(&text(path)?)
        .inspect_err(|e| log::warn!("{}: {e}; using deviceType of config.json", path.display()))
        .ok()?;
    json.get("slug")?.as_str().filter(|s| !s.is_empty()).map(str::to_owned)
}

/// The value of `KEY=value` or `KEY="value"`.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let value = text.lines().find_map(|l| l.trim().strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim().trim_matches(['"', '\''])).filter(|v| !v.is_empty())
}

/// The OS version as the API wants it: with a semantic version in it, or not at all.
///
/// balenaOS says `PRETTY_NAME="balenaOS 2.46.1+rev1"`. Where that has no version, the one of `VERSION` or `VERSION_ID`
/// is said in that form.
fn os_version(os_release: &str) -> Option<String> {
    if let Some(name) = field(os_release, "PRETTY_NAME").filter(|n| semver_in(n).is_some()) {
        return Some(name.to_owned());
    }
    let version = ["VERSION", "VERSION_ID"].iter().find_map(|key| semver_in(field(os_release, key)?))?;
    Some(format!("balenaOS {version}"))
}

fn supervisor_version(conf: &str) -> Option<String> {
    semver_in(field(conf, "SUPERVISOR_VERSION")?).map(str::to_owned)
}

fn semver_in(text: &str) -> Option<&str> {
    text.split_whitespace()
        .map(|w| w.strip_prefix('v').unwrap_or(w))
        .find(|w| semver::Version::parse(w).is_ok())
}

/// The addresses of real network cards, in upper case, separated by spaces: what is virtual comes and goes.
fn mac_addresses(class_net: &Path) -> Option<String> {
    let cards = sys::file::list(class_net).ok()?;
    let addresses: Vec<_> = cards
        .iter()
        .filter(|card| card.join("device").exists())
        .filter_map(|card| sys::file::read_text(&card.join("address"), 64).ok())
        .filter(|a| !a.is_empty() && a != "00:00:00:00:00:00")
        .map(|a| a.to_uppercase())
        .collect();
    if addresses.is_empty() { None } else { Some(addresses.join(" ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_version_has_a_semantic_version_or_is_not_said() {
        for (os_release, expected) in [
            // balenaOS 2.46.1, as shipped.
            (
                "ID=\"balena-os\"\nVERSION=\"2.46.1+rev1\"\nPRETTY_NAME=\"balenaOS 2.46.1+rev1\"\n",
                Some("balenaOS 2.46.1+rev1"),
            ),
            // Debian 12, as shipped.
            (
                "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nVERSION=\"12 (bookworm)\"\n",
                None,
            ),
            ("PRETTY_NAME=\"Our OS\"\nVERSION_ID=1.2.3\n", Some("balenaOS 1.2.3")),
            ("", None),
        ] {
            assert_eq!(os_version(os_release).as_deref(), expected, "{os_release}");
        }
    }

    #[test]
    fn only_real_network_cards_are_told() {
        let dir = tempfile::tempdir().unwrap();
        for (card, address, real) in [
            ("lo", "00:00:00:00:00:00", false),
            ("docker0", "02:42:ac:11:00:02", false),
            ("eth0", "52:54:00:12:34:5a", true),
            ("wlan0", "dc:a6:32:00:00:01", true),
        ] {
            let card = dir.path().join(card);
            sys::durable::create_dir(&card.join(if real { "device" } else { "" })).unwrap();
            sys::durable::replace(&card.join("address"), format!("{address}\n").as_bytes(), 0o644).unwrap();
        }
        assert_eq!(mac_addresses(dir.path()).as_deref(), Some("52:54:00:12:34:5A DC:A6:32:00:00:01"));
    }

    #[test]
    fn supervisor_version_is_told_without_its_v() {
        // As in meta-balena's supervisor.conf.
        let conf = "SUPERVISOR_IMAGE=registry2.balena-cloud.com/v2/abc\nSUPERVISOR_VERSION=v18.2.2\n";
        assert_eq!(supervisor_version(conf).as_deref(), Some("18.2.2"));
        assert_eq!(supervisor_version("SUPERVISOR_IMAGE=x\n"), None);
    }
}
