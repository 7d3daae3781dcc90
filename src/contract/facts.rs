//! What a device has, in the words of contracts.

use serde::{Deserialize, Serialize};

use crate::model::manifest::Provides;
use crate::model::{OS_RELEASE, OsRelease, Version};
use crate::{Result, Root, sys};

const LIMIT_BYTES: u64 = 64 * 1024;

/// What a device has; `None` is not there or not known. As JSON or YAML its keys are the types of contracts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Version of the supervisor, without a `v`.
    #[serde(rename = "sw.supervisor")]
    pub supervisor: Option<String>,
    /// Version of Linux for Tegra, with three numbers.
    #[serde(rename = "sw.l4t")]
    pub l4t: Option<String>,
    /// The host OS: `ID` and `VERSION` of os-release.
    #[serde(rename = "sw.os")]
    pub os: Option<Named>,
    /// The kernel: `linux`, and its three numbers.
    #[serde(rename = "sw.kernel")]
    pub kernel: Option<Named>,
    /// Slug of the device type.
    #[serde(rename = "hw.device-type")]
    pub device_type: Option<String>,
    /// balena's name of the architecture.
    #[serde(rename = "arch.sw")]
    pub arch: Option<String>,
}

/// A slug with a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// Which one.
    pub slug: String,
    /// Which version.
    pub version: String,
}

impl Facts {
    /// What the host's own files tell: OS, kernel and L4T.
    ///
    /// # Errors
    /// `Failed`, naming the file, if one is there and cannot be read.
    pub fn of_host(root: &Root) -> Result<Self> {
        let text = |path: &str| -> Result<String> {
            let bytes = sys::file::read_if_exists(&root.path(path), LIMIT_BYTES)?.unwrap_or_default();
            Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        let os = OsRelease::parse(&text(OS_RELEASE)?);
        let kernel = text("/proc/sys/kernel/osrelease")?;
        let slug = text("/proc/sys/kernel/ostype")?.to_lowercase();
        Ok(Self {
            os: os
                .get("ID")
                .zip(os.get("VERSION").or(os.get("VERSION_ID")))
                .map(|(slug, version)| Named { slug: slug.into(), version: version.into() }),
            kernel: kernel_version(&kernel)
                .filter(|_| !slug.is_empty())
                .map(|version| Named { slug, version }),
            l4t: l4t_of_kernel(&kernel),
            ..Self::default()
        })
    }

    /// What this device will have once it runs the OS of a bundle.
    ///
    /// The device stays the same, and so does its supervisor unless the bundle brings one. Kernel and L4T come with the
    /// OS: what the bundle does not say of them is not known.
    #[must_use]
    pub fn after_update(&self, version: &Version, provides: &Provides) -> Self {
        let kernel_slug = self.kernel.as_ref().map_or("linux", |k| k.slug.as_str()).to_owned();
        let os_version = provides.os.clone().unwrap_or_else(|| version.to_string());
        let kernel = provides.kernel.as_ref().map(|k| kernel_version(k).unwrap_or_else(|| k.clone()));
        Self {
            os: self.os.as_ref().map(|os| Named { slug: os.slug.clone(), version: os_version }),
            kernel: kernel.map(|version| Named { slug: kernel_slug, version }),
            l4t: provides.l4t.as_deref().map(three_numbers),
            supervisor: provides.supervisor.as_deref().map(without_v).or_else(|| self.supervisor.clone()),
            device_type: self.device_type.clone(),
            arch: self.arch.clone(),
        }
    }
}

/// A version without the `v` that balena writes before it in `supervisor.conf`.
fn without_v(version: &str) -> String {
    version.strip_prefix('v').unwrap_or(version).to_owned()
}

/// The three numbers at the start of `uname -r`.
fn kernel_version(release: &str) -> Option<String> {
    let mut rest = release;
    for end in ['.', '.', ' '] {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return None;
        }
        rest = rest.get(digits..)?;
        if end == '.' {
            rest = rest.strip_prefix('.')?;
        }
    }
    release.get(..release.len() - rest.len()).map(str::to_owned)
}

/// `…-l4t-r36.5…` of `uname -r`, with three numbers.
fn l4t_of_kernel(release: &str) -> Option<String> {
    // The last, as a greedy expression finds it.
    let (_, rest) = release.rsplit_once("-l4t-r")?;
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let major = digits(rest);
    let (major, rest) = rest.split_at_checked(major)?;
    let rest = rest.strip_prefix('.')?;
    let (minor, rest) = rest.split_at_checked(digits(rest))?;
    if major.is_empty() || minor.is_empty() {
        return None;
    }
    let patch = rest.strip_prefix('.').map_or("", |r| r.get(..digits(r)).unwrap_or(""));
    Some(format!("{major}.{minor}.{}", if patch.is_empty() { "0" } else { patch }))
}

/// `36.5` as `36.5.0`: so that node's rules apply.
fn three_numbers(version: &str) -> String {
    let two = version.split('.').count() == 2 && version.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if two { format!("{version}.0") } else { version.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kernels of the supervisor's test/unit/lib/uname.spec.ts, and some of our own boards.
    #[test]
    fn kernels_tell_their_version_and_l4t() {
        for (release, version, l4t) in [
            ("4.9.140-l4t-r32.2+g3dcbed5", Some("4.9.140"), Some("32.2.0")),
            ("4.4.38-l4t-r28.2+g174510d", Some("4.4.38"), Some("28.2.0")),
            ("4.9.140-l4t-r32.3.1+g47e7e1c", Some("4.9.140"), Some("32.3.1")),
            ("5.15.148-l4t-r36.5-1012.12+g", Some("5.15.148"), Some("36.5.0")),
            ("6.1.0-9-amd64", Some("6.1.0"), None),
            ("4.18.14-yocto-standard", Some("4.18.14"), None),
            ("6.1", None, None),
            ("not-l4t-r", None, None),
            ("", None, None),
        ] {
            assert_eq!(kernel_version(release).as_deref(), version, "{release}");
            assert_eq!(l4t_of_kernel(release).as_deref(), l4t, "{release}");
        }
    }

    #[test]
    fn the_host_is_read_from_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        assert_eq!(Facts::of_host(&root).unwrap(), Facts::default());
        for (path, text) in [
            ("/etc/os-release", "ID=\"balena-os\"\nVERSION=\"6.4.0+rev2\"\n"),
            ("/proc/sys/kernel/osrelease", "4.9.140-l4t-r32.2+g3dcbed5\n"),
            ("/proc/sys/kernel/ostype", "Linux\n"),
        ] {
            let path = root.path(path);
            sys::durable::create_dir(path.parent().unwrap()).unwrap();
            sys::durable::replace(&path, text.as_bytes(), 0o644).unwrap();
        }
        let facts = Facts::of_host(&root).unwrap();
        let json = r#"{"sw.supervisor":null,"sw.l4t":"32.2.0","sw.os":{"slug":"balena-os","version":"6.4.0+rev2"},"sw.kernel":{"slug":"linux","version":"4.9.140"},"hw.device-type":null,"arch.sw":null}"#;
        assert_eq!(serde_json::to_string(&facts).unwrap(), json);
        assert_eq!(serde_json::from_str::<Facts>(json).unwrap(), facts);
        assert!(serde_json::from_str::<Facts>(r#"{"sw.spec":"1"}"#).is_err());
    }

    #[test]
    fn an_update_changes_what_the_bundle_says_and_leaves_the_rest_unknown() {
        let named = |slug: &str, version: &str| Some(Named { slug: slug.into(), version: version.into() });
        let now = Facts {
            supervisor: Some("16.0.0".into()),
            l4t: Some("32.2.0".into()),
            os: named("balena-os", "1.0.0"),
            kernel: named("linux", "4.9.140"),
            device_type: Some("jetson-nano".into()),
            arch: Some("aarch64".into()),
        };
        let version: Version = "2.0.0".parse().unwrap();
        let silent = now.after_update(&version, &Provides::default());
        assert_eq!(silent, Facts { os: named("balena-os", "2.0.0"), kernel: None, l4t: None, ..now.clone() });
        let provides = Provides {
            os: Some("2.0.1+rev1".into()),
            kernel: Some("5.15.148-tegra".into()),
            l4t: Some("36.5".into()),
            supervisor: Some("v17.0.0".into()),
        };
        let expected = Facts {
            supervisor: Some("17.0.0".into()),
            l4t: Some("36.5.0".into()),
            os: named("balena-os", "2.0.1+rev1"),
            kernel: named("linux", "5.15.148"),
            ..now.clone()
        };
        assert_eq!(now.after_update(&version, &provides), expected);
    }
}
