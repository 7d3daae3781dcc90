//! A root image with a hash tree: its slot is sealed before it is armed, and never with another image's seal.

use std::fs;
use std::path::PathBuf;

use twinhull::block::{FileDisk, seal};
use twinhull::model::Verity;

use crate::support::{SLOT, outcome, pattern, run};
use crate::{Bench, bundle};

/// An image of `len` bytes with its tree behind it, by the real veritysetup: the image, and what `bundle create` is told.
fn image(bench: &Bench, len: u64) -> (Vec<u8>, [String; 4]) {
    let path = bench.write("sealed", &pattern(len, len));
    let (name, blocks) = (path.to_str().unwrap(), (len / 4096).to_string());
    let offset = len.to_string();
    let said =
        run("veritysetup", &["format", "--data-blocks", &blocks, "--hash-offset", &offset, name, name]);
    let root = said.lines().find_map(|l| l.strip_prefix("Root hash:")).unwrap().trim().to_owned();
    (fs::read(path).unwrap(), ["--verity-root".into(), root, "--verity-offset".into(), offset])
}

fn sealed(bench: &Bench, name: &str, len: u64) -> (PathBuf, Verity) {
    let (image, options) = image(bench, len);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let verity = Verity { root_hash: options[1].parse().unwrap(), hash_offset: len };
    (bundle::bundle(bench.dir.path(), name, &image, &[&bench.key], &options), verity)
}

fn seal_of(bench: &Bench, partition: &str) -> Option<Verity> {
    seal::read(&mut FileDisk::open_read_only(&bench.device.path(partition)).unwrap(), 0).unwrap()
}

#[test]
fn the_slot_gets_the_seal_of_its_image_and_loses_it_to_an_image_without() {
    let bench = Bench::new();
    let before = bench.device.slots();
    let [(one, first), (two, second)] = [sealed(&bench, "one", 1 << 20), sealed(&bench, "two", 3 << 20)];
    for (bundle, verity) in [(&one, Some(first)), (&two, Some(second))] {
        let installed = bench.install(bundle);
        assert_eq!(outcome(&installed).0, 0, "{}", outcome(&installed).1);
        assert_eq!(seal_of(&bench, "dev/vda3"), verity);
        assert_eq!(bench.device.status()["phase"], "ready-to-reboot");
    }
    assert_eq!(bench.device.slots()[0], before[0], "nobody touches the slot that runs");
    bench.boot_into_b();
    let status = bench.device.twinhull(&["status"]);
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    let line = format!("Root        sealed: each block is checked, root hash {}", second.root_hash);
    assert!(said.contains(&line), "{said}");

    let other = Bench::new();
    other.install(&sealed(&other, "one", 1 << 20).0);
    assert!(seal_of(&other, "dev/vda3").is_some());
    let installed = other.install(&other.bundle("plain", "2.1.0", &[]));
    assert_eq!(outcome(&installed).0, 0, "{}", outcome(&installed).1);
    assert_eq!(seal_of(&other, "dev/vda3"), None);
}

#[test]
fn the_manifest_says_so_in_a_format_of_its_own() {
    let bench = Bench::new();
    let (path, verity) = sealed(&bench, "one", 1 << 20);
    let text = run("tar", &["-xOf", path.to_str().unwrap(), "manifest.toml"]);
    assert_eq!(text.lines().next(), Some("format = 4"));
    let expected = format!(
        "[payload.verity]\nroot_hash = \"{}\"\nhash_offset = {}\n",
        verity.root_hash, verity.hash_offset
    );
    assert!(text.contains(&expected), "{text}");
}

#[test]
fn what_could_not_be_sealed_or_not_be_booted_is_refused() {
    let bench = Bench::new();
    // As large as the slot, so that the seal has no place.
    let tree_bytes = 4096 + 8 * 4096 + 4096;
    let largest = SLOT - tree_bytes;
    assert_eq!(image(&bench, largest).0.len() as u64, SLOT);
    let installed = bench.install(&sealed(&bench, "large", largest).0);
    let (code, text) = outcome(&installed);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("the slot 4190208 beside the seal"), "{text}");
    assert_eq!(bench.device.status()["phase"], "steady");
    // One block less, and it has.
    let installed = bench.install(&sealed(&bench, "fits", largest - 4096).0);
    assert_eq!(outcome(&installed).0, 0, "{}", outcome(&installed).1);

    // The maker's mistakes.
    let (whole, options) = image(&bench, 1 << 20);
    let [_, root, _, offset] = &options;
    let zeros = "0".repeat(64);
    let mut damaged = whole.clone();
    damaged[5000] ^= 1;
    for (image, args, code, says) in [
        (&whole, vec!["--verity-root", root], 2, "--verity-root, --verity-offset and --image together"),
        (&whole, vec!["--verity-root", &zeros, "--verity-offset", offset], 1, "root hash is"),
        (&whole, vec!["--verity-root", root, "--verity-offset", "4096"], 1, "no superblock of veritysetup"),
        (
            &damaged,
            vec!["--verity-root", root, "--verity-offset", offset],
            1,
            "not that of the data before it",
        ),
    ] {
        let made = bundle::create(&bench.path("bad.bundle"), image, &[&bench.key], &args);
        let (found, text) = outcome(&made);
        assert_eq!(found, code, "{text}");
        assert!(text.contains(says), "{text}");
        assert!(!bench.path("bad.bundle").exists());
    }
}
