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
            "etc/twinhull",
            "mnt/boot",
        ] {
            fs::create_dir_all(at(d)).unwrap();
        }
        symlink("../run", at("var/run")).unwrap();
        let os = "ID=balena-os\nVERSION=\"6.4.0+rev1\"\nMETA_BALENA_VERSION=6.4.0\nPRETTY_NAME=\"balenaOS 6.4.0\"\n\
                  SLUG=intel-nuc\nBALENA_BOARD_REV=abc123\n";
        for (path, text) in [
            ("etc/machine-id", ID),
            // These sockets never answer: nothing is asked of an engine here.
            ("etc/twinhull/lab.toml", "[engine]\nsockets = [\"/run/none.sock\"]\n"),
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
        &["features", "check", "--service", "a"],
        &["features", "resolve", "--compose", "x", "--label", "dbus"],
        &["features", "resolve", "--label"],
        &["features", "resolve", "--label", "d-bus"],
    ] {
        let output = host.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(text(&output.stderr).starts_with("twinhull: features"), "{output:?}");
    }
}

const COMPOSE: &str = "
services:
  one:
    build: .
    labels:
      io.balena.features.dbus: 1
      io.balena.features.supervisor-api: 'true'
    network_mode: host
  two:
    build: ./two
    labels: [io.balena.features.gpu=1]
    volumes: ['/sys:/sys', '/home:/home']
  three: {image: x/y}
";

#[test]
fn resolve_reads_the_services_of_a_compose_file() {
    let host = Host::new();
    fs::write(host.path("docker-compose.yml"), COMPOSE).unwrap();
    let file = host.path("docker-compose.yml");
    let file = file.to_str().unwrap();
    let all = host.json(&["features", "resolve", "--compose", file], 0);
    assert_eq!(all["one"]["HostConfig"], json!({ "Binds": ["/run/dbus:/host/run/dbus"] }));
    assert!(
        all["one"]["Env"].as_array().unwrap().contains(&json!("BALENA_SUPERVISOR_HOST=127.0.0.1")),
        "{all}"
    );
    assert_eq!(all["two"]["HostConfig"]["Binds"], json!(["/sys:/sys"]));
    assert_eq!(all["three"], json!({}));
    let two = host.json(&["features", "resolve", "--compose", file, "--service", "two"], 0);
    assert_eq!(two, all["two"]);
    // What is not given is told.
    let output = host.run(&["features", "resolve", "--compose", file]);
    assert!(text(&output.stderr).contains("service two: bind mounts are not given: /home"), "{output:?}");
    let output = host.run(&["features", "resolve", "--compose", file, "--service", "four"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("docker-compose.yml: no service \"four\"; there are: one, two, three")
    );
}

#[test]
fn check_of_a_compose_file_looks_at_what_it_asks_for() {
    let host = Host::new();
    fs::write(host.path("docker-compose.yml"), COMPOSE).unwrap();
    let file = host.path("docker-compose.yml");
    let file = file.to_str().unwrap();
    let rows = host.json(&["features", "check", "--compose", file], 1);
    let missing: Vec<_> = rows.as_array().unwrap().iter().filter(|r| r["ok"] == false).collect();
    assert_eq!(missing.len(), 1, "{rows}");
    assert_eq!(
        (&missing[0]["service"], &missing[0]["label"]),
        (&json!("two"), &json!("io.balena.features.gpu"))
    );
    host.json(&["features", "check", "--compose", file, "--service", "one"], 0);
    fs::remove_file(host.path("run/dbus/system_bus_socket")).unwrap();
    host.json(&["features", "check", "--compose", file, "--service", "one"], 1);
}
