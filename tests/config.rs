//! The built `twinhull config` on a host in a temporary directory.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

struct Host(tempfile::TempDir);

impl Host {
    fn new(config: &str) -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        for dir in ["mnt/boot", "mnt/state", "mnt/data"] {
            fs::create_dir_all(host.path(dir)).unwrap();
        }
        fs::write(host.path("mnt/boot/config.json"), config).unwrap();
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinhull"));
        command.arg("--root").arg(self.0.path()).args(args).stdin(Stdio::null());
        command
    }

    fn config(&self, args: &[&str]) -> Output {
        self.command(&[&["config"], args].concat()).output().unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_slice(&self.config(&[args, &["--json"]].concat()).stdout).unwrap()
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path("mnt/boot/config.json")).unwrap()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8([output.stdout.clone(), output.stderr.clone()].concat()).unwrap()
}

#[test]
fn what_is_set_is_in_the_file_and_nothing_else_changed() {
    let host = Host::new(r#"{"mine":1.10,"os":{"x":[ 1e3 ]},"deviceType":"intel-nuc"}"#);
    for args in [
        &["set", "hostname", "door-7"] as &[&str],
        &["set", "developmentMode", "true"],
        &["set", "os.network.connectivity.interval", "300"],
        &["set", "other", "{\"a\":1}", "--unknown"],
        &["unset", "developmentMode"],
    ] {
        let output = host.config(args);
        assert!(output.status.success() && said(&output).is_empty(), "{args:?}: {}", said(&output));
    }
    assert_eq!(
        host.text(),
        r#"{"mine":1.10,"os":{"x":[ 1e3 ],"network":{"connectivity":{"interval":300}}},"deviceType":"intel-nuc","hostname":"door-7","other":{"a":1}}"#
    );
    assert_eq!(said(&host.config(&["get", "hostname"])), "door-7\n");
    assert_eq!(
        host.json(&["get", "os.network.connectivity.interval"]),
        json!({"key": "os.network.connectivity.interval", "value": 300, "type": "a whole number", "default": "3600"})
    );
    let all = host.json(&["get"]);
    assert_eq!((&all["set"]["hostname"], &all["unknown"]), (&json!("door-7"), &json!(["mine", "other"])));
}

#[test]
fn secrets_are_neither_typed_nor_shown_unasked() {
    let host = Host::new("{}");
    let output = host.config(&["set", "apiKey", "s3cret"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        said(&output).contains("twinhull config set apiKey - < FILE") && !said(&output).contains("s3cret")
    );
    let mut child = host.command(&["config", "set", "apiKey", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"s3cret\n").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(host.text(), r#"{"apiKey":"s3cret"}"#);
    for args in [&["get"] as &[&str], &["get", "--json"], &["check"]] {
        assert!(!said(&host.config(args)).contains("s3cret"), "{args:?}");
    }
    assert_eq!(said(&host.config(&["get", "apiKey"])), "s3cret\n");
}

#[test]
fn mistakes_are_told_and_nothing_is_written() {
    let text = r#"{"hostname":"a b","listenPort":"x"}"#;
    let host = Host::new(text);
    for (args, code, words) in [
        (
            &["set", "hostname", "a_b"] as &[&str],
            2,
            "hostname: expected a host name (letters, digits, dashes)",
        ),
        (&["set", "os.sshKeys", "ssh-rsa A"], 2, "os.sshKeys: expected a list of texts"),
        (&["set", "nobody", "1"], 2, "nobody here knows the key nobody"),
        (&["set", "hostname.x", "1", "--unknown"], 1, "hostname.x: hostname: expected an object"),
        (&["get", "dnsServers"], 1, "dnsServers is not set; its default: 8.8.8.8"),
        (&["check"], 1, "config.json: hostname: expected a host name"),
        (&["check"], 1, "config.json: listenPort: expected a whole number, found text"),
        (&["frob"], 2, "see `twinhull config --help`"),
    ] {
        let output = host.config(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", said(&output));
        assert!(said(&output).contains(words), "{args:?}: {}", said(&output));
        assert_eq!(host.text(), text);
    }
}

#[test]
fn a_damaged_file_is_kept_told_and_replaced_by_the_last_good_copy() {
    let good = r#"{"deviceType":"intel-nuc","uuid":"0123456789abcdef","deviceApiKey":"k","mine":[1.0]}"#;
    let host = Host::new(good);
    assert!(host.config(&["apply"]).status.success());
    let damaged = r#"{"deviceType":"intel-nuc","hostname":"x" "uuid":"0"}"#;
    fs::write(host.path("mnt/boot/config.json"), damaged).unwrap();

    let status = || said(&host.command(&["status"]).output().unwrap());
    assert!(
        status().contains("the last good copy is used, `twinhull config apply` puts it in place"),
        "{}",
        status()
    );
    assert!(said(&host.config(&["get", "mine"])).contains("[1.0]"));
    assert_eq!((host.config(&["check"]).status.code(), host.text().as_str()), (Some(1), damaged));

    let output = host.config(&["apply"]);
    assert!(output.status.success() && said(&output).starts_with("repaired: "), "{}", said(&output));
    assert_eq!(host.text(), good);
    let kept = host.json(&["check"])["damaged_texts"][0].as_str().unwrap().to_owned();
    assert_eq!(fs::read_to_string(&kept).unwrap(), damaged);
    assert!(
        status().contains(&format!("config.json damaged once, what it held is in {kept}")),
        "{}",
        status()
    );
    fs::remove_file(kept).unwrap();
    assert!(!status().contains("damaged"), "{}", status());
}

#[test]
fn many_writers_lose_nothing() {
    let host = Host::new("{}");
    std::thread::scope(|s| {
        for writer in 0..4 {
            let host = &host;
            s.spawn(move || {
                for n in 0..8 {
                    let key = format!("{writer}-{n}");
                    assert!(host.config(&["set", &key, "1", "--unknown"]).status.success());
                }
            });
        }
    });
    let all: Value = serde_json::from_str(&host.text()).unwrap();
    assert_eq!(all.as_object().unwrap().len(), 32);
}

#[test]
fn apply_says_what_changed_and_then_nothing() {
    let host = Host::new(r#"{"hostname":"door-7","dnsServers":"10.0.0.1"}"#);
    let first = host.json(&["apply"]);
    assert_eq!(first["topics"]["hostname"]["result"], "changed");
    assert_eq!(first["topics"]["persistentLogging"]["result"], "same");
    assert_eq!(fs::read_to_string(host.path("run/twinhull/hostname")).unwrap(), "door-7\n");
    assert_eq!(fs::read_to_string(host.path("run/dnsmasq.servers")).unwrap(), "server=10.0.0.1\n");
    assert_eq!(said(&host.config(&["apply"])), "nothing changed\n");
}
