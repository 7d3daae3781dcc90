//! The watcher and the client against a real engine: a private dockerd in a temporary directory.
//!
//! Needs root, `dockerd` and `unshare`, and the musl target for the lab's supervisor; without them each test says
//! `SKIPPED: needs …`. Waits are on conditions, each with a deadline.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(clippy::disallowed_methods, clippy::disallowed_macros)]

#[path = "engine/dockerd.rs"]
mod dockerd;
#[path = "engine/registry.rs"]
mod registry;
#[path = "../qemu/src/supervisor_image.rs"]
mod supervisor_image;

use std::fs;

use dockerd::{Lab, is_podman, until, well};
use twinhull::engine::supervisor::{self, SupervisorHealth};

/// Runs `test` in a lab, or says why it cannot run here.
fn in_lab(test: impl FnOnce(&mut Lab)) {
    match Lab::start() {
        Ok(mut lab) => test(&mut lab),
        Err(needs) => {
            // Past the test harness, which would keep the line of a test that passes to itself.
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "SKIPPED: needs {needs}");
        }
    }
}

/// As `in_lab`; not with Podman, which lacks something.
fn in_lab_with(what_podman_lacks: &str, test: impl FnOnce(&mut Lab)) {
    if is_podman() {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "SKIPPED: needs {what_podman_lacks}");
    } else {
        in_lab(test);
    }
}

const HEALTH_CHECKS: &str = "health checks, which Podman leaves to timers of systemd";
const PLAIN_REGISTRY: &str =
    "a registry without TLS, with which Podman speaks only if its registries.conf names it";

#[test]
fn a_fresh_device_gets_its_supervisor_from_the_archive() {
    in_lab(|lab| {
        lab.archive("1.0.0");
        lab.watch();
        assert_eq!(lab.until_well(), well());
        let body = lab.http("/v1/healthy");
        assert!(body.starts_with("HTTP/1.1 200 OK") && body.ends_with("OK"), "{body}");
        // systemd was told, in this order.
        until("READY=1", || lab.notified().contains("READY=1").then_some(()));
        until("WATCHDOG=1", || lab.notified().contains("WATCHDOG=1").then_some(()));

        let (code, json) = lab.twinhull(&["supervisor", "status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((code, &status["state"]), (0, &well().word().into()), "{json}");
        assert_eq!(lab.image(), "lab/supervisor:1.0.0");

        let found = lab.engine().container(supervisor::NAME).unwrap().unwrap();
        assert!(found.host_config.privileged);
        assert_eq!(found.host_config.network_mode, "host");

        // Asked to end, it stops the container and is done.
        let code = lab.end_watcher();
        assert_eq!(code, Some(0), "{}", lab.log());
        let ended = supervisor::health(&lab.engine()).unwrap();
        assert_eq!(ended, SupervisorHealth::Stopped { exit_code: 143, error: String::new() });
        let (code, text) = lab.twinhull(&["supervisor", "status"]);
        assert!(code == 1 && text.contains("stopped: exit code 143"), "{text}");
        assert!(text.contains("last words:") && text.contains("engine answers on "), "{text}");
    });
}

#[test]
fn a_container_that_is_right_is_started_or_kept_and_another_is_replaced() {
    in_lab(|lab| {
        lab.archive("1.0.0");
        lab.watch();
        lab.until_well();
        let first = lab.container_id();

        // Started: the same container after an orderly end.
        lab.end_watcher();
        lab.watch();
        lab.until_well();
        assert_eq!(lab.container_id(), first);
        assert!(lab.log().contains("the container that exists is started"), "{}", lab.log());

        // Kept: it runs on when the watcher is killed.
        let started = lab.started_at();
        lab.kill_watcher();
        lab.watch();
        until("the container is kept", || {
            lab.log().contains("the container that runs is kept").then_some(())
        });
        assert_eq!((lab.container_id(), lab.started_at()), (first.clone(), started));

        // Replaced: another image, then other values of config.json.
        lab.end_watcher();
        lab.archive("2.0.0");
        lab.watch();
        lab.until_well();
        let second = lab.container_id();
        assert_ne!(second, first);
        assert!(lab.log().contains("replaced: its image is "), "{}", lab.log());
        lab.end_watcher();
        lab.config_json(r#", "deltaEndpoint": "https://delta.example.com""#);
        lab.watch();
        lab.until_well();
        assert_ne!(lab.container_id(), second);
        assert!(lab.log().contains("replaced: DELTA_ENDPOINT is "), "{}", lab.log());
    });
}

#[test]
fn a_container_that_is_killed_is_started_again_ever_later() {
    in_lab(|lab| {
        lab.archive("1.0.0");
        lab.watch();
        lab.until_well();
        for wait in ["1 s", "2 s", "4 s"] {
            let before = lab.started_at();
            lab.docker(&["kill", supervisor::NAME]);
            until("a new start", || (lab.started_at() != before && lab.runs()).then_some(()));
            let line = format!("stopped: exit code 137; starts again in {wait}");
            assert!(lab.log().contains(&line), "{line}: {}", lab.log());
        }
        let (_, json) = lab.twinhull(&["supervisor", "status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(status["watcher"]["restarts"], 3, "{json}");
        assert_eq!(status["watcher"]["last_restart"], "stopped: exit code 137");
    });
}

#[test]
fn an_unhealthy_supervisor_is_started_again() {
    in_lab_with(HEALTH_CHECKS, |lab| {
        lab.archive("1.0.0");
        lab.watch();
        lab.until_well();
        let before = lab.started_at();
        let switch = lab.data().join("lab-unhealthy");
        fs::write(&switch, "").unwrap();
        let output = until("an unhealthy supervisor", || {
            let health = supervisor::health(&lab.engine()).unwrap();
            if let SupervisorHealth::Unhealthy { output } = health { Some(output) } else { None }
        });
        assert_eq!(output, "500 /data/lab-unhealthy says so");
        until("a new start", || (lab.started_at() != before).then_some(()));
        fs::remove_file(&switch).unwrap();
        assert_eq!(lab.until_well(), well());
        assert!(lab.log().contains("unhealthy for 2 s: started again"), "{}", lab.log());
    });
}

#[test]
fn an_engine_that_stops_and_starts_under_it_is_survived() {
    in_lab(|lab| {
        lab.archive("1.0.0");
        lab.watch();
        lab.until_well();
        let id = lab.container_id();
        lab.stop_dockerd();
        until("the watcher noticed", || lab.log().contains("waiting for the engine").then_some(()));
        let (code, text) = lab.twinhull(&["supervisor", "status"]);
        assert!(code == 1 && text.contains("engine"), "{text}");
        lab.start_dockerd().unwrap();
        assert_eq!(lab.until_well(), well());
        assert_eq!(lab.container_id(), id);
        assert!(lab.watcher_lives(), "{}", lab.log());
    });
}

#[test]
fn an_engine_that_hangs_costs_deadlines_and_the_watchdog_stays_fed() {
    in_lab(|lab| {
        lab.archive("1.0.0");
        lab.watch();
        lab.until_well();
        lab.freeze_dockerd();
        let (code, text) = lab.twinhull(&["supervisor", "status"]);
        assert!(code == 1 && text.contains("no answer within 15 s"), "{text}");
        until("the watcher noticed", || lab.log().contains("no answer within").then_some(()));
        lab.forget_notified();
        until("WATCHDOG=1", || lab.notified().contains("WATCHDOG=1").then_some(()));
        lab.thaw_dockerd();
        until("the container is kept", || {
            (lab.log().matches("the container that runs is kept").count() > 0).then_some(())
        });
        assert!(lab.watcher_lives(), "{}", lab.log());
    });
}

#[test]
fn an_engine_that_hangs_for_too_long_is_asked_to_be_started_again() {
    in_lab(|lab| {
        lab.add_setting("[engine]\nsockets = [\"/run/docker.sock\"]\nsilent_s = 3\n");
        lab.archive("1.0.0");
        lab.watch();
        lab.until_well();
        let id = lab.container_id();
        let request = lab.path("root/run/twinhull/engine-restart");
        assert!(!request.exists());
        lab.freeze_dockerd();
        // The watchdog is fed, and nothing is killed by us.
        until("the request", || request.exists().then_some(()));
        assert!(lab.watcher_lives() && lab.log().contains("it is to be started again"), "{}", lab.log());
        let (code, text) = lab.twinhull(&["supervisor", "status", "--json"]);
        assert!(code == 1 && text.contains(r#""engine_restarts":1"#), "{text}");
        // What systemd does for `systemctl restart`: SIGTERM, and SIGCONT after it.
        lab.thaw_dockerd();
        lab.stop_dockerd();
        fs::remove_file(&request).unwrap();
        lab.start_dockerd().unwrap();
        assert_eq!(lab.until_well(), well());
        assert_eq!(lab.container_id(), id);
    });
}

#[test]
fn a_full_data_partition_is_survived_and_a_start_on_it_as_well() {
    let mut lab = match Lab::start_on_disk(192) {
        Ok(lab) => lab,
        Err(needs) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "SKIPPED: needs {needs}");
            return;
        }
    };
    lab.archive("1.0.0");
    lab.watch();
    lab.until_well();
    let id = lab.container_id();
    let (data, reserve) = (lab.path("root/mnt/data"), lab.path("root/mnt/data/twinhull/reserve"));
    until("room is kept", || reserve.exists().then_some(()));

    let fill = || {
        use std::io::Write;
        let mut file = fs::File::options().create(true).append(true).open(data.join("fill")).unwrap();
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![7; size]).and_then(|()| file.sync_all()).is_ok() {}
        }
        // Nor is there room for a name, once what the engine wrote meanwhile is counted.
        (0..10_000).take_while(|n| fs::write(data.join(format!("fill-{n}")), [0; 4096]).is_ok()).count();
    };
    // It runs on, and the watcher says what is the matter if somebody asks.
    fill();
    let (code, text) = lab.twinhull(&["status"]);
    assert!(code != 0 && text.contains("the data partition is full"), "{text}");
    let (code, text) = lab.twinhull(&["supervisor", "status"]);
    assert!(code == 0, "{text}");

    // A supervisor that ends is started again: the reserve makes it possible.
    let before = lab.started_at();
    lab.docker(&["kill", supervisor::NAME]);
    until("a new start", || (lab.started_at() != before && lab.runs()).then_some(()));
    assert_eq!((lab.until_well(), lab.container_id()), (well(), id.clone()));
    assert!(!reserve.exists() && lab.log().contains("the data partition is full: 8 MiB"), "{}", lab.log());

    // With room again, it is kept again; and the whole engine can be started on a full disk.
    fs::remove_file(data.join("fill")).unwrap();
    until("room is kept", || reserve.exists().then_some(()));
    lab.end_watcher();
    lab.stop_dockerd();
    fill();
    if !is_podman() {
        assert!(lab.start_dockerd().is_err(), "it starts on a full disk");
    }
    let (code, text) = lab.twinhull(&["engine", "mend", "--json"]);
    assert!(code == 0 && text.contains(r#""gave_up_room":true"#), "{text}");
    lab.start_dockerd().unwrap();
    lab.watch();
    assert_eq!((lab.until_well(), lab.container_id()), (well(), id));
}

#[test]
fn an_image_that_is_nowhere_is_named_and_a_later_archive_is_found() {
    in_lab(|lab| {
        lab.conf("SUPERVISOR_IMAGE=lab/supervisor:1.0.0");
        lab.watch();
        let expected = "supervisor image lab/supervisor:1.0.0 is not in the engine, and no archive is in ";
        until("an error that names it", || lab.log().contains(expected).then_some(()));
        let (code, text) = lab.twinhull(&["supervisor", "status"]);
        assert!(code == 1 && text.contains("missing") && text.contains(expected), "{text}");
        lab.archive_zstd("1.0.0");
        assert_eq!(lab.until_well(), well());
    });
}

#[test]
fn a_new_supervisor_that_is_well_is_kept_and_a_rollback_returns() {
    in_lab(|lab| {
        lab.archive("1.0.0");
        lab.watch();
        lab.until_well();
        let first = lab.container_id();
        let file = lab.loose_archive("2.0.0").display().to_string();
        let (code, text) = lab.twinhull(&["supervisor", "update", "--from", &file]);
        let kept =
            "lab/supervisor:2.0.0 is kept; `twinhull supervisor rollback` returns to lab/supervisor:1.0.0";
        assert!(code == 0 && text.contains(kept), "{code} {text}");
        assert_eq!(lab.image(), "lab/supervisor:2.0.0");
        assert_ne!(lab.container_id(), first);
        let conf = lab.own_conf();
        // Podman gives an image that it loads the name of a registry.
        let named = if is_podman() { "localhost/lab/supervisor:2.0.0" } else { "lab/supervisor:2.0.0" };
        for line in [
            &format!("SUPERVISOR_IMAGE={named}"),
            "SUPERVISOR_VERSION=2.0.0",
            "SUPERVISOR_PREVIOUS_IMAGE=lab/supervisor:1.0.0",
        ] {
            assert!(conf.lines().any(|l| l == line), "{line}: {conf}");
        }
        until("the old container is gone", || lab.names().is_empty().then_some(()));

        // Again: nothing to do.
        let (code, text) = lab.twinhull(&["supervisor", "update", named]);
        assert!(code == 0 && text.contains("is this device's supervisor already"), "{text}");

        let (code, text) = lab.twinhull(&["supervisor", "rollback", "--json"]);
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!((code, &last["outcome"]), (0, &"kept".into()), "{text}");
        assert_eq!(lab.image(), "lab/supervisor:1.0.0");
        let (_, text) = lab.twinhull(&["supervisor", "logs", "--lines", "50"]);
        assert!(text.contains("lab supervisor 1.0.0 on 127.0.0.1:"), "{text}");

        // A third: the one before the last two is cleaned up.
        let file = lab.loose_archive("3.0.0").display().to_string();
        let (code, text) = lab.twinhull(&["supervisor", "update", "--from", &file]);
        assert_eq!(code, 0, "{text}");
        until("the oldest image is gone", || lab.engine().image(named).unwrap().is_none().then_some(()));
        assert!(lab.engine().image("lab/supervisor:1.0.0").unwrap().is_some());
    });
}

#[test]
fn a_new_supervisor_that_is_unhealthy_or_cannot_run_goes_back_to_the_old_container() {
    in_lab_with(HEALTH_CHECKS, |lab| {
        lab.archive("1.0.0");
        lab.watch();
        lab.until_well();
        let first = lab.container_id();
        fs::write(lab.data().join("lab-unhealthy"), "2.0.0").unwrap();
        for (version, file, why) in [
            ("2.0.0", lab.loose_archive("2.0.0"), "failed: unhealthy: 500 /data/lab-unhealthy says so"),
            ("3.0.0", lab.broken_archive("3.0.0"), "failed: it ended 3 times; stopped: exit code "),
        ] {
            let image = format!("lab/supervisor:{version}");
            let (code, text) =
                lab.twinhull(&["supervisor", "update", &image, "--from", &file.display().to_string()]);
            assert!(
                code == 1 && text.contains("lab/supervisor:1.0.0 runs again") && text.contains(why),
                "{text}"
            );
            assert_eq!(lab.until_well(), well());
            assert_eq!((lab.container_id(), lab.own_conf().as_str()), (first.clone(), ""));
            until("its image is gone", || lab.engine().image(&image).unwrap().is_none().then_some(()));
            let (_, text) = lab.twinhull(&["supervisor", "status"]);
            assert!(text.contains(&format!("update:      {image} failed: ")), "{text}");
        }
        assert_eq!(lab.names(), [] as [&str; 0]);
    });
}

#[test]
fn a_trial_that_is_cut_off_leaves_the_old_supervisor() {
    in_lab(|lab| {
        lab.archive("1.0.0");
        lab.watch();
        lab.until_well();
        let first = lab.container_id();
        // Unhealthy is known only after a while, so the trial lasts.
        fs::write(lab.data().join("lab-unhealthy"), "2.0.0").unwrap();
        let file = lab.loose_archive("2.0.0").display().to_string();
        let mut update = lab.begin(&["supervisor", "update", "--from", &file]);
        until("the trial", || (lab.image() == "lab/supervisor:2.0.0" && lab.runs()).then_some(()));

        // A second one waits for no trial.
        let (code, text) = lab.twinhull(&["supervisor", "rollback"]);
        assert!(code == 3 && text.contains("another update goes on"), "{text}");

        lab.kill_watcher();
        update.kill().unwrap();
        update.wait().unwrap();
        lab.forget_run();
        lab.watch();
        until("the old container", || (lab.container_id() == first && lab.runs()).then_some(()));
        assert!(lab.log().contains("the container from before the update returns"), "{}", lab.log());
        assert_eq!((lab.own_conf().as_str(), lab.names().len()), ("", 0));
    });
}

#[test]
fn an_update_that_cannot_begin_touches_nothing() {
    in_lab(|lab| {
        lab.archive("1.0.0");
        let (code, text) = lab.twinhull(&["supervisor", "update", "a/b:1"]);
        assert!(code == 1 && text.contains("nobody keeps the supervisor running"), "{text}");
        lab.watch();
        lab.until_well();
        let (first, started) = (lab.container_id(), lab.started_at());
        for (args, expected_code, expected) in [
            (["update", "127.0.0.1:1/none:1"].as_slice(), 1, "pull 127.0.0.1:1/none:1: "),
            (&["update", "a b"], 2, "is not the name of an image"),
            (&["update", "--from", "/none.tar"], 1, "load /none.tar: open /none.tar: No such file"),
            (&["rollback"], 3, "there is nothing before lab/supervisor:1.0.0"),
            (&["rollback", "x"], 2, "a word or option that it does not take"),
            (&["update", "--follow"], 2, "a word or option that it does not take"),
        ] {
            let (code, text) = lab.twinhull(&[&["supervisor"], args].concat());
            assert!(code == expected_code && text.contains(expected), "{args:?}: {code} {text}");
        }
        assert_eq!((lab.container_id(), lab.started_at()), (first, started));
    });
}

#[test]
fn a_supervisor_is_pulled_with_its_registrys_login() {
    in_lab_with(PLAIN_REGISTRY, |lab| {
        lab.archive("1.0.0");
        lab.watch();
        lab.until_well();
        let address = registry::serve(|address| {
            let (program, file) = (dockerd::program().unwrap(), lab.path("pulled.tar"));
            let name = format!("{address}/lab/supervisor:2.0.0");
            dockerd::write_image(&program, &name, &file);
            file
        });
        let image = format!("{address}/lab/supervisor:2.0.0");
        let login = |password: &str| {
            use base64::Engine as _;
            let auth =
                base64::engine::general_purpose::STANDARD.encode(format!("{}:{password}", registry::USER));
            let file = lab.path("root/etc/twinhull/registry-auth.json");
            fs::write(file, serde_json::json!({ "auths": { &address: { "auth": auth } } }).to_string())
                .unwrap();
        };
        for wrong in [None, Some("wrong")] {
            if let Some(password) = wrong {
                login(password);
            }
            let (code, text) = lab.twinhull(&["supervisor", "update", &image]);
            assert!(code == 1 && text.contains(&format!("pull {image}: ")), "{wrong:?}: {text}");
            assert!(text.contains("auth"), "{text}");
        }
        login(registry::PASSWORD);
        let (code, text) = lab.twinhull(&["supervisor", "update", &image, "--json"]);
        assert!(code == 0 && text.contains(r#""event":"end","outcome":"kept""#), "{text}");
        assert_eq!(lab.image(), image);
    });
}
