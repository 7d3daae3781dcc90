//! The watcher is the only process of ours that stays: what it costs after many events and lost engines.
//!
//! The engine is the unit tests' own, on the wire. With TWINHULL_SHIPPED the program at that path is measured against the
//! budget of 4 MiB; without, this build, whose code alone is larger, is only held to not growing.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    missing_docs
)]

#[path = "../src/engine/fake.rs"]
#[allow(dead_code)]
mod fake;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fake::{CHUNKED, Fake, Reply, answer, chunk, ok};

const EVENTS: usize = 10_000;
/// Times that the engine ends the stream.
const ENDS: usize = 3;
const BUDGET_KIB: u64 = 4 * 1024;
const DEADLINE: Duration = Duration::from_secs(240);

const RUNS: &str =
    r#"{"Id":"0123","State":{"Status":"running","Running":true,"Health":{"Status":"healthy"}}}"#;
const EVENT: &str = r#"{"Type":"container","Action":"health_status: healthy","Actor":{"ID":"0123456789abcdef","Attributes":{"image":"lab/supervisor:1.0.0","name":"balena_supervisor"}},"scope":"local","time":1600000000,"timeNano":1600000000000000000}"#;

/// The watcher under test, ended with the test.
struct Watcher(Child);

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Watcher {
    /// A line of `/proc/PID/status`, in KiB.
    fn status(&self, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0.id())).unwrap().count()
    }
}

#[track_caller]
fn until(what: &str, mut look: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !look() {
        assert!(Instant::now() < end, "not within {} s: {what}", DEADLINE.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn ten_thousand_events_and_lost_engines_cost_nothing_that_stays() {
    // Each stream of events gives us the sender that makes it go on.
    let streams: Arc<Mutex<Vec<Sender<()>>>> = Arc::default();
    let given = streams.clone();
    let fake = Fake::new(move |request| match request.split('?').next().unwrap() {
        "GET /v1.41/events" => {
            let (go, going) = channel();
            given.lock().unwrap().push(go);
            let mut pieces = vec![CHUNKED.to_owned().into_bytes()];
            pieces.resize(EVENTS + 1, chunk(&format!("{EVENT}\n")).into_bytes());
            Reply::OnDemand(pieces, going)
        }
        "GET /v1.41/containers/balena_supervisor/json" => ok(RUNS),
        "GET /v1.41/images/lab/supervisor:1.0.0/json" => ok(r#"{"Id":"sha256:00"}"#),
        "POST /v1.41/containers/create" => Reply::Keep(answer("201 Created", r#"{"Id":"0123"}"#)),
        "GET /_ping" => ok("OK"),
        other if other.starts_with("GET") => Reply::Keep(answer("404 Not Found", r#"{"message":"none"}"#)),
        _ => Reply::Keep(b"HTTP/1.1 204 No Content\r\n\r\n".into()),
    });

    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let socket = fake.socket.display();
    for (path, text) in [
        ("run/engine.sock", String::new()),
        ("etc/twinhull/lab.toml", "[engine]\nsockets = [\"/run/engine.sock\"]\n".into()),
        ("etc/balena-supervisor/supervisor.conf", "SUPERVISOR_IMAGE=lab/supervisor:1.0.0\n".into()),
    ] {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fs::remove_file(root.join("run/engine.sock")).unwrap();
    std::os::unix::fs::symlink(socket.to_string(), root.join("run/engine.sock")).unwrap();

    let shipped = std::env::var_os("TWINHULL_SHIPPED");
    let program = shipped.clone().unwrap_or_else(|| env!("CARGO_BIN_EXE_twinhull").into());
    let log = fs::File::create(root.join("log")).unwrap();
    let mut command = Command::new(program);
    command.arg("--root").arg(root).args(["supervisor", "run"]).stdin(Stdio::null()).stdout(Stdio::null());
    let watcher = Watcher(command.stderr(log).spawn().unwrap());

    let stream = |n: usize| {
        until("a stream of events", || streams.lock().unwrap().len() > n);
        streams.lock().unwrap()[n].clone()
    };
    let looks = |fake: &Fake| {
        fake.seen().iter().filter(|r| *r == "GET /v1.41/containers/balena_supervisor/json").count()
    };
    let go = stream(0);
    go.send(()).unwrap();
    let mut seen = 0;
    let mut handle = |events: usize| {
        let before = seen;
        for _ in 0..events {
            go.send(()).unwrap();
        }
        // Each event is looked into; several that come at once may share a look.
        until("the events", || {
            seen += looks(&fake);
            seen - before >= events
        });
    };
    handle(100);
    let (anonymous, descriptors) = (watcher.status("RssAnon"), watcher.descriptors());
    handle(EVENTS - 100);
    println!(
        "after {EVENTS} events: RSS {} KiB (at most {}), anonymous {} KiB, {} descriptors",
        watcher.status("VmRSS"),
        watcher.status("VmHWM"),
        watcher.status("RssAnon"),
        watcher.descriptors()
    );
    assert!(watcher.status("RssAnon") <= anonymous + 128, "it grew from {anonymous} KiB");
    assert_eq!(watcher.descriptors(), descriptors);
    if shipped.is_some() {
        assert!(watcher.status("VmHWM") <= BUDGET_KIB, "{} KiB", watcher.status("VmHWM"));
    }

    // The engine goes away and comes back: nothing of the lost connections stays.
    drop(go);
    for n in 0..ENDS {
        streams.lock().unwrap()[n] = channel().0;
        stream(n + 1).send(()).unwrap();
    }
    until("the lost connections are closed", || watcher.descriptors() == descriptors);
}
