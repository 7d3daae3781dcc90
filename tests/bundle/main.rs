//! Bundles from outside: the built binary makes, signs and checks them; the library's reader is given every kind of
//! damage and must never hand a wrong byte to the writer.
#![cfg(feature = "build-host")]
// Tests play the user: they write files, start programs, wait for servers, and fail by panicking.
#![allow(clippy::disallowed_methods, clippy::disallowed_macros)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod commands;
mod damage;
mod lab;

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use lab::{Lab, has, image_with_holes, noise};
use twinhull::bundle::{Bundle, Keys};
use twinhull::{Kind, Result};

/// Installs `bundle` into nothing. Fails the test if a byte is handed out that is not the image's, or not in order.
fn install(bundle: &[u8], keys: &Keys, image: &[u8]) -> Result<()> {
    let mut at = 0;
    Bundle::open(Cursor::new(bundle), keys)?.write_root(
        &mut |offset, bytes| {
            assert_eq!(offset, at as u64, "out of order");
            assert_eq!(image.get(at..at + bytes.len()), Some(bytes), "wrong bytes at {offset}");
            at += bytes.len();
            Ok(())
        },
        &mut |_| (),
    )?;
    assert_eq!(at, image.len(), "accepted and not whole");
    Ok(())
}

#[test]
fn images_of_every_shape_come_back_byte_by_byte() {
    let lab = Lab::new();
    let mut mixed = noise(3 << 20, 1);
    mixed[4096..200_000].fill(0);
    mixed[(3 << 20) - 8192..].fill(0);
    for (name, image) in [
        ("smallest", noise(1024, 2)),
        ("one block", noise(4096, 3)),
        ("one byte more", noise(4097, 4)),
        ("no multiple of a block", noise(1_000_001, 5)),
        ("all zero", vec![0; 3_000_000]),
        ("zero, and a last byte", [vec![0; 1 << 20], vec![1]].concat()),
        ("text, which compresses", b"twinhull ".repeat(300_000)),
        ("holes and noise", mixed),
    ] {
        let bundle = lab.bundle(&image);
        install(&bundle, &lab.keys(), &image).unwrap_or_else(|e| panic!("{name}: {e}"));
        lab.write("b", &bundle);
        let out = lab.run(&["bundle", "verify", "b", "--keys", "keys"]);
        assert_eq!((out.code, out.stderr.as_str()), (0, ""), "{name}");
    }
}

#[test]
fn blocks_like_a_dictionary_of_zstd_are_no_trouble_as_prefix() {
    let lab = Lab::new();
    let magic = [0x37, 0xa4, 0x30, 0xec];
    let mut image = noise(20 * 4096, 12);
    for block in [0, 1, 2, 5, 6, 9] {
        image[block * 4096..block * 4096 + 4].copy_from_slice(&magic);
    }
    lab.write("image", &image);
    for prefix in ["4", "8", "16"] {
        let out = lab.run(&lab.create(&["--prefix-size", prefix, "--key", "a.key"]));
        assert_eq!(out.code, 0, "{}", out.stderr);
        install(&lab.read("b"), &lab.keys(), &image).unwrap();
    }
}

#[test]
fn prefixes_of_every_size_come_back() {
    let lab = Lab::new();
    let image = image_with_holes();
    lab.write("image", &image);
    for prefix in ["0", "4", "12", "8192"] {
        let out = lab.run(&lab.create(&["--prefix-size", prefix, "--key", "a.key"]));
        assert_eq!(out.code, 0, "{}", out.stderr);
        install(&lab.read("b"), &lab.keys(), &image).unwrap();
    }
}

#[test]
fn a_sparse_image_over_4_gib_is_small_and_needs_little_memory() {
    const FAR: u64 = (4 << 30) + 12_345;
    let lab = Lab::new();
    let file = File::create(lab.path("image")).unwrap();
    file.write_all_at(&noise(10_000, 1), 1 << 20).unwrap();
    file.write_all_at(&noise(10_000, 2), FAR).unwrap();
    file.set_len(FAR + 20_001).unwrap();
    let out = lab.run(&lab.create(&["--key", "a.key"]));
    assert_eq!(out.code, 0, "{}", out.stderr);
    let bundle = lab.read("b");
    assert!(bundle.len() < 30_000, "holes cost nothing: {}", bundle.len());

    // 60 MB of address space hold the program and its stack, but nothing like the image.
    let out = lab.shell("ulimit -v 60000; exec \"$TWINHULL\" bundle verify b --keys keys");
    assert_eq!((out.code, out.stderr.as_str()), (0, ""));

    let zeros = vec![0; 5 << 20];
    let mut next = 0;
    let mut found = Vec::new();
    let mut opened = Bundle::open(Cursor::new(&bundle), &lab.keys()).unwrap();
    opened
        .write_root(
            &mut |offset, bytes| {
                assert_eq!(offset, next);
                next += bytes.len() as u64;
                if *bytes != zeros[..bytes.len()] {
                    found.push((offset, bytes.to_vec()));
                }
                Ok(())
            },
            &mut |_| (),
        )
        .unwrap();
    assert_eq!(next, FAR + 20_001);
    let file = File::open(lab.path("image")).unwrap();
    assert!(found.iter().map(|(_, b)| b.len()).sum::<usize>() >= 20_000);
    for (offset, bytes) in found {
        let mut expected = vec![0; bytes.len()];
        file.read_exact_at(&mut expected, offset).unwrap();
        assert_eq!(bytes, expected, "at {offset}");
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let lab = Lab::new();
    lab.write("image", &image_with_holes());
    lab.run(&lab.create(&[]));
    let first = lab.read("b");
    lab.run(&lab.create(&[]));
    assert_eq!(first, lab.read("b"));
}

#[test]
fn a_failing_writer_ends_the_reading_with_its_error() {
    let lab = Lab::new();
    let image = image_with_holes();
    let bundle = lab.bundle(&image);
    let mut opened = Bundle::open(Cursor::new(&bundle), &lab.keys()).unwrap();
    let full = |_: u64, _: &[u8]| Err(twinhull::Error::failed("No space left on device"));
    let e = opened.write_root(&mut { full }, &mut |_| ()).unwrap_err();
    assert_eq!(e.to_string(), "No space left on device");
    let e = opened.write_root(&mut { full }, &mut |_| ()).unwrap_err();
    assert_eq!(e.kind(), Kind::Inconsistent, "{e}");
}

/// A stream that gives a few bytes at a time.
struct Drops<R>(R);

impl<R: Read> Read for Drops<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = buffer.len().min(7);
        self.0.read(&mut buffer[..n])
    }
}

#[test]
fn small_reads_change_nothing() {
    let lab = Lab::new();
    let image = image_with_holes();
    let bundle = lab.bundle(&image);
    let mut out = Vec::new();
    let mut opened = Bundle::open(Drops(Cursor::new(&bundle)), &lab.keys()).unwrap();
    let mut last = None;
    opened
        .write_root(
            &mut |_, bytes| {
                out.extend_from_slice(bytes);
                Ok(())
            },
            &mut |p| last = Some(p),
        )
        .unwrap();
    assert_eq!(out, image);
    let last = last.unwrap();
    assert_eq!((last.done_bytes, last.total_bytes), (image.len() as u64, image.len() as u64));
    assert_eq!(last.read_bytes, bundle.len() as u64);
}

#[test]
fn a_reader_that_knows_only_the_format_description_agrees() {
    let lab = Lab::new();
    if !lab.has_program("zstd") || !lab.has_program("python3") {
        println!("SKIPPED: needs zstd and python3");
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bundle/independent_reader.py");
    for image in [image_with_holes(), vec![0; 5000], noise(300 * 4096, 9), b"twinhull ".repeat(100_000)] {
        lab.write("image", &image);
        let sizes = ["--prefix-size", "128", "--key", "a.key"];
        assert_eq!(lab.run(&lab.create(&sizes)).code, 0);
        let out = lab.shell(&format!("python3 '{script}' b image"));
        assert_eq!((out.code, out.stderr.as_str()), (0, ""));
    }
}

#[test]
fn a_frames_member_over_8_gib_is_listed_by_the_real_tar() {
    let lab = Lab::new();
    let mut file = File::create(lab.path("big")).unwrap();
    file.write_all(&twinhull::bundle::archive::header("root.frames", 9 << 30).unwrap()).unwrap();
    file.seek(SeekFrom::Current(9 << 30)).unwrap();
    file.write_all(&twinhull::bundle::archive::END).unwrap();
    drop(file);
    let out = lab.shell("tar -tvf big");
    assert_eq!(out.code, 0, "{}", out.stderr);
    has(&out.stdout, &(9_u64 << 30).to_string());
}
