//! The whole procedure against the lab's cloud: under every cut, and with each answer and fault.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::config::{ConfigJson, Settings};
use crate::sys::clock::Clock;
use crate::{Error, Kind, Result, Root, sys};

#[path = "../../qemu/src/cloud.rs"]
mod cloud;

use cloud::{Cloud, Config, Play};

const PATH: &str = "/mnt/boot/config.json";

/// A clock on which waiting costs nothing and is remembered.
#[derive(Default)]
struct Waits(RefCell<Vec<Duration>>);

impl Clock for Waits {
    fn since_boot(&self) -> Duration {
        self.0.borrow().iter().sum()
    }

    fn sleep(&self, d: Duration) {
        self.0.borrow_mut().push(d);
        let waited = self.since_boot();
        assert!(
            waited < Duration::from_hours(7 * 24),
            "this test waits for ever: does a proxy stand between it and its cloud?"
        );
    }
}

struct World {
    _dir: tempfile::TempDir,
    root: Root,
    settings: Settings,
    cloud: Cloud,
    waits: Waits,
    /// What the clock was set to.
    times: Rc<RefCell<Vec<Duration>>>,
    set_time: Box<dyn Fn(Duration) -> Result<()>>,
}

impl World {
    /// A device as it comes from the factory. `extra`: more of its `config.json`.
    fn new(extra: &str) -> Self {
        let cloud =
            Cloud::start(Config::new("127.0.0.1:0").fleet("7:provisioning-key:intel-nuc".parse().unwrap()));
        let cloud = cloud.unwrap();
        let text = format!(
            r#"{{"deviceType":"intel-nuc","apiEndpoint":"{}","apiKey":"provisioning-key","applicationId":7{extra}}}"#,
            cloud.url()
        );
        Self::with(cloud, &text)
    }

    fn with(cloud: Cloud, config_json: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        sys::durable::create_dir(&root.path("/mnt/boot")).unwrap();
        sys::durable::create_dir(&root.path("/mnt/state")).unwrap();
        sys::durable::replace(&root.path(PATH), config_json.as_bytes(), 0o600).unwrap();
        let mut settings = Settings::default();
        settings.provision.timeout_s = 20;
        let times = Rc::new(RefCell::new(Vec::new()));
        let set = Rc::clone(&times);
        let set_time = Box::new(move |to| {
            set.borrow_mut().push(to);
            Ok(())
        });
        Self { _dir: dir, root, settings, cloud, waits: Waits::default(), times, set_time }
    }

    fn provisioner<'a>(&'a self, observer: &'a dyn Fn(&str) -> Result<()>) -> Provisioner<'a> {
        Provisioner {
            root: &self.root,
            settings: &self.settings,
            clock: &self.waits,
            set_time: &*self.set_time,
            observer,
        }
    }

    fn run(&self) -> Result<End> {
        self.provisioner(&|_| Ok(())).run()
    }

    fn once(&self) -> Result<End> {
        self.provisioner(&|_| Ok(())).once()
    }

    fn config(&self) -> ConfigJson {
        ConfigJson::peek(&self.root, Path::new(PATH)).unwrap().unwrap()
    }

    fn status(&self) -> Status {
        status(&self.root, &self.settings)
    }

    fn requests(&self) -> Vec<String> {
        self.cloud
            .log()
            .iter()
            .map(|l| {
                let path = l["path"].as_str().unwrap().split('?').next().unwrap();
                format!(
                    "{} {path} {} by {}",
                    l["method"].as_str().unwrap(),
                    l["status"],
                    l["who"].as_str().unwrap()
                )
            })
            .collect()
    }

    /// What must be true in the end.
    fn assert_provisioned(&self, what: &str) {
        let config = self.config();
        let devices = self.cloud.devices();
        assert_eq!(devices.len(), 1, "{what}: one device in the cloud");
        let device = &devices[0];
        assert_eq!(config.uuid().unwrap().as_deref(), Some(device.uuid.as_str()), "{what}");
        assert_eq!(config.device_id().unwrap(), Some(device.id), "{what}");
        assert!(device.has_key(&config.device_api_key().unwrap().unwrap()), "{what}: our key is the cloud's");
        assert!(config.registered_at().unwrap().is_some(), "{what}");
        assert_eq!(config.value("apiKey"), None, "{what}");
        assert!(
            config.value("deviceId").unwrap().is_u64() && config.value("registered_at").unwrap().is_u64()
        );
        assert!(self.status().registered, "{what}");
    }
}

#[test]
fn a_new_device_registers_with_two_requests_and_then_asks_nothing() {
    let world = World::new("");
    let release = b"PRETTY_NAME=\"balenaOS 2.46.1+rev1\"\n";
    sys::durable::create_dir(&world.root.path("/etc")).unwrap();
    sys::durable::replace(&world.root.path("/etc/os-release"), release, 0o644).unwrap();
    assert!(matches!(world.run().unwrap(), End::Registered { device_id: 1001, .. }));
    world.assert_provisioned("first run");
    assert_eq!(
        world.requests(),
        ["POST /device/register 201 by fleet 7", "GET /v7/device 200 by device 1001"]
    );
    let device = &world.cloud.devices()[0];
    assert_eq!(device.said["os_version"], "balenaOS 2.46.1+rev1");
    assert_eq!(device.said["os_variant"], "prod");
    assert_eq!(device.uuid.len(), 32);
    world.run().unwrap();
    assert_eq!(world.requests().len(), 2);
    assert!(world.waits.0.borrow().is_empty());
}

#[test]
fn without_an_endpoint_the_device_gets_a_uuid_and_is_done() {
    let world = World::with(World::new("").cloud, r#"{"deviceType":"intel-nuc"}"#);
    let End::Unmanaged { uuid } = world.run().unwrap() else { panic!() };
    assert_eq!(world.config().uuid().unwrap(), Some(uuid.clone()));
    assert!(uuid.len() == 32 && uuid.bytes().all(|b| b.is_ascii_hexdigit()));
    assert_eq!(world.config().value("deviceApiKey"), None);
    assert!(world.requests().is_empty());
    assert_eq!(world.status().to_string(), "unmanaged: config.json has no apiEndpoint");
}

/// A cut after operation number `n`, counted from 0 over everything that the observer is told.
fn cut_after(n: usize) -> impl Fn(&str) -> Result<()> {
    let seen = Cell::new(0);
    move |what| {
        let now = seen.replace(seen.get() + 1);
        // A dead machine does nothing more.
        if now >= n { Err(Error::new(Kind::PowerCut, what)) } else { Ok(()) }
    }
}

#[test]
fn after_any_one_or_two_cuts_the_device_is_registered_once() {
    let mut single = 0;
    for first in 0.. {
        let world = World::new("");
        match world.provisioner(&cut_after(first)).run() {
            Err(e) => assert_eq!(e.kind(), Kind::PowerCut, "{e}"),
            Ok(_) => break,
        }
        let config = world.config();
        let provisioned = config.value("apiKey").is_none();
        assert!(!provisioned || config.device_id().unwrap().is_some(), "cut {first}: a key was lost");
        world.run().unwrap();
        world.assert_provisioned(&format!("cut {first}"));
        single += 1;
        for second in 0.. {
            let world = World::new("");
            world.provisioner(&cut_after(first)).run().unwrap_err();
            if world.provisioner(&cut_after(second)).run().is_ok() {
                break;
            }
            world.run().unwrap();
            world.assert_provisioned(&format!("cuts {first} and {second}"));
        }
    }
    // Two writes, and two requests, each before and after, before the last write, and the record.
    assert_eq!(single, 2 + 2 * 2 + 1 + 1);
}

#[test]
fn a_lost_answer_to_the_registration_is_settled_with_the_device_key() {
    let world = World::new("");
    world.cloud.play(Play::CloseAfter);
    world.run().unwrap();
    world.assert_provisioned("lost answer");
    assert_eq!(
        world.requests(),
        [
            "POST /device/register null by fleet 7",
            "POST /device/register 409 by fleet 7",
            "GET /v7/device 200 by device 1001"
        ]
    );
}

#[test]
fn a_uuid_that_is_known_with_another_key_gets_ours() {
    let uuid = "0123456789abcdef0123456789abcdef";
    let world = World::new(&format!(r#","uuid":"{uuid}""#));
    world.cloud.add_device(7, uuid, "made-beforehand");
    world.run().unwrap();
    world.assert_provisioned("exchange");
    assert_eq!(
        world.requests(),
        [
            "POST /device/register 409 by fleet 7",
            "GET /v7/device 401 by wrong key",
            "GET /v7/device 200 by fleet 7",
            "POST /api-key/device/1001/device-key 200 by fleet 7",
            "GET /v7/device 200 by device 1001"
        ]
    );
}

#[test]
fn a_device_registered_by_balenas_script_is_taken_over() {
    let uuid = "0123456789abcdef0123456789abcdef";
    let key = "fedcba9876543210fedcba9876543210";
    // resin-device-register: strings, seconds; and apiKey left behind.
    let world = World::new(&format!(
        r#","uuid":"{uuid}","deviceApiKey":"{key}","deviceId":"1001","registered_at":"1700000000""#
    ));
    world.cloud.add_device(7, uuid, key);
    world.run().unwrap();
    assert_eq!(world.requests(), ["GET /v7/device 200 by device 1001"]);
    let config = world.config();
    assert_eq!(config.value("deviceId"), Some(1001.into()));
    assert_eq!((config.value("registered_at"), config.value("apiKey")), (Some("1700000000".into()), None));
}

/// Each answer and fault is retried, told apart in `status`, and overcome when it ends.
#[test]
fn every_refusal_is_told_apart_and_retried() {
    let answer = |status, headers: &[&str], body: &str| {
        Play::Answer(status, headers.iter().map(|h| (*h).to_owned()).collect(), body.to_owned())
    };
    for (before, play, kind, words) in [
        (
            0,
            answer(400, &[], "UUID must be specified"),
            "refused-400",
            "refuses the request (400: UUID must be specified)",
        ),
        (
            0,
            answer(401, &[], r#"{"error":"API key required"}"#),
            "key-rejected-401",
            "rejects the provisioning key (401)",
        ),
        (0, answer(403, &[], ""), "forbidden-403", "the API forbids it (403)"),
        (0, answer(404, &[], "Unknown device type"), "not-found-404", "(404: Unknown device type)"),
        (0, answer(429, &["Retry-After: 40"], ""), "too-many-429", "wait for 40 s (429)"),
        (0, answer(502, &[], "<html>"), "server-5xx", "the API is not well (502)"),
        (0, Play::CloseBefore, "network", "register the device: "),
        (0, Play::CloseAfter, "network", "register the device: "),
        (
            1,
            answer(200, &[], "<html>Log in</html>"),
            "unreadable-answer",
            "is there a log-in page in between",
        ),
        (1, answer(401, &[], ""), "key-not-accepted", "may remember an earlier refusal"),
        (1, answer(200, &[], r#"{"d":[]}"#), "key-not-accepted", "may remember an earlier refusal"),
        (
            1,
            answer(503, &[], ""),
            "server-5xx",
            "ask for the device with its own key: the API is not well (503)",
        ),
        (1, Play::CloseBefore, "network", "ask for the device with its own key: "),
    ] {
        let world = World::new("");
        let enqueue = || {
            (0..before).for_each(|_| world.cloud.play(Play::AsAlways));
            world.cloud.play(play.clone());
        };
        enqueue();
        let e = world.once().unwrap_err();
        assert_eq!(e.kind(), Kind::Failed);
        assert!(e.to_string().contains(words), "{play:?}: {e}");
        let status = world.status();
        assert!(status.managed && !status.registered && status.missing.is_empty(), "{status:?}");
        let last = status.last_try.clone().unwrap();
        assert_eq!((last.kind.as_str(), last.text), (kind, e.to_string()), "{play:?}");
        assert!(status.to_string().starts_with(&format!("not registered: {e} (failed 1 times")), "{status}");
        assert!(world.config().api_key().unwrap().is_some(), "{play:?}: the provisioning key must stay");
        world.run().unwrap();
        world.assert_provisioned(kind);
        assert_eq!(world.status().last_try, None);
    }
}

#[test]
fn waits_grow_and_a_pause_that_was_asked_for_is_kept() {
    let world = World::new("");
    for _ in 0..4 {
        world.cloud.play(Play::Answer(500, vec![], String::new()));
    }
    world.cloud.play(Play::Answer(429, vec!["Retry-After: 100".into()], String::new()));
    world.cloud.play(Play::Answer(503, vec!["Retry-After: 200".into()], String::new()));
    world.run().unwrap();
    let waits: Vec<_> = world.waits.0.borrow().iter().map(Duration::as_millis).collect();
    let within = [1000..=2000, 2000..=4000, 4000..=8000, 8000..=16000, 100_000..=116_000, 200_000..=232_000];
    assert_eq!(waits.len(), within.len());
    for (wait, within) in waits.iter().zip(within) {
        assert!(within.contains(wait), "{waits:?}");
    }
}

#[test]
fn a_device_of_another_fleet_with_our_uuid_is_a_conflict() {
    let uuid = "0123456789abcdef0123456789abcdef";
    let world = World::new(&format!(r#","uuid":"{uuid}""#));
    world.cloud.add_device(8, uuid, "theirs");
    let e = world.once().unwrap_err().to_string();
    assert!(e.contains("another device") && e.contains("(409)"), "{e}");
    assert_eq!(world.status().last_try.unwrap().kind, "conflict-409");
}

#[test]
fn an_identity_that_changes_meanwhile_is_not_marked_registered() {
    let world = World::new("");
    let changed = Cell::new(false);
    let observer = |what: &str| {
        // Somebody puts another config.json there while the API answers.
        if what == "after the request" && !changed.replace(true) {
            let other = "0".repeat(32);
            ConfigJson::edit(&world.root, Path::new(PATH), &|_| Ok(()), |c| c.set("uuid", other.as_str()))?;
        }
        Ok(())
    };
    let e = world.provisioner(&observer).once().unwrap_err().to_string();
    assert!(e.contains("another identity"), "{e}");
    assert!(world.config().device_id().unwrap().is_none() && world.config().api_key().unwrap().is_some());
}

/// The last resort, and only after the answers that the settings say.
#[test]
fn an_identity_that_another_device_has_is_given_up_in_the_end_and_kept() {
    let uuid = "0123456789abcdef0123456789abcdef";
    let mut world = World::new(&format!(r#","uuid":"{uuid}","deviceApiKey":"former-key""#));
    world.cloud.add_device(8, uuid, "theirs");
    world.settings.provision.new_identity_after = 3;
    world.run().unwrap();
    assert_eq!(world.waits.0.borrow().len(), 2, "three answers");
    let config = world.config();
    let ours = &world.cloud.devices()[1];
    assert_eq!(config.uuid().unwrap().as_deref(), Some(ours.uuid.as_str()));
    assert_ne!(ours.uuid, uuid);
    let former = sys::file::read(&world.root.path("/mnt/state/twinhull/former-identity.json"), 999).unwrap();
    let former: serde_json::Value = serde_json::from_slice(&former).unwrap();
    assert_eq!((&former["uuid"], &former["deviceApiKey"]), (&uuid.into(), &"former-key".into()));
}

#[test]
fn another_answer_between_conflicts_starts_the_count_again() {
    let uuid = "0123456789abcdef0123456789abcdef";
    let mut world = World::new(&format!(r#","uuid":"{uuid}""#));
    world.cloud.add_device(8, uuid, "theirs");
    world.settings.provision.new_identity_after = 2;
    // Three requests end in a conflict; then a fault; then two conflicts more.
    (0..3).for_each(|_| world.cloud.play(Play::AsAlways));
    world.cloud.play(Play::Answer(503, vec![], String::new()));
    world.run().unwrap();
    assert_eq!(world.waits.0.borrow().len(), 3);
}

fn write(world: &World, text: &str) {
    sys::durable::replace(&world.root.path(PATH), text.as_bytes(), 0o600).unwrap();
}

/// A config.json of another device, fleet or cloud is put on a device that is registered.
#[test]
fn another_identity_on_the_boot_partition_is_registered_anew() {
    let other = "fedcba9876543210fedcba9876543210";
    // Only the uuid and its key are exchanged: made beforehand, known to the cloud.
    let world = World::new("");
    world.run().unwrap();
    world.cloud.add_device(7, other, "prepared");
    ConfigJson::edit(&world.root, Path::new(PATH), &|_| Ok(()), |c| {
        c.set("uuid", other)?;
        c.set("deviceApiKey", "prepared")
    })
    .unwrap();
    assert!(!world.status().registered);
    world.run().unwrap();
    assert_eq!((world.config().device_id().unwrap(), world.status().registered), (Some(1002), true));
    let asked = world.requests().len();
    world.run().unwrap();
    assert_eq!(world.requests().len(), asked, "and then it asks nothing");

    // The same, but the cloud does not know it and there is no provisioning key: said, not taken for registered.
    ConfigJson::edit(&world.root, Path::new(PATH), &|_| Ok(()), |c| c.set("uuid", "0".repeat(32).as_str()))
        .unwrap();
    let e = world.run().unwrap_err().to_string();
    assert!(e.contains("lacks apiKey"), "{e}");

    // A fresh config.json of the fleet: a new device, with a new uuid.
    let fresh = World::new("");
    let text = fresh.config().text();
    fresh.run().unwrap();
    write(&fresh, &text);
    fresh.run().unwrap();
    assert_eq!(fresh.cloud.devices().len(), 2);
    assert_eq!(fresh.config().device_id().unwrap(), Some(1002));
    assert!(fresh.status().registered && fresh.config().api_key().unwrap().is_none());

    // The same identity for another cloud, with its provisioning key: the old number means nothing there.
    let elsewhere = World::new("");
    elsewhere.cloud.add_device(7, other, "theirs");
    let endpoint = elsewhere.cloud.url();
    ConfigJson::edit(&fresh.root, Path::new(PATH), &|_| Ok(()), |c| {
        c.set("apiEndpoint", endpoint.as_str())?;
        c.set("apiKey", "provisioning-key")
    })
    .unwrap();
    fresh.run().unwrap();
    assert_eq!((fresh.config().device_id().unwrap(), fresh.status().registered), (Some(1002), true));
    assert_eq!(elsewhere.cloud.devices()[1].uuid, fresh.config().uuid().unwrap().unwrap());
}

#[test]
fn a_device_that_balena_registered_is_believed_and_remembered() {
    let world = World::new(r#","uuid":"u","deviceApiKey":"k","deviceId":5,"registered_at":1"#);
    ConfigJson::edit(&world.root, Path::new(PATH), &|_| Ok(()), |c| c.remove("apiKey")).unwrap();
    assert_eq!(world.run().unwrap(), End::Registered { uuid: "u".into(), device_id: 5 });
    assert!(world.requests().is_empty());
    let record = sys::file::read(&world.root.path("/mnt/state/twinhull/registered.json"), 999).unwrap();
    assert!(!String::from_utf8(record).unwrap().contains("\"k\""));
    ConfigJson::edit(&world.root, Path::new(PATH), &|_| Ok(()), |c| c.set("uuid", "other")).unwrap();
    assert!(!world.status().registered);
}

#[test]
fn an_identity_that_cannot_be_noted_is_registered_once_all_the_same() {
    let world = World::new("");
    world.run().unwrap();
    let elsewhere = World::new("");
    let endpoint = elsewhere.cloud.url();
    ConfigJson::edit(&world.root, Path::new(PATH), &|_| Ok(()), |c| {
        c.set("apiEndpoint", endpoint.as_str())?;
        c.set("apiKey", "provisioning-key")
    })
    .unwrap();
    // The state partition takes nothing more: the record of the former identity stays.
    sys::durable::create_dir(&world.root.path("/mnt/state/twinhull/registered.json.new")).unwrap();
    world.run().unwrap();
    assert_eq!(elsewhere.cloud.devices().len(), 1);
    assert_eq!(world.config().api_key().unwrap(), None);
    assert_eq!(*world.waits.0.borrow(), []);
}

#[test]
fn a_clock_behind_what_is_known_to_be_past_is_raised_and_no_other_is_touched() {
    for (last_seen, expected) in [("100", vec![]), ("4000000000", vec![Duration::from_secs(4_000_000_000)])] {
        let world = World::new("");
        sys::durable::create_dir(&world.root.path("/mnt/state/twinhull")).unwrap();
        let path = world.root.path("/mnt/state/twinhull/last-seen");
        sys::durable::replace(&path, last_seen.as_bytes(), 0o644).unwrap();
        world.run().unwrap();
        assert_eq!(*world.times.borrow(), expected);
    }
}

#[test]
fn what_is_missing_is_named_with_what_to_do() {
    let endpoint = r#""apiEndpoint":"https://127.0.0.1:1""#;
    for (text, expected) in [
        (format!(r#"{{{endpoint}}}"#), "lacks apiKey; put a provisioning key of the fleet there"),
        (format!(r#"{{{endpoint},"apiKey":"k"}}"#), "lacks applicationId; put the number of the fleet there"),
        (format!(r#"{{{endpoint},"apiKey":"k","applicationId":1}}"#), "lacks deviceType; put the slug"),
        ("{".into(), "line 1, column 1: EOF while parsing an object; nothing was changed"),
        (format!(r#"{{{endpoint},"apiKey":5}}"#), "apiKey: expected text, found a number"),
        (r#"{"apiEndpoint":"api.example.com"}"#.into(), "apiEndpoint: expected an address such as"),
    ] {
        let world = World::with(World::new("").cloud, &text);
        let status = world.status().to_string();
        assert!(status.contains(expected), "{status}");
        // Without a provisioning key only the API knows, and there is none at that address.
        if !text.ends_with(r#":1"}"#) {
            let e = world.run().unwrap_err();
            assert!(e.to_string().contains(expected), "{e}");
        }
    }
    let world = World::new("");
    sys::durable::remove(&world.root.path(PATH)).unwrap();
    let e = world.run().unwrap_err().to_string();
    assert!(e.contains("/mnt/boot/config.json is missing; is the boot partition mounted?"), "{e}");
    assert_eq!(world.status().to_string(), format!("not registered: {e}"));
}

#[test]
fn keys_are_in_no_file_but_config_json_and_in_no_message() {
    let world = World::new("");
    world.cloud.play(Play::Answer(500, vec![], String::new()));
    let mut seen = world.once().unwrap_err().to_string();
    let record = sys::file::read(&world.root.path("/run/twinhull/provision.json"), 9999).unwrap();
    seen.push_str(&String::from_utf8(record).unwrap());
    seen.push_str(&format!("{:?} {:?}", world.status(), world.config()));
    world.run().unwrap();
    seen.push_str(&format!("{:?}", world.cloud.log()));
    let key = world.config().device_api_key().unwrap().unwrap();
    assert!(!seen.contains("provisioning-key") && !seen.contains(&key), "{seen}");
}
