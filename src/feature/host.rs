//! The host side of the labels: what is there, what is missing and what to do about it, and what is ours to make.

use std::path::Path;

use super::label::Feature;
use crate::model::{OS_RELEASE, OsRelease};
use crate::{Result, Root, sys};

/// The names under which containers of balenaOS know the engine. `/var/run` is `/run`.
const SOCKET_NAMES: [&str; 2] = ["/run/balena-engine.sock", "/run/balena.sock"];
const DBUS: &str = "/run/dbus/system_bus_socket";
const MACHINE_ID: &str = "/etc/machine-id";
const JOURNALS: [&str; 2] = ["/var/log/journal", "/run/log/journal"];
const MODULES: &str = "/lib/modules";
const FIRMWARE: &str = "/lib/firmware";
const FIRMWARE_PATH: &str = "/sys/module/firmware_class/parameters/path";
/// What makes docker's `--gpus` work; the engine looks for it when it starts.
const GPU_HOOKS: [&str; 2] =
    ["/usr/bin/nvidia-container-runtime-hook", "/usr/local/bin/nvidia-container-runtime-hook"];
/// Fields of os-release that balena's supervisor reads.
const OS_FIELDS: [&str; 6] =
    ["ID", "VERSION", "META_BALENA_VERSION", "PRETTY_NAME", "SLUG", "BALENA_BOARD_REV"];
const LIMIT_BYTES: u64 = 256 * 1024;

/// What is known of the host besides its files.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    /// Its root directory.
    pub root: &'a Root,
    /// Where `device-type.json` is.
    pub device_type_json: &'a Path,
    /// A supervisor belongs on this host.
    pub supervisor: bool,
    /// It has address and key of a cloud API.
    pub cloud_api: bool,
}

/// One thing that containers expect of their host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The feature that it stands behind; `None`: what the supervisor itself reads.
    pub feature: Option<Feature>,
    /// Its name: the feature's, or the file's.
    pub name: &'static str,
    /// Whether it is as it should be.
    pub ok: bool,
    /// Whether every host should have it. What depends on board and fleet may be missing.
    pub expected: bool,
    /// What was found, or what is missing and what to do.
    pub text: String,
}

/// What one check found: a text for people, either way.
type Found = std::result::Result<String, String>;

impl Host<'_> {
    /// Looks at everything that the labels need, and at what the supervisor reads.
    pub fn look(&self) -> Vec<Part> {
        let mut parts: Vec<_> = Feature::ALL
            .into_iter()
            .map(|feature| {
                let (ok, text) = split(self.feature(feature));
                Part {
                    feature: Some(feature),
                    name: feature.name(),
                    ok,
                    expected: is_expected(feature),
                    text,
                }
            })
            .collect();
        for (name, found) in [
            ("machine-id", self.machine_id().map(|id| format!("{MACHINE_ID}: {id}"))),
            ("os-release", self.os_fields()),
            ("device-type.json", self.device_type()),
        ] {
            let (ok, text) = split(found);
            parts.push(Part { feature: None, name, ok, expected: true, text });
        }
        parts
    }

    /// Whether `/lib/modules` and `/lib/firmware` are there: only then are they given.
    pub fn has_modules_and_firmware(&self) -> [bool; 2] {
        [MODULES, FIRMWARE].map(|p| self.root.path(p).is_dir())
    }

    /// os-release, empty if it cannot be read.
    pub fn os_release(&self) -> OsRelease {
        let text = sys::file::read_text(&self.root.path(OS_RELEASE), LIMIT_BYTES).unwrap_or_default();
        OsRelease::parse(&text)
    }

    fn feature(&self, feature: Feature) -> Found {
        match feature {
            Feature::JournalLogs => self.journal(),
            Feature::Dbus => self.dbus(),
            Feature::KernelModules => self.modules(),
            Feature::Firmware => self.directory(FIRMWARE, "the image has no firmware files"),
            Feature::BalenaSocket => self.sockets(),
            Feature::Sysfs => self.directory("/sys/kernel", "sysfs is not mounted on /sys"),
            Feature::Procfs => self.directory("/proc/sys", "proc is not mounted on /proc"),
            Feature::Gpu => self.gpu(),
            Feature::ExtraFirmware => self.extra_firmware(),
            Feature::SupervisorApi if self.supervisor => Ok("the supervisor serves it".into()),
            Feature::SupervisorApi => {
                Err("no supervisor belongs on this host (supervisor.enabled is false)".into())
            }
            Feature::BalenaApi if self.cloud_api => Ok("config.json has apiEndpoint and deviceApiKey".into()),
            Feature::BalenaApi => Err(
                "config.json has no apiEndpoint and deviceApiKey: the device is not registered with a cloud"
                    .into(),
            ),
            Feature::BoardRev => match self.os_release().board_rev() {
                Some(revision) => Ok(revision.to_owned()),
                None => Err(format!("{OS_RELEASE} has no BALENA_BOARD_REV; the image's build may set it")),
            },
        }
    }

    fn sockets(&self) -> Found {
        let missing: Vec<_> =
            SOCKET_NAMES.into_iter().filter(|n| !sys::file::is_socket(&self.root.path(n))).collect();
        if !missing.is_empty() {
            return Err(format!(
                "no engine at {}; `twinhull supervisor run` links these names to the engine's own socket",
                missing.join(" and ")
            ));
        }
        // The supervisor names it so.
        if !sys::file::is_socket(&self.root.path("/var/run/balena-engine.sock")) {
            return Err(
                "/var/run is not /run: no engine at /var/run/balena-engine.sock; make /var/run a link".into(),
            );
        }
        Ok(SOCKET_NAMES.join(", "))
    }

    fn dbus(&self) -> Found {
        if sys::file::is_socket(&self.root.path(DBUS)) {
            return Ok(DBUS.into());
        }
        Err(format!("nobody listens at {DBUS}; the image needs a system bus (dbus.socket)"))
    }

    fn machine_id(&self) -> Found {
        let text = sys::file::read_text(&self.root.path(MACHINE_ID), 4096)
            .map_err(|e| format!("{e}; twinhull's initramfs makes it"))?;
        let valid = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if valid {
            Ok(text)
        } else {
            Err(format!("{MACHINE_ID}: {text:?} is not 32 hex digits; twinhull's initramfs makes it"))
        }
    }

    fn journal(&self) -> Found {
        let id = self.machine_id()?;
        let missing: Vec<_> = JOURNALS.into_iter().filter(|d| !self.root.path(d).is_dir()).collect();
        if !missing.is_empty() {
            return Err(format!("no directory {}; make it in the image", missing.join(" and ")));
        }
        match JOURNALS.into_iter().find(|d| self.root.path(d).join(&id).is_dir()) {
            Some(dir) => Ok(format!("{dir}/{id}")),
            None => Err(format!(
                "no journal of this machine ({id}) in {}; is systemd-journald running?",
                JOURNALS.join(" or ")
            )),
        }
    }

    fn modules(&self) -> Found {
        self.directory(MODULES, "the image has no kernel modules")?;
        let kernel =
            sys::file::read_text(&self.root.path("/proc/sys/kernel/osrelease"), 4096).unwrap_or_default();
        let own = format!("{MODULES}/{kernel}");
        self.directory(&own, "the image has no modules of the kernel that runs")
    }

    fn directory(&self, path: &str, missing: &str) -> Found {
        if self.root.path(path).is_dir() {
            Ok(path.to_owned())
        } else {
            Err(format!("no directory {path}: {missing}"))
        }
    }

    fn gpu(&self) -> Found {
        match GPU_HOOKS.into_iter().find(|p| self.root.path(p).is_file()) {
            Some(hook) => Ok(hook.to_owned()),
            None => {
                Err("no nvidia-container-runtime-hook in /usr/bin: the engine has no driver for GPUs".into())
            }
        }
    }

    fn extra_firmware(&self) -> Found {
        match sys::file::read_text(&self.root.path(FIRMWARE_PATH), 4096) {
            Ok(path) if path.is_empty() => {
                Ok("the kernel looks into the volume once there is one (`twinhull supervisor run` tells it)"
                    .to_owned())
            }
            Ok(path) => Ok(format!("the kernel looks for firmware in {path} as well")),
            Err(_) => Err(format!("no {FIRMWARE_PATH}: the kernel cannot load firmware from elsewhere")),
        }
    }

    fn os_fields(&self) -> Found {
        let os = self.os_release();
        let missing: Vec<_> = OS_FIELDS.into_iter().filter(|f| os.get(f).is_none()).collect();
        if missing.is_empty() {
            return Ok(format!("{} {}", os.get("ID").unwrap_or(""), os.get("VERSION").unwrap_or("")));
        }
        Err(format!(
            "{OS_RELEASE} lacks {}, which supervisors read; the image's build sets them",
            missing.join(", ")
        ))
    }

    fn device_type(&self) -> Found {
        let path = self.root.path(self.device_type_json);
        let text = sys::file::read_text(&path, LIMIT_BYTES)
            .map_err(|e| format!("{e}; the image's build makes it"))?;
        let json: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        let field = |key| json.get(key).and_then(serde_json::Value::as_str).filter(|s| !s.is_empty());
        match (field("slug"), field("arch")) {
            (Some(slug), Some(arch)) => Ok(format!("{slug}, {arch}")),
            _ => Err(format!("{} lacks slug or arch; the image's build makes it", path.display())),
        }
    }
}

/// Whether every host should be able to give it.
const fn is_expected(feature: Feature) -> bool {
    match feature {
        Feature::JournalLogs
        | Feature::Dbus
        | Feature::KernelModules
        | Feature::Firmware
        | Feature::BalenaSocket
        | Feature::Sysfs
        | Feature::Procfs => true,
        // These depend on the board, on the fleet, or on nothing at all.
        Feature::Gpu
        | Feature::ExtraFirmware
        | Feature::SupervisorApi
        | Feature::BalenaApi
        | Feature::BoardRev => false,
    }
}

fn split(found: Found) -> (bool, String) {
    match found {
        Ok(text) => (true, text),
        Err(text) => (false, text),
    }
}

/// Makes what of the host side is ours, now that the engine listens at `socket`: its names in `/run`, and the
/// volatile journal's directory. All of it lives in `/run`, so it is made anew at each boot; a name that another
/// socket has is left to it.
///
/// # Errors
/// `Failed`, naming the path.
pub fn make(root: &Root, socket: &Path) -> Result<()> {
    // Relative where that is possible: the supervisor sees the host's /run below another directory.
    let target = socket.strip_prefix(root.path("/run")).unwrap_or(socket);
    for name in SOCKET_NAMES {
        let name = root.path(name);
        if name != socket && !sys::file::is_socket(&name) {
            sys::tree::link(&name, target)?;
        }
    }
    // Not /var/log/journal: where that exists, journald writes to flash.
    sys::durable::create_dir(&root.path("/run/log/journal"))
}

/// Lets the kernel look for firmware in `dir` as well: the volume of [`Feature::ExtraFirmware`]. A path that the image's
/// command line has set stays.
///
/// # Errors
/// `Failed`, naming the kernel's file.
pub fn use_extra_firmware(root: &Root, dir: &Path) -> Result<()> {
    let file = root.path(FIRMWARE_PATH);
    match sys::file::read_if_exists(&file, 4096)? {
        Some(path) if path.trim_ascii().is_empty() => {
            sys::file::write_setting(&file, &dir.display().to_string())?;
            log::info!("the kernel looks for firmware in {} as well", dir.display());
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    struct Lab {
        _dir: tempfile::TempDir,
        root: Root,
    }

    impl Lab {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = Root::new(dir.path());
            let lab = Self { _dir: dir, root };
            lab.dir("/var");
            sys::tree::link(&lab.root.path("/var/run"), Path::new("../run")).unwrap();
            lab
        }

        /// A host that has everything. The listeners must be kept.
        fn full() -> (Self, Vec<UnixListener>) {
            let lab = Self::new();
            for dir in [
                "/var/log/journal",
                "/run/log/journal/0123456789abcdef0123456789abcdef",
                "/run/dbus",
                "/lib/modules/6.1.0-balena",
                "/lib/firmware",
                "/sys/kernel",
                "/proc/sys/kernel",
            ] {
                lab.dir(dir);
            }
            lab.file("/etc/machine-id", &format!("{ID}\n"));
            lab.file("/proc/sys/kernel/osrelease", "6.1.0-balena\n");
            lab.file("/sys/module/firmware_class/parameters/path", "\n");
            lab.file("/usr/bin/nvidia-container-runtime-hook", "");
            lab.file("/mnt/boot/device-type.json", r#"{"slug":"intel-nuc","arch":"amd64"}"#);
            let os = OS_FIELDS.map(|f| format!("{f}=\"x-{f}\"\n")).concat();
            lab.file("/etc/os-release", &os);
            let listeners = ["/run/docker.sock", DBUS].map(|s| UnixListener::bind(lab.root.path(s)).unwrap());
            make(&lab.root, &lab.root.path("/run/docker.sock")).unwrap();
            (lab, listeners.into())
        }

        fn dir(&self, path: &str) {
            sys::durable::create_dir(&self.root.path(path)).unwrap();
        }

        fn file(&self, path: &str, text: &str) {
            let path = self.root.path(path);
            sys::durable::create_dir(path.parent().unwrap()).unwrap();
            sys::durable::replace(&path, text.as_bytes(), 0o644).unwrap();
        }

        fn look(&self) -> Vec<Part> {
            let device_type_json = Path::new("/mnt/boot/device-type.json");
            Host { root: &self.root, device_type_json, supervisor: true, cloud_api: true }.look()
        }

        fn part(&self, name: &str) -> Part {
            self.look().into_iter().find(|p| p.name == name).unwrap()
        }
    }

    #[test]
    fn a_full_host_gives_everything() {
        let (lab, _listeners) = Lab::full();
        for part in lab.look() {
            assert!(part.ok, "{}: {}", part.name, part.text);
        }
        assert_eq!(lab.part("balena-socket").text, "/run/balena-engine.sock, /run/balena.sock");
        assert_eq!(lab.part("journal-logs").text, format!("/run/log/journal/{ID}"));
    }

    #[test]
    fn a_bare_host_says_of_each_part_why_not() {
        let lab = Lab::new();
        let host = Host {
            root: &lab.root,
            device_type_json: Path::new("/none"),
            supervisor: false,
            cloud_api: false,
        };
        for part in host.look() {
            assert!(!part.ok && !part.text.is_empty(), "{}: {}", part.name, part.text);
        }
        assert_eq!(host.has_modules_and_firmware(), [false, false]);
    }

    #[test]
    fn each_part_notices_what_is_wrong_with_it() {
        let (lab, _listeners) = Lab::full();
        for (path, text, name, says) in [
            ("/proc/sys/kernel/osrelease", "6.2.0", "kernel-modules", "no directory /lib/modules/6.2.0"),
            ("/etc/machine-id", "uninitialized", "journal-logs", "not 32 hex digits"),
            (
                "/etc/machine-id",
                "11111111111111111111111111111111",
                "journal-logs",
                "no journal of this machine",
            ),
            (
                "/etc/os-release",
                "ID=debian\nVERSION=12\n",
                "os-release",
                "lacks META_BALENA_VERSION, PRETTY_NAME, SLUG",
            ),
            ("/etc/os-release", "ID=debian\n", "host-os.board-rev", "no BALENA_BOARD_REV"),
            (
                "/mnt/boot/device-type.json",
                r#"{"slug":"intel-nuc"}"#,
                "device-type.json",
                "lacks slug or arch",
            ),
            ("/mnt/boot/device-type.json", "{", "device-type.json", "EOF"),
        ] {
            lab.file(path, text);
            let part = lab.part(name);
            assert!(!part.ok && part.text.contains(says), "{name}: {}", part.text);
        }
    }

    #[test]
    fn a_dead_link_is_no_engine_and_is_made_again() {
        let (lab, listeners) = Lab::full();
        let socket = lab.root.path("/run/docker.sock");
        drop(listeners);
        sys::durable::remove(&socket).unwrap();
        assert!(
            lab.part("balena-socket")
                .text
                .starts_with("no engine at /run/balena-engine.sock and /run/balena.sock")
        );
        let other = lab.root.path("/run/podman.sock");
        let _listener = UnixListener::bind(&other).unwrap();
        make(&lab.root, &other).unwrap();
        make(&lab.root, &other).unwrap();
        assert!(lab.part("balena-socket").ok);
        assert_eq!(
            sys::file::without_links(&lab.root.path("/run/balena.sock")),
            sys::file::without_links(&other)
        );
    }

    #[test]
    fn the_kernel_is_told_of_extra_firmware_unless_it_knows_of_some() {
        let lab = Lab::new();
        let told = || sys::file::read_text(&lab.root.path(FIRMWARE_PATH), 4096).unwrap_or_default();
        // A kernel without it.
        use_extra_firmware(&lab.root, Path::new("/a")).unwrap();
        assert_eq!(told(), "");
        lab.file(FIRMWARE_PATH, "\n");
        for dir in ["/a", "/b"] {
            use_extra_firmware(&lab.root, Path::new(dir)).unwrap();
            assert_eq!(told(), "/a");
        }
    }

    #[test]
    fn a_name_that_an_engine_has_is_left_to_it() {
        let lab = Lab::new();
        lab.dir("/run");
        let own = lab.root.path("/run/balena-engine.sock");
        let _listener = UnixListener::bind(&own).unwrap();
        make(&lab.root, &own).unwrap();
        make(&lab.root, &lab.root.path("/run/docker.sock")).unwrap();
        assert_eq!(sys::file::without_links(&own), own);
        assert!(!own.symlink_metadata().unwrap().is_symlink());
    }
}
