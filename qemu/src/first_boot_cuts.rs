//! The power goes at moments spread over a device's first boot, from the first write to the supervisor's start.
//!
//! One first boot of the whole system is played with every write to the disk logged. For each moment the disk is made as the
//! power cut would leave it: what was flushed is there, what the drive's cache held is there in part, the last write torn. The
//! cloud knows the device if it had been asked to register it by then. From each such disk a device is started, which must end
//! provisioned. Most of these boots have the lab's own init, which runs the commands of twinhull's units in their order; each
//! tenth is one of the whole system, until its supervisor is healthy.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Outcome;
use crate::block_log::BlockLog;
use crate::cloud::{self, Cloud, Play};
use crate::delivered::{self, Delivered};
use crate::device::{BOOT, Device};
use crate::hardware::{Kernel, Setup};
use crate::images::{FIRST_VERSION, Fault, Lab, Os, run};
use crate::layout::Role;
use crate::machine::{Disk, Machine};
use crate::moments::{self, Moment};

const MINUTE: Duration = Duration::from_secs(60);
/// For so long the cloud keeps its answer to the registration back: meanwhile the device can do nothing that follows from it.
const ANSWERS_LATE: Duration = Duration::from_secs(3);
/// One in so many boots is one of the whole system.
const WHOLE_SYSTEM_EVERY: usize = 10;

struct Sweep<'a> {
    lab: &'a Lab,
    cloud: Cloud,
    delivered: Delivered,
    os: Os,
    log: BlockLog,
    /// The device that the logged boot registered, and the requests that had reached the drive by then.
    registered: (cloud::Device, usize),
    /// The disk with what is certain to be on the medium.
    disk: PathBuf,
}

/// What is known of a device after the boot that followed a cut.
struct After {
    console: String,
    status: Value,
    config: Value,
}

/// Cuts `cuts` times. The error says how often the device did not come back as it should.
pub fn sweep(lab: &Lab, cuts: usize) -> Outcome {
    let mut sweep = Sweep::record(lab)?;
    let moments = moments::moments(&sweep.log, cuts);
    println!("\ncut  requests       on the medium            cloud        the next boot");
    let disk = File::options().read(true).write(true).open(&sweep.disk);
    let disk = disk.map_err(|e| format!("{}: {e}", sweep.disk.display()))?;
    let (mut failed, mut flushed) = (0, 0);
    for (n, moment) in moments.into_iter().enumerate() {
        flushed = moments::advance(&sweep.log, &disk, flushed, moment.requests)?;
        let cached = moments::add_cached(&sweep.log, &disk, moment)?;
        let whole_system = n % WHOLE_SYSTEM_EVERY == WHOLE_SYSTEM_EVERY - 1;
        let line = match sweep.boot(moment, whole_system) {
            Ok(line) => line,
            Err(e) => {
                failed += 1;
                sweep.keep_evidence(n + 1);
                format!("FAILED: {e}")
            }
        };
        let medium = match moment.cache {
            None => format!("{flushed} flushed"),
            Some(_) => format!("{flushed} flushed, {} more", cached.len()),
        };
        let known = if sweep.knows(moment) { "knows it" } else { "does not" };
        println!(
            "{:>3}  {:>6}/{:<6}  {medium:<23}  {known:<11}  {line}",
            n + 1,
            moment.requests,
            sweep.log.entries.len()
        );
        moments::undo(&disk, cached)?;
    }
    sweep.cloud.set_devices(Vec::new());
    println!(
        "{cuts} cuts: {} ended provisioned, as one device, with all that it was delivered with",
        cuts - failed
    );
    if failed == 0 { Ok(()) } else { Err(format!("{failed} of {cuts} cuts failed")) }
}

impl<'a> Sweep<'a> {
    /// Plays the first boot, and logs it.
    fn record(lab: &'a Lab) -> Outcome<Self> {
        println!("images");
        lab.base()?;
        let delivered = delivered::make(lab)?;
        let cloud = lab.cloud()?;
        let os = lab.os(FIRST_VERSION, Fault::None)?;
        let played = lab.disk_named("disk.img", &os, &lab.managed(&cloud), &delivered.data)?;
        let disk = lab.file("cut.img");
        run(Command::new("cp").arg("--sparse=always").arg(&played).arg(&disk))?;
        let log = lab.file("writes.log");
        File::create(&log).map_err(|e| format!("{}: {e}", log.display()))?;

        println!("first boot of the whole system, each write logged");
        let setup = Setup { write_log: Some(log.clone()), ..Setup::default() };
        cloud.play(Play::Late(ANSWERS_LATE));
        let mut device = Device::switch_on_with(lab, &Disk { file: &played, format: "raw" }, &setup)?;
        let recorded = Self::until_healthy(&cloud, &mut device, &log)
            .inspect_err(|_| eprintln!("\nThe console's last lines:\n{}\n", device.last_lines(30)))?;
        device.machine.cut()?;
        fs::remove_file(&played).map_err(|e| format!("{}: {e}", played.display()))?;
        let log = BlockLog::open(&log)?;
        let known = log.entries.iter().filter(|e| e.end() <= recorded.1).count();
        let registered = (recorded.0, known);
        println!(
            "{} requests to the drive until the supervisor was healthy; registered after {} of them",
            log.entries.len(),
            registered.1
        );
        Ok(Self { lab, cloud, delivered, os, log, registered, disk })
    }

    /// The device that was registered, and the bytes of the log when it was.
    fn until_healthy(cloud: &Cloud, device: &mut Device, log: &Path) -> Outcome<(cloud::Device, u64)> {
        let deadline = Instant::now() + BOOT;
        let registered = loop {
            if let Some(registered) = cloud.devices().pop() {
                break registered;
            }
            if Instant::now() > deadline || !device.machine.runs() {
                return Err("the device did not register".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let bytes = fs::metadata(log).map_err(|e| format!("{}: {e}", log.display()))?.len();
        device.booted()?;
        healthy(device)?;
        Ok((registered, bytes))
    }

    /// Whether the cloud had registered the device at that moment.
    const fn knows(&self, moment: Moment) -> bool {
        moment.requests > self.registered.1
    }

    /// Starts a device from the disk as it is now; the line says how it went.
    fn boot(&mut self, moment: Moment, whole_system: bool) -> Outcome<String> {
        let known = if self.knows(moment) { vec![self.registered.0.clone()] } else { Vec::new() };
        self.cloud.set_devices(known);
        let overlay = self.overlay();
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(&self.disk)
            .arg(&overlay))?;
        let (after, cpu) = match whole_system {
            true => self.whole_system(&overlay)?,
            false => self.small_system(&overlay)?,
        };
        self.check_identity(&after)?;
        self.check_delivered(&overlay)?;
        let did = |sign: &str, word: &'static str| after.console.contains(sign).then_some(word);
        let done: Vec<&str> = [
            did("data partition grown from", "grows"),
            did("registered as device", "registers"),
            did("unpacked /mnt/data/preload", "unpacks"),
            whole_system.then_some("supervisor healthy"),
        ]
        .into_iter()
        .flatten()
        .collect();
        let done = if done.is_empty() { "has nothing to do".to_owned() } else { done.join(", ") };
        Ok(format!("{done}: provisioned, 1 device ({cpu:.0} s)"))
    }

    /// The lab's own init, started directly.
    fn small_system(&self, overlay: &Path) -> Outcome<(After, f64)> {
        let root = self.lab.board.layout.partuuid(Role::Root(0));
        let kernel = Kernel {
            files: self.os.boot_files.clone(),
            with_initramfs: true,
            command_line: format!(
                "root=PARTUUID={root} ro panic=5 {} init=/usr/libexec/lab-first-boot",
                self.lab.board.command_line
            ),
        };
        let setup = Setup { kernel: Some(kernel), ..Setup::default() };
        let disk = Disk { file: overlay, format: "qcow2" };
        let mut machine = Machine::start(self.lab.board, &disk, &self.lab.work, &setup)?;
        let cpu = machine.cpu_until_off(BOOT)?;
        let console = fs::read(&machine.console).map_err(|e| format!("the console: {e}"))?;
        let console = String::from_utf8_lossy(&console).replace('\r', "");
        let said = |what: &str| {
            let line =
                console.lines().find_map(|l| l.split_once(&format!("lab: {what} "))).map(|(_, rest)| rest);
            line.ok_or_else(|| format!("the device did not say {what:?}"))
        };
        let starts = console.matches("starts as PID 1").count();
        for (what, expected) in [("provision ended", "with 0"), ("preload ended", "with 0")] {
            if said(what)? != expected || starts != 1 {
                return Err(format!("{what} {}, {starts} boots", said(what)?));
            }
        }
        let json = |what: &str| serde_json::from_str(said(what)?).map_err(|e| format!("{what}: {e}"));
        let (status, config) = (json("status")?, json("config")?);
        Ok((After { console, status, config }, cpu))
    }

    /// Everything, as on a device.
    fn whole_system(&self, overlay: &Path) -> Outcome<(After, f64)> {
        let mut device = Device::switch_on(self.lab, &Disk { file: overlay, format: "qcow2" })?;
        device.booted()?;
        let status = healthy(&mut device)?;
        let config = device.ask("cat /mnt/boot/config.json", MINUTE)?;
        let config = serde_json::from_str(&config).map_err(|e| format!("config.json: {e}"))?;
        let journal = device.ask("journalctl -b -o cat --no-pager", MINUTE)?;
        let starts = journal.matches("starts as PID 1").count();
        if starts != 1 {
            return Err(format!("{starts} boots in one journal"));
        }
        device.start("poweroff")?;
        let cpu = device.machine.cpu_until_off(5 * MINUTE)?;
        Ok((After { console: journal, status, config }, cpu))
    }

    /// Provisioned, one device, and the key that opens it is there.
    fn check_identity(&self, after: &After) -> Outcome {
        let text = |key: &str| after.config[key].as_str().unwrap_or_default().to_owned();
        let devices = self.cloud.devices();
        let [device] = devices.as_slice() else {
            return Err(format!("{} devices in the cloud's list", devices.len()));
        };
        if after.status["provision"]["registered"] != true || after.status["phase"] != "steady" {
            return Err(format!("not provisioned: {}", after.status));
        }
        if device.uuid != text("uuid") || !device.has_key(&text("deviceApiKey")) {
            return Err("config.json names another device, or a key that does not open it".into());
        }
        if after.config["deviceId"] != device.id || !after.config["apiKey"].is_null() {
            return Err(format!("config.json: deviceId {}, apiKey still there", after.config["deviceId"]));
        }
        Ok(())
    }

    /// What the device was delivered with is in its place, whole.
    fn check_delivered(&self, overlay: &Path) -> Outcome {
        let layout = self.lab.board.layout;
        let data = layout.place(Role::Data).ok_or("the disk has no data partition")?;
        let (start, len) = (data.start_mib << 20, (layout.disk_mib - data.start_mib - 1) << 20);
        let part = self.lab.file("data.raw");
        let source = format!(
            "driver=raw,offset={start},size={len},file.driver=qcow2,file.file.driver=file,file.file.filename={}",
            overlay.display()
        );
        run(Command::new("qemu-img").args(["convert", "-O", "raw", "--image-opts", &source]).arg(&part))?;
        // It was unmounted in order: nothing is left to be repaired.
        run(Command::new("e2fsck").args(["-f", "-n"]).arg(&part))?;
        let found = self.lab.directory("found")?;
        let rdump = format!("rdump /docker /apps.json {}", found.display());
        run(Command::new("debugfs").args(["-R", &rdump]).arg(&part))?;
        let compare = |of: &Path, with: PathBuf| {
            run(Command::new("diff").args(["-r", "-q", "--no-dereference"]).arg(of).arg(with)).map(drop)
        };
        compare(&self.delivered.apps, found.join("apps.json"))?;
        for part in lasting(&self.delivered.storage)? {
            compare(&self.delivered.storage.join(&part), found.join("docker").join(&part))?;
        }
        let listed = run(Command::new("debugfs").args(["-R", "ls -p /"]).arg(&part))?;
        if listed.contains("/.twinhull-preload/") || !listed.contains("/.twinhull-preloaded.json/") {
            return Err(format!("the archive is not done with: {listed}"));
        }
        fs::remove_file(&part).and_then(|()| fs::remove_dir_all(&found)).map_err(|e| format!("data.raw: {e}"))
    }

    fn overlay(&self) -> PathBuf {
        self.lab.file("cut.qcow2")
    }

    /// Before the next cut overwrites it; of use with --keep.
    fn keep_evidence(&self, cut: usize) {
        let console = self.lab.file("console.log");
        if let Ok(said) = fs::read(&console) {
            let said = String::from_utf8_lossy(&said).replace('\r', "");
            let lines: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
            println!("{}", lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n"));
        }
        // Without the file there is nothing to keep.
        let _ = fs::rename(console, self.lab.file(&format!("cut-{cut}.console.log")));
        let _ = fs::remove_dir_all(self.lab.file("found"));
    }
}

/// What of an engine's storage an engine that runs on it never changes: layers, and what the images consist of.
fn lasting(storage: &Path) -> Outcome<Vec<PathBuf>> {
    let layers = storage.join("overlay2");
    let mut parts = vec!["image/overlay2/imagedb/content".into(), "image/overlay2/layerdb/sha256".into()];
    for entry in fs::read_dir(&layers).map_err(|e| format!("{}: {e}", layers.display()))? {
        let name = entry.map_err(|e| format!("{}: {e}", layers.display()))?.file_name();
        if name != "l" {
            parts.push(Path::new("overlay2").join(name).join("diff"));
        }
    }
    // The two lists, and a layer of each image at least.
    if parts.len() < 4 { Err(format!("{}: {} layers", layers.display(), parts.len() - 2)) } else { Ok(parts) }
}

fn healthy(device: &mut Device) -> Outcome<Value> {
    device.status_until("a healthy supervisor", 10 * MINUTE, |s| s["supervisor"]["state"] == "healthy")
}
