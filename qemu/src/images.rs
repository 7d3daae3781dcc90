//! What a board boots and is updated with: disk images, OS versions, signed bundles.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::cloud::{Cloud, Config, Fleet};
use crate::{Outcome, supervisor_image};

/// The version that is on the disk as it comes from the maker.
pub const FIRST_VERSION: &str = "1.0.0";
/// The supervisor's image, as `qemu/image/device/supervisor.conf` names it.
const SUPERVISOR: &str = "lab/supervisor:1.0.0";
const PROGRAMS: &str = "target/x86_64-unknown-linux-musl/release";
/// The build host's twinhull, which can make bundles.
const BUILD_HOST: &str = "target/debug/twinhull";
const CACHE: &str = "target/lab";

/// What is wrong with an OS version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The init that PID 1 hands over to ends at once.
    BrokenInit,
    /// The container engine refuses its configuration.
    NoEngine,
}

impl Fault {
    const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::BrokenInit => "broken-init",
            Self::NoEngine => "no-engine",
        }
    }
}

/// The workshop: the directory of this run, the programs, the signing key.
pub struct Lab {
    /// The directory of this run; `qemu/run` removes it.
    pub work: PathBuf,
}

impl Lab {
    /// Opens the directory that `qemu/run` made, and makes the signing key with the real minisign.
    pub fn open() -> Outcome<Self> {
        let work = std::env::var_os("LAB_WORK").ok_or("LAB_WORK is not set: start this with qemu/run")?;
        let lab = Self { work: work.into() };
        std::fs::create_dir_all(lab.bundles())
            .map_err(|e| format!("make {}: {e}", lab.bundles().display()))?;
        run(Command::new("minisign")
            .arg("-GW")
            .arg("-p")
            .arg(lab.file("lab.pub"))
            .arg("-s")
            .arg(lab.file("lab.key")))?;
        Ok(lab)
    }

    /// A file of this run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.work.join(name)
    }

    fn bundles(&self) -> PathBuf {
        self.file("bundles")
    }

    /// The cloud API's stand-in, with the lab's fleet and its bundles.
    pub fn cloud(&self) -> Outcome<Cloud> {
        let fleet = Fleet { id: 1, key: "lab-provisioning-key".into(), device_type: "intel-nuc".into() };
        let config =
            Config::new("127.0.0.1:0").fleet(fleet).files(self.bundles()).log(self.file("cloud.log"));
        Cloud::start(config).map_err(|e| format!("start the cloud server: {e}"))
    }

    /// Makes the base root file system, unless it is there.
    pub fn base(&self) -> Outcome {
        run(script("base").arg(CACHE)).map(drop)
    }

    /// Makes the root image of an OS version.
    pub fn root(&self, version: &str, fault: Fault) -> Outcome<PathBuf> {
        let out = self.file(&format!("root-{version}.ext4"));
        run(script("root")
            .arg(CACHE)
            .arg(program("twinhull"))
            .arg(self.file("lab.pub"))
            .args([version, fault.word()])
            .arg(&out))?;
        Ok(out)
    }

    /// Makes the disk as it comes from the maker, for a device that will register with `cloud`.
    pub fn disk(&self, root: &Path, cloud: &Cloud) -> Outcome<PathBuf> {
        let config = json!({
            "apiEndpoint": guest_url(cloud, ""),
            "apiKey": "lab-provisioning-key",
            "applicationId": 1,
            "deviceType": "intel-nuc",
        });
        let config_json = self.file("config.json");
        std::fs::write(&config_json, config.to_string()).map_err(|e| format!("write config.json: {e}"))?;
        let archive = self.file("supervisor.tar");
        supervisor_image::write_archive(&program("lab-supervisor"), SUPERVISOR, &archive)
            .map_err(|e| format!("make the supervisor's image: {e}"))?;
        let out = self.file("disk.img");
        run(script("disk").arg(root).arg(config_json).arg(archive).arg(&out))?;
        Ok(out)
    }

    /// Makes and signs the bundle of a root image; `cloud` serves it. Returns its size in bytes.
    pub fn bundle(&self, root: &Path, version: &str) -> Outcome<u64> {
        let out = self.bundles().join(format!("{version}.bundle"));
        // A low level: in the lab the time to make a bundle counts for more than its size.
        run(Command::new(BUILD_HOST)
            .args([
                "--quiet",
                "bundle",
                "create",
                "--version",
                version,
                "--compatible",
                "intel-nuc",
                "--level",
                "3",
            ])
            .arg("--image")
            .arg(root)
            .arg("--key")
            .arg(self.file("lab.key"))
            .arg("--output")
            .arg(&out))?;
        let meta = std::fs::metadata(&out).map_err(|e| format!("{}: {e}", out.display()))?;
        Ok(meta.len())
    }
}

/// The address of a bundle, as a device in QEMU sees it.
pub fn bundle_url(cloud: &Cloud, version: &str) -> String {
    guest_url(cloud, &format!("/bundles/{version}.bundle"))
}

/// QEMU's user network shows the host's loopback as 10.0.2.2.
fn guest_url(cloud: &Cloud, path: &str) -> String {
    format!("http://10.0.2.2:{}{path}", cloud.address().port())
}

fn program(name: &str) -> PathBuf {
    Path::new(PROGRAMS).join(name)
}

fn script(name: &str) -> Command {
    Command::new(Path::new("qemu/image").join(name))
}

/// Runs a program to its end; if it fails, its name and what it printed are the error.
pub fn run(command: &mut Command) -> Outcome<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("start {name}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    Err(format!("{name} {}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end()))
}
