//! Preload archives through the command line: of a real engine's storage, which another engine then starts from without a
//! network; killed at many moments; and read by the real tar, zstd and minisign.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(clippy::disallowed_methods, clippy::disallowed_macros, clippy::cast_possible_truncation)]

#[allow(dead_code)]
#[path = "engine/dockerd.rs"]
mod dockerd;
#[path = "../qemu/src/supervisor_image.rs"]
mod supervisor_image;
#[allow(dead_code)]
mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dockerd::Lab;
use support::{Device, KeyPair, outcome, run, twinhull};

const TAG: &str = "lab/layers:1";

#[test]
fn an_engine_starts_on_what_was_unpacked_without_a_network() {
    let mut lab = match Lab::start() {
        Ok(lab) => lab,
        Err(needs) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "SKIPPED: needs {needs}");
            return;
        }
    };
    // What a maker does: an engine of the build host pulls or loads images, and is stopped.
    lab.archive("1.0.0");
    let archives = lab.path("root/mnt/data/supervisor");
    for file in [archives.join("supervisor-1.0.0.tar"), layers(&lab.path("layers.tar"))] {
        lab.engine().load(fs::File::open(file).unwrap(), &mut |_| Ok(())).unwrap();
    }
    fs::remove_dir_all(&archives).unwrap();
    lab.stop_dockerd();
    let (keys, storage) = (lab.path("root/usr/share/twinhull/keys.d"), lab.path("data"));
    fs::create_dir_all(&keys).unwrap();
    let key = KeyPair::new(&lab.path(""), "fleet");
    fs::copy(&key.public, keys.join("fleet.pub")).unwrap();
    fs::create_dir_all(lab.path("root/mnt/data/preload")).unwrap();
    let archive = lab.path("root/mnt/data/preload/apps.preload");
    let tree = format!("docker={}", storage.display());
    let [out, secret] = [&archive, &key.secret].map(|p| p.to_str().unwrap());
    let packed = twinhull(&["preload", "pack", &tree, "--compatible", "lab", "--key", secret, "-o", out]);
    assert_eq!(outcome(&packed).0, 0, "{packed:?}");
    let marks = whiteouts(&storage);

    // The device, where there is no storage yet.
    fs::remove_dir_all(&storage).unwrap();
    lab.config_json(r#", "deviceType": "lab""#);
    let (code, text) = lab.twinhull(&["preload", "unpack"]);
    assert_eq!(code, 0, "{text}");
    assert!(!archive.exists(), "it only takes up room");
    let unpacked = lab.path("root/mnt/data/docker");
    assert!(!unpacked.join("engine-id").exists(), "each device's engine has a name of its own");
    assert_eq!(whiteouts(&unpacked), marks);
    fs::rename(&unpacked, &storage).unwrap();
    lab.start_dockerd().unwrap();
    for image in ["lab/supervisor:1.0.0", TAG] {
        assert!(lab.engine().image(image).unwrap().is_some(), "{image}");
    }
    println!("COUNTED: preload of an engine's storage, {marks} whiteouts");
    lab.watch();
    lab.until_well();
    assert!(lab.http("/v1/healthy").starts_with("HTTP/1.1 200"));
}

/// An image of two layers, of which the second removes a file and hides a directory of the first.
fn layers(out: &Path) -> PathBuf {
    let layer = |files: &[(&str, &str)]| {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, text) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, text.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap()
    };
    let layers = [
        layer(&[("gone", "1"), ("dir/old", "2"), ("kept", "3")]),
        layer(&[(".wh.gone", ""), ("dir/.wh..wh..opq", ""), ("dir/new", "4")]),
    ];
    let digest = |bytes: &[u8]| {
        use sha2::Digest;
        sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    let ids = layers.each_ref().map(|l| format!("sha256:{}", digest(l)));
    let config = serde_json::json!({ "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/none"] },
        "rootfs": { "type": "layers", "diff_ids": ids } });
    let config = config.to_string();
    let manifest =
        serde_json::json!([{ "Config": "config.json", "RepoTags": [TAG], "Layers": ["1.tar", "2.tar"] }]);
    let manifest = manifest.to_string();
    let mut tar = tar::Builder::new(fs::File::create(out).unwrap());
    let [first, second] = &layers;
    for (path, bytes) in [
        ("config.json", config.as_bytes()),
        ("1.tar", first),
        ("2.tar", second),
        ("manifest.json", manifest.as_bytes()),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, bytes).unwrap();
    }
    tar.into_inner().unwrap();
    out.to_owned()
}

/// overlay2's marks of removed files in a tree.
fn whiteouts(dir: &Path) -> usize {
    let mut found = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let facts = fs::symlink_metadata(&path).unwrap();
        found += usize::from(facts.file_type().is_char_device() && facts.rdev() == 0);
        if facts.is_dir() {
            found += whiteouts(&path);
        }
    }
    found
}

/// A device with an archive on its data partition, of a tree of some thousand files.
fn device() -> (Device, tempfile::TempDir, KeyPair) {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::new(dir.path(), "fleet");
    let device = Device::new(&[&key]);
    let tree = dir.path().join("tree");
    for i in 0..3000_u64 {
        let inner = tree.join(format!("{}/{}", i % 7, i % 31));
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join(format!("file-{i}")), support::pattern(i * 13 % 20_000, i)).unwrap();
    }
    fs::hard_link(tree.join("0/0/file-0"), tree.join("again")).unwrap();
    run("mknod", &[tree.join("null").to_str().unwrap(), "c", "1", "3"]);
    device.write("mnt/data/preload/x", "");
    fs::remove_file(device.path("mnt/data/preload/x")).unwrap();
    let out = device.path("mnt/data/preload/apps.preload");
    let [out, secret] = [&out, &key.secret].map(|p| p.to_str().unwrap().to_owned());
    let tree = format!("docker={}", tree.display());
    let args =
        ["preload", "pack", &tree, "--compatible", "intel-nuc", "--segment-size", "1", "--key", &secret];
    let packed = twinhull(&[&args[..], &["-o", &out, "--level", "1"]].concat());
    assert_eq!(outcome(&packed).0, 0, "{packed:?}");
    (device, dir, key)
}

/// What `find` and `sha256sum` say of a tree.
fn listing(dir: &Path) -> String {
    let script = "cd \"$1\" && find . -printf '%p %y %m %U %G %n %l %Ts\\n' | sort && \
                  find . -type f -print0 | sort -z | xargs -0 sha256sum";
    run("sh", &["-c", script, "sh", dir.to_str().unwrap()])
}

#[test]
fn killed_at_many_moments_it_ends_whole_and_as_the_real_tools_unpack_it() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: needs root (for device nodes)");
        return;
    }
    let (device, dir, key) = device();
    let archive = device.path("mnt/data/preload/apps.preload");
    // The real tools first, as the archive goes.
    let other = dir.path().join("other");
    fs::create_dir_all(&other).unwrap();
    let script = "cd \"$1\" && tar -xf \"$2\" && minisign -V -q -p \"$3\" -m manifest.toml -x manifest.toml.*.minisig && \
                  tar --zstd --xattrs --xattrs-include='*' -xf data.tar.zst";
    let [at, from, public] = [&other, &archive, &key.public].map(|p| p.to_str().unwrap());
    run("sh", &["-c", script, "sh", at, from, public]);

    let started = Instant::now();
    let whole = {
        let copy = dir.path().join("copy");
        fs::copy(&archive, &copy).unwrap();
        assert_eq!(outcome(&device.twinhull(&["preload", "unpack"])).0, 0);
        let took = started.elapsed();
        fs::remove_dir_all(device.path("mnt/data/docker")).unwrap();
        fs::remove_file(device.path("mnt/data/.twinhull-preloaded.json")).unwrap();
        fs::copy(&copy, &archive).unwrap();
        took
    };
    let mut kills = 0;
    // Each run gets a little longer than the last, so that the end is reached in any case.
    for n in 1.. {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinhull"));
        command.arg("--root").arg(device.path("")).args(["preload", "unpack"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole * n / 300 + Duration::from_millis(1));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        // Either nothing is in its place, or all of it.
        let there = device.path("mnt/data/docker");
        assert!(!there.exists() || listing(&there) == listing(&other.join("docker")), "after kill {kills}");
    }
    println!("COUNTED: preload killed {kills} times");
    assert_eq!(listing(&device.path("mnt/data/docker")), listing(&other.join("docker")));
    let left: Vec<_> =
        fs::read_dir(device.path("mnt/data")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
    assert_eq!(fs::read_dir(device.path("mnt/data/preload")).unwrap().count(), 0);
}

#[test]
fn mistakes_are_told_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::new(dir.path(), "fleet");
    let stranger = KeyPair::new(dir.path(), "stranger");
    let device = Device::new(&[&key]);
    let file = dir.path().join("apps.json");
    fs::write(&file, "{}").unwrap();
    let tree = format!("apps.json={}", file.display());
    let out = device.path("mnt/data/preload/apps.preload");
    fs::create_dir_all(out.parent().unwrap()).unwrap();
    let pack = |compatible: &str, key: &KeyPair| {
        let [out, secret] = [&out, &key.secret].map(|p| p.to_str().unwrap());
        let args = ["preload", "pack", &tree, "--compatible", compatible, "--key", secret, "-o", out];
        let packed = twinhull(&args);
        assert_eq!(outcome(&packed).0, 0, "{packed:?}");
    };
    let unpack = || outcome(&device.twinhull(&["preload", "unpack"]));
    assert_eq!(unpack(), (0, "nothing to unpack\n".into()));
    for (compatible, key, code, expected) in [
        ("fincm3", &key, 3, "the archive is for fincm3 (amd64), this device is intel-nuc (amd64)"),
        ("intel-nuc", &stranger, 3, "get a bundle signed for this device"),
    ] {
        pack(compatible, key);
        let (found, text) = unpack();
        assert!(found == code && text.contains(expected), "{found}: {text}");
        assert!(out.exists() && !device.path("mnt/data/apps.json").exists());
    }
    fs::write(&out, "x").unwrap();
    let (code, text) = unpack();
    assert!(code == 1 && text.contains("not a bundle, or cut short"), "{code}: {text}");
    assert_eq!(device.status()["preload"][0]["state"], "failed");
    pack("intel-nuc,other", &key);
    device.write("mnt/data/apps.json", "mine");
    let (code, text) = unpack();
    assert!(code == 0 && text.contains("is passed over") && out.exists(), "{code}: {text}");
    assert_eq!(fs::read_to_string(device.path("mnt/data/apps.json")).unwrap(), "mine");
    assert_eq!(device.status()["preload"][0]["state"], "passed-over");
    fs::remove_file(device.path("mnt/data/apps.json")).unwrap();
    assert_eq!(unpack().0, 0);
    assert_eq!(fs::read_to_string(device.path("mnt/data/apps.json")).unwrap(), "{}");

    for (args, expected) in [
        (&["preload"] as &[&str], "unpack, verify or pack"),
        (&["preload", "unpack", "x"], "unexpected argument"),
        (&["preload", "verify", "x"], "--keys DIR"),
        (&["preload", "pack", "docker"], "expected NAME=PATH"),
        (&["preload", "pack", "a=/b", "-o", "/tmp/x.preload", "--key", "k"], "--compatible is needed"),
        (&["preload", "pack", "a=/b", "--compatible", "a", "--key", "k"], "--output is needed"),
    ] {
        let (code, text) = outcome(&twinhull(args));
        assert!(
            code == 2 && text.contains(expected) && text.lines().count() == 1,
            "{args:?}: {code}: {text}"
        );
    }
}
