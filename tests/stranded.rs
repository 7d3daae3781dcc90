//! `twinhull install` on a device whose services require something of the OS.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, clippy::cast_possible_truncation)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Output;

use serde_json::{Value, json};

#[path = "support/bundle.rs"]
mod bundle;
mod support;
use support::{Device, KeyPair, outcome, pattern};

struct Bench {
    dir: tempfile::TempDir,
    key: KeyPair,
    device: Device,
}

impl Bench {
    /// A Jetson of a kind: slot A has L4T 32.7.6, and `containers` run on its engine.
    fn new(containers: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::new(dir.path(), "fleet");
        let device = Device::new(&[&key]);
        device.write("etc/os-release", "ID=balena-os\nVERSION=\"1.0.0\"\nVERSION_ID=\"1.0.0\"\n");
        device.write("proc/sys/kernel/osrelease", "4.9.140-l4t-r32.7.6+g1\n");
        device.write("proc/sys/kernel/ostype", "Linux\n");
        device.write("etc/twinhull/lab.toml", "[engine]\nenabled = true\nsockets = [\"/run/docker.sock\"]\n");
        fs::create_dir_all(device.path("run")).unwrap();
        serve(device.path("run/docker.sock"), containers.to_string());
        Self { dir, key, device }
    }

    /// Installs version 2.0.0, which provides what `provides` says.
    fn install(&self, provides: &[&str], options: &[&str]) -> Output {
        let provides: Vec<_> = provides.iter().flat_map(|p| ["--provides", p]).collect();
        let out = bundle::bundle(self.dir.path(), "os", &pattern(1 << 20, 3), &[&self.key], &provides);
        let out = out.to_str().unwrap();
        self.device.twinhull(&[&["install", out], options].concat())
    }

    fn is_armed(&self) -> bool {
        self.device.status()["phase"] == "ready-to-reboot"
    }
}

/// An engine that knows its version and its containers.
fn serve(socket: PathBuf, containers: String) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = answer(stream.unwrap(), &containers);
        }
    });
}

fn answer(stream: UnixStream, containers: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line)?;
        }
        let body = match first.split(' ').nth(1) {
            Some("/version") => r#"{"Version":"20.10.24","ApiVersion":"1.41","MinAPIVersion":"1.12"}"#,
            Some("/v1.41/containers/json?all=true") => containers,
            _ => "null",
        };
        write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    }
}

/// A container of the service `main` with these labels behind `io.balena.features.`.
fn main_service(labels: &[(&str, &str)]) -> Value {
    let mut all = json!({ "io.balena.service-name": "main", "io.balena.supervised": "true" });
    for (name, value) in labels {
        all[format!("io.balena.features.{name}")] = json!(value);
    }
    json!([
        { "Id": "1", "Names": ["/main_1_2_c"], "State": "running", "Labels": all },
        { "Id": "2", "Names": ["/other_1_2_c"], "State": "running", "Labels": {} },
    ])
}

#[test]
fn an_update_that_would_strand_a_service_is_refused() {
    let bench = Bench::new(&main_service(&[
        ("requires.sw.l4t", "32.7"),
        ("requires.sw.balena-os", "<2"),
        ("requires.arch.sw", "amd64"),
    ]));
    let slots = bench.device.slots();
    let output = bench.install(&["l4t=36.5"], &[]);
    let (code, text) = outcome(&output);
    assert!(bench.device.slots() == slots, "a slot was written");
    let last = text.lines().last().unwrap();
    assert_eq!(code, 3, "{text}");
    for part in [
        "service main runs here and requires sw.l4t 32.7, the new OS has 36.5.0",
        "service main runs here and requires sw.os balena-os <2, the new OS has balena-os 2.0.0",
        "--force",
    ] {
        assert!(last.contains(part), "{part}: {last}");
    }
    assert!(!last.contains("arch.sw"), "{last}");
    assert!(!bench.is_armed());
    // And with it, telling so.
    let (code, text) = outcome(&bench.install(&["l4t=36.5"], &["--force"]));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("service main runs here and requires sw.l4t 32.7"), "{text}");
    assert!(bench.is_armed());
}

#[test]
fn an_update_that_keeps_what_is_required_is_accepted() {
    let bench =
        Bench::new(&main_service(&[("requires.sw.l4t", "32.7 || >=36"), ("requires.sw.linux", ">4")]));
    let (code, text) = outcome(&bench.install(&["l4t=36.5", "kernel=5.15.148-tegra"], &[]));
    assert_eq!((code, text.contains("service main")), (0, false), "{text}");
    assert!(bench.is_armed());
}

#[test]
fn what_the_bundle_does_not_say_counts_as_not_there() {
    let bench = Bench::new(&main_service(&[("requires.sw.l4t", "32.7")]));
    let (code, text) = outcome(&bench.install(&[], &[]));
    assert!(code == 3 && text.contains("requires sw.l4t 32.7, the new OS names none"), "{text}");
}

#[test]
fn an_optional_service_is_told_and_does_not_hold_the_update_up() {
    let bench = Bench::new(&main_service(&[("requires.sw.l4t", "32.7"), ("optional", "1")]));
    let (code, text) = outcome(&bench.install(&["l4t=36.5"], &[]));
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("service main (optional: it will be left out) runs here and requires sw.l4t 32.7"),
        "{text}"
    );
    assert!(bench.is_armed());
}

#[test]
fn what_is_unmet_today_is_not_lost_by_the_update() {
    let bench = Bench::new(&main_service(&[("requires.sw.l4t", "28")]));
    assert_eq!(outcome(&bench.install(&["l4t=36.5"], &[])).0, 0);
    assert!(bench.is_armed());
}

#[test]
fn an_engine_that_does_not_answer_does_not_stand_in_the_way() {
    let bench = Bench::new(&json!([]));
    fs::remove_file(bench.device.path("run/docker.sock")).unwrap();
    let (code, text) = outcome(&bench.install(&[], &[]));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("whether the new OS has what the services here require is not known"), "{text}");
}
