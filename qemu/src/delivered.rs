//! What a device is delivered with: an engine's storage with images in it, made by the real engine of this machine, and packed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Outcome;
use crate::images::{FIRST_SUPERVISOR, Lab, run};

/// The image beside the supervisor's: part of the device's own base.
pub const APP: &str = "lab/app:1.0.0";
/// So that several segments come of it.
const SEGMENT_MIB: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(200);

/// A signed archive, and what it was made from.
pub struct Delivered {
    /// The data partition's content: the archive, where a device looks for it.
    pub data: PathBuf,
    /// The engine's storage, as the archive has it.
    pub storage: PathBuf,
    /// `apps.json`, which is in the archive too.
    pub apps: PathBuf,
    /// What `twinhull preload pack --json` said.
    pub packed: Value,
    /// The engine that made the storage, as it calls itself.
    pub engine: String,
    /// Names of the images in it.
    pub images: Vec<String>,
}

/// Lets this machine's engine load the supervisor's image and another one, of the libraries of the board's base, and packs
/// its storage.
pub fn make(lab: &Lab) -> Outcome<Delivered> {
    let supervisor = lab.file("supervisor.tar");
    lab.supervisor_archive(FIRST_SUPERVISOR, &supervisor)?;
    let app = lab.file("app.tar");
    let (base, libraries) = match lab.board.is_arm() {
        false => ("target/lab/base", "usr/lib/x86_64-linux-gnu"),
        true => ("target/lab/arm/debian", "usr/lib/aarch64-linux-gnu"),
    };
    run(Command::new("tar").args(["-C", base, "-cf"]).arg(&app).arg(libraries))?;

    let home = lab.directory("engine")?;
    let engine = Engine::start(&home)?;
    engine.ask(Command::new("docker").args(["load", "--quiet", "--input"]).arg(&supervisor))?;
    engine.ask(
        Command::new("docker").args(["import", "--change", "CMD [\"/usr/bin/true\"]"]).arg(&app).arg(APP),
    )?;
    let listed =
        engine.ask(Command::new("docker").args(["images", "--format", "{{.Repository}}:{{.Tag}}"]))?;
    let mut images: Vec<String> = listed.lines().map(str::to_owned).collect();
    images.sort();
    let version = engine.ask(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]))?;
    let driver = engine.ask(Command::new("docker").args(["info", "--format", "{{.Driver}}"]))?;
    engine.stop()?;
    for file in [&supervisor, &app] {
        fs::remove_file(file).map_err(|e| format!("{}: {e}", file.display()))?;
    }

    let apps = lab.file("apps.json");
    let said = json!({ "apps": {}, "config": {}, "pinDevice": false }).to_string();
    fs::write(&apps, said).map_err(|e| format!("apps.json: {e}"))?;
    let storage = home.join("data");
    let archive = lab.directory("delivered/preload")?.join("apps.preload");
    let trees = [format!("docker={}", storage.display()), format!("apps.json={}", apps.display())];
    let packed = lab.preload(&trees, SEGMENT_MIB, &archive)?;
    let engine = format!("dockerd {} with {}", version.trim(), driver.trim());
    Ok(Delivered { data: lab.file("delivered"), storage, apps, packed, engine, images })
}

/// A private engine of this machine, in a mount name space of its own, so that nothing stays mounted.
struct Engine {
    process: Child,
    socket: String,
}

impl Engine {
    fn start(home: &Path) -> Outcome<Self> {
        let at = |name: &str| home.join(name).display().to_string();
        let socket = format!("unix://{}", at("engine.sock"));
        let log = File::create(home.join("engine.log")).map_err(|e| format!("engine.log: {e}"))?;
        let errors = log.try_clone().map_err(|e| format!("engine.log: {e}"))?;
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "unshare", "--mount", "dockerd", "--storage-driver", "overlay2"])
            .args(["--iptables=false", "--bridge=none", "--host", &socket])
            .args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")])
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|e| format!("start dockerd: {e}"))?;
        let mut engine = Self { process, socket };
        let deadline = Instant::now() + PATIENCE;
        while engine.ask(Command::new("docker").arg("version")).is_err() {
            let ended = engine.process.try_wait().map_err(|e| format!("dockerd: {e}"))?;
            if ended.is_some() || Instant::now() > deadline {
                let said = fs::read_to_string(home.join("engine.log")).unwrap_or_default();
                let last = said.lines().last().unwrap_or("nothing");
                return Err(format!("this machine's dockerd does not start; it said: {last}"));
            }
            std::thread::sleep(POLL);
        }
        Ok(engine)
    }

    fn ask(&self, command: &mut Command) -> Outcome<String> {
        run(command.env("DOCKER_HOST", &self.socket))
    }

    /// In order: what it holds must be whole.
    fn stop(mut self) -> Outcome {
        run(Command::new("kill").arg(self.process.id().to_string()))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.process.try_wait() {
                Ok(Some(_)) => return Ok(()),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
                Ok(None) => return Err("dockerd does not end".into()),
                Err(e) => return Err(format!("dockerd: {e}")),
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It has ended, unless something went wrong before; its containerd ends with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
