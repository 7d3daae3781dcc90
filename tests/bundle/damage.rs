//! Damage, by accident and on purpose.

use std::io::{BufReader, Cursor};

use twinhull::bundle::Bundle;
use twinhull::bundle::sign::Signer;

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
        let e = install(&bundle, &keys, &image).expect_err(&format!("byte {byte}"));
        assert!(!e.to_string().contains('\n'), "{e}");
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

/// What a mutation does to a bundle.
#[derive(Debug, Clone)]
enum Mutation {
    Set { at: usize, to: Vec<u8> },
    Cut { at: usize, len: usize },
    Insert { at: usize, bytes: Vec<u8> },
    Copy { from: usize, len: usize, to: usize },
    Truncate { len: usize },
}

fn mutation() -> impl proptest::strategy::Strategy<Value = Mutation> {
    use proptest::collection::vec;
    use proptest::prelude::*;
    let at = any::<usize>();
    prop_oneof![
        4 => (at, vec(any::<u8>(), 1..9)).prop_map(|(at, to)| Mutation::Set { at, to }),
        1 => (at, 1..2000_usize).prop_map(|(at, len)| Mutation::Cut { at, len }),
        1 => (at, vec(any::<u8>(), 1..1500)).prop_map(|(at, bytes)| Mutation::Insert { at, bytes }),
        2 => (at, 1..2048_usize, at).prop_map(|(from, len, to)| Mutation::Copy { from, len, to }),
        1 => at.prop_map(|len| Mutation::Truncate { len }),
    ]
}

fn mutate(bundle: &mut Vec<u8>, m: &Mutation) {
    let len = bundle.len().max(1);
    match m {
        Mutation::Set { at, to } => {
            for (i, b) in to.iter().enumerate() {
                if let Some(byte) = bundle.get_mut(at % len + i) {
                    *byte = *b;
                }
            }
        }
        Mutation::Cut { at, len: n } => {
            let at = at % len;
            bundle.drain(at..(at + n).min(bundle.len()));
        }
        Mutation::Insert { at, bytes } => {
            let at = at % len;
            bundle.splice(at..at, bytes.iter().copied());
        }
        Mutation::Copy { from, len: n, to } => {
            let from = from % len;
            let piece = bundle[from..(from + n).min(bundle.len())].to_vec();
            let to = (to % len).min(bundle.len() - piece.len());
            bundle[to..to + piece.len()].copy_from_slice(&piece);
        }
        Mutation::Truncate { len: n } => bundle.truncate(n % len),
    }
}

#[test]
fn mutated_bundles_are_refused_or_give_the_same_image() {
    use proptest::test_runner::{Config, TestRunner};
    let lab = Lab::new();
    let image = image_with_holes();
    let bundle = lab.bundle(&image);
    let keys = lab.keys();
    let mut runner = TestRunner::new(Config { cases: 500, failure_persistence: None, ..Config::default() });
    runner
        .run(&proptest::collection::vec(mutation(), 1..4), |mutations| {
            let mut bad = bundle.clone();
            mutations.iter().for_each(|m| mutate(&mut bad, m));
            let result = install(&bad, &keys, &image);
            assert!(result.is_err() || bad == bundle, "accepted: {mutations:?}");
            Ok(())
        })
        .unwrap();
}

#[test]
fn mutated_and_signed_indexes_and_frames_are_refused_or_give_the_same_image() {
    use proptest::test_runner::{Config, TestRunner};
    let lab = Lab::new();
    let image = image_with_holes();
    let whole = split(&lab.bundle(&image));
    let text = String::from_utf8(whole[0].1.clone()).unwrap();
    let keys = lab.keys();
    let signer = Signer::load(&lab.path("a.key"), None).unwrap();
    let mut runner = TestRunner::new(Config { cases: 100, failure_persistence: None, ..Config::default() });
    // A careless or hostile maker with the right key: what is signed is what is in it, and it makes no sense.
    runner
        .run(&(mutation(), 2..4_usize), |(m, which)| {
            let mut bad = whole.clone();
            mutate(&mut bad[which].1, &m);
            let text = lab::describe_again(&text, &bad);
            lab::sign_with(&signer, &mut bad, &text);
            let opened = Bundle::open(BufReader::new(Cursor::new(join(&bad))), &keys);
            // The writer may get other bytes here, for they are signed; but in order, and no more than the image.
            let mut at = 0;
            if let Ok(mut opened) = opened {
                let _ = opened.write_root(
                    &mut |offset, bytes| {
                        assert_eq!(offset, at);
                        at += bytes.len() as u64;
                        assert!(at <= image.len() as u64);
                        Ok(())
                    },
                    &mut |_| (),
                );
            }
            Ok(())
        })
        .unwrap();
}
