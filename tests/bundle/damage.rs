//! Damage, by accident and on purpose. (`tests/mutations` makes thousands of kinds more.)

use std::io::Cursor;

use twinhull::bundle::Bundle;

use crate::install;
use crate::lab::{self, Lab, Member, has, image_with_holes, join, split};

#[test]
fn every_truncation_is_refused() {
    let lab = Lab::new();
    let image = image_with_holes();
    let bundle = lab.bundle(&image);
    for len in 0..bundle.len() {
        // Each byte near the beginning of a block of tar, where something changes; some of the others.
        if len % 512 < 2 || len % 61 == 0 {
            assert!(install(&bundle[..len], &lab.keys(), &image).is_err(), "{len} of {}", bundle.len());
        }
    }
    assert!(install(&[&bundle[..], &[0]].concat(), &lab.keys(), &image).is_err());
}

#[test]
fn one_flipped_bit_anywhere_is_refused() {
    let lab = Lab::new();
    let image = image_with_holes();
    let mut bundle = lab.bundle(&image);
    let keys = lab.keys();
    for byte in 0..bundle.len() {
        let bit = 1 << (byte % 8);
        bundle[byte] ^= bit;
        match install(&bundle, &keys, &image) {
            Err(e) => assert!(!e.to_string().contains('\n'), "{e}"),
            Ok(()) => panic!("bit {} of byte {byte} of {} was not seen", byte % 8, bundle.len()),
        }
        bundle[byte] ^= bit;
    }
    install(&bundle, &keys, &image).unwrap();
}

#[test]
fn members_that_are_missing_swapped_doubled_or_strange_are_refused() {
    let lab = Lab::new();
    let image = image_with_holes();
    let whole = split(&lab.bundle(&image));
    let keys = lab.keys();
    assert_eq!(whole.len(), 4);
    install(&join(&whole), &keys, &image).unwrap();
    let refused = |what: &str, members: &[Member]| {
        assert!(install(&join(members), &keys, &image).is_err(), "{what}");
    };
    for i in 0..whole.len() {
        let mut m = whole.clone();
        m.remove(i);
        refused(&format!("member {i} missing"), &m);
        for j in 0..=whole.len() {
            let mut m = whole.clone();
            m.insert(j, whole[i].clone());
            refused(&format!("member {i} doubled at {j}"), &m);
        }
        for j in 0..i {
            let mut m = whole.clone();
            m.swap(i, j);
            refused(&format!("members {i} and {j} swapped"), &m);
        }
        for name in
            ["/etc/passwd", "../root.index", "./root.index", "root.index/", "", "manifest.toml\n", "x"]
        {
            let mut m = whole.clone();
            m[i].0 = name.into();
            refused(&format!("member {i} called {name:?}"), &m);
            let mut m = whole.clone();
            m.insert(i, (name.into(), b"x".to_vec()));
            refused(&format!("{name:?} before member {i}"), &m);
        }
    }
}

#[test]
fn links_devices_and_directories_are_refused() {
    let lab = Lab::new();
    let image = image_with_holes();
    let bundle = lab.bundle(&image);
    for kind in b"1234567xgLKSV\0" {
        let mut bad = bundle.clone();
        bad[156] = *kind;
        lab::fix_checksum(&mut bad, 0);
        assert!(install(&bad, &lab.keys(), &image).is_err(), "type {kind}");
    }
}

#[test]
fn promised_lengths_take_no_memory() {
    let lab = Lab::new();
    let image = image_with_holes();
    let bundle = lab.bundle(&image);
    // Each header in turn says 8 GiB less a byte, with a right checksum.
    let mut at = 0;
    for (name, content) in split(&bundle) {
        let mut bad = bundle.clone();
        bad[at + 124..at + 135].copy_from_slice(b"77777777777");
        lab::fix_checksum(&mut bad, at);
        lab.write("bad", &bad);
        let out = lab.shell("ulimit -v 60000; exec \"$TWINHULL\" bundle verify bad --keys keys");
        assert_eq!((out.code, out.stderr.lines().count()), (1, 1), "{name}: {}", out.stderr);
        at += 512 + content.len().next_multiple_of(512);
    }
    // The manifest says so too, and is signed.
    let mut members = split(&bundle);
    for (from, to) in [("size = ", 1_u64 << 40), ("index_size = ", 1 << 34), ("frames_size = ", 1 << 40)] {
        let mut bad = members.clone();
        let text = String::from_utf8(members[0].1.clone()).unwrap();
        let text: String = text
            .lines()
            .map(|l| if l.starts_with(from) { format!("{from}{to}\n") } else { format!("{l}\n") })
            .collect();
        lab.sign_members(&mut bad, &text);
        lab.write("bad", &join(&bad));
        let out = lab.shell("ulimit -v 60000; exec \"$TWINHULL\" bundle verify bad --keys keys");
        assert_eq!((out.code, out.stderr.lines().count()), (1, 1), "{from}: {}", out.stderr);
    }
    members.truncate(1);
    assert!(install(&join(&members), &lab.keys(), &image).is_err());
}

#[test]
fn a_wrong_index_or_image_digest_that_was_signed_is_found() {
    let lab = Lab::new();
    let image = image_with_holes();
    let whole = split(&lab.bundle(&image));
    let text = String::from_utf8(whole[0].1.clone()).unwrap();
    // The index of another image of the same shape: each number in it is right.
    let mut other_image = image.clone();
    other_image[0] ^= 1;
    let other = split(&lab.bundle(&other_image));
    let other_text = String::from_utf8(other[0].1.clone()).unwrap();
    let line = |text: &str, key: &str| text.lines().find(|l| l.starts_with(key)).unwrap().to_owned();
    let mut bad = whole.clone();
    bad[2] = other[2].clone();
    let mixed = text.replace(&line(&text, "index_sha256"), &line(&other_text, "index_sha256"));
    lab.sign_members(&mut bad, &mixed);
    assert!(install(&join(&bad), &lab.keys(), &image).is_err());
    // The digest of the image: only a check of the whole image can see that.
    let mut bad = whole;
    let mixed = text.replace(&line(&text, "sha256"), &line(&other_text, "sha256"));
    lab.sign_members(&mut bad, &mixed);
    lab.write("b", &join(&bad));
    let out = lab.run(&["bundle", "verify", "b", "--keys", "keys"]);
    assert_eq!(out.code, 1);
    has(&out.stderr, "image has digest");
}

#[test]
fn a_block_that_differs_from_its_signed_hash_is_never_handed_out() {
    let lab = Lab::new();
    let image = image_with_holes();
    let whole = split(&lab.bundle(&image));
    let text = String::from_utf8(whole[0].1.clone()).unwrap();
    let blocks: Vec<&[u8]> = image.chunks(4096).collect();
    let carried: Vec<usize> = (0..blocks.len()).filter(|b| blocks[*b].iter().any(|x| *x != 0)).collect();
    let extents = carried.iter().filter(|b| **b == 0 || !carried.contains(&(**b - 1))).count();
    for (i, block) in carried.iter().enumerate() {
        let mut bad = whole.clone();
        let at = 64 + 16 * extents + 16 * i;
        // Frames with right hashes, an index with a right digest: only the block tells.
        bad[2].1[at + 5] ^= 1;
        let text = lab::describe_again(&text, &bad);
        lab.sign_members(&mut bad, &text);
        let mut opened = Bundle::open(Cursor::new(join(&bad)), &lab.keys()).unwrap();
        let result = opened.write_root(
            &mut |offset, bytes| {
                let damaged = 4096 * *block as u64;
                assert!(offset + bytes.len() as u64 <= damaged, "block {block} was handed out");
                Ok(())
            },
            &mut |_| (),
        );
        assert!(result.is_err(), "block {block}");
    }
}

#[test]
fn a_damaged_bundle_is_not_signed_and_stays_as_it_is() {
    let lab = Lab::new();
    lab.write("image", &image_with_holes());
    lab.run(&lab.create(&[]));
    let mut bad = lab.read("b");
    let middle = bad.len() - 2000;
    bad[middle] ^= 4;
    lab.write("b", &bad);
    assert_eq!(lab.run(&["bundle", "sign", "b", "--key", "a.key"]).code, 1);
    assert_eq!(lab.read("b"), bad);
}
