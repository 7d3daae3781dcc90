//! Thousands of damaged and forged bundles, the same ones in every run: each is refused, or what it installs is the
//! image byte by byte. Nothing panics, and memory stays within an install's limit.
//!
//! A test program of its own, so that its peak memory is that of this test alone.
#![cfg(feature = "build-host")]
// Tests may panic, and tell what they counted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]
#![allow(clippy::disallowed_macros, clippy::cast_possible_truncation)]

#[path = "../bundle/lab.rs"]
#[allow(dead_code)]
mod lab;
mod mutate;

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use lab::{Lab, image_with_holes};
use mutate::{Dice, KINDS, Original};
use twinhull::block::{Disk, FileDisk, read_back};
use twinhull::bundle::{Bundle, Keys};
use twinhull::model::device::DeviceType;
use twinhull::model::manifest::DeviceFacts;
use twinhull::model::{Digest, Slot};
use twinhull::{Error, Result};

/// The most that an install may need, in KiB; here the test's own copies of the bundle count as well.
const PEAK_KIB: u64 = 32 * 1024;

/// What an install does with the bytes: signatures, suitability, every block, and the slot read back in the end.
fn install(bundle: &[u8], keys: &Keys, slot: &mut FileDisk) -> Result<Digest> {
    let mut bundle = Bundle::open(Cursor::new(bundle), keys)?;
    let manifest = bundle.manifest().clone();
    let device = DeviceFacts {
        device_type: DeviceType("intel-nuc".into()),
        arch: "amd64".into(),
        version: None,
        slot_len_bytes: slot.len_bytes(),
        release_floor: 0,
    };
    manifest.check_suits(&device, false)?;
    let limit = slot.len_bytes();
    bundle.write_root(
        &mut |offset, bytes| {
            assert!(offset + bytes.len() as u64 <= limit, "written beyond the slot");
            slot.write_at(offset, bytes)
        },
        &mut |_| (),
    )?;
    read_back(slot, Slot::B, manifest.root.size, &manifest.root.sha256, |_| ())?;
    Ok(manifest.root.sha256)
}

/// The largest resident set so far, in KiB, mapped files counted.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn mutated_bundles_are_refused_or_give_the_image() {
    let count: u64 = std::env::var("MUTATIONS").map_or(10_000, |n| n.parse().unwrap());
    let lab = Lab::new();
    let image = image_with_holes();
    let original = Original::new(&lab, lab.bundle(&image));
    let keys = lab.keys();
    // Longer than the image, so that a size that was made larger is not refused for the slot alone.
    lab.write("slot", &vec![0xaa; image.len() + (1 << 20)]);
    let mut slot = FileDisk::open(&lab.path("slot")).unwrap();
    let digest = install(&original.bundle, &keys, &mut slot).unwrap();

    let mut refused = vec![0; KINDS.len()];
    let (mut unchanged, mut installed, mut panics) = (0, 0, Vec::new());
    for number in 0..count {
        let kind = number as usize % KINDS.len();
        let (name, mutate) = KINDS[kind];
        let bad = mutate(&original, &mut Dice::new(number));
        if bad == original.bundle {
            unchanged += 1;
            continue;
        }
        // What was installed before must not count as written now.
        slot.write_at(0, &vec![0xaa; image.len()]).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| install(&bad, &keys, &mut slot)));
        match result {
            Err(_) => panics.push(number),
            Ok(Err(e)) => {
                assert!(!e.to_string().contains('\n'), "mutation {number}, {}: {e}", name);
                refused[kind] += 1;
            }
            Ok(Ok(found)) => {
                assert_eq!(found, digest, "mutation {number}, {}: another image was installed", name);
                let mut there = vec![0; image.len()];
                slot.read_at(0, &mut there).unwrap();
                assert!(there == image, "mutation {number}, {}: wrong bytes in the slot", name);
                installed += 1;
            }
        }
    }
    for ((name, _), refused) in KINDS.iter().zip(&refused) {
        assert!(*refused > 0, "{name}: none was refused, so this test tests nothing");
    }
    let peak = peak_kib();
    println!(
        "COUNTED: {count} mutations of a bundle: {} refused, {installed} installed byte-identical, {unchanged} changed \
         nothing, {} panics, peak memory {peak} KiB",
        refused.iter().sum::<u64>(),
        panics.len()
    );
    assert!(panics.is_empty(), "panics in mutations {panics:?}");
    assert!(peak <= PEAK_KIB, "{peak} KiB");
}

/// The judge itself: an image that differs in one byte from what was signed is not let through.
#[test]
fn a_wrong_image_that_was_signed_is_found_by_reading_back() {
    let lab = Lab::new();
    let image = image_with_holes();
    let mut members = lab::split(&lab.bundle(&image));
    let mut other = image.clone();
    other[0] ^= 1;
    let theirs = lab::split(&lab.bundle(&other));
    let text = String::from_utf8(members[0].1.clone()).unwrap();
    members[2] = theirs[2].clone();
    members[3] = theirs[3].clone();
    let text = lab::describe_again(&text, &members);
    lab.sign_members(&mut members, &text);
    lab.write("slot", &vec![0; image.len()]);
    let mut slot = FileDisk::open(&lab.path("slot")).unwrap();
    let e: Error = install(&lab::join(&members), &lab.keys(), &mut slot).unwrap_err();
    assert!(e.to_string().contains("read back slot B"), "{e}");
}
