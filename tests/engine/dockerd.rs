//! A private dockerd, a device's root directory, and the watcher as systemd would run it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use twinhull::engine::Engine;
use twinhull::engine::supervisor::{self, SupervisorHealth};

use crate::supervisor_image;

/// On two busy cores; only what hangs reaches it.
const DEADLINE: Duration = Duration::from_secs(120);

/// How often the engine looks after the supervisor's health.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// One engine at a time: they share the machine's cgroups.
static ONE: Mutex<()> = Mutex::new(());

/// TWINHULL_LAB_ENGINE=podman: the same with Podman's Docker API instead of dockerd.
pub fn is_podman() -> bool {
    std::env::var("TWINHULL_LAB_ENGINE").is_ok_and(|name| name == "podman")
}

/// Polls until there is something; panics, naming `what`, when the deadline passes.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "not within {} s: {what}", DEADLINE.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub struct Lab {
    dir: tempfile::TempDir,
    dockerd: Option<Child>,
    watcher: Option<Child>,
    notified: Arc<Mutex<String>>,
    port: u16,
    /// Name spaces of the engine's own, as `unshare` calls them.
    spaces: &'static [&'static str],
    /// Where the data partition is mounted, if it is one of its own.
    disk: Option<PathBuf>,
    _one: MutexGuard<'static, ()>,
}

impl Lab {
    /// A device with an engine and nothing else, or what this machine lacks.
    pub fn start() -> Result<Self, String> {
        Self::start_in(&["--mount"])
    }

    /// As `start`, with a data partition of so many MiB that holds the engine's storage too.
    #[allow(dead_code)] // Of use to tests/engine.rs only.
    pub fn start_on_disk(mib: u64) -> Result<Self, String> {
        Self::start_with(&["--mount"], Some(mib))
    }

    /// As `start`, with a network name space of its own for the engine's bridges.
    #[allow(dead_code)] // Of use to tests/services.rs only.
    pub fn start_networked() -> Result<Self, String> {
        Self::start_in(&["--mount", "--net"])
    }

    fn start_in(spaces: &'static [&'static str]) -> Result<Self, String> {
        Self::start_with(spaces, None)
    }

    fn start_with(spaces: &'static [&'static str], disk_mib: Option<u64>) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("root (for a private dockerd)".into());
        }
        let engine: &[_] = if is_podman() { &["podman", "conmon"] } else { &["dockerd", "containerd"] };
        for tool in engine.iter().chain(&["runc", "setpriv", "unshare"]) {
            if find(tool).is_none() {
                return Err(format!("{tool} (Debian packages docker.io, podman and util-linux)"));
            }
        }
        program()?;
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::Builder::new().prefix("twinhull-engine-").tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/run")).unwrap();
        let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        let notified = Arc::new(Mutex::new(String::new()));
        let all = notified.clone();
        // As systemd does: reads at once, as the queue is short. Ends with the test's process.
        std::thread::spawn(move || {
            let mut message = [0; 4096];
            while let Ok(n) = notify.recv(&mut message) {
                let text = String::from_utf8_lossy(&message[..n]);
                all.lock().unwrap().push_str(&format!("{text}\n"));
            }
        });
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let mut lab =
            Self { dir, dockerd: None, watcher: None, notified, port, spaces, disk: None, _one: one };
        if let Some(mib) = disk_mib {
            lab.mount_disk(mib)?;
        }
        lab.settings();
        lab.config_json("");
        lab.start_dockerd()?;
        Ok(lab)
    }

    fn mount_disk(&mut self, mib: u64) -> Result<(), String> {
        let (image, mount) = (self.path("disk.img"), self.path("root/mnt/data"));
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        fs::create_dir_all(&mount).unwrap();
        let run = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() { Ok(()) } else { Err(format!("a loop device; {program}: {said}")) }
        };
        let (image, at) = (image.display().to_string(), mount.display().to_string());
        run("mkfs.ext4", &["-q", "-m", "0", &image])?;
        run("mount", &["-o", "loop", &image, &at])?;
        self.disk = Some(mount.clone());
        fs::create_dir(mount.join("docker")).unwrap();
        std::os::unix::fs::symlink(mount.join("docker"), self.path("data")).unwrap();
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.path("root/run/docker.sock")
    }

    /// A path in the lab's directory: `root` is the device, `data` the engine's storage.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.path("root").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn settings(&self) {
        self.put(
            "etc/twinhull/lab.toml",
            "[engine]\nsockets = [\"/run/none.sock\", \"/run/docker.sock\"]\n[supervisor]\nunhealthy_s = 2\nupdate_deadline_s = 100\nupdate_settle_s = 2\n",
        );
    }

    /// Settings on top of the others.
    #[allow(dead_code)] // Of use to some tests only.
    pub fn add_setting(&self, toml: &str) {
        self.put("etc/twinhull/more.toml", toml);
    }

    /// Writes config.json with our port and `more`.
    pub fn config_json(&self, more: &str) {
        self.put("mnt/boot/config.json", &format!(r#"{{"listenPort": {}{more}}}"#, self.port));
    }

    /// Writes the image's own supervisor.conf.
    pub fn conf(&self, text: &str) {
        self.put("etc/balena-supervisor/supervisor.conf", text);
    }

    /// Puts the archive of that version into its place, and its name into supervisor.conf.
    pub fn archive(&self, version: &str) {
        self.write_archive(version, "tar", |plain| plain);
    }

    /// As `archive`, compressed.
    pub fn archive_zstd(&self, version: &str) {
        self.write_archive(version, "tar.zst", |plain| zstd::encode_all(plain.as_slice(), 19).unwrap());
    }

    /// An archive that lies elsewhere, and whose image nothing names yet.
    pub fn loose_archive(&self, version: &str) -> PathBuf {
        let file = self.path(&format!("{version}.tar"));
        write_image(&program().unwrap(), &format!("lab/supervisor:{version}"), &file);
        file
    }

    /// As `loose_archive`, of a program that no kernel can run.
    pub fn broken_archive(&self, version: &str) -> PathBuf {
        let (program, file) = (self.path("broken"), self.path(&format!("{version}.tar")));
        let machine = fs::read(self::program().unwrap()).unwrap()[..20].to_vec();
        fs::write(&program, machine).unwrap();
        write_image(&program, &format!("lab/supervisor:{version}"), &file);
        file
    }

    /// The device's own supervisor.conf; empty if there is none.
    pub fn own_conf(&self) -> String {
        let path = "root/mnt/state/root-overlay/etc/balena-supervisor/supervisor.conf";
        fs::read_to_string(self.path(path)).unwrap_or_default()
    }

    /// What a reboot does to `/run`, but for the engine's socket.
    pub fn forget_run(&self) {
        fs::remove_dir_all(self.path("root/run/twinhull")).unwrap();
    }

    fn write_archive(&self, version: &str, suffix: &str, pack: impl FnOnce(Vec<u8>) -> Vec<u8>) {
        let name = format!("lab/supervisor:{version}");
        let dir = self.path("root/mnt/data/supervisor");
        fs::create_dir_all(&dir).unwrap();
        // Renamed into place, as the watcher may look at any time.
        let new = self.path("root/mnt/data/archive.new");
        write_image(&program().unwrap(), &name, &new);
        fs::write(&new, pack(fs::read(&new).unwrap())).unwrap();
        fs::rename(&new, dir.join(format!("supervisor-{version}.{suffix}"))).unwrap();
        self.conf(&format!("SUPERVISOR_IMAGE={name}\nSUPERVISOR_VERSION=v{version}\n"));
    }

    /// The supervisor's own data.
    pub fn data(&self) -> PathBuf {
        self.path("root/mnt/data/resin-data/balena-supervisor")
    }

    // The engine.

    pub fn start_dockerd(&mut self) -> Result<(), String> {
        // It ends with this thread, even if the test is killed; in a mount name space of its own, so that nothing
        // stays mounted.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "unshare"]).args(self.spaces);
        let (at, socket) = (|name: &str| self.path(name).display().to_string(), self.socket());
        if is_podman() {
            command.args(["podman", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
            command.args(["--events-backend", "file", "--root", &at("data"), "--runroot", &at("exec")]);
            command.args(["--tmpdir", &at("tmp"), "--log-level", "warn"]);
        } else {
            command.args(["dockerd", "--iptables=false", "--bridge=none"]);
            command.args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")]);
            command.args(["--host", &format!("unix://{}", socket.display())]);
        }
        if lacks_sys_resource() {
            let runtime = self.path("runc");
            fs::write(&runtime, RUNC_WITHOUT_SYS_RESOURCE).unwrap();
            fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
            let runtime = runtime.display().to_string();
            if is_podman() {
                command.args(["--runtime", &runtime]);
            } else {
                command.args(["--add-runtime", &format!("less={runtime}"), "--default-runtime", "less"]);
            }
        }
        if is_podman() {
            command.args(["system", "service", "--time", "0", &format!("unix://{}", socket.display())]);
        }
        let log = File::options().create(true).append(true).open(self.path("dockerd.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let mut child = command.spawn().map_err(|e| format!("a dockerd that starts: {e}"))?;
        let up = until("the engine", || match child.try_wait().unwrap() {
            Some(status) => Some(Err(status)),
            None => Engine::at(&socket).ok().map(Ok),
        });
        match up {
            Ok(_) => {
                self.dockerd = Some(child);
                Ok(())
            }
            Err(status) => {
                let log = fs::read_to_string(self.path("dockerd.log")).unwrap();
                Err(format!(
                    "a dockerd that starts here; {status}: {}",
                    log.lines().last().unwrap_or_default()
                ))
            }
        }
    }

    pub fn stop_dockerd(&mut self) {
        end(self.dockerd.as_mut());
        self.dockerd = None;
    }

    pub fn freeze_dockerd(&self) {
        signal(self.dockerd.as_ref().unwrap(), rustix::process::Signal::STOP);
    }

    pub fn thaw_dockerd(&self) {
        signal(self.dockerd.as_ref().unwrap(), rustix::process::Signal::CONT);
    }

    /// The engine, which may be slow to say its version: Podman asks around first.
    pub fn engine(&self) -> Engine {
        until("the engine's version", || Engine::at(&self.socket()).ok())
    }

    /// What a stranger does to the container, without our own client.
    pub fn docker(&self, args: &[&str]) {
        let [verb, name] = args else { panic!("{args:?}") };
        let mut stream = std::os::unix::net::UnixStream::connect(self.socket()).unwrap();
        let head = format!("POST /containers/{name}/{verb} HTTP/1.0\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 204 "), "{answer}");
    }

    // The container.

    pub fn container_id(&self) -> String {
        self.engine().container(supervisor::NAME).unwrap().unwrap().id
    }

    /// The image's name that the container has; empty if there is no container.
    pub fn image(&self) -> String {
        let image = self.engine().container(supervisor::NAME).unwrap().map(|c| c.config.image);
        let image = image.unwrap_or_default();
        // Podman's name for an image of no registry.
        image.strip_prefix("localhost/").unwrap_or(&image).to_owned()
    }

    /// The containers beside the supervisor's.
    pub fn names(&self) -> Vec<String> {
        let all = self.engine().containers().unwrap().into_iter().flat_map(|c| c.names);
        all.filter(|name| name != "/balena_supervisor").collect()
    }

    pub fn started_at(&self) -> String {
        self.engine().container(supervisor::NAME).unwrap().unwrap().state.started_at
    }

    pub fn runs(&self) -> bool {
        self.engine().container(supervisor::NAME).unwrap().is_some_and(|c| c.state.running)
    }

    /// Waits until the container runs and its health check passes.
    #[track_caller]
    pub fn until_well(&self) -> SupervisorHealth {
        until(&format!("a healthy supervisor; the watcher said:\n{}", self.log()), || {
            let health = supervisor::health(&self.engine()).unwrap();
            health.is_good().then_some(health)
        })
    }

    /// Asks the supervisor in the container.
    pub fn http(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    // The watcher.

    /// Starts it, with an empty log.
    pub fn watch(&mut self) {
        let log = File::create(self.path("watcher.log")).unwrap();
        let mut command = self.command(&["-v", "supervisor", "run"]);
        command.env("NOTIFY_SOCKET", self.path("notify")).env("WATCHDOG_USEC", "2000000");
        self.watcher = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("watcher.log")).unwrap_or_default()
    }

    pub fn watcher_lives(&mut self) -> bool {
        self.watcher.as_mut().unwrap().try_wait().unwrap().is_none()
    }

    /// Asks it to end; gives its exit code.
    pub fn end_watcher(&mut self) -> Option<i32> {
        let code = end(self.watcher.as_mut());
        self.watcher = None;
        code
    }

    pub fn kill_watcher(&mut self) {
        let mut child = self.watcher.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// All that it told systemd so far.
    pub fn notified(&self) -> String {
        self.notified.lock().unwrap().clone()
    }

    pub fn forget_notified(&self) {
        self.notified.lock().unwrap().clear();
    }

    /// Starts another command of ours, which the caller ends.
    pub fn begin(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinhull"));
        command.arg("--root").arg(self.path("root")).args(args).stdin(Stdio::null());
        command
    }

    /// Runs another command of ours; gives exit code and all output.
    pub fn twinhull(&self, args: &[&str]) -> (i32, String) {
        let output = self.command(args).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "the watcher said:\n{}", self.log());
        }
        if let Some(mut watcher) = self.watcher.take() {
            let _ = watcher.kill();
            let _ = watcher.wait();
        }
        if let Some(dockerd) = &self.dockerd {
            signal(dockerd, rustix::process::Signal::CONT);
            if let Ok(engine) = Engine::at(&self.socket()) {
                for container in engine.containers().unwrap_or_default() {
                    let _ = engine.remove(&container.id);
                }
            }
        }
        end(self.dockerd.as_mut());
        if let Some(mount) = &self.disk {
            let _ = Command::new("umount").arg("--lazy").arg(mount).status();
        }
    }
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    let _ = rustix::process::kill_process(pid, signal);
}

/// Asks a child of ours to end, kills it after a while; gives its exit code.
fn end(child: Option<&mut Child>) -> Option<i32> {
    let child = child?;
    signal(child, rustix::process::Signal::TERM);
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        if let Ok(Some(status)) = child.try_wait() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).chain(["/usr/sbin".into()]).map(|d| d.join(tool)).find(|p| p.is_file())
}

/// Writes an image's archive. Podman runs health checks by timers of systemd, which no test has.
pub fn write_image(program: &Path, name: &str, out: &Path) {
    let look_every = (!is_podman()).then_some(LOOK_EVERY);
    supervisor_image::write_archive(program, name, out, look_every).unwrap();
}

/// How a supervisor is that is well.
pub fn well() -> SupervisorHealth {
    if is_podman() { SupervisorHealth::Running } else { SupervisorHealth::Healthy }
}

/// The lab's supervisor, static, built once.
pub fn program() -> Result<PathBuf, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> Result<PathBuf, String> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lab");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--package", "twinhull-lab", "--bin", "lab-supervisor"])
        .args(["--target", &target, "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(&dir)
        .output()
        .map_err(|e| format!("cargo: {e}"))?;
    if !built.status.success() {
        let why = String::from_utf8_lossy(&built.stderr);
        let missing =
            why.contains("target may not be installed") || why.contains("can't find crate for `std`");
        assert!(missing, "build the lab's supervisor: {why}");
        return Err(format!("the Rust target {target} (rustup target add {target})"));
    }
    Ok(dir.join(target).join("debug/lab-supervisor"))
}

/// Whether this machine is itself a container that may not give all capabilities, as `--privileged` wants.
fn lacks_sys_resource() -> bool {
    const SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = status.lines().find_map(|l| l.strip_prefix("CapBnd:")).unwrap();
    u64::from_str_radix(bounding.trim(), 16).unwrap() & (1 << SYS_RESOURCE) == 0
}

/// runc, but for the one capability that cannot be given here, and the limits that Podman raises with it.
const RUNC_WITHOUT_SYS_RESOURCE: &str = r#"#!/bin/sh
less='s/"CAP_SYS_RESOURCE",\{0,1\}//g; s/"rlimits":\[[^]]*\]/"rlimits":[]/'
previous=
for argument in "$@"; do
    case "$previous" in
    --bundle) sed -i "$less" "$argument/config.json" ;;
    --process) sed -i "$less" "$argument" ;;
    esac
    previous=$argument
done
exec runc "$@"
"#;
