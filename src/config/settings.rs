//! Settings: TOML fragments merged and validated once.
//!
//! Fragments are read from `/usr/lib/twinhull/*.toml` (the image's maker), `/run/twinhull/*.toml` (this boot) and
//! `/etc/twinhull/*.toml` (this device): later places win, within a place files go by name, and a key replaces
//! the same key of an earlier fragment. Unknown keys are refused with file and line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::model::TomlText;
use crate::{Doing, Error, Result, Root, sys};

const PLACES: [&str; 3] = ["/usr/lib/twinhull", "/run/twinhull", "/etc/twinhull"];
const LIMIT_BYTES: u64 = 1024 * 1024;

/// Everything that can be set, with the defaults of a balenaOS-style image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The boot chooser.
    pub boot: Boot,
    /// What a bundle must satisfy.
    pub bundle: Bundle,
    /// When a trial counts as passed.
    pub health: Health,
    /// The container engine.
    pub engine: Engine,
    /// The supervisor container.
    pub supervisor: Supervisor,
    /// Registration with the cloud API.
    pub provision: Provision,
    /// What the data partition is filled with on the first boot.
    pub preload: Preload,
    /// The installer.
    pub flash: Flash,
    /// What PID 1 mounts and binds.
    pub init: Init,
}

/// `[boot]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Boot {
    /// Which bootloader; left out: found from what is on the boot partition.
    pub chooser: Option<Chooser>,
    /// GRUB's environment block. `grub.cfg` must name the same file.
    pub grub_env: PathBuf,
    /// Tryboot only: the numbers of the partitions that hold the kernels of slot A and of slot B.
    pub tryboot_partitions: [u32; 2],
    /// Boots that a new system may use before the old one returns, 1 to 9.
    #[serde(deserialize_with = "tries")]
    pub tries: u8,
}

/// The bootloaders that twinhull knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Chooser {
    /// GRUB with an environment block.
    Grub,
    /// balena-bootloader with its environment block `bootenv`.
    BalenaBootloader,
    /// U-Boot with balenaOS's text files on the boot partition.
    UbootText,
    /// U-Boot with its native environment, where `/etc/fw_env.config` says.
    UbootEnv,
    /// systemd-boot with counted entries.
    SystemdBoot,
    /// Raspberry Pi's firmware with `autoboot.txt` on a partition of its own, and a boot partition for each slot.
    Tryboot,
    /// UEFI's own boot manager, with an entry for each slot.
    Efi,
    /// A counter of our own that PID 1 keeps; the settings of the initramfs must name it as well.
    Initramfs,
}

impl Chooser {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Grub,
        Self::BalenaBootloader,
        Self::UbootText,
        Self::UbootEnv,
        Self::SystemdBoot,
        Self::Tryboot,
        Self::Efi,
        Self::Initramfs,
    ];

    /// Its name in the settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grub => "grub",
            Self::BalenaBootloader => "balena-bootloader",
            Self::UbootText => "uboot-text",
            Self::UbootEnv => "uboot-env",
            Self::SystemdBoot => "systemd-boot",
            Self::Tryboot => "tryboot",
            Self::Efi => "efi",
            Self::Initramfs => "initramfs",
        }
    }
}

impl std::fmt::Display for Chooser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// `[bundle]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bundle {
    /// Directory of minisign public keys (`*.pub`).
    pub keys: PathBuf,
    /// How many different keys must have signed.
    pub signatures: usize,
    /// The lowest release counter that is installed; committed systems only raise it. Belongs into the image, so that a
    /// device that was just flashed has it as well.
    pub release_floor: u64,
    /// Seconds for which nothing may come from a server before a download is given up.
    pub stall_s: u64,
    /// A file with the bearer token that the server of a bundle is shown, over https only. Read anew for each install.
    pub token_file: Option<PathBuf>,
    /// The certificate that servers of bundles are shown if they ask for one, PEM. Needs `client_key`.
    pub client_cert: Option<PathBuf>,
    /// Its private key, PEM, without a password.
    pub client_key: Option<PathBuf>,
}

/// `[health]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// Seconds after boot by which every check of a trial must have passed.
    pub deadline_s: u64,
    /// Seconds that all checks must keep passing before the commit.
    pub settle_s: u64,
    /// Units that must be active.
    pub units: Vec<String>,
    /// Directory of the image's own checks: each executable must exit with 0.
    pub checks: PathBuf,
    /// Seconds that one check may take.
    pub check_deadline_s: u64,
}

/// `[engine]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// The engine's Unix socket; the first that exists is used.
    pub sockets: Vec<PathBuf>,
    /// Whether this host runs containers at all; health asks the engine only then.
    pub enabled: bool,
    /// Logins of registries, in the format of docker's own `config.json` (`docker login` writes it).
    pub registry_auth: PathBuf,
    /// Where the engine, and its containerd, keep what is their own: looked through for damage before they start.
    pub storage: Vec<PathBuf>,
    /// Units of the engine; those that run, or have failed, are started again together if it does not answer.
    pub units: Vec<String>,
    /// Seconds without an answer after which the engine is started again, longer under load; 0: never.
    pub silent_s: u64,
}

/// `[supervisor]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Supervisor {
    /// Whether a supervisor container belongs on this host.
    pub enabled: bool,
    /// `KEY=value` file with `SUPERVISOR_IMAGE`, as balenaOS has it.
    pub conf: PathBuf,
    /// The image's own copy of that file, used when the other is missing or damaged.
    pub default_conf: PathBuf,
    /// Image archives on the data partition (`docker save` format), loaded when the engine lacks the image.
    pub archives: PathBuf,
    /// Seconds that a supervisor may be unhealthy before its container is started again.
    pub unhealthy_s: u64,
    /// Seconds within which a new supervisor must be healthy, else the old one returns.
    pub update_deadline_s: u64,
    /// Seconds for which a new supervisor must stay healthy (or run, without a HEALTHCHECK) to be kept.
    pub update_settle_s: u64,
}

/// `[provision]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Provision {
    /// The device's `config.json`.
    pub config_json: PathBuf,
    /// `device-type.json`, with `slug` and `arch`.
    pub device_type_json: PathBuf,
    /// Certificates trusted for TLS, PEM.
    pub ca_bundle: PathBuf,
    /// Seconds to wait before the first retry; doubles up to `retry_max_s`.
    pub retry_s: u64,
    /// The longest wait between two tries, in seconds.
    pub retry_max_s: u64,
    /// Seconds that the API has to answer one request.
    pub timeout_s: u64,
    /// The last resort: after so many answers in a row that another device has our uuid or key, one that the
    /// provisioning key may not see, this device gets a new identity. The former one is kept in
    /// `/mnt/state/twinhull/former-identity.json`. 0: never.
    pub new_identity_after: u32,
}

/// `[preload]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Preload {
    /// Directory of archives (`*.preload`) that are unpacked into the data partition, each once. Those on the data
    /// partition itself are removed then.
    pub archives: PathBuf,
}

/// `[flash]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flash {
    /// The bundle of a whole disk that an installer writes.
    pub image: PathBuf,
    /// Kernel names of the disks that it may be written to, in order; `*` and `?` as in the shell.
    pub devices: Vec<String>,
    /// What follows when it is written.
    pub end: FlashEnd,
}

/// How an installer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlashEnd {
    /// With power off, so that its medium can be taken out.
    Poweroff,
    /// With a reboot, where the firmware starts the internal disk first.
    Reboot,
    /// Not at all.
    Stay,
}

/// `[init]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Init {
    /// Paths of the root that are kept on the state partition (`root-overlay/PATH`) and bound over it.
    pub persist: Vec<PathBuf>,
    /// The program that takes over.
    pub next: PathBuf,
}

impl Default for Boot {
    fn default() -> Self {
        Self {
            chooser: None,
            grub_env: "/mnt/boot/EFI/BOOT/grubenv".into(),
            tryboot_partitions: [2, 3],
            tries: 3,
        }
    }
}

impl Default for Bundle {
    fn default() -> Self {
        Self {
            keys: "/usr/share/twinhull/keys.d".into(),
            signatures: 1,
            release_floor: 0,
            stall_s: 300,
            token_file: None,
            client_cert: None,
            client_key: None,
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            deadline_s: 600,
            settle_s: 10,
            units: Vec::new(),
            checks: "/usr/lib/twinhull/health.d".into(),
            check_deadline_s: 60,
        }
    }
}

impl Default for Engine {
    fn default() -> Self {
        let sockets =
            ["/run/balena-engine.sock", "/run/balena.sock", "/run/docker.sock", "/run/podman/podman.sock"];
        Self {
            sockets: sockets.map(Into::into).into(),
            enabled: true,
            registry_auth: "/etc/twinhull/registry-auth.json".into(),
            storage: ["/mnt/data/docker", "/var/lib/docker", "/var/lib/containerd", "/etc/docker"]
                .map(Into::into)
                .into(),
            units: ["balena.service", "containerd.service", "docker.service", "podman.service"]
                .map(Into::into)
                .into(),
            silent_s: 180,
        }
    }
}

impl Default for Supervisor {
    fn default() -> Self {
        Self {
            enabled: true,
            conf: "/mnt/state/root-overlay/etc/balena-supervisor/supervisor.conf".into(),
            default_conf: "/etc/balena-supervisor/supervisor.conf".into(),
            archives: "/mnt/data/supervisor".into(),
            unhealthy_s: 180,
            update_deadline_s: 600,
            update_settle_s: 30,
        }
    }
}

impl Default for Provision {
    fn default() -> Self {
        Self {
            config_json: "/mnt/boot/config.json".into(),
            device_type_json: "/mnt/boot/device-type.json".into(),
            ca_bundle: "/etc/ssl/certs/ca-certificates.crt".into(),
            retry_s: 2,
            retry_max_s: 300,
            timeout_s: 59,
            new_identity_after: 10,
        }
    }
}

impl Default for Preload {
    fn default() -> Self {
        Self { archives: "/mnt/data/preload".into() }
    }
}

impl Default for Flash {
    fn default() -> Self {
        Self {
            image: "/opt/disk.bundle".into(),
            devices: ["nvme?n?", "sd?", "mmcblk?", "vd?"].map(Into::into).into(),
            end: FlashEnd::Poweroff,
        }
    }
}

impl Default for Init {
    fn default() -> Self {
        Self { persist: Vec::new(), next: "/sbin/init".into() }
    }
}

impl Settings {
    /// Reads and merges the fragments under `root`, or `only` that one file, and checks every value.
    ///
    /// # Errors
    /// `Failed`, naming file and line, for a file that cannot be read, unknown keys and values out of range.
    pub fn load(root: &Root, only: Option<&Path>) -> Result<Self> {
        let files = match only {
            Some(file) => vec![file.to_owned()],
            None => fragments(root)?,
        };
        let mut texts = Vec::new();
        for file in &files {
            let name = format!("settings {}", file.display());
            let text = String::from_utf8(sys::file::read(file, LIMIT_BYTES)?)
                .map_err(|_| Error::failed(format!("{name}: not UTF-8")))?;
            texts.push((name, text));
        }
        let mut settings = Self::default();
        let mut merged = DeTable::new();
        for (name, text) in &texts {
            let text = TomlText::parse(name, text)?;
            // Each fragment is checked alone first: only there do lines mean anything.
            settings = text.read()?;
            merge(&mut merged, text.into_table().into_inner());
        }
        if texts.len() > 1 {
            settings = Self::deserialize(toml::de::Deserializer::from(Spanned::new(0..0, merged)))
                .map_err(|e| Error::failed(format!("settings: {}", e.message())))?;
        }
        settings.check().doing(|| "settings")
    }

    fn check(self) -> Result<Self> {
        let wrong = |text: String| Err(Error::failed(text));
        let [a, b] = self.boot.tryboot_partitions;
        if a == b || a == 0 || b == 0 {
            return wrong(format!(
                "boot.tryboot_partitions = [{a}, {b}]: expected two partition numbers, from 1"
            ));
        }
        if self.bundle.stall_s == 0 {
            return wrong("bundle.stall_s = 0: every download would be given up at once".into());
        }
        if self.bundle.client_cert.is_some() != self.bundle.client_key.is_some() {
            return wrong(
                "bundle.client_cert and bundle.client_key: one is of no use without the other".into(),
            );
        }
        if self.bundle.signatures == 0 {
            return wrong("bundle.signatures = 0: at least one signature is always needed".into());
        }
        if self.health.deadline_s == 0 || self.health.check_deadline_s == 0 {
            return wrong("health.deadline_s and health.check_deadline_s must be at least 1".into());
        }
        if self.supervisor.update_settle_s >= self.supervisor.update_deadline_s {
            return wrong("supervisor.update_settle_s must be less than supervisor.update_deadline_s".into());
        }
        if self.provision.retry_s == 0 || self.provision.retry_max_s < self.provision.retry_s {
            return wrong("provision.retry_s must be at least 1 and at most provision.retry_max_s".into());
        }
        Ok(self)
    }
}

impl Health {
    /// Time since boot by which a trial must have passed.
    pub const fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline_s)
    }
}

fn tries<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<u8, D::Error> {
    let found = i64::deserialize(from)?;
    let wrong = || D::Error::custom(format!("boot.tries = {found}: expected 1 to 9"));
    u8::try_from(found).ok().filter(|tries| (1..=9).contains(tries)).ok_or_else(wrong)
}

fn fragments(root: &Root) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for place in PLACES {
        files.extend(sys::file::fragments(&root.path(place), "toml")?);
    }
    Ok(files)
}

fn merge<'a>(into: &mut DeTable<'a>, from: DeTable<'a>) {
    for (key, value) in from {
        match (into.get_mut(&key).map(Spanned::get_mut), value.into_inner()) {
            (Some(DeValue::Table(old)), DeValue::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, Spanned::new(0..0, value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        for (path, text) in files {
            let path = root.path(path);
            sys::durable::create_dir(path.parent().unwrap()).unwrap();
            sys::durable::replace(&path, text.as_bytes(), 0o644).unwrap();
        }
        (dir, root)
    }

    #[test]
    fn nothing_configured_gives_the_defaults() {
        let (_dir, root) = host(&[]);
        assert_eq!(Settings::load(&root, None).unwrap(), Settings::default());
    }

    #[test]
    fn later_places_win_key_by_key() {
        let (_dir, root) = host(&[
            ("/etc/twinhull/10.toml", "[health]\ndeadline_s = 5\n"),
            ("/usr/lib/twinhull/10.toml", "[health]\ndeadline_s = 9\nsettle_s = 8\n"),
            ("/usr/lib/twinhull/notes.txt", "not read"),
        ]);
        let health = Settings::load(&root, None).unwrap().health;
        assert_eq!((health.deadline_s, health.settle_s), (5, 8));
    }

    #[test]
    fn every_chooser_is_set_by_its_name() {
        for chooser in Chooser::ALL {
            let (_dir, root) =
                host(&[("/etc/twinhull/a.toml", &format!("[boot]\nchooser = \"{chooser}\"\n"))]);
            assert_eq!(Settings::load(&root, None).unwrap().boot.chooser, Some(chooser));
        }
    }

    #[test]
    fn mistakes_name_file_and_line() {
        for (text, expected) in [
            ("[health]\n\ndeadline = 5\n", "line 3: unknown field `deadline`"),
            ("[health]\ndeadline_s = \"x\"\n", "line 2: invalid type"),
            ("[boot]\ntries = 10\n", "line 2: boot.tries = 10: expected 1 to 9"),
            ("[boot]\ntries = 300\n", "line 2: boot.tries = 300: expected 1 to 9"),
            ("[boot]\ntries = 0\n", "line 2: boot.tries = 0: expected 1 to 9"),
            ("[bundle]\nclient_cert = \"/a\"\n", "one is of no use without the other"),
        ] {
            let (_dir, root) = host(&[("/etc/twinhull/a.toml", text)]);
            let e = Settings::load(&root, None).unwrap_err().to_string();
            assert!(e.contains(expected), "{e}");
        }
    }
}
