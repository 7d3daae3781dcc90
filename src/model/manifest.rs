//! A bundle's manifest: what an update is, for whom, and what its bytes must be.
//!
//! The text is TOML and is signed as it stands; nobody parses it before a signature was checked. The byte layout
//! of a bundle is in `src/bundle/FORMAT.md`.

use serde::{Deserialize, Serialize};

use super::Version;
use super::device::DeviceType;
use super::payload::{Payload, PayloadKind, is_word};
use super::toml_text::TomlText;
use super::verity::seal_at;
use crate::{Error, Result};

/// The newest version of the format: that of bundles with a root that is to be sealed. Those that only carry a root image are
/// written as version 1, which older devices read as well; those of a whole disk are of version 3.
pub const FORMAT: u32 = 4;
/// The longest manifest, in bytes: it is read into memory before its signature can be checked.
pub const LIMIT_BYTES: u64 = 64 * 1024;

const COMPATIBLE_MAX: usize = 64;

/// What a bundle says of itself, checked for sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The device types that it is for; at least one.
    pub compatible: Vec<DeviceType>,
    /// balena's name of the architecture, such as `amd64`, `aarch64`, `armv7hf`.
    pub arch: String,
    /// The version of the host OS in it.
    pub version: Version,
    /// A counter that never decreases from release to release; 0 if it is not used.
    pub release: u64,
    /// The oldest OS version that may be updated to this one directly.
    pub min_version: Option<Version>,
    /// What the new system provides to the services that run on it.
    pub provides: Provides,
    /// The root image, or that of a whole disk.
    pub root: Payload,
    /// What it carries beside it: files for the boot partition, hooks; at most one of each, in this order.
    pub files: Vec<Payload>,
}

/// `[provides]`: versions as text, for the contracts of the services.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provides {
    /// The host OS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// The Linux kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// NVIDIA's Linux for Tegra.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l4t: Option<String>,
    /// The supervisor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supervisor: Option<String>,
}

/// What is known of the device that a bundle is meant for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Its type.
    pub device_type: DeviceType,
    /// balena's name of its architecture.
    pub arch: String,
    /// The version that it runs; `None` if that cannot be told.
    pub version: Option<Version>,
    /// Size of the slot that would be written, in bytes.
    pub slot_len_bytes: u64,
    /// The lowest release counter that it takes.
    pub release_floor: u64,
}

/// The file as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: u32,
    compatible: Vec<DeviceType>,
    arch: String,
    version: Version,
    release: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_version: Option<Version>,
    #[serde(default)]
    provides: Provides,
    payload: Vec<Payload>,
}

impl Manifest {
    /// Parses a manifest whose signature was checked.
    ///
    /// # Errors
    /// `Refused` for a format that is newer than this program; `Failed`, with the line, for anything that is not
    /// a manifest.
    pub fn parse(text: &str) -> Result<Self> {
        let text = TomlText::parse("manifest.toml", text)?;
        // The version first: a newer format may hold keys that are not known here.
        match text.integer("format") {
            Some(1..=4) => {}
            Some(found) => {
                return Err(Error::refused(format!(
                    "bundle format {found}: this twinhull reads formats 1 to {FORMAT}; \
                     install an OS in between whose twinhull is newer"
                )));
            }
            None if text.integer("preload").is_some() => {
                return Err(Error::failed(
                    "manifest.toml: a preload archive (`twinhull preload`), and no bundle",
                ));
            }
            None => return Err(Error::failed("manifest.toml: no format number")),
        }
        text.read::<Text>()?.check()
    }

    /// The manifest as a file. The same values give the same bytes.
    ///
    /// # Errors
    /// `Failed` for values that a manifest cannot hold.
    #[cfg(feature = "build-host")]
    pub fn to_text(&self) -> Result<String> {
        let text = Text {
            format: match self.root.kind {
                PayloadKind::Disk => 3,
                _ if self.root.verity.is_some() => FORMAT,
                _ if self.files.is_empty() => 1,
                _ => 2,
            },
            compatible: self.compatible.clone(),
            arch: self.arch.clone(),
            version: self.version.clone(),
            release: self.release,
            min_version: self.min_version.clone(),
            provides: self.provides.clone(),
            payload: self.payloads().cloned().collect(),
        };
        let text = toml::to_string(&text).map_err(|e| Error::failed(format!("manifest.toml: {e}")))?;
        if text.len() as u64 > LIMIT_BYTES {
            return Err(Error::failed(format!("manifest.toml: {} bytes, at most {LIMIT_BYTES}", text.len())));
        }
        // What a device would refuse is refused here.
        Self::parse(&text)?;
        Ok(text)
    }

    /// Everything that the bundle carries, in the order in which it does.
    pub fn payloads(&self) -> impl Iterator<Item = &Payload> {
        std::iter::once(&self.root).chain(&self.files)
    }

    /// The files of this kind that it carries.
    pub fn files_of(&self, kind: PayloadKind) -> Option<&Payload> {
        self.files.iter().find(|p| p.kind == kind)
    }

    /// Whether this bundle is for devices of that type and architecture.
    ///
    /// # Errors
    /// `Refused`, saying for which it is.
    pub fn check_made_for(&self, device_type: &DeviceType, arch: &str) -> Result<()> {
        if !self.compatible.contains(device_type) {
            return Err(Error::refused(format!(
                "the bundle is for {}, this device is {device_type}; get the bundle made for {device_type}",
                words(&self.compatible)
            )));
        }
        if self.arch != arch {
            return Err(Error::refused(format!(
                "the bundle is for architecture {}, this device is {arch}; get the bundle made for {arch}",
                self.arch
            )));
        }
        Ok(())
    }

    /// Whether this bundle may be installed on that device.
    ///
    /// # Errors
    /// `Refused`, saying how to comply, for another device type or architecture, an image larger than the slot, a release
    /// counter below the device's floor, a running version older than `min_version`, and one newer than the bundle's
    /// unless `allow_downgrade`.
    pub fn check_suits(&self, device: &DeviceFacts, allow_downgrade: bool) -> Result<()> {
        let no = |text: String| Err(Error::refused(text));
        if self.root.kind != PayloadKind::RootSlot {
            return no("the bundle holds a whole disk, for an installer (`twinhull flash`); get the one with the root image".into());
        }
        self.check_made_for(&device.device_type, &device.arch)?;
        let (room, seal) = match self.root.verity {
            None => (device.slot_len_bytes, ""),
            Some(_) => (seal_at(device.slot_len_bytes).unwrap_or(0), " beside the seal"),
        };
        if self.root.size > room {
            return no(format!(
                "the image has {} bytes, the slot {room}{seal}; make the image smaller, or flash a layout with larger slots",
                self.root.size
            ));
        }
        if self.release < device.release_floor {
            return no(format!(
                "the bundle has release {}, this device takes {} and above: a system with that was committed here, or \
                 bundle.release_floor says so; get a newer bundle (--allow-downgrade does not go below)",
                self.release, device.release_floor
            ));
        }
        match (&self.min_version, &device.version) {
            (Some(min), None) => {
                return no(format!(
                    "the bundle updates from {min} or newer, and the version that runs is not known; \
                     see that os-release has VERSION_ID"
                ));
            }
            (Some(min), Some(running)) if running < min => {
                return no(format!(
                    "the bundle updates from {min} or newer, this device runs {running}; \
                     install a version in between first"
                ));
            }
            (_, Some(running)) if self.version < *running && !allow_downgrade => {
                return no(format!(
                    "the bundle has version {}, this device runs {running}, which is newer; \
                     --allow-downgrade installs it all the same",
                    self.version
                ));
            }
            _ => {}
        }
        Ok(())
    }
}

impl Text {
    fn check(self) -> Result<Manifest> {
        let wrong = |text: String| Err(Error::failed(format!("manifest.toml: {text}")));
        // What every reader of TOML can read.
        if self.release > i64::MAX as u64 {
            return wrong(format!("release {}: expected at most {}", self.release, i64::MAX));
        }
        if self.compatible.is_empty() || self.compatible.len() > COMPATIBLE_MAX {
            return wrong(format!(
                "compatible has {} entries, expected 1 to {COMPATIBLE_MAX}",
                self.compatible.len()
            ));
        }
        if let Some(bad) = self.compatible.iter().map(|t| &t.0).chain([&self.arch]).find(|w| !is_word(w)) {
            return wrong(format!("{bad:?}: expected letters, digits, '.', '_' and '-'"));
        }
        let provides =
            [&self.provides.os, &self.provides.kernel, &self.provides.l4t, &self.provides.supervisor];
        if provides.into_iter().flatten().any(|v| v.is_empty() || v.chars().any(char::is_control)) {
            return wrong("provides: an empty version, or one with control characters".into());
        }
        let mut payloads = self.payload.into_iter().map(Payload::check).collect::<Result<Vec<_>>>()?;
        let kinds: Vec<_> = payloads.iter().map(|p| p.kind).collect();
        let with_files = || kinds.first() == Some(&PayloadKind::RootSlot) && kinds.is_sorted_by(|a, b| a < b);
        let fits = match self.format {
            1 => kinds == [PayloadKind::RootSlot],
            2 => with_files() && !kinds.contains(&PayloadKind::Disk),
            3 => kinds == [PayloadKind::Disk],
            _ => with_files() && !kinds.contains(&PayloadKind::Disk),
        };
        let sealed: Vec<_> = payloads.iter().map(|p| p.verity.is_some()).collect();
        if sealed.iter().skip(1).any(|s| *s) || sealed.contains(&true) != (self.format == 4) {
            return wrong("verity: only of a root-slot, and in format 4".into());
        }
        if !fits {
            return wrong(format!(
                "format {}: payloads {kinds:?}, expected root-slot, in formats 2 and 4 boot-files and hooks after it, each \
                 at most once, and in format 3 disk alone",
                self.format
            ));
        }
        let mut names: Vec<_> = payloads.iter().map(|p| p.name.clone()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair.first() == pair.get(1)) {
            return wrong("two payloads of one name".into());
        }
        let files = payloads.split_off(1);
        let root = payloads.pop().ok_or_else(|| Error::inconsistent("no root image"))?;
        Ok(Manifest {
            compatible: self.compatible,
            arch: self.arch,
            version: self.version,
            release: self.release,
            min_version: self.min_version,
            provides: self.provides,
            root,
            files,
        })
    }
}

fn words(types: &[DeviceType]) -> String {
    types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    const TEXT: &str = r#"
format = 1
compatible = ["intel-nuc", "genericx86-64-ext"]
arch = "amd64"
version = "2.0.0"
release = 7
min_version = "1.0.0"

[provides]
os = "2.0.0"
kernel = "6.1.0"

[[payload]]
name = "root"
type = "root-slot"
size = 1048577
sha256 = "1111111111111111111111111111111111111111111111111111111111111111"
index_sha256 = "2222222222222222222222222222222222222222222222222222222222222222"
index_size = 100
frames_size = 200
frames_sha256 = "3333333333333333333333333333333333333333333333333333333333333333"
"#;

    fn device() -> DeviceFacts {
        DeviceFacts {
            device_type: DeviceType("intel-nuc".into()),
            arch: "amd64".into(),
            version: Some("1.5.0".parse().unwrap()),
            slot_len_bytes: 1_048_577,
            release_floor: 7,
        }
    }

    #[test]
    fn parses_the_example_of_the_format() {
        let m = Manifest::parse(TEXT).unwrap();
        assert_eq!((m.release, m.version.to_string().as_str(), m.root.blocks()), (7, "2.0.0", 257));
        assert_eq!(m.provides.kernel.as_deref(), Some("6.1.0"));
    }

    #[cfg(feature = "build-host")]
    #[test]
    fn what_is_written_is_read_back() {
        let m = Manifest::parse(TEXT).unwrap();
        assert_eq!(Manifest::parse(&m.to_text().unwrap()).unwrap(), m);
        let too_many = Manifest { release: u64::MAX, ..m };
        assert!(too_many.to_text().is_err());
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        for (from, to, expected) in [
            ("arch =", "arc =", "line 4: unknown field `arc`"),
            ("size = 1048577", "size = 1023", "image of 1023 bytes"),
            ("size = 1048577", "size = 1099511627777", "image of 1099511627777 bytes"),
            ("size = 1048577", "size = -1", "line 16"),
            ("name = \"root\"", "name = \"../root\"", "not a name"),
            ("type = \"root-slot\"", "type = \"raw\"", "unknown variant `raw`"),
            ("type = \"root-slot\"", "type = \"boot-files\"", "0 files"),
            ("\"intel-nuc\", \"genericx86-64-ext\"", "", "compatible has 0 entries"),
            ("\"intel-nuc\"", "\"intel nuc\"", "\"intel nuc\": expected letters"),
            ("[[payload]]", "[payload]", "line 13"),
            ("format = 1", "", "no format number"),
            ("kernel = \"6.1.0\"", "kernel = \"\\u001b[2J\"", "control characters"),
        ] {
            let e = Manifest::parse(&TEXT.replace(from, to)).unwrap_err().to_string();
            assert!(e.contains(expected), "{to}: {e}");
        }
    }

    #[test]
    fn a_newer_format_is_refused_whatever_else_it_holds() {
        let e = Manifest::parse("format = 5\nnews = true\n").unwrap_err();
        assert_eq!(e.kind(), Kind::Refused);
        assert!(e.to_string().contains("newer"), "{e}");
    }

    #[test]
    fn suits_only_what_it_was_made_for() {
        let m = Manifest::parse(TEXT).unwrap();
        m.check_suits(&device(), false).unwrap();
        m.check_suits(&DeviceFacts { version: Some("2.0.0".parse().unwrap()), ..device() }, false).unwrap();
        for (device, expected) in [
            (DeviceFacts { device_type: DeviceType("fincm3".into()), ..device() }, "made for fincm3"),
            (DeviceFacts { arch: "aarch64".into(), ..device() }, "made for aarch64"),
            (DeviceFacts { slot_len_bytes: 1_048_576, ..device() }, "the slot 1048576"),
            (DeviceFacts { version: Some("0.9.0".parse().unwrap()), ..device() }, "in between"),
            (DeviceFacts { version: Some("2.0.1".parse().unwrap()), ..device() }, "--allow-downgrade"),
            (DeviceFacts { version: None, ..device() }, "VERSION_ID"),
            (DeviceFacts { release_floor: 8, ..device() }, "this device takes 8 and above"),
        ] {
            let e = m.check_suits(&device, false).unwrap_err();
            assert_eq!(e.kind(), Kind::Refused);
            assert!(e.to_string().contains(expected), "{e}");
        }
    }

    #[test]
    fn a_downgrade_may_be_allowed_but_not_below_the_minimum() {
        let m = Manifest::parse(TEXT).unwrap();
        let newer = DeviceFacts { version: Some("3.0.0".parse().unwrap()), ..device() };
        m.check_suits(&newer, true).unwrap();
        assert!(m.check_suits(&DeviceFacts { release_floor: 8, ..newer }, true).is_err());
        let older = DeviceFacts { version: Some("0.1.0".parse().unwrap()), ..device() };
        assert!(m.check_suits(&older, true).is_err());
    }
}
