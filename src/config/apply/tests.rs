//! What daemons are told, file by file, and that nobody is told what is not new.

use std::cell::{Cell, RefCell};
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::config::{ConfigJson, Settings};
use crate::{Result, Root, sys};

struct Host {
    _dir: tempfile::TempDir,
    root: Root,
    commands: RefCell<Vec<String>>,
    asked: Cell<u32>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        for d in ["/mnt/data", "/etc/ssl/certs"] {
            sys::durable::create_dir(&root.path(d)).unwrap();
        }
        sys::durable::replace(&root.path("/etc/ssl/certs/ca-certificates.crt"), b"IMAGE\n", 0o644).unwrap();
        Self { _dir: dir, root, commands: RefCell::default(), asked: Cell::default() }
    }

    /// Applies; every unit but avahi runs.
    fn apply(&self, config: &Value) -> Vec<Applied> {
        self.commands.borrow_mut().clear();
        self.asked.set(0);
        let config = ConfigJson::parse("config.json".into(), config.to_string().as_bytes()).unwrap();
        let run = |command: &[&str]| -> Result<sys::command::Outcome> {
            let mut output = String::new();
            if let ["systemctl", "is-active", units @ ..] = command {
                let state = |u: &&str| if *u == "avahi-daemon.service" { "inactive\n" } else { "active\n" };
                output = units.iter().map(state).collect();
                self.asked.set(self.asked.get() + 1);
            } else {
                self.commands.borrow_mut().push(command.join(" "));
            }
            // As systemctl does if any of the units does not run.
            let success = output.is_empty();
            Ok(sys::command::Outcome { success, ending: "exit 3".into(), output })
        };
        apply(&self.root, &Settings::default(), &config, Some(&run))
    }

    fn read(&self, path: &str) -> Option<String> {
        let bytes = sys::file::read_if_exists(&self.root.path(path), 99999).unwrap()?;
        Some(String::from_utf8(bytes).unwrap())
    }

    /// Units and programs that were told, without systemd's own reload.
    fn told(&self) -> Vec<String> {
        let mut told = self.commands.borrow().clone();
        told.retain(|c| c != "systemctl daemon-reload");
        told.iter().map(|c| c.trim_start_matches("systemctl ").to_owned()).collect()
    }
}

fn changed(applied: &[Applied]) -> Vec<&'static str> {
    applied.iter().filter(|a| matches!(a.outcome, Outcome::Changed { .. })).map(|a| a.topic).collect()
}

// printf -- '-----BEGIN CERTIFICATE-----\nx\n' | base64
const CA: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCngK";

#[test]
fn each_value_reaches_the_files_of_its_daemons_and_only_their_units() {
    for (config, files, told) in [
        (
            json!({"hostname": "door-7"}),
            vec![("/run/twinhull/hostname", Some("door-7\n"))],
            vec!["restart systemd-hostnamed.service"],
        ),
        (
            json!({"uuid": "0123456789abcdef"}),
            vec![("/run/twinhull/hostname", Some("0123456\n"))],
            vec!["restart systemd-hostnamed.service"],
        ),
        (json!({"uuid": "not/a/name"}), vec![("/run/twinhull/hostname", None)], vec![]),
        (
            json!({"persistentLogging": "true"}),
            vec![("/run/systemd/journald.conf.d/50-twinhull.conf", Some("[Journal]\nStorage=persistent\n"))],
            vec!["start var-log-journal.mount", "restart systemd-journald.service", "journalctl --flush"],
        ),
        (
            json!({"persistentLogging": false}),
            vec![
                ("/run/systemd/journald.conf.d/50-twinhull.conf", Some("[Journal]\nStorage=volatile\n")),
                ("/run/systemd/system/var-log-journal.mount", None),
            ],
            vec!["restart systemd-journald.service", "stop var-log-journal.mount"],
        ),
        (
            // As meta-balena's balena-ntp-config writes it.
            json!({"ntpServers": " a.example  10.0.0.1"}),
            vec![
                (
                    "/run/chrony/added_config.sources",
                    Some(
                        "pool a.example iburst minpoll 14 maxpoll 14 maxsources 1\n\
                         pool 10.0.0.1 iburst minpoll 14 maxpoll 14 maxsources 1\n",
                    ),
                ),
                ("/run/systemd/timesyncd.conf.d/50-twinhull.conf", Some("[Time]\nNTP=a.example 10.0.0.1\n")),
            ],
            vec!["chronyc reload sources", "chronyc reload sources", "restart systemd-timesyncd.service"],
        ),
        (
            json!({"ntpServers": "null"}),
            vec![
                ("/run/chrony/added_config.sources", None),
                ("/run/systemd/timesyncd.conf.d/50-twinhull.conf", Some("[Time]\nNTP=\nFallbackNTP=\n")),
            ],
            vec!["chronyc reload sources", "chronyc reload sources", "restart systemd-timesyncd.service"],
        ),
        (
            json!({"dnsServers": "10.0.0.2 2001:db8::1"}),
            vec![
                ("/run/dnsmasq.servers", Some("server=10.0.0.2\nserver=2001:db8::1\n")),
                (
                    "/run/systemd/resolved.conf.d/50-twinhull.conf",
                    Some("[Resolve]\nDNS=10.0.0.2 2001:db8::1\n"),
                ),
            ],
            vec!["reload-or-restart dnsmasq.service", "restart systemd-resolved.service"],
        ),
        (
            json!({"dnsServers": "null"}),
            vec![("/run/dnsmasq.servers", Some(""))],
            vec!["reload-or-restart dnsmasq.service", "restart systemd-resolved.service"],
        ),
        (
            json!({"os": {"sshKeys": ["ssh-ed25519 AAAA a@b", "ssh-rsa BBBB"]}}),
            vec![("/run/twinhull/ssh/authorized_keys", Some("ssh-ed25519 AAAA a@b\nssh-rsa BBBB\n"))],
            vec![],
        ),
        (
            json!({"os": {"udevRules": {"56": "KERNEL==\"x\""}}}),
            vec![(
                "/run/udev/rules.d/56.rules",
                Some("# twinhull: os.udevRules of config.json\nKERNEL==\"x\"\n"),
            )],
            vec!["udevadm control --reload", "udevadm trigger"],
        ),
        (
            json!({"apiEndpoint": "https://api.example/", "os": {"network": {"wifi": {"randomMacAddressScan": true}}}}),
            vec![(
                "/run/NetworkManager/conf.d/50-twinhull.conf",
                Some(
                    "[connectivity]\nuri=https://api.example/connectivity-check\ninterval=3600\nresponse=\n\
                     [device-twinhull]\nwifi.scan-rand-mac-address=yes\n",
                ),
            )],
            vec!["reload-or-restart NetworkManager.service"],
        ),
        (
            json!({"os": {"network": {"connectivity": {"uri": "http://x/y", "interval": "300", "response": "hi"}}}}),
            vec![(
                "/run/NetworkManager/conf.d/50-twinhull.conf",
                Some("[connectivity]\nuri=http://x/y\ninterval=300\nresponse=hi\n"),
            )],
            vec!["reload-or-restart NetworkManager.service"],
        ),
        (
            json!({"balenaRootCA": CA}),
            vec![
                (FLEET_CA, Some("-----BEGIN CERTIFICATE-----\nx\n")),
                ("/run/twinhull/ca/ca-certificates.crt", Some("IMAGE\n-----BEGIN CERTIFICATE-----\nx\n")),
                (
                    "/run/systemd/system/docker.service.d/50-twinhull-ca.conf",
                    Some("[Service]\nEnvironment=SSL_CERT_FILE=/run/twinhull/ca/ca-certificates.crt\n"),
                ),
            ],
            vec!["--no-block restart twinhull-supervisor.service"],
        ),
        (json!({"developmentMode": true}), vec![], vec!["start twinhull-engine-tcp.socket"]),
        (json!({"listenPort": 48485}), vec![], vec!["--no-block restart twinhull-supervisor.service"]),
        (json!({"unknown": 1, "applicationName": "x"}), vec![], vec![]),
    ] {
        let host = Host::new();
        // As after a boot without the value: the defaults are told already.
        host.apply(&json!({}));
        let applied = host.apply(&config);
        assert_eq!(host.told(), told, "{config}");
        assert!(host.asked.get() <= 1, "{config}");
        for Applied { topic, outcome } in &applied {
            let fine = matches!(outcome, Outcome::Same)
                || matches!(outcome, Outcome::Changed { problems, .. } if problems.is_empty());
            assert!(fine, "{topic}: {outcome:?}");
        }
        for (path, content) in files {
            assert_eq!(host.read(path).as_deref(), content, "{config}: {path}");
        }
        assert_eq!(changed(&host.apply(&config)), Vec::<&str>::new(), "{config}: twice is once");
        assert_eq!(host.told(), Vec::<String>::new());
        // And back: everything is as it was.
        host.apply(&json!({}));
        let fresh = Host::new();
        fresh.apply(&json!({}));
        for topic in topics(&ConfigJson::parse("c".into(), b"{}").unwrap(), &Facts::default()) {
            for file in topic.1.unwrap().files {
                let path = file.path.to_str().unwrap();
                assert_eq!(host.read(path), fresh.read(path), "{config}: {path}");
            }
        }
    }
}

#[test]
fn a_wrong_value_leaves_its_subject_as_it_is_and_the_others_go_on() {
    let host = Host::new();
    host.apply(&json!({"hostname": "good", "dnsServers": "10.0.0.1"}));
    let applied = host
        .apply(&json!({"hostname": "not good", "dnsServers": "10.0.0.9", "os": {"udevRules": {"../x": ""}}}));
    let failed: Vec<_> = applied
        .iter()
        .filter_map(|a| match &a.outcome {
            Outcome::Failed(text) => Some(text.as_str()),
            Outcome::Same | Outcome::Changed { .. } => None,
        })
        .collect();
    assert_eq!(
        failed,
        [
            "hostname: expected a host name (letters, digits, dashes), found text",
            "os.udevRules: \"../x\" is no file name for rules"
        ]
    );
    assert_eq!(host.read("/run/twinhull/hostname").as_deref(), Some("good\n"));
    assert_eq!(host.read("/run/dnsmasq.servers").as_deref(), Some("server=10.0.0.9\n"));
}

#[test]
fn every_unit_that_may_be_told_is_asked_after() {
    let config =
        ConfigJson::parse("c".into(), br#"{"uuid":"0123456789","apiKey":"k","apiEndpoint":"https://a"}"#);
    let config = config.unwrap();
    for (name, topic) in topics(&config, &Facts::default()) {
        for action in topic.unwrap().then {
            let (Action::Stop(unit)
            | Action::Restart(unit)
            | Action::Reload(unit)
            | Action::Run { if_active: unit, .. }) = action
            else {
                continue;
            };
            assert!(topics::UNITS.contains(&unit), "{name}: {unit}");
        }
    }
}

#[test]
fn rules_that_are_not_ours_stay() {
    let host = Host::new();
    let other = "/run/udev/rules.d/99-other.rules";
    sys::durable::create_dir(&host.root.path("/run/udev/rules.d")).unwrap();
    sys::durable::replace(&host.root.path(other), b"theirs\n", 0o644).unwrap();
    host.apply(&json!({"os": {"udevRules": {"1": "a", "2": "b"}}}));
    host.apply(&json!({"os": {"udevRules": {"2": "c"}}}));
    assert_eq!(host.read("/run/udev/rules.d/1.rules"), None);
    assert!(host.read("/run/udev/rules.d/2.rules").unwrap().ends_with("\nc\n"));
    assert_eq!(host.read(other).as_deref(), Some("theirs\n"));
}

#[test]
fn registration_is_asked_for_by_a_new_provisioning_key_and_not_by_its_end() {
    let host = Host::new();
    let mut config = json!({"apiEndpoint": "https://a", "apiKey": "k1", "applicationId": 1, "hostname": "h"});
    assert!(changed(&host.apply(&config)).contains(&"registration"));
    // What registering itself changes.
    config["uuid"] = "u".into();
    config["deviceApiKey"] = "d".into();
    assert_eq!(changed(&host.apply(&config)), Vec::<&str>::new());
    config.as_object_mut().unwrap().remove("apiKey");
    assert_eq!(changed(&host.apply(&config)), Vec::<&str>::new());
    config["apiKey"] = "k2".into();
    assert_eq!(changed(&host.apply(&config)), ["registration"]);
    assert_eq!(host.told(), ["--no-block restart twinhull-provision.service"]);
    let noted = host.read("/run/twinhull/config/registration").unwrap();
    assert!(!noted.contains("k2") && noted.trim().len() == 64);
}

/// The real systemd reads them: every unit that may be written.
#[test]
fn systemd_finds_no_fault_with_the_units() {
    let analyze = Path::new("/usr/bin/systemd-analyze");
    if !analyze.exists() {
        let _ = std::io::Write::write_all(&mut std::io::stdout(), b"SKIPPED: needs systemd-analyze\n");
        return;
    }
    let host = Host::new();
    host.apply(&json!({"developmentMode": true, "persistentLogging": true}));
    for unit in ["var-log-journal.mount", "twinhull-engine-tcp.socket", "twinhull-engine-tcp.service"] {
        let path = host.root.path(Path::new("/run/systemd/system").join(unit));
        let args = ["verify", "--man=no", path.to_str().unwrap()];
        let outcome = sys::command::run(analyze, &args, std::time::Duration::from_secs(60)).unwrap();
        let about_ours: Vec<_> = outcome.output.lines().filter(|l| l.contains(unit)).collect();
        assert_eq!(about_ours, Vec::<&str>::new(), "{}", outcome.output);
    }
}
