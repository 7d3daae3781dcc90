//! The format of payloads of files: what other readers make of it, and what is refused.

use std::fs;

use twinhull::bundle::{Bundle, Keys};
use twinhull::model::PayloadKind;

use crate::Bench;
use crate::boot_files::boot_dir;
use crate::support::{outcome, run, twinhull};

/// A bundle of format 2 with boot files and a hook: its path, and the directory of the boot files.
fn bundle(bench: &Bench, more: &[&str]) -> (String, String) {
    let dir = boot_dir(bench, "2.0.0");
    bench.write("boot-2.0.0/empty", b"");
    let hook = bench.write("hooks/check", b"#!/bin/sh\nexit 0\n");
    let named = format!("check={}", hook.display());
    let bundle = bench.bundle("new", "2.0.0", &[&["--boot-dir", &dir, "--hook", &named], more].concat());
    (bundle.to_str().unwrap().to_owned(), dir)
}

#[test]
fn a_reader_that_knows_only_the_format_description_agrees() {
    let bench = Bench::new();
    let (bundle, dir) = bundle(&bench, &[]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bundle/independent_reader.py");
    let [image, hooks] = ["new.image", "hooks"].map(|n| bench.path(n).to_str().unwrap().to_owned());
    run("python3", &[script, &bundle, &image, &dir, &hooks]);
}

#[test]
fn it_is_signed_again_and_is_the_aim_of_a_delta_as_any_other() {
    let bench = Bench::new();
    let (bundle, _) = bundle(&bench, &[]);
    let second = crate::support::KeyPair::new(bench.dir.path(), "second");
    let signed = twinhull(&["bundle", "sign", &bundle, "--key", second.secret.to_str().unwrap()]);
    assert!(signed.status.success(), "{}", outcome(&signed).1);
    let old = bench.write("old.img", &crate::support::pattern(1 << 20, 3));
    let out = bench.path("delta");
    let [old, out] = [&old, &out].map(|p| p.to_str().unwrap());
    let made = twinhull(&["bundle", "delta", "--from", old, "--to", &bundle, "--level", "1", "-o", out]);
    assert!(made.status.success(), "{}", outcome(&made).1);
    let installed =
        bench.device.twinhull(&["bundle", "verify", &bundle, "--keys", bench.dir.path().to_str().unwrap()]);
    assert!(installed.status.success(), "{}", outcome(&installed).1);
}

/// Puts every payload of a bundle together in memory, as a device would write them.
fn read_all(bytes: &[u8], keys: &Keys) -> twinhull::Result<Vec<Vec<u8>>> {
    let mut bundle = Bundle::open(bytes, keys)?;
    let mut images = vec![Vec::new(); 1 + bundle.manifest().files.len()];
    let (root, files) = images.split_first_mut().unwrap();
    bundle.write_root(
        &mut |_, piece| {
            root.extend_from_slice(piece);
            Ok(())
        },
        &mut |_| (),
    )?;
    for (number, image) in files.iter_mut().enumerate() {
        bundle.write_files(number, &mut |offset, piece| {
            assert_eq!(offset, image.len() as u64, "out of order");
            image.extend_from_slice(piece);
            Ok(())
        })?;
    }
    Ok(images)
}

#[test]
fn damaged_in_any_way_it_is_refused_or_gives_the_same_files() {
    let bench = Bench::new();
    let (path, _) = bundle(&bench, &[]);
    let whole = fs::read(path).unwrap();
    let keys = Keys::load(bench.dir.path(), 1).unwrap();
    let right = read_all(&whole, &keys).unwrap();
    // From the last blocks of the root image on: members, indexes and frames of the files.
    let files_at = whole.len() - 140_000;
    let mut state = 99_u64;
    let mut dice = |end: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % end
    };
    let mut refused = 0;
    for number in 0..600 {
        let mut bad = whole.clone();
        let at = files_at + dice(bad.len() - files_at);
        match number % 4 {
            0 => bad[at] ^= 1 << dice(8),
            1 => bad.truncate(at),
            2 => drop(bad.drain(at..(at + 1 + dice(2000)).min(whole.len()))),
            _ => {
                let from = dice(whole.len() - 1024);
                let to = at.min(whole.len() - 1024);
                bad.copy_within(from..from + 1024, to);
            }
        }
        match read_all(&bad, &keys) {
            Ok(images) => assert_eq!(images, right, "mutation {number}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn payloads_are_read_in_order_and_once() {
    let bench = Bench::new();
    let (path, _) = bundle(&bench, &[]);
    let whole = fs::read(path).unwrap();
    let keys = Keys::load(bench.dir.path(), 1).unwrap();
    let mut opened = Bundle::open(&whole[..], &keys).unwrap();
    assert!(opened.manifest().files_of(PayloadKind::BootFiles).is_some());
    let mut nothing = |_: u64, _: &[u8]| Ok(());
    let e = opened.write_files(0, &mut nothing).unwrap_err();
    assert_eq!(e.kind(), twinhull::Kind::Inconsistent);
    opened.write_root(&mut nothing, &mut |_| ()).unwrap();
    opened.write_files(0, &mut nothing).unwrap();
    assert_eq!(opened.write_files(0, &mut nothing).unwrap_err().kind(), twinhull::Kind::Inconsistent);
    opened.write_files(1, &mut nothing).unwrap();
    assert_eq!(opened.write_files(2, &mut nothing).unwrap_err().kind(), twinhull::Kind::Inconsistent);
}
