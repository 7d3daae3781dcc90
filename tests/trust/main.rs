//! Whom a device believes, and what it never goes back to: from `bundle sign` to `install`, with the real minisign.
#![cfg(feature = "build-host")]
// Tests may panic and start programs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, clippy::disallowed_macros)]
#![allow(clippy::cast_possible_truncation)]

#[path = "../support/bundle.rs"]
mod bundle;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use support::{Device, KeyPair, SLOT, outcome, pattern, run, twinhull};

struct Bench {
    dir: tempfile::TempDir,
    image: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), image: pattern(SLOT / 4, 99) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn keys<const N: usize>(&self) -> [KeyPair; N] {
        std::array::from_fn(|i| KeyPair::new(self.dir.path(), &format!("key{i}")))
    }

    /// A bundle signed by `keys`.
    fn bundle(&self, version: &str, keys: &[&KeyPair], more: &[&str]) -> PathBuf {
        let options = [&["--version", version], more].concat();
        bundle::bundle(self.dir.path(), version, &self.image, keys, &options)
    }
}

fn install(device: &Device, bundle: &Path, more: &[&str]) -> Output {
    device.twinhull(&[&["install", bundle.to_str().unwrap()], more].concat())
}

fn assert_taken(bench: &Bench, device: &Device, output: &Output) {
    assert_eq!(outcome(output).0, 0, "{}", outcome(output).1);
    assert_eq!(device.status()["phase"], "ready-to-reboot");
    let [a, b] = device.slots();
    assert!([a, b].iter().any(|slot| slot.starts_with(&bench.image)));
}

/// Exit 3, one line that says `says`, and no slot was touched.
fn assert_refused(device: &Device, before: &[Vec<u8>; 2], output: &Output, says: &str) {
    let (code, text) = outcome(output);
    assert_eq!((code, text.lines().count()), (3, 1), "{text}");
    assert!(text.contains(says), "expected {says:?} in {text}");
    assert!(device.slots() == *before, "a slot was written");
    assert_eq!(device.status()["boot"]["trial"], serde_json::Value::Null);
}

#[test]
fn k_of_n_keys_must_have_signed_and_be_different_ones() {
    let bench = Bench::new();
    let [a, b, c, stranger] = bench.keys();
    let two_of_three = || {
        let device = Device::new(&[&a, &b, &c]);
        device.write("etc/twinhull/keys.toml", "[bundle]\nsignatures = 2\n");
        // The same key once more is no other key.
        fs::copy(&a.public, device.path("usr/share/twinhull/keys.d/again.pub")).unwrap();
        device
    };
    for keys in [&[&a, &b][..], &[&c, &a], &[&a, &b, &c], &[&stranger, &b, &c]] {
        let device = two_of_three();
        assert_taken(&bench, &device, &install(&device, &bench.bundle("2.0.0", keys, &[]), &[]));
    }
    for (keys, says) in [
        (&[&a][..], "1 of the keys in "),
        (&[&stranger, &b], "1 of the keys in "),
        (&[&stranger], "0 of the keys in "),
        (&[], "signed by nobody"),
    ] {
        let device = two_of_three();
        let before = device.slots();
        let output = install(&device, &bench.bundle("2.0.0", keys, &[]), &[]);
        assert_refused(&device, &before, &output, says);
        assert!(outcome(&output).1.contains("2 needed; get a bundle signed for this device"));
    }
    // A directory without enough keys is no open door.
    let device = Device::new(&[]);
    let (code, text) = outcome(&install(&device, &bench.bundle("2.0.0", &[&a], &[]), &[]));
    assert_eq!((code, text.lines().count()), (1, 1), "{text}");
    assert!(text.contains("keys.d: 0 found, 1 needed"), "{text}");
}

#[test]
fn a_revoked_key_is_like_no_key() {
    let bench = Bench::new();
    let [stolen, next] = bench.keys();
    let device = Device::new(&[&stolen, &next]);
    let before = device.slots();
    fs::copy(&stolen.public, device.path("usr/share/twinhull/keys.d/2026-stolen.revoked")).unwrap();
    let output = install(&device, &bench.bundle("2.0.0", &[&stolen], &[]), &[]);
    assert_refused(&device, &before, &output, " (revoked): 0 of the keys in ");
    assert_taken(&bench, &device, &install(&device, &bench.bundle("2.0.1", &[&stolen, &next], &[]), &[]));
}

#[test]
fn a_signature_of_the_real_minisign_is_taken_and_ours_is_taken_by_it() {
    let bench = Bench::new();
    let [key, other] = bench.keys();
    let [secret, public] = [&key.secret, &key.public].map(|p| p.to_str().unwrap());
    // Ours: minisign -V checks the manifest as it lies in the bundle.
    let bundle = bench.bundle("2.0.0", &[&key], &[]);
    run("tar", &["-C", bench.dir.path().to_str().unwrap(), "-xf", bundle.to_str().unwrap()]);
    let manifest = bench.path("manifest.toml").to_str().unwrap().to_owned();
    let made = fs::read_dir(bench.dir.path()).unwrap().map(|e| e.unwrap().path());
    let made = made.into_iter().find(|p| p.extension().is_some_and(|e| e == "minisig")).unwrap();
    let text = run("minisign", &["-V", "-p", public, "-m", &manifest, "-x", made.to_str().unwrap()]);
    assert!(text.contains("Signature and comment signature verified"), "{text}");
    // minisign's, made where the key is and brought back.
    let unsigned = bench.bundle("2.0.1", &[], &[]);
    run(
        "tar",
        &["-C", bench.dir.path().to_str().unwrap(), "-xf", unsigned.to_str().unwrap(), "manifest.toml"],
    );
    let theirs = bench.path("theirs").to_str().unwrap().to_owned();
    run("minisign", &["-S", "-s", secret, "-m", &manifest, "-x", &theirs, "-t", "release 2.0.1"]);
    let sign = |public: &str| {
        let unsigned = unsigned.to_str().unwrap();
        twinhull(&["bundle", "sign", unsigned, "--signature", &theirs, "--public", public])
    };
    assert_eq!(outcome(&sign(other.public.to_str().unwrap())).0, 3);
    assert_eq!(outcome(&sign(public)).0, 0);
    let device = Device::new(&[&key]);
    assert_taken(&bench, &device, &install(&device, &unsigned, &[]));
}

#[test]
fn one_bundle_may_be_for_several_device_types() {
    let bench = Bench::new();
    let [key] = bench.keys();
    let bundle =
        bench.bundle("2.0.0", &[&key], &["--compatible", "raspberrypi4-64,intel-nuc,genericx86-64-ext"]);
    for (slug, is_meant) in
        [("intel-nuc", true), ("genericx86-64-ext", true), ("intel", false), ("fincm3", false)]
    {
        let device = Device::new(&[&key]);
        let before = device.slots();
        device.write("mnt/boot/device-type.json", &format!(r#"{{"slug":"{slug}","arch":"amd64"}}"#));
        let output = install(&device, &bundle, &[]);
        if is_meant {
            assert_taken(&bench, &device, &output);
        } else {
            assert_refused(&device, &before, &output, &format!("get the bundle made for {slug}"));
        }
    }
}

/// Boots what is armed, in a boot of this number, and commits it or gives up on it.
fn boot(device: &Device, slot: &str, number: u32, command: &str) {
    device.write("proc/cmdline", &format!("root=PARTLABEL=resin-root{slot} ro\n"));
    device.write("proc/sys/kernel/random/boot_id", &format!("{number:08}-2222-3333-4444-555555555555\n"));
    let done = device.twinhull(&[command]);
    assert_eq!(outcome(&done).0, 0, "{}", outcome(&done).1);
}

fn runs(device: &Device, version: &str) {
    device.write("etc/os-release", &format!("ID=balena-os\nVERSION_ID=\"{version}\"\n"));
}

#[test]
fn nothing_goes_below_the_release_that_was_committed() {
    let bench = Bench::new();
    let [key] = bench.keys();
    let release = |version: &str, release: &str| bench.bundle(version, &[&key], &["--release", release]);
    let [old, five, six] = [release("2.0.0", "4"), release("2.1.0", "5"), release("2.2.0", "6")];
    let [five_again, newer_but_below, none] =
        [release("1.9.0", "5"), release("9.0.0", "4"), bench.bundle("9.0.1", &[&key], &[])];
    let device = Device::new(&[&key]);
    assert_eq!(device.status()["update"]["release_floor"], 0);

    // Armed is not committed: the floor stays where it is.
    assert_taken(&bench, &device, &install(&device, &six, &[]));
    assert_taken(&bench, &device, &install(&device, &five, &[]));
    boot(&device, "B", 2, "commit");
    runs(&device, "2.1.0");
    assert_eq!(device.status()["update"]["release_floor"], 5);
    let before = device.slots();
    for (bundle, more) in [
        (&old, &[][..]),
        (&old, &["--allow-downgrade"]),
        (&old, &["--allow-downgrade", "--force"]),
        (&newer_but_below, &[]),
        (&none, &["--allow-downgrade"]),
    ] {
        let output = install(&device, bundle, more);
        assert_refused(&device, &before, &output, "this device takes 5 and above");
    }
    // At the floor, an older version is a downgrade that may be asked for.
    assert_refused(&device, &before, &install(&device, &five_again, &[]), "--allow-downgrade installs it");
    assert_taken(&bench, &device, &install(&device, &five_again, &["--allow-downgrade"]));
    boot(&device, "A", 3, "commit");
    runs(&device, "1.9.0");
    assert_eq!(device.status()["update"]["release_floor"], 5);

    // What was tried and not committed does not raise it.
    assert_taken(&bench, &device, &install(&device, &six, &[]));
    assert_eq!(outcome(&device.twinhull(&["rollback"])).0, 0);
    assert_eq!(device.status()["update"]["release_floor"], 5);
    // A journal that is lost does not open the door that the image keeps shut.
    device.write("etc/twinhull/floor.toml", "[bundle]\nrelease_floor = 6\n");
    fs::remove_file(device.path("mnt/state/twinhull/journal.json")).unwrap();
    let before = device.slots();
    assert_eq!(device.status()["update"]["last"], serde_json::Value::Null);
    assert_refused(&device, &before, &install(&device, &five, &[]), "this device takes 6 and above");
    assert_taken(&bench, &device, &install(&device, &six, &[]));
}
