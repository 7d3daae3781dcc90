//! `twinhull install` on a device in a directory: what it does, and above all what it refuses.
// Tests may panic and start programs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, clippy::cast_possible_truncation)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

#[path = "support/bundle.rs"]
mod bundle;
mod support;
use bundle::bundle;
use support::{Device, KeyPair, SLOT, outcome, pattern, run, twinhull};

struct Bench {
    dir: tempfile::TempDir,
    key: KeyPair,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::new(dir.path(), "fleet");
        Self { dir, key }
    }

    fn device(&self) -> Device {
        Device::new(&[&self.key])
    }

    fn good(&self, name: &str) -> (Vec<u8>, PathBuf) {
        let image = pattern(3 << 20, 99);
        let path = bundle(self.dir.path(), name, &image, &[&self.key], &[]);
        (image, path)
    }
}

fn assert_armed(device: &Device, image: &[u8], slot_a: &[u8]) {
    let status = device.status();
    assert_eq!(status["phase"], "ready-to-reboot");
    assert_eq!(status["boot"]["primary"], "A");
    assert_eq!(status["boot"]["trial"], serde_json::json!({ "slot": "B", "tries_left": 3 }));
    let [a, b] = device.slots();
    assert!(a == slot_a, "the active slot changed");
    assert!(b[..image.len()] == *image, "the target does not hold the image");
    // The bootloader's own tool reads what we wrote.
    let listed = run("grub-editenv", &[device.grubenv().to_str().unwrap(), "list"]);
    let expected = "resin_root_part=3\nupgrade_available=1\nbootcount=0\nos_bc_lim=3\n";
    assert_eq!(listed, expected);
}

/// Nothing is armed, slot A is as it was, no update is under way, and the message is one line that says `says`.
fn assert_refused(device: &Device, output: &std::process::Output, slot_a: &[u8], code: i32, says: &str) {
    let (found, text) = outcome(output);
    assert_eq!(found, code, "{text}");
    let last = text.lines().last().unwrap_or("");
    assert!(last.starts_with("twinhull: "), "{text}");
    assert!(last.contains(says), "expected {says:?} in {last:?}");
    assert!(!text.contains("panicked"), "{text}");
    let status = device.status();
    assert_eq!(
        (status["update"]["state"].as_str(), status["phase"].as_str()),
        (Some("idle"), Some("steady"))
    );
    assert_eq!(status["boot"]["trial"], serde_json::Value::Null);
    assert!(device.slots()[0] == slot_a, "the active slot changed");
}

#[test]
fn from_a_file_a_pipe_and_a_server() {
    let bench = Bench::new();
    let (image, path) = bench.good("good");
    let file = path.to_str().unwrap();
    for way in ["file", "pipe", "http"] {
        let device = bench.device();
        let slot_a = device.slots()[0].clone();
        let output = match way {
            "file" => device.twinhull(&["install", file]),
            "pipe" => {
                let root = device.path("");
                let mut child = Command::new(env!("CARGO_BIN_EXE_twinhull"))
                    .args(["--root", root.to_str().unwrap(), "install", "-"])
                    .stdin(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                child.stdin.take().unwrap().write_all(&fs::read(&path).unwrap()).unwrap();
                child.wait_with_output().unwrap()
            }
            _ => device.twinhull(&["install", &serve("200 OK", fs::read(&path).unwrap())]),
        };
        assert_eq!(outcome(&output).0, 0, "{way}: {}", outcome(&output).1);
        assert_armed(&device, &image, &slot_a);
    }
}

/// Serves one answer to every request, on a port of its own.
fn serve(status: &'static str, body: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/os.bundle", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    url
}

#[test]
fn what_is_not_meant_for_this_device_is_refused() {
    let bench = Bench::new();
    let dir = bench.dir.path();
    let stranger = KeyPair::new(dir, "stranger");
    let image = pattern(1 << 20, 5);
    for (name, path, says) in [
        ("wrong key", bundle(dir, "key", &image, &[&stranger], &[]), "sign"),
        (
            "another type",
            bundle(dir, "type", &image, &[&bench.key], &["--compatible", "raspberrypi3"]),
            "intel-nuc",
        ),
        ("too large", bundle(dir, "large", &pattern(SLOT + 4096, 5), &[&bench.key], &[]), "slot"),
        (
            "a downgrade",
            bundle(dir, "old", &image, &[&bench.key], &["--version", "0.9.0"]),
            "--allow-downgrade",
        ),
    ] {
        let device = bench.device();
        let [slot_a, slot_b] = device.slots();
        let output = device.twinhull(&["install", path.to_str().unwrap()]);
        assert_refused(&device, &output, &slot_a, 3, says);
        assert!(device.slots()[1] == slot_b, "{name}: the target was written");
    }
}

#[test]
fn what_is_no_bundle_is_an_error_that_names_it() {
    let bench = Bench::new();
    let device = bench.device();
    let slot_a = device.slots()[0].clone();
    let empty = bench.dir.path().join("empty.bundle");
    fs::write(&empty, "").unwrap();
    let text = bench.dir.path().join("notes.txt");
    fs::write(&text, "x".repeat(5000)).unwrap();
    let missing_url = serve("404 Not Found", b"no".to_vec());
    for (what, says) in [
        (empty.to_str().unwrap(), "empty"),
        (bench.dir.path().to_str().unwrap(), "is a directory"),
        ("/nonexistent/os.bundle", "no such file"),
        (text.to_str().unwrap(), "notes.txt"),
        (&missing_url, "404"),
        ("http://127.0.0.1:1/os.bundle", "refused"),
    ] {
        let output = device.twinhull(&["install", what]);
        assert_refused(&device, &output, &slot_a, 1, says);
        assert!(outcome(&output).1.contains(what), "{what} is not named: {}", outcome(&output).1);
    }
}

#[test]
fn a_truncated_bundle_never_arms() {
    let bench = Bench::new();
    let (_, path) = bench.good("good");
    let whole = fs::read(&path).unwrap();
    let device = bench.device();
    let slot_a = device.slots()[0].clone();
    let cut = bench.dir.path().join("cut.bundle");
    for part in
        [1, 100, 511, 512, 1024, 2000, whole.len() / 4, whole.len() / 2, whole.len() - 1500, whole.len() - 1]
    {
        fs::write(&cut, &whole[..part]).unwrap();
        let output = device.twinhull(&["install", cut.to_str().unwrap()]);
        assert_refused(&device, &output, &slot_a, 1, "cut.bundle");
    }
}

#[test]
fn one_flipped_bit_anywhere_never_arms() {
    let bench = Bench::new();
    let (_, path) = bench.good("good");
    let whole = fs::read(&path).unwrap();
    let device = bench.device();
    let slot_a = device.slots()[0].clone();
    let bad = bench.dir.path().join("bad.bundle");
    // Every part of the file gets its share; the codecs' own tests flip every bit.
    let step = whole.len() / 60;
    for at in (0..2048).step_by(97).chain((0..whole.len()).step_by(step)).chain([whole.len() - 1]) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&bad, &bytes).unwrap();
        let output = device.twinhull(&["install", bad.to_str().unwrap()]);
        let (code, text) = outcome(&output);
        assert!(matches!(code, 1 | 3), "bit in byte {at}: exit {code}: {text}");
        assert_refused(&device, &output, &slot_a, code, "bad.bundle");
    }
}

#[test]
fn a_bad_bundle_after_a_good_one_leaves_nothing_armed_that_is_not_whole() {
    let bench = Bench::new();
    let (image, path) = bench.good("good");
    let device = bench.device();
    let slot_a = device.slots()[0].clone();
    assert_eq!(outcome(&device.twinhull(&["install", path.to_str().unwrap()])).0, 0);
    assert_armed(&device, &image, &slot_a);
    // The same bundle again: armed already.
    let again = device.twinhull(&["install", path.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&again.stdout).contains("already installed"), "{again:?}");
    let again = device.twinhull(&["install", "--json", path.to_str().unwrap()]);
    assert_eq!(json(&again), serde_json::json!({ "event": "already-armed", "slot": "B" }));
    // Another one that breaks off half way: what was armed is overwritten, so nothing may stay armed.
    let other =
        bundle(bench.dir.path(), "other", &pattern(2 << 20, 7), &[&bench.key], &["--version", "3.0.0"]);
    let bytes = fs::read(&other).unwrap();
    fs::write(&other, &bytes[..bytes.len() / 2]).unwrap();
    let output = device.twinhull(&["install", other.to_str().unwrap()]);
    assert_refused(&device, &output, &slot_a, 1, "other.bundle");
}

fn json(output: &std::process::Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

#[test]
fn a_trial_is_decided_before_anything_is_installed() {
    let bench = Bench::new();
    let (_, path) = bench.good("good");
    let file = path.to_str().unwrap();
    let on_trial = || {
        let device = bench.device();
        assert_eq!(outcome(&device.twinhull(&["install", file])).0, 0);
        device.write("proc/cmdline", "BOOT_IMAGE=/boot/vmlinuz root=PARTLABEL=resin-rootB ro\n");
        device.write("proc/sys/kernel/random/boot_id", "66666666-2222-3333-4444-555555555555\n");
        run("grub-editenv", &[device.grubenv().to_str().unwrap(), "set", "bootcount=1"]);
        assert_eq!(device.status()["phase"], "on-trial");
        device
    };
    let device = on_trial();
    let before = device.slots();
    // The same answer whether it would be done or only told, and before anything is told of an install.
    for more in [None, Some("--explain")] {
        let args: Vec<_> = ["install", file].into_iter().chain(more).collect();
        let (code, text) = outcome(&device.twinhull(&args));
        assert_eq!((code, text.lines().count()), (3, 1), "{text}");
        assert!(text.contains("slot B is on trial"), "{text}");
    }
    assert!(device.slots() == before, "a slot was written");
    assert_eq!(json(&device.twinhull(&["commit", "--json"])), serde_json::json!({ "committed": "B" }));
    let device = on_trial();
    let left = device.twinhull(&["rollback", "--no-reboot", "--json"]);
    assert_eq!(left.status.code(), Some(5));
    let told = serde_json::json!({ "called_off": "B", "primary": "A", "reboot_needed": true });
    assert_eq!(json(&left), told);
    // Before the reboot there is nothing to leave.
    let device = bench.device();
    assert_eq!(outcome(&device.twinhull(&["install", file])).0, 0);
    let told = serde_json::json!({ "called_off": "B", "primary": "A", "reboot_needed": false });
    assert_eq!(json(&device.twinhull(&["rollback", "--json"])), told);
}

#[test]
fn status_on_a_bare_machine_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let notes = dir.path().join("run/twinhull/boot-notes");
    fs::create_dir_all(&notes).unwrap();
    let output = twinhull(&["--root", dir.path().to_str().unwrap(), "status", "--json"]);
    let status = json(&output);
    for part in ["boot", "phase", "update", "config"] {
        assert_eq!(status.get(part), Some(&serde_json::Value::Null), "{part}: {status}");
    }
    assert!(status["problems"].to_string().contains("boot notes: read "), "{status}");
    let output = twinhull(&["--root", dir.path().to_str().unwrap(), "status"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("Problem"), "{text}");
    assert!(!outcome(&output).1.contains("panicked"));
}
