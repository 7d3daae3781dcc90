//! A new system on trial, in a directory: however it fails, it is left; and only one procedure runs at a time.
// Tests may panic and start programs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, clippy::cast_possible_truncation)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

#[path = "support/bundle.rs"]
mod bundle;
mod support;
#[path = "support/systemctl.rs"]
mod systemctl;
use support::{Device, KeyPair, outcome, pattern, run};
use systemctl::Systemctl;

/// A device with a signed bundle for it, and a `systemctl` that only writes down what it was asked.
struct Bench {
    _dir: tempfile::TempDir,
    systemctl: Systemctl,
    device: Device,
    bundle: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::new(dir.path(), "fleet");
        let device = Device::new(&[&key]);
        let systemctl = Systemctl::new(dir.path());
        let bundle = bundle::bundle(dir.path(), "2", &pattern(1 << 20, 7), &[&key], &[]);
        // The deadline is over as soon as the machine is up, and the one check never passes.
        device.write("etc/twinhull/test.toml", "[health]\ndeadline_s = 1\nsettle_s = 0\n");
        device.write("usr/lib/twinhull/health.d/10-bad", "#!/bin/sh\necho no good\nexit 1\n");
        let check = device.path("usr/lib/twinhull/health.d/10-bad");
        fs::set_permissions(check, fs::Permissions::from_mode(0o755)).unwrap();
        Self { _dir: dir, systemctl, device, bundle }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinhull"));
        command
            .args(["--root", self.device.path("").to_str().unwrap()])
            .args(args)
            .env("PATH", self.systemctl.path_variable());
        command
    }

    fn twinhull(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Installs, and is then in the first boot of the new system.
    fn boot_trial(&self) {
        let installed = self.twinhull(&["install", self.bundle.to_str().unwrap()]);
        assert!(installed.status.success(), "{}", outcome(&installed).1);
        self.device.write("proc/cmdline", "BOOT_IMAGE=/boot/vmlinuz root=PARTLABEL=resin-rootB ro\n");
        self.device.write("proc/sys/kernel/random/boot_id", "22222222-2222-3333-4444-555555555555\n");
        self.set_env("bootcount=1");
        assert_eq!(self.device.status()["phase"], "on-trial");
    }

    fn set_env(&self, what: &str) {
        run("grub-editenv", &[self.device.grubenv().to_str().unwrap(), "set", what]);
    }

    /// What systemctl was asked since the last time.
    fn asked(&self) -> String {
        self.systemctl.asked()
    }
}

#[test]
fn an_unhealthy_trial_goes_back_with_its_reason() {
    let bench = Bench::new();
    let [old, _] = bench.device.slots();
    bench.boot_trial();
    assert_eq!(outcome(&bench.twinhull(&["resume"])).0, 0);
    assert_eq!(bench.asked(), "reboot\n");
    assert!(bench.device.slots()[0] == old);
    let status = bench.device.status();
    assert_eq!(status["phase"], "condemned");
    assert_eq!(status["boot"]["trial"], serde_json::Value::Null);
    assert_eq!(status["boot"]["primary"], "A");
}

#[test]
fn what_is_armed_already_is_rebooted_into_when_that_is_asked_for() {
    let bench = Bench::new();
    let bundle = bench.bundle.to_str().unwrap();
    assert_eq!(outcome(&bench.twinhull(&["install", bundle])).0, 0);
    let explained = bench.twinhull(&["install", "--explain", "--reboot", bundle]);
    assert!(
        String::from_utf8_lossy(&explained.stdout).contains("already installed and armed"),
        "{explained:?}"
    );
    assert_eq!(bench.asked(), "");
    assert_eq!(outcome(&bench.twinhull(&["install", "--reboot", bundle])).0, 0);
    assert_eq!(bench.asked(), "reboot\n");
}

#[test]
fn a_trial_whose_pid_1_does_not_answer_is_left() {
    let bench = Bench::new();
    fs::remove_file(bench.device.path("usr/lib/twinhull/health.d/10-bad")).unwrap();
    // Then no check is left that would not pass, but for the one of systemd.
    fs::create_dir_all(bench.device.path("run/systemd/system")).unwrap();
    bench.boot_trial();
    let working = fs::read_to_string(bench.systemctl.program()).unwrap();
    let frozen = working.replace("#!/bin/sh", "#!/bin/sh\n[ \"$1\" != show ] || { echo timed out; exit 1; }");
    bench.systemctl.write(&frozen);
    let seen = bench.twinhull(&["health"]);
    assert_eq!(outcome(&seen).0, 1);
    assert!(String::from_utf8_lossy(&seen.stdout).contains("FAIL  systemd  exit 1: timed out"), "{seen:?}");
    assert_eq!(outcome(&bench.twinhull(&["resume"])).0, 0);
    assert_eq!(bench.asked(), "reboot\n");
    assert_eq!(bench.device.status()["phase"], "condemned");
    bench.systemctl.write(&working);
    assert_eq!(outcome(&bench.twinhull(&["health"])).0, 0);
}

#[test]
fn a_verdict_that_cannot_be_written_still_ends_in_a_reboot_that_the_bootloader_counts() {
    let bench = Bench::new();
    bench.boot_trial();
    // As on a state partition that is full or read-only: no journal can be written.
    let blocked = bench.device.path("mnt/state/twinhull/journal.json.new");
    fs::create_dir_all(&blocked).unwrap();
    let output = bench.twinhull(&["resume"]);
    assert_eq!(outcome(&output).0, 0);
    assert!(outcome(&output).1.contains("journal.json"), "{}", outcome(&output).1);
    assert_eq!(bench.asked(), "reboot\n");
    assert_eq!(bench.device.status()["boot"]["trial"]["tries_left"], 2);
    // After the last try, the old system says why.
    bench.set_env("bootcount=3");
    bench.device.write("proc/cmdline", "BOOT_IMAGE=/boot/vmlinuz root=PARTLABEL=resin-rootA ro\n");
    fs::remove_dir(&blocked).unwrap();
    assert_eq!(outcome(&bench.twinhull(&["resume"])).0, 0);
    let last = bench.device.status()["update"]["last"].clone();
    assert_eq!(last["result"], "rolled-back");
    assert!(last["reason"].as_str().unwrap().contains("used up its tries"), "{last}");
    assert_eq!(bench.asked(), "");
}

/// A new kernel that has no driver for the boot partition, for one.
#[test]
fn a_trial_without_a_boot_partition_is_left() {
    let bench = Bench::new();
    bench.boot_trial();
    let [boot, away] = ["mnt/boot", "mnt/away"].map(|d| bench.device.path(d));
    fs::rename(&boot, &away).unwrap();
    let output = bench.twinhull(&["resume"]);
    assert_eq!((outcome(&output).0, bench.asked().as_str()), (0, "reboot\n"), "{}", outcome(&output).1);
    // On the old system that is no reason: it would not help.
    bench.device.write("proc/cmdline", "BOOT_IMAGE=/boot/vmlinuz root=PARTLABEL=resin-rootA ro\n");
    let output = bench.twinhull(&["resume"]);
    assert_eq!((outcome(&output).0, bench.asked().as_str()), (1, ""), "{}", outcome(&output).1);
}

#[test]
fn a_trial_whose_journal_is_lost_or_damaged_is_left() {
    for journal in [None, Some("{\"format\":1"), Some("{\"format\":9,\"state\":\"idle\"}")] {
        let bench = Bench::new();
        bench.boot_trial();
        let file = bench.device.path("mnt/state/twinhull/journal.json");
        fs::remove_file(&file).unwrap();
        if let Some(text) = journal {
            fs::write(&file, text).unwrap();
            let seen = bench.twinhull(&["status"]);
            assert!(String::from_utf8_lossy(&seen.stdout).contains("Problem     journal "), "{seen:?}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text, "status writes nothing");
        }
        assert_eq!(bench.device.status()["phase"], "unknown-trial");
        assert_eq!(outcome(&bench.twinhull(&["resume"])).0, 0);
        assert_eq!(bench.asked(), "reboot\n");
    }
}

#[test]
fn without_a_trial_an_error_is_no_reason_to_reboot() {
    let bench = Bench::new();
    bench.device.write("etc/twinhull/other.toml", "[boot]\nno_such_key = 1\n");
    let output = bench.twinhull(&["resume"]);
    assert_eq!(outcome(&output).0, 1);
    assert!(outcome(&output).1.contains("no_such_key"), "{}", outcome(&output).1);
    assert_eq!(bench.asked(), "");
}

#[test]
fn while_an_install_goes_on_it_is_told_and_nothing_else_begins() {
    let bench = Bench::new();
    let mut install =
        bench.command(&["install", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let bytes = fs::read(&bench.bundle).unwrap();
    let mut pipe = install.stdin.take().unwrap();
    pipe.write_all(&bytes[..bytes.len() / 2]).unwrap();
    pipe.flush().unwrap();
    while bench.device.status()["phase"] != "installing" {
        assert!(install.try_wait().unwrap().is_none());
    }
    for args in [&["reset", "data", "--yes"][..], &["commit"], &["rollback"], &["install", "-"]] {
        let (code, text) = outcome(&bench.twinhull(args));
        assert!(code == 3 && text.contains("an install is under way"), "{args:?}: {code}: {text}");
    }
    let resume = bench.command(&["resume"]).stderr(Stdio::piped()).spawn().unwrap();
    pipe.write_all(&bytes[bytes.len() / 2..]).unwrap();
    drop(pipe);
    let installed = install.wait_with_output().unwrap();
    assert!(installed.status.success(), "{}", outcome(&installed).1);
    // It waited for its turn, and found the new system armed.
    assert_eq!(outcome(&resume.wait_with_output().unwrap()).0, 0);
    assert_eq!(bench.device.status()["phase"], "ready-to-reboot");
    assert_eq!(bench.asked(), "");
}

#[test]
fn no_install_while_a_factory_reset_is_requested() {
    let bench = Bench::new();
    assert!(bench.twinhull(&["reset", "data", "--yes"]).status.success());
    let (code, text) = outcome(&bench.twinhull(&["install", bench.bundle.to_str().unwrap()]));
    assert!(code == 3 && text.contains("reset --cancel"), "{code}: {text}");
    assert_eq!(bench.device.status()["phase"], "steady");
}
