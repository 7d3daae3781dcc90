//! `twinhull features` on a host in a directory.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

const ID: &str = "0123456789abcdef0123456789abcdef";

struct Host {
    dir: tempfile::TempDir,
    _listeners: Vec<UnixListener>,
}

impl Host {
    /// A host that has all that every host should have.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        for d in [
            "var/log/journal",
            &format!("run/log/journal/{ID}"),
            "run/dbus",
            "lib/modules/6.1.0",
            "lib/firmware",
            "sys/kernel",
            "proc/sys/kernel",
            "etc",
            "mnt/boot",
        ] {
            fs::create_dir_all(at(d)).unwrap();
        }
        symlink("../run", at("var/run")).unwrap();
        let os = "ID=balena-os\nVERSION=\"6.4.0+rev1\"\nMETA_BALENA_VERSION=6.4.0\nPRETTY_NAME=\"balenaOS 6.4.0\"\n\
                  SLUG=intel-nuc\nBALENA_BOARD_REV=abc123\n";
        for (path, text) in [
            ("etc/machine-id", ID),
            ("proc/sys/kernel/osrelease", "6.1.0\n"),
            ("etc/os-release", os),
            ("mnt/boot/device-type.json", r#"{"slug":"intel-nuc","arch":"amd64"}"#),
            (
                "mnt/boot/config.json",
                r#"{"apiEndpoint":"https://api.example.com","deviceApiKey":"verysecret","listenPort":1234}"#,
            ),
        ] {
            fs::write(at(path), text).unwrap();
        }
        let sockets = ["run/balena-engine.sock", "run/balena.sock", "run/dbus/system_bus_socket"];
        let listeners = sockets.map(|s| UnixListener::bind(at(s)).unwrap());
        Self { dir, _listeners: listeners.into() }
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.dir.path().join(path)
    }

    fn run(&self, args: &[&str]) -> Output {
        twinhull(self.dir.path(), args)
    }

    fn json(&self, args: &[&str], code: i32) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn twinhull(root: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_twinhull")).arg("--root").arg(root).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn list_says_what_each_label_gives_and_why_not() {
    let host = Host::new();
    let rows = host.json(&["features", "list"], 0);
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 12);
    let row =
        |label: &str| rows.iter().find(|r| r["label"] == format!("io.balena.features.{label}")).unwrap();
    for label in ["balena-socket", "dbus", "sysfs", "balena-api", "host-os.board-rev"] {
        assert_eq!(row(label)["available"], true, "{}", row(label));
    }
    assert_eq!(row("gpu")["available"], false);
    assert!(row("gpu")["detail"].as_str().unwrap().contains("nvidia-container-runtime-hook"));
    let shown = text(&host.run(&["features", "list"]).stdout);
    assert!(
        shown.contains("yes  io.balena.features.dbus") && shown.contains("why not: no nvidia"),
        "{shown}"
    );
    assert!(shown.contains("io.balena.update.strategy"), "{shown}");
}

#[test]
fn check_fails_only_for_what_every_host_should_have() {
    let host = Host::new();
    assert_eq!(host.run(&["features", "check"]).status.code(), Some(0));
    fs::remove_file(host.path("run/balena.sock")).unwrap();
    let rows = host.json(&["features", "check"], 1);
    let row = rows.as_array().unwrap().iter().find(|r| r["name"] == "balena-socket").unwrap();
    assert_eq!((&row["ok"], &row["expected"]), (&json!(false), &json!(true)));
    assert!(row["detail"].as_str().unwrap().starts_with("no engine at /run/balena.sock;"), "{row}");
    let shown = text(&host.run(&["features", "check"]).stdout);
    assert!(shown.contains("MISSING   balena-socket") && shown.contains("not here  gpu"), "{shown}");
}

#[test]
fn resolve_gives_the_create_fields_of_labels() {
    let host = Host::new();
    let labels = ["--label", "io.resin.features.dbus=true", "--label", "sysfs", "--label", "procfs=yes"];
    let given = host.json(&[&["features", "resolve"], &labels[..]].concat(), 0);
    assert_eq!(given, json!({ "HostConfig": { "Binds": ["/run/dbus:/host/run/dbus", "/sys:/sys"] } }));
}

#[test]
fn resolve_never_shows_a_key() {
    let host = Host::new();
    let output = host.run(&["features", "resolve", "--label", "balena-api", "--label", "supervisor-api"]);
    let shown = text(&output.stdout);
    assert!(!shown.contains("verysecret"), "{shown}");
    for line in [
        "BALENA_API_KEY=<deviceApiKey>",
        "BALENA_API_URL=https://api.example.com",
        "BALENA_SUPERVISOR_ADDRESS=http://10.114.104.1:1234",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
}

#[test]
fn mistakes_on_the_command_line_are_usage_errors() {
    let host = Host::new();
    for args in [
        &["features"][..],
        &["features", "lst"],
        &["features", "list", "--label", "dbus"],
        &["features", "resolve"],
        &["features", "check", "more"],
        &["features", "resolve", "--label"],
        &["features", "resolve", "--label", "d-bus"],
    ] {
        let output = host.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(text(&output.stderr).starts_with("twinhull: features"), "{output:?}");
    }
}
