//! What a container really sees of its host with every label, and without any: a real engine on a scratch host.
//!
//! The scratch host is this machine's root under an overlay, in a mount name space of its own, so that nothing is written
//! to the machine. Needs root, `dockerd`, `dbus-daemon`, overlayfs and the musl target; without them the test says
//! `SKIPPED: needs …`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    missing_docs
)]

#[path = "../qemu/src/supervisor_image.rs"]
mod supervisor_image;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use twinhull::Root;
use twinhull::engine::Engine;
use twinhull::feature::host;

const DEADLINE: Duration = Duration::from_secs(120);
const ID: &str = "0123456789abcdef0123456789abcdef";
const IMAGE: &str = "lab/probe:1";

/// Mounts the scratch host's root and becomes dockerd in it. Arguments: the lab's directory, then dockerd's.
const ENTER: &str = r#"
set -e
lab=$1
shift
mount -t overlay overlay -o "lowerdir=/,upperdir=$lab/host,workdir=$lab/work" "$lab/merged"
for d in proc sys dev; do mount --rbind "/$d" "$lab/merged/$d"; done
mount --bind "$lab/dbus" "$lab/merged/run/dbus"
mkdir -p "$lab/merged$lab/run"
mount --bind "$lab/run" "$lab/merged$lab/run"
for d in data exec; do
    mkdir -p "$lab/merged$lab/$d"
    mount --bind "$lab/$d" "$lab/merged$lab/$d"
done
exec chroot "$lab/merged" "$@"
"#;

const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=LAB/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow send_destination="*"/><allow own="*"/></policy></busconfig>
"#;

struct Lab {
    dir: tempfile::TempDir,
    children: Vec<Child>,
}

impl Lab {
    /// A host with everything that labels give, and an engine with the probe's image; or what this machine lacks.
    fn start() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("root (for a private dockerd)".into());
        }
        for tool in ["dockerd", "containerd", "runc", "setpriv", "unshare", "dbus-daemon"] {
            if find(tool).is_none() {
                return Err(format!("{tool} (Debian packages docker.io, dbus-daemon and util-linux)"));
            }
        }
        let mut lab = Self {
            dir: tempfile::Builder::new().prefix("twinhull-features-").tempdir().unwrap(),
            children: Vec::new(),
        };
        let probe = lab.build_probe()?;
        lab.make_host();
        lab.start_bus();
        lab.start_dockerd()?;
        let archive = lab.path("probe.tar");
        supervisor_image::write_archive(&probe, IMAGE, &archive, None).unwrap();
        lab.engine().load(File::open(&archive).unwrap(), &mut |_| Ok(())).unwrap();
        Ok(lab)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("run/docker.sock")
    }

    fn engine(&self) -> Engine {
        Engine::at(&self.socket()).unwrap()
    }

    fn build_probe(&self) -> Result<PathBuf, String> {
        let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/features/probe.rs");
        let out = self.path("probe");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let mut command = Command::new(rustc);
        command.args(["--edition", "2024", "--target", &target, "-o"]).arg(&out).arg(source);
        let built = command.output().map_err(|e| format!("rustc: {e}"))?;
        let why = String::from_utf8_lossy(&built.stderr);
        if why.contains("can't find crate for `std`") {
            return Err(format!("the Rust target {target} (rustup target add {target})"));
        }
        assert!(built.status.success(), "build the probe: {why}");
        Ok(out)
    }

    /// The overlay's upper layer: what this host has more than the machine.
    fn make_host(&self) {
        for d in ["host", "work", "merged", "dbus", "run", "data", "exec"] {
            fs::create_dir(self.path(d)).unwrap();
        }
        let put = |path: &str, text: &str| {
            let path = self.path("host").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        // Merged with the machine's own: /lib is a link to usr/lib on Debian.
        put("usr/lib/modules/marker", "modules of the host\n");
        put("usr/lib/firmware/marker", "firmware of the host\n");
        put("etc/machine-id", &format!("{ID}\n"));
        put("run/log/journal/marker", "volatile journal of the host\n");
        put("var/log/journal/marker", "journal of the host\n");
        fs::create_dir_all(self.path("host/run/dbus")).unwrap();
        symlink("/run", self.path("host/var/run")).unwrap();
        // The names that balenaOS's containers know, made as on a device.
        host::make(&Root::new(self.path("host")), &self.socket()).unwrap();
    }

    fn start_bus(&mut self) {
        let config = self.path("bus.conf");
        fs::write(&config, BUS.replace("LAB", self.dir.path().to_str().unwrap())).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "dbus-daemon", "--nofork", "--config-file"]).arg(config);
        let log = File::create(self.path("bus.log")).unwrap();
        self.children.push(command.stdout(Stdio::null()).stderr(log).process_group(0).spawn().unwrap());
        self.until("the bus", || self.path("dbus/system_bus_socket").exists().then_some(()));
    }

    fn start_dockerd(&mut self) -> Result<(), String> {
        let at = |name: &str| self.path(name).display().to_string();
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "unshare", "--mount", "sh", "-c", ENTER, "enter"])
            .arg(self.dir.path());
        command.args([
            "dockerd",
            "--iptables=false",
            "--bridge=none",
            "--data-root",
            &at("data"),
            "--exec-root",
        ]);
        command.args([
            &at("exec"),
            "--pidfile",
            &at("run/pid"),
            "--host",
            &format!("unix://{}", at("run/docker.sock")),
        ]);
        let log = File::create(self.path("dockerd.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let mut child = command.spawn().map_err(|e| format!("a dockerd that starts: {e}"))?;
        let socket = self.socket();
        let up = self.until("dockerd", || match child.try_wait().unwrap() {
            Some(status) => Some(Err(status)),
            None => Engine::at(&socket).ok().map(Ok),
        });
        match up {
            Ok(_) => self.children.push(child),
            Err(status) => {
                let log = fs::read_to_string(self.path("dockerd.log")).unwrap();
                let last = log.lines().last().unwrap_or_default();
                return Err(format!("overlayfs, and a dockerd that starts on it; {status}: {last}"));
            }
        }
        Ok(())
    }

    #[track_caller]
    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < end, "not within {} s: {what}", DEADLINE.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A call of the engine by other means than our own client.
    fn call(&self, path: &str, body: &Value) -> (u16, String) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = "HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length:";
        write!(stream, "POST /v1.41{path} {head} {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    }

    /// What `features resolve` says of the service `probe` with these labels.
    fn resolve(&self, features: &[&str], network: &str) -> Value {
        let labels: String =
            features.iter().map(|f| format!("      io.balena.features.{f}: '1'\n")).collect();
        let text = format!(
            "services:\n  probe:\n    image: {IMAGE}\n    network_mode: {network}\n    labels:\n      x: y\n{labels}"
        );
        // The scratch host as twinhull's root: its files are the overlay's upper layer.
        let root = self.path("host");
        fs::create_dir_all(root.join("mnt/boot")).unwrap();
        fs::create_dir_all(root.join("etc/twinhull")).unwrap();
        fs::write(root.join("etc/twinhull/lab.toml"), "[engine]\nsockets = [\"/run/balena-engine.sock\"]\n")
            .unwrap();
        fs::write(root.join("etc/os-release"), "BALENA_BOARD_REV=abc123\n").unwrap();
        let config = r#"{"apiEndpoint":"https://api.example.com","deviceApiKey":"x"}"#;
        fs::write(root.join("mnt/boot/config.json"), config).unwrap();
        // /lib is a link of the layer below.
        let _ = symlink("usr/lib", root.join("lib"));
        let file = self.path("docker-compose.yml");
        fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinhull"));
        command.arg("--root").arg(root).args([
            "features",
            "resolve",
            "--json",
            "--service",
            "probe",
            "--compose",
        ]);
        let output = command.arg(file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs the probe in a container made of exactly these fields; gives what it printed, by key.
    fn probe(&self, name: &str, fields: &Value, network: &str) -> BTreeMap<String, String> {
        let mut body = fields.clone();
        body["Image"] = json!(IMAGE);
        body["HostConfig"]["NetworkMode"] = json!(network);
        let (status, answer) = self.call(&format!("/containers/create?name={name}"), &body);
        assert_eq!(status, 201, "{answer}");
        let (status, answer) = self.call(&format!("/containers/{name}/start"), &Value::Null);
        assert_eq!(status, 204, "{answer}");
        let engine = self.engine();
        self.until("the end of the probe", || {
            (!engine.container(name).unwrap().unwrap().state.running).then_some(())
        });
        let words = engine.last_words(name, 200).unwrap();
        let pair = |l: &str| l.split_once(' ').map(|(k, v)| (k.to_owned(), v.to_owned()));
        words.lines().filter_map(pair).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("dockerd.log")).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(10).collect();
            let _ = writeln!(std::io::stderr(), "dockerd said last, newest first:\n{}", tail.join("\n"));
        }
        for child in self.children.iter_mut().rev() {
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_child(child),
                rustix::process::Signal::TERM,
            );
            let end = Instant::now() + DEADLINE;
            while Instant::now() < end && child.try_wait().is_ok_and(|s| s.is_none()) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).chain(["/usr/sbin".into()]).map(|d| d.join(tool)).find(|p| p.is_file())
}

/// All but the supervisor's API, which wants a network, and the GPU.
const ALL: [&str; 10] = [
    "journal-logs",
    "dbus",
    "kernel-modules",
    "firmware",
    "balena-socket",
    "sysfs",
    "procfs",
    "extra-firmware",
    "balena-api",
    "host-os.board-rev",
];

#[test]
fn containers_see_of_their_host_what_labels_give_and_nothing_else() {
    let lab = match Lab::start() {
        Ok(lab) => lab,
        Err(needs) => {
            // Past the test harness, which would keep the line of a test that passes to itself.
            let _ = writeln!(std::io::stderr(), "SKIPPED: needs {needs}");
            return;
        }
    };
    let [sys, proc] = ["/sys", "/proc"].map(|p| fs::metadata(p).unwrap().dev().to_string());

    // Without labels: nothing.
    let bare = lab.resolve(&[], "none");
    assert_eq!(bare, json!({}));
    let seen = lab.probe("bare", &bare, "none");
    for key in
        ["dbus", "engine", "old-socket", "oldest-socket", "modules", "firmware", "machine-id", "journal"]
    {
        assert!(seen[key].starts_with("none: "), "{key}: {seen:?}");
    }
    assert_eq!(
        (seen["extra-firmware"].as_str(), seen["first-process"].as_str()),
        ("false", "/lab-supervisor ")
    );
    assert!(seen["sys-device"] != sys && seen["proc-device"] != proc, "{seen:?}");
    assert!(
        !seen.keys().any(|k| k.starts_with("BALENA_") || k.starts_with("RESIN_") || k == "DOCKER_HOST"),
        "{seen:?}"
    );

    // With every label: the host's.
    let seen = lab.probe("all", &lab.resolve(&ALL, "none"), "none");
    assert!(seen["dbus"].starts_with("OK "), "{seen:?}");
    for (key, expected) in [
        ("engine", "API 1.41"),
        ("old-socket", "API 1.41"),
        ("oldest-socket", "API 1.41"),
        ("modules", "modules of the host"),
        ("firmware", "firmware of the host"),
        ("machine-id", ID),
        ("machine-id-write", "Read-only file system (os error 30)"),
        ("journal", "volatile journal of the host"),
        ("journal-write", "Read-only file system (os error 30)"),
        ("journal-flash", "journal of the host"),
        ("sys-device", sys.as_str()),
        ("proc-device", proc.as_str()),
        ("extra-firmware", "true"),
        ("DOCKER_HOST", "unix:///host/run/balena-engine.sock"),
        ("BALENA_API_URL", "https://api.example.com"),
        ("RESIN_API_KEY", "<deviceApiKey>"),
        ("BALENA_HOST_OS_BOARD_REV", "abc123"),
    ] {
        assert_eq!(seen[key], expected, "{key}: {seen:?}");
    }
    assert_ne!(seen["first-process"], "/lab-supervisor ");

    // The volume is where the engine says.
    let volume = lab.engine().volume_dir("extra-firmware").unwrap();
    assert_eq!(volume, Some(lab.path("data/volumes/extra-firmware/_data")));
    assert_eq!(lab.engine().volume_dir("other").unwrap(), None);

    // The supervisor's API, and with it the host's network.
    let fields = lab.resolve(&["supervisor-api"], "host");
    let seen = lab.probe("api", &fields, "host");
    assert_eq!(seen["BALENA_SUPERVISOR_ADDRESS"], "http://127.0.0.1:48484", "{seen:?}");
    assert_eq!(seen["RESIN_SUPERVISOR_API_KEY"], "<made by the supervisor>");

    // The engine understands the request for a GPU, and says that it has no driver for it.
    let mut body = lab.resolve(&["gpu"], "none");
    body["Image"] = json!(IMAGE);
    assert_eq!(lab.call("/containers/create?name=gpu", &body).0, 201);
    let (_, answer) = lab.call("/containers/gpu/start", &Value::Null);
    assert!(answer.contains("could not select device driver") && answer.contains("[[gpu]]"), "{answer}");
}
