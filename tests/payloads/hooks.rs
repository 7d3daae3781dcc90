//! Hooks: what came with the bundle runs in the new system, and decides.

use std::fs;

use crate::Bench;
use crate::support::outcome;

/// A device whose slot B is on trial, with one hook of this text.
fn on_trial(script: &str, deadline: &str) -> Bench {
    let bench = Bench::new();
    let hook = bench.write("hook", format!("#!/bin/sh\n{script}\n").as_bytes());
    let named = format!("10-migrate={}", hook.display());
    let bundle = bench.bundle("new", "2.0.0", &["--hook-deadline", deadline, "--hook", &named]);
    let installed = bench.install(&bundle);
    assert_eq!(outcome(&installed).0, 0, "{}", outcome(&installed).1);
    assert!(bench.device.path("mnt/state/twinhull/hooks/10-migrate").exists());
    bench.boot_into_b();
    bench
}

#[test]
fn one_that_passes_is_followed_by_the_commit() {
    let bench = on_trial("echo ran >> \"${0%/*}/log\"", "60");
    let status = bench.device.status();
    assert_eq!((&status["phase"], &status["update"]["hooks"][0]), (&"on-trial".into(), &"10-migrate".into()));
    let resumed = bench.resume();
    assert_eq!(outcome(&resumed).0, 0, "{}", outcome(&resumed).1);
    assert_eq!(fs::read_to_string(bench.device.path("run/twinhull/hooks/log")).unwrap(), "ran\n");
    let status = bench.device.status();
    assert_eq!(status["phase"], "steady");
    assert_eq!(status["update"]["last"]["result"], "committed");
    assert_eq!(status["boot"]["primary"], "B");
    assert!(!bench.rebooted());
    // Once is enough.
    bench.resume();
    assert_eq!(fs::read_to_string(bench.device.path("run/twinhull/hooks/log")).unwrap(), "ran\n");
}

#[test]
fn one_that_fails_rolls_the_update_back_with_its_output_as_reason() {
    for (script, deadline, says) in [
        (
            "echo the database is of version 7; echo too new >&2; exit 3",
            "60",
            "exit 3: the database is of version 7 | too new",
        ),
        ("echo waiting; sleep 1000", "1", "no answer within 1 s: waiting"),
        ("kill -9 $$", "60", "signal 9"),
    ] {
        let bench = on_trial(script, deadline);
        let resumed = bench.resume();
        assert_eq!(outcome(&resumed).0, 0, "{}", outcome(&resumed).1);
        assert!(bench.rebooted(), "{says}");
        // The journal has the reason before the old system runs again.
        bench.device.write("proc/cmdline", "root=PARTLABEL=resin-rootA ro\n");
        bench.device.write("proc/sys/kernel/random/boot_id", "33333333-2222-3333-4444-555555555555\n");
        bench.resume();
        let status = bench.device.status();
        assert_eq!((&status["phase"], &status["boot"]["primary"]), (&"steady".into(), &"A".into()));
        assert_eq!(status["update"]["last"]["result"], "rolled-back");
        let reason = status["update"]["last"]["reason"].as_str().unwrap();
        assert!(reason.starts_with("hook 10-migrate: ") && reason.contains(says), "{reason}");
    }
}

#[test]
fn one_that_is_not_what_was_signed_never_runs() {
    let bench = on_trial("exit 0", "60");
    let stored = bench.device.path("mnt/state/twinhull/hooks/10-migrate");
    fs::write(&stored, "#!/bin/sh\ntouch \"${0%/*}/ran\"\n").unwrap();
    bench.resume();
    assert!(bench.rebooted());
    assert!(!bench.device.path("run/twinhull/hooks/ran").exists());
}

#[test]
fn the_next_bundle_takes_the_hooks_of_the_one_before_away() {
    let bench = Bench::new();
    let hook = bench.write("hook", b"#!/bin/sh\nexit 0\n");
    let named = format!("one={}", hook.display());
    for (name, more, left) in
        [("first", vec!["--hook", &named], vec!["one", "twinhull.sums"]), ("second", vec![], vec![])]
    {
        let bundle = bench.bundle(name, "2.0.0", &more);
        assert_eq!(outcome(&bench.install(&bundle)).0, 0);
        let mut found: Vec<_> = fs::read_dir(bench.device.path("mnt/state/twinhull/hooks"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, left);
    }
}

#[test]
fn mistakes_of_the_maker_are_told() {
    let bench = Bench::new();
    let hook = bench.write("hook", b"#!/bin/sh\n");
    let large = bench.write("large", &[b'x'; 300_000]);
    let file = |name: &str, path: &std::path::Path| format!("{name}={}", path.display());
    for (args, code, says) in [
        (vec!["--hook".to_owned(), "nothing".into()], 2, "expected NAME=FILE"),
        (vec!["--hook".into(), file("a/b", &hook)], 1, "a hook's name"),
        (vec!["--hook".into(), file("..", &hook)], 1, "\"..\": expected names"),
        (vec!["--hook".into(), file("big", &large)], 1, "\"big\": 300000 bytes, expected at most 262144"),
        (vec!["--hook".into(), file("gone", &bench.path("missing"))], 1, "No such file"),
        (vec!["--hook".into(), file("a", &hook), "--hook".into(), file("A", &hook)], 1, "clashes with"),
        (
            vec!["--hook-deadline".into(), "0".into(), "--hook".into(), file("a", &hook)],
            1,
            "deadline_s of 1 to 3600",
        ),
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (found, text) = outcome(&bench.create("bad", "2.0.0", &args));
        assert_eq!((found, text.lines().count()), (code, 1), "{text}");
        assert!(text.contains(says), "{text}");
        assert!(!bench.path("bad.bundle").exists());
    }
}
