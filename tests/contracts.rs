//! `twinhull contracts` on a device in a directory.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::fs;
use std::process::{Command, Output};

use serde_json::{Value, json};

struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { dir: tempfile::tempdir().unwrap() };
        for (path, text) in [
            ("etc/os-release", "ID=\"balena-os\"\nVERSION=\"6.3.0+rev5\"\n"),
            ("proc/sys/kernel/osrelease", "4.9.140-l4t-r32.7.6+g1\n"),
            ("proc/sys/kernel/ostype", "Linux\n"),
            ("mnt/boot/device-type.json", r#"{"slug":"jetson-nano","arch":"aarch64"}"#),
            ("etc/balena-supervisor/supervisor.conf", "SUPERVISOR_IMAGE=a/b:1\nSUPERVISOR_VERSION=v17.0.1\n"),
        ] {
            desk.write(path, text);
        }
        desk
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinhull"));
        command.arg("--root").arg(self.dir.path()).args(args).current_dir(self.dir.path()).output().unwrap()
    }

    /// Judges `compose`: exit code and verdict.
    fn check(&self, compose: &str) -> (i32, Value) {
        self.write("docker-compose.yml", compose);
        let output = self.run(&["contracts", "check", "--compose", "docker-compose.yml", "--json"]);
        let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        (output.status.code().unwrap(), json)
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Two services of which one asks for `labels`.
fn compose(labels: &str) -> String {
    format!("services:\n  main:\n    image: a\n    labels:\n{labels}  other:\n    image: b\n")
}

#[test]
fn the_device_tells_what_it_has() {
    let output = Desk::new().run(&["contracts", "facts", "--json"]);
    let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = json!({
        "sw.supervisor": "17.0.1",
        "sw.l4t": "32.7.6",
        "sw.os": { "slug": "balena-os", "version": "6.3.0+rev5" },
        "sw.kernel": { "slug": "linux", "version": "4.9.140" },
        "hw.device-type": "jetson-nano",
        "arch.sw": "aarch64",
    });
    assert_eq!(facts, expected);
}

#[test]
fn a_release_that_is_met_runs() {
    let (code, verdict) = Desk::new().check(&compose(
        "      io.balena.features.requires.sw.supervisor: '>=14'\n      io.balena.features.requires.sw.l4t: 32.7\n      \
         io.balena.features.requires.sw.balena-os: '6.3'\n      io.balena.features.requires.hw.device-type: jetson-nano\n",
    ));
    assert_eq!((code, &verdict["rejected"], &verdict["unmet"]), (0, &json!(false), &json!([])), "{verdict}");
}

#[test]
fn every_requirement_that_is_not_met_is_told_and_the_release_refused() {
    let desk = Desk::new();
    let (code, verdict) = desk.check(&compose(
        "      io.balena.features.requires.sw.l4t: '>=36'\n      io.balena.features.requires.sw.linux: '>5.15.*'\n      \
         io.balena.features.requires.arch.sw: aarch64\n",
    ));
    let expected = json!([{ "service": "main", "optional": false, "requirements": [
        { "requires": "sw.l4t >=36", "found": "32.7.6" },
        { "requires": "sw.kernel linux >5.15.*", "found": "linux 4.9.140" },
    ] }]);
    assert_eq!((code, &verdict["rejected"], &verdict["unmet"]), (3, &json!(true), &expected), "{verdict}");
    let output = desk.run(&["contracts", "check", "--compose", "docker-compose.yml"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = "service main: requires sw.l4t >=36, the device has 32.7.6\n\
                 service main: requires sw.kernel linux >5.15.*, the device has linux 4.9.140\n\
                 the release would be refused as a whole\n";
    assert_eq!(text, lines);
}

#[test]
fn an_optional_service_is_left_out() {
    let (code, verdict) = Desk::new().check(&compose(
        "      io.balena.features.requires.sw.l4t: '>=36'\n      io.balena.features.optional: 'on'\n",
    ));
    assert_eq!(
        (code, &verdict["rejected"], &verdict["left_out"]),
        (0, &json!(false), &json!(["main"])),
        "{verdict}"
    );
}

#[test]
fn contract_files_count_beside_labels() {
    let desk = Desk::new();
    desk.write(
        "app/contract.yml",
        "type: sw.container\nslug: app\nrequires:\n  - type: sw.supervisor\n    version: '>=17.1'\n  - or:\n      \
         - {type: sw.os, slug: ubuntu}\n      - {type: sw.os, slug: balena-os, version: '6'}\n",
    );
    let (code, verdict) = desk.check("services:\n  app:\n    build: ./app\n");
    assert_eq!(code, 3);
    assert_eq!(
        verdict["unmet"][0]["requirements"],
        json!([{ "requires": "sw.supervisor >=17.1", "found": "17.0.1" }])
    );
}

#[test]
fn a_contract_of_an_unknown_type_refuses_the_release() {
    let desk = Desk::new();
    desk.write("app/contract.yml", "slug: app\nrequires: [{type: sw.spec, slug: compose}]\n");
    desk.write("docker-compose.yml", "services:\n  app:\n    build: ./app\n");
    let output = desk.run(&["contracts", "check", "--compose", "docker-compose.yml"]);
    assert_eq!(output.status.code(), Some(3));
    let says =
        "docker-compose.yml: service app: contract.yml: sw.spec is not a valid contract requirement type";
    assert!(stderr(&output).contains(says), "{output:?}");
    desk.write("app/contract.yml", "slug: app\nrequires:\n\t- x\n");
    let output = desk.run(&["contracts", "check", "--compose", "docker-compose.yml"]);
    assert!(output.status.code() == Some(1) && stderr(&output).contains("contract.yml: line"), "{output:?}");
}

#[test]
fn facts_of_another_device_are_read_from_a_file() {
    let desk = Desk::new();
    desk.write("docker-compose.yml", &compose("      io.balena.features.requires.sw.l4t: '36.5'\n"));
    let with = |name: &str, facts: &str| {
        desk.write(name, facts);
        desk.run(&["contracts", "check", "--compose", "docker-compose.yml", "--facts", name])
    };
    assert_eq!(with("a.json", r#"{"sw.l4t": "36.5.0"}"#).status.code(), Some(0));
    assert_eq!(with("a.yml", "sw.l4t: 35.4.1\narch.sw: aarch64\n").status.code(), Some(3));
    let output = with("b.yml", "l4t: 36.5.0\n");
    assert!(
        output.status.code() == Some(1) && stderr(&output).contains("facts b.yml: unknown field `l4t`"),
        "{output:?}"
    );
    let output = desk.run(&["contracts", "check", "--compose", "docker-compose.yml", "--facts", "none"]);
    assert!(output.status.code() == Some(1) && stderr(&output).contains("none"), "{output:?}");
}

#[test]
fn mistakes_on_the_command_line_are_usage_errors() {
    let desk = Desk::new();
    for args in [
        &["contracts"][..],
        &["contracts", "check"],
        &["contracts", "facts", "--compose", "x"],
        &["contracts", "x"],
    ] {
        let output = desk.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
    }
}
