//! Files of a real engine damaged as a power cut does it: it does not start, is mended, and has all that it had.
//!
//! Needs what tests/engine.rs needs; without it each test says `SKIPPED: needs …`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(clippy::disallowed_methods, clippy::disallowed_macros)]

#[path = "engine/dockerd.rs"]
#[allow(dead_code)]
mod dockerd;
#[path = "../qemu/src/supervisor_image.rs"]
mod supervisor_image;

use std::fs::{self, File};

use dockerd::{Lab, is_podman, well};
use serde_json::Value;

#[derive(Debug, Clone, Copy)]
enum Damage {
    Empty,
    /// As long as it was, and nothing but zeros: the length is on the disk, the blocks are not.
    Zeros,
    /// The first of these many parts.
    Part(u64),
    /// One page of a database.
    ZeroPage(u64),
}

impl Damage {
    fn do_to(self, file: &File) {
        use std::os::unix::fs::FileExt;
        let len = file.metadata().unwrap().len();
        match self {
            Self::Empty => file.set_len(0).unwrap(),
            Self::Part(parts) => file.set_len(len / parts).unwrap(),
            Self::Zeros => file.write_all_at(&vec![0; usize::try_from(len).unwrap()], 0).unwrap(),
            Self::ZeroPage(n) => file.write_all_at(&[0; 4096], n * 4096).unwrap(),
        }
    }
}

const NAMES: &str = "image/overlay2/repositories.json";
const VOLUMES: &str = "volumes/metadata.db";
const NETWORKS: &str = "network/files/local-kv.db";
const CONTAINERD: &str = "containerd/daemon/io.containerd.metadata.v1.bolt/meta.db";

#[test]
fn an_engine_that_does_not_start_any_more_is_mended_and_has_what_it_had() {
    let mut lab = match Lab::start() {
        Ok(_) if is_podman() => return skipped("dockerd: Podman has other files"),
        Ok(lab) => lab,
        Err(needs) => return skipped(&needs),
    };
    lab.add_setting("[engine]\nsockets = [\"/run/docker.sock\"]\nstorage = [\"/../data\", \"/none\"]\n");
    lab.archive("1.0.0");
    lab.watch();
    lab.until_well();
    let id = lab.container_id();
    lab.end_watcher();
    // Nothing but the engine's own storage has the image now.
    fs::remove_dir_all(lab.path("root/mnt/data/supervisor")).unwrap();

    let mut kept = 0;
    for (name, damage) in [
        (NAMES, Damage::Empty),
        (NAMES, Damage::Zeros),
        (NAMES, Damage::Part(2)),
        (VOLUMES, Damage::Zeros),
        (VOLUMES, Damage::Part(8)),
        (NETWORKS, Damage::Zeros),
        (NETWORKS, Damage::Part(16)),
        (CONTAINERD, Damage::Zeros),
        (CONTAINERD, Damage::Part(8)),
        ("buildkit/cache.db", Damage::Zeros),
    ] {
        let what = format!("{name} {damage:?}");
        lab.stop_dockerd();
        let file = lab.path("data").join(name);
        damage.do_to(&File::options().write(true).open(&file).expect(&what));
        assert!(lab.start_dockerd().is_err(), "{what}: the engine starts all the same");

        let (code, text) = lab.twinhull(&["engine", "mend", "--json"]);
        let told: Value = serde_json::from_str(text.lines().next().unwrap()).expect(&text);
        assert_eq!((code, told["mended"].as_array().unwrap().len()), (0, 1), "{what}: {text}");
        assert!(told["mended"][0]["file"].as_str().unwrap().ends_with(name), "{what}: {text}");
        kept += 1;

        lab.start_dockerd().expect(&what);
        assert_eq!(lab.container_id(), id, "{what}");
        assert!(lab.engine().image("lab/supervisor:1.0.0").unwrap().is_some(), "{what}");
        lab.watch();
        assert_eq!(lab.until_well(), well(), "{what}");
        assert_eq!(lab.container_id(), id, "{what}");
        lab.end_watcher();
    }
    let (_, text) = lab.twinhull(&["status", "--json"]);
    let status: Value = serde_json::from_str(text.lines().next().unwrap()).expect(&text);
    assert_eq!(status["engine"]["damaged"].as_array().unwrap().len(), kept, "{text}");

    // An engine that runs is left alone: its databases are its own.
    let (code, text) = lab.twinhull(&["engine", "mend", "--json"]);
    assert!(code == 0 && text.contains(r#""mended":[]"#), "{text}");
}

#[test]
fn a_page_of_zeros_that_ends_the_engine_is_found() {
    let mut lab = match Lab::start() {
        Ok(_) if is_podman() => return skipped("dockerd: Podman has other files"),
        Ok(lab) => lab,
        Err(needs) => return skipped(&needs),
    };
    lab.add_setting("[engine]\nsockets = [\"/run/docker.sock\"]\nstorage = [\"/../data\"]\n");
    let mut ended = 0;
    for name in [VOLUMES, CONTAINERD] {
        lab.stop_dockerd();
        let file = lab.path("data").join(name);
        let sound = fs::read(&file).unwrap();
        for page in 2..sound.len() as u64 / 4096 {
            fs::write(&file, &sound).unwrap();
            Damage::ZeroPage(page).do_to(&File::options().write(true).open(&file).unwrap());
            if lab.start_dockerd().is_ok() {
                lab.stop_dockerd();
                continue;
            }
            ended += 1;
            let (_, text) = lab.twinhull(&["engine", "mend"]);
            assert!(text.contains("was damaged"), "{name}, page {page}: {text}");
            lab.start_dockerd().unwrap();
            lab.stop_dockerd();
        }
        fs::write(&file, &sound).unwrap();
        lab.start_dockerd().unwrap();
    }
    assert!(ended > 0, "no page of zeros ended the engine");
}

fn skipped(needs: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: needs {needs}");
}
