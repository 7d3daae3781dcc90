//! What a board boots and is updated with: disk images, OS versions, signed bundles.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::boards::{Board, System};
use crate::cloud::{Cloud, Config, Fleet};
use crate::verity::Seal;
use crate::{Outcome, boot_partition, disk, supervisor_image};

/// The version that is on the disk as it comes from the maker.
pub const FIRST_VERSION: &str = "1.0.0";
/// The supervisor's version, as `qemu/image/device/supervisor.conf` names it.
pub const FIRST_SUPERVISOR: &str = "1.0.0";
/// The build host's twinhull, which can make bundles.
const BUILD_HOST: &str = "target/debug/twinhull";
const CACHE: &str = "target/lab";
/// How often an engine on an emulated processor looks after the supervisor's health: a look costs more than a second.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// What is wrong with an OS version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The init that PID 1 hands over to ends at once.
    BrokenInit,
    /// The container engine refuses its configuration.
    NoEngine,
    /// It stands still, and feeds the watchdog no more.
    Hang,
}

impl Fault {
    const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::BrokenInit => "broken-init",
            Self::NoEngine => "no-engine",
            Self::Hang => "hang",
        }
    }
}

/// The workshop for one board: the directory of this run, the programs, the signing key.
pub struct Lab {
    /// The directory of this run; `qemu/run` removes it.
    pub work: PathBuf,
    /// What images and bundles are for.
    pub board: &'static Board,
}

/// A version of the OS.
pub struct Os {
    /// The image of a root slot.
    pub root: PathBuf,
    /// Directory with what boots it, for bootloaders that read nothing but FAT.
    pub boot_files: PathBuf,
}

impl Lab {
    /// Opens the directory that `qemu/run` made, and makes the signing key with the real minisign.
    pub fn open(board: &'static Board) -> Outcome<Self> {
        let lab = Self { work: work(board.name)?, board };
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

    /// Where bundles are: served by the cloud's stand-in, or on the data partition of a board without a network.
    fn bundles(&self) -> PathBuf {
        self.file(if self.board.has_network() { "bundles" } else { "data/bundles" })
    }

    /// What `twinhull install` is given on the device.
    pub fn bundle_address(&self, cloud: &Cloud, version: &str) -> String {
        match self.board.has_network() {
            true => bundle_url(cloud, version),
            false => format!("/mnt/data/bundles/{version}.bundle"),
        }
    }

    /// The cloud API's stand-in, with the lab's fleet and its bundles.
    pub fn cloud(&self) -> Outcome<Cloud> {
        let fleet =
            Fleet { id: 1, key: "lab-provisioning-key".into(), device_type: self.board.device_type.into() };
        let config =
            Config::new("127.0.0.1:0").fleet(fleet).files(self.bundles()).log(self.file("cloud.log"));
        Cloud::start(config).map_err(|e| format!("start the cloud server: {e}"))
    }

    /// Makes what every version of the OS is made from, unless it is there.
    pub fn base(&self) -> Outcome {
        let name = match (self.board.system, self.board.is_arm()) {
            (System::Debian { .. }, false) => "base",
            (System::Debian { .. }, true) => "arm/debian",
            (System::Small { .. }, _) => "arm/base",
        };
        run(script(name).arg(CACHE)).map(drop)
    }

    /// Makes a version of the OS.
    pub fn os(&self, version: &str, fault: Fault) -> Outcome<Os> {
        let out = self.file(&format!("os-{version}"));
        match self.board.system {
            System::Debian { modules } => run(script("root")
                .arg(CACHE)
                .arg(if self.board.is_arm() { "arm64" } else { "amd64" })
                .arg(self.programs())
                .arg(self.file("lab.pub"))
                .args([version, fault.word(), modules])
                .arg(&out)),
            System::Small { kernel, modules } => run(script("arm/root")
                .arg(CACHE)
                .arg(self.programs())
                .arg(self.file("lab.pub"))
                .args([version, fault.word(), kernel, modules])
                .arg(&out)),
        }?;
        Ok(Os { root: out.join("root.ext4"), boot_files: out.join("boot") })
    }

    /// Makes the disk as it comes from the maker, with `os` in slot A; a device with a supervisor will register with `cloud`.
    pub fn disk(&self, os: &Os, cloud: &Cloud) -> Outcome<PathBuf> {
        let config = match self.board.system.has_engine() {
            true => {
                self.supervisor_archive(
                    FIRST_SUPERVISOR,
                    &self.directory("data/supervisor")?.join("supervisor.tar"),
                )?;
                self.managed(cloud)
            }
            false => self.unmanaged(),
        };
        self.disk_named("disk.img", os, &config, &self.directory("data")?)
    }

    /// `config.json` of a device that is to register with `cloud`.
    pub fn managed(&self, cloud: &Cloud) -> Value {
        let mut config = self.unmanaged();
        config["apiEndpoint"] = guest_url(cloud, "").into();
        config["apiKey"] = "lab-provisioning-key".into();
        config["applicationId"] = 1.into();
        config
    }

    /// `config.json` of a device that nobody manages.
    pub fn unmanaged(&self) -> Value {
        json!({ "deviceType": self.board.device_type })
    }

    /// Writes the image of a version of the supervisor to `archive`, as `docker load` takes it.
    pub fn supervisor_archive(&self, version: &str, archive: &Path) -> Outcome {
        let name = format!("lab/supervisor:{version}");
        supervisor_image::write_archive(&self.program("lab-supervisor"), &name, archive, Some(LOOK_EVERY))
            .map_err(|e| format!("make the supervisor's image {name}: {e}"))
    }

    /// Makes a disk of the board with `os` in slot A, `config` as its `config.json`, and what is in `data` on its data
    /// partition.
    pub fn disk_named(&self, name: &str, os: &Os, config: &Value, data: &Path) -> Outcome<PathBuf> {
        let boot = self.directory(&format!("boot-of-{name}"))?;
        boot_partition::fill(self.board, &boot, &os.boot_files, &config.to_string())?;
        let out = self.file(name);
        let slot_boots = [self.directory("boot-a")?, self.directory("boot-b")?];
        for (slot, files) in slot_boots.iter().enumerate() {
            boot_partition::fill_slot(self.board, slot, files, &os.boot_files)?;
        }
        let [a, b] = &slot_boots;
        let content = disk::Content { boot: &boot, slot_boots: [a, b], root: &os.root, data };
        disk::make(self.board.layout, &content, &self.work, &out)?;
        Ok(out)
    }

    /// Makes the board's second disk, if it has one, after the example of the first.
    pub fn second_disk(&self, disk: &Path) -> Outcome<Option<disk::SecondDisk>> {
        let made = self
            .board
            .has_second_disk
            .then(|| disk::SecondDisk::make(disk, self.file("second-disk.img"), self.board.layout));
        made.transpose()
    }

    /// Makes and signs the bundle of a version of the OS; `cloud` serves it. Returns its size in bytes.
    pub fn bundle(&self, os: &Os, version: &str) -> Outcome<u64> {
        self.bundle_with(os, version, &[])
    }

    /// The same, with a root image that ends with a hash tree.
    pub fn sealed_bundle(&self, os: &Os, version: &str, seal: &Seal) -> Outcome<u64> {
        let offset = seal.offset.to_string();
        self.bundle_with(os, version, &["--verity-root", &seal.root, "--verity-offset", &offset])
    }

    fn bundle_with(&self, os: &Os, version: &str, options: &[&str]) -> Outcome<u64> {
        let out = self.bundles().join(format!("{version}.bundle"));
        let mut create = self.bundle_create(version);
        create.arg("--image").arg(&os.root).args(options);
        if self.board.bootloader.boots_from_fat() {
            create.arg("--boot-dir").arg(&os.boot_files);
        }
        self.sign_into(&mut create, &out)
    }

    /// Makes and signs the bundle of a whole disk, for an installer. Returns its size in bytes.
    pub fn disk_bundle(&self, disk: &Path, version: &str, out: &Path) -> Outcome<u64> {
        self.sign_into(self.bundle_create(version).arg("--disk").arg(disk), out)
    }

    /// Packs and signs trees (`NAME=PATH`) for the data partition. Gives what `twinhull preload pack` says of it.
    pub fn preload(&self, trees: &[String], segment_mib: u32, out: &Path) -> Outcome<Value> {
        let mut pack = Command::new(BUILD_HOST);
        pack.args(["--quiet", "--json", "preload", "pack", "--level", "3"])
            .args(["--compatible", self.board.device_type, "--arch", self.board.arch()])
            .args(["--segment-size", &segment_mib.to_string()])
            .args(trees);
        let said = run(pack.arg("--key").arg(self.file("lab.key")).arg("--output").arg(out))?;
        let last = said.lines().last().unwrap_or("");
        serde_json::from_str(last).map_err(|e| format!("preload pack says {said:?}: {e}"))
    }

    fn bundle_create(&self, version: &str) -> Command {
        let mut create = Command::new(BUILD_HOST);
        create
            .args(["--quiet", "bundle", "create", "--version", version])
            .args(["--compatible", self.board.device_type, "--arch", self.board.arch()])
            // A low level: in the lab the time to make a bundle counts for more than its size.
            .args(["--level", "3"]);
        create
    }

    fn sign_into(&self, create: &mut Command, out: &Path) -> Outcome<u64> {
        run(create.arg("--key").arg(self.file("lab.key")).arg("--output").arg(out))?;
        let meta = std::fs::metadata(out).map_err(|e| format!("{}: {e}", out.display()))?;
        Ok(meta.len())
    }

    /// The same workshop for another board: the same key.
    pub fn for_board(&self, board: &'static Board) -> Self {
        Self { work: self.work.clone(), board }
    }

    /// A directory of this run.
    pub fn directory(&self, name: &str) -> Outcome<PathBuf> {
        let path = self.file(name);
        std::fs::create_dir_all(&path).map(|()| path).map_err(|e| format!("make {name}: {e}"))
    }

    /// A program for this board.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    fn programs(&self) -> &'static Path {
        Path::new(match self.board.is_arm() {
            false => "target/x86_64-unknown-linux-musl/release",
            true => "target/aarch64-unknown-linux-musl/release",
        })
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

/// The directory of this run for a board or for what needs none.
pub fn work(name: &str) -> Outcome<PathBuf> {
    let work = std::env::var_os("LAB_WORK").ok_or("LAB_WORK is not set: start this with qemu/run")?;
    Ok(Path::new(&work).join(name))
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
