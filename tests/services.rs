//! `twinhull services` against a real engine: a private dockerd with a network of its own.
//!
//! Needs what tests/engine.rs needs; without it each test says `SKIPPED: needs …`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(clippy::disallowed_methods, clippy::disallowed_macros)]

#[path = "engine/dockerd.rs"]
#[allow(dead_code)] // The watcher's half is for tests/engine.rs.
mod dockerd;
#[path = "../qemu/src/supervisor_image.rs"]
mod supervisor_image;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dockerd::{Lab, until};
use serde_json::Value;

/// A device with an application's directory; its images are archives beside the file.
struct Device {
    lab: Lab,
    program: PathBuf,
}

/// Runs `test` on a device, or says why it cannot run here.
fn on_device(test: impl FnOnce(&mut Device)) {
    let device = Lab::start_networked().and_then(|lab| {
        let program = build(&lab.path("program"))?;
        Ok(Device { lab, program })
    });
    match device {
        Ok(mut device) => test(&mut device),
        Err(needs) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "SKIPPED: needs {needs}");
        }
    }
}

fn build(out: &Path) -> Result<PathBuf, String> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/services/program.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "--target", &target, "-o"]).arg(out).arg(source);
    let built = command.output().map_err(|e| format!("rustc: {e}"))?;
    let why = String::from_utf8_lossy(&built.stderr);
    if why.contains("can't find crate for `std`") {
        return Err(format!("the Rust target {target} (rustup target add {target})"));
    }
    assert!(built.status.success(), "{why}");
    Ok(out.to_owned())
}

impl Device {
    fn dir(&self) -> PathBuf {
        self.lab.path("root/mnt/data/weather")
    }

    fn file(&self) -> String {
        self.dir().join("docker-compose.yml").display().to_string()
    }

    fn write(&self, text: &str) {
        fs::create_dir_all(self.dir()).unwrap();
        fs::write(self.dir().join("docker-compose.yml"), text).unwrap();
    }

    /// Puts an image's archive beside the file.
    fn image(&self, name: &str) {
        let images = self.dir().join("images");
        fs::create_dir_all(&images).unwrap();
        let file = images.join(format!("{}.tar", name.replace(['/', ':'], "-")));
        supervisor_image::write_archive(&self.program, name, &file, None).unwrap();
    }

    fn services(&self, args: &[&str]) -> (i32, String) {
        self.lab.twinhull(&[&["services"], args].concat())
    }

    /// `up` of the file, which must work; gives what it did to each service.
    #[track_caller]
    fn up(&self, more: &[&str]) -> Vec<String> {
        let (code, text) = self.services(&[&["up", "-f", &self.file(), "--json"], more].concat());
        assert_eq!(code, 0, "{text}");
        let last = text.lines().rev().find(|l| l.contains("\"end\"")).unwrap();
        let last: Value = serde_json::from_str(last).unwrap();
        let all = last["services"].as_array().unwrap().iter();
        all.map(|s| format!("{} {}", s["service"].as_str().unwrap(), s["action"].as_str().unwrap())).collect()
    }

    fn id(&self, service: &str) -> String {
        self.lab.engine().container(&format!("weather_{service}")).unwrap().expect(service).id
    }

    fn logs(&self, service: &str) -> String {
        self.services(&["logs", "--name", "weather", service]).1
    }

    fn tmp(&self, service: &str, name: &str) -> PathBuf {
        self.lab.path("root/tmp/balena-supervisor/services/weather").join(service).join(name)
    }
}

/// `web` is in `version`, and `more` are fields of it.
fn two(version: &str, more: &str) -> String {
    format!(
        "
version: '2.4'
services:
  web:
    image: lab/web:{version}
    depends_on: [store]
    environment: [PEER=store]
    stop_grace_period: 2s
{more}
  store:
    image: lab/store:5.0
    volumes: ['kept:/data']
    networks: {{back: {{aliases: [db]}}, default: }}
    cap_add: [NET_ADMIN]
    tmpfs: /scratch
    ulimits: {{nofile: 1024}}
volumes: {{kept: }}
networks:
  back:
    ipam: {{config: [{{subnet: 172.31.240.0/24}}]}}
"
    )
}

#[test]
fn two_services_come_up_and_only_what_changed_is_touched() {
    on_device(|device| {
        device.image("lab/web:1.0");
        device.image("lab/store:5.0");
        device.write(&two("1.0", ""));
        // Each after what it needs.
        assert_eq!(device.up(&[]), ["store created", "web created"]);
        let (web, store) = (device.id("web"), device.id("store"));
        until("both print", || {
            let said = |service, text: &str| device.logs(service).contains(text);
            (said("web", "peer store: 172.") && said("store", "store 5.0, starts: 1")).then_some(())
        });
        let (code, all) = device.services(&["logs", "-f", &device.file()]);
        assert!(code == 0 && all.contains("store | store 5.0") && all.contains("web | web waits"), "{all}");
        let (_, table) = device.services(&["ps", "--name", "weather", "--json"]);
        let table: Value = serde_json::from_str(&table).unwrap();
        assert_eq!(
            (table[0]["service"].as_str(), table[1]["state"].as_str()),
            (Some("store"), Some("running"))
        );

        // Again: nothing is touched.
        assert_eq!(device.up(&[]), ["store kept", "web kept"]);
        assert_eq!((device.id("web"), device.id("store")), (web.clone(), store.clone()));

        // Another image for one: the other keeps its container, and the old image goes.
        device.image("lab/web:1.1");
        device.write(&two("1.1", ""));
        assert_eq!(device.up(&[]), ["store kept", "web replaced"]);
        assert_ne!(device.id("web"), web);
        assert_eq!(device.id("store"), store);
        assert!(device.lab.engine().image("lab/web:1.0").unwrap().is_none());
        until("the new one prints", || device.logs("web").contains("web 1.1").then_some(()));

        // One is stopped by somebody: started, the same container.
        device.lab.docker(&["stop", "weather_store"]);
        assert_eq!(device.up(&[]), ["store started", "web kept"]);
        assert_eq!(device.id("store"), store);

        // Down and up: the volume is there with what was in it.
        let (code, text) = device.services(&["down", "-f", &device.file()]);
        assert!(code == 0 && text.contains("store, web removed; its volumes stay"), "{text}");
        assert_eq!(
            device.lab.engine().networks().unwrap().iter().filter(|n| n.name.starts_with("weather")).count(),
            0
        );
        assert_eq!(device.up(&[]), ["store created", "web created"]);
        until("it counts on", || device.logs("store").contains("starts: 3").then_some(()));

        // Out of the file: removed.
        device.write("services: {web: {image: 'lab/web:1.1'}}");
        assert_eq!(device.up(&[]), ["web replaced"]);
        assert!(device.lab.engine().container("weather_store").unwrap().is_none());
        assert!(device.lab.engine().volume_dir("weather_kept").unwrap().is_some());
        assert!(device.lab.engine().volume_dir("weather_resin-data").unwrap().is_some());
    });
}

#[test]
fn a_hand_over_keeps_the_old_container_until_the_new_one_says_so_or_the_time_is_over() {
    on_device(|device| {
        let labels = |ms: u32| {
            format!(
                "    labels: {{io.balena.update.strategy: hand-over, io.balena.update.handover-timeout: '{ms}'}}"
            )
        };
        for image in ["lab/store:5.0", "lab/web:1.0", "lab/web:2.0", "lab/web:3.0"] {
            device.image(image);
        }
        device.write(&two("1.0", &labels(600_000)));
        device.up(&[]);
        let (old, store) = (device.id("web"), device.id("store"));

        device.write(&two("2.0", &labels(600_000)));
        let file = device.file();
        let mut up = device.lab.begin(&["services", "up", "-f", &file]);
        let engine = device.lab.engine();
        until("both run", || {
            let runs = |name: &str| engine.container(name).unwrap().filter(|c| c.state.running).map(|c| c.id);
            (runs("weather_web.old") == Some(old.clone()) && runs("weather_web").is_some()).then_some(())
        });
        let new = device.id("web");
        assert!(up.try_wait().unwrap().is_none());
        fs::write(device.tmp("web", "handover-complete"), "").unwrap();
        assert!(up.wait().unwrap().success());
        assert!(engine.container("weather_web.old").unwrap().is_none());
        assert_eq!((device.id("web"), device.id("store")), (new.clone(), store));
        assert!(!device.tmp("web", "handover-complete").exists());

        // Killed in the middle: the next one finishes it.
        device.write(&two("3.0", &labels(1_000)));
        let mut up = device.lab.begin(&["services", "up", "-f", &file]);
        until("the hand-over", || engine.container("weather_web.old").unwrap());
        up.kill().unwrap();
        up.wait().unwrap();
        device.up(&[]);
        assert!(engine.container("weather_web.old").unwrap().is_none());
        let now = engine.container("weather_web").unwrap().unwrap();
        assert!(
            now.state.running && now.id != new && now.host_config.restart_policy.name == "always",
            "{now:?}"
        );

        // Nobody says anything: the time ends it.
        device.write(&two("2.0", &labels(1_000)));
        assert_eq!(device.up(&[]), ["store kept", "web replaced"]);
        assert!(engine.container("weather_web.old").unwrap().is_none());
    });
}

#[test]
fn what_cannot_be_is_refused_with_nothing_touched() {
    on_device(|device| {
        device.image("lab/web:1.0");
        device.image("lab/store:5.0");
        let file = device.file();
        for (text, code, expected) in [
            (
                "services: {a: {image: 'lab/web:1.0', volumes: ['/home:/x']}}",
                3,
                "bind mounts are not given: /home",
            ),
            (
                "services: {a: {image: 'lab/web:1.0', labels: {io.balena.features.requires.sw.l4t: '32'}}}",
                3,
                "service a requires sw.l4t 32, this device names none",
            ),
            ("services: {a: {image: 'lab/web:1.0', volumes: ['d:/d']}}", 1, "service a: no volume \"d\""),
            ("services: {a: {build: .}}", 1, "service a: it has no image; services are not built"),
            ("services: {a: {image: '127.0.0.1:1/a:1'}}", 1, "service a: pull 127.0.0.1:1/a:1: "),
            (
                "services: {a: {image: x, depends_on: [b]}}",
                1,
                "service a needs b, which the file does not have",
            ),
            (
                "services: {a: {image: x, privileged: maybe}}",
                1,
                "service a: privileged: line 1: expected true or false",
            ),
            ("a: {image: x}", 1, "line 1: no services"),
        ] {
            device.write(text);
            let (found, said) = device.services(&["up", "-f", &file]);
            assert!(found == code && said.contains(expected), "{text}: {found} {said}");
        }
        assert_eq!(device.lab.names().len(), 0);
        for args in
            [["up"].as_slice(), &["up", "--all", "-f", "x"], &["ps"], &["up", "-f", "x", "--follow"], &["go"]]
        {
            assert_eq!(device.services(args).0, 2, "{args:?}");
        }

        // Optional: left out. Not known: named.
        device.write(
            "services:\n  a: {image: 'lab/web:1.0', links: [b]}\n  b:\n    image: nowhere\n    labels: \
             {io.balena.features.requires.sw.l4t: '32', io.balena.features.optional: 1}\n",
        );
        let (code, said) = device.services(&["up", "-f", &file]);
        assert!(code == 0 && said.contains("left out") && said.contains("ignored: links (line 2)"), "{said}");

        // A lock holds.
        let first = device.id("a");
        device.write("services: {a: {image: 'lab/web:1.0', environment: [A=1]}}");
        fs::write(device.tmp("a", "updates.lock"), "").unwrap();
        let (code, said) = device.services(&["up", "-f", &file]);
        assert!(code == 3 && said.contains("service a: it holds the update lock"), "{said}");
        assert_eq!((device.services(&["down", "-f", &file]).0, device.id("a")), (3, first.clone()));
        assert_eq!(device.up(&["--force"]), ["a replaced"]);
        assert_ne!(device.id("a"), first);
    });
}

#[test]
fn a_boot_brings_back_what_was_up() {
    on_device(|device| {
        device.image("lab/web:1.0");
        // Nothing in the engine starts it again.
        device.write("services: {a: {image: 'lab/web:1.0', restart: 'no'}}");
        device.up(&[]);
        let id = device.id("a");
        device.lab.stop_dockerd();
        device.lab.start_dockerd().unwrap();
        assert!(!device.lab.engine().container("weather_a").unwrap().unwrap().state.running);
        let (code, said) = device.services(&["up", "--all"]);
        assert!(code == 0 && said.contains("weather: a started"), "{said}");
        assert_eq!(device.id("a"), id);
        until("it counts on", || device.logs("a").contains("a 1.0, starts: 2").then_some(()));

        // The engine's networks are gone, as after `engine mend`: made again, with another id.
        device.lab.stop_dockerd();
        fs::remove_file(device.lab.path("data/network/files/local-kv.db")).unwrap();
        device.lab.start_dockerd().unwrap();
        let (code, said) = device.services(&["up", "--all"]);
        assert!(code == 0 && said.contains("weather: a replaced"), "{said}");
        until("it counts on", || device.logs("a").contains("a 1.0, starts: 3").then_some(()));

        fs::remove_file(device.file()).unwrap();
        let (code, said) = device.services(&["up", "--all"]);
        assert!(code == 1 && said.contains("docker-compose.yml: there is no such file"), "{said}");
        assert_eq!(device.services(&["down", "--name", "weather"]).0, 0);
        assert_eq!(device.services(&["up", "--all"]).0, 0);
    });
}
