//! Bundles from outside: the built binary makes, signs and checks them; the library's reader is given every kind of
//! damage and must never hand a wrong byte to the writer.
#![cfg(feature = "build-host")]
// Tests play the user: they write files and start programs.
#![allow(clippy::disallowed_methods)]

mod bundle_lab;

use std::fs::{self, File};
use std::io::{BufReader, Cursor, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bundle_lab::{Lab, Member, has, image_with_holes, join, noise, split};
use twinhull::bundle::sign::Signer;
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
fn frames_of_every_size_come_back() {
    let lab = Lab::new();
    let image = image_with_holes();
    lab.write("image", &image);
    for kib in ["4", "8", "64", "4096"] {
        let out = lab.run(&lab.create(&["--frame-size", kib, "--key", "a.key"]));
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
    assert!(bundle.len() < (17 << 20) + 100_000, "16 bytes of index for each block: {}", bundle.len());

    // 80 MB of address space hold the program, its stack and the 16 MiB of index, but nothing like the image.
    let out = lab.shell("ulimit -v 80000; exec \"$TWINHULL\" bundle verify b --keys keys");
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
        bundle_lab::fix_checksum(&mut bad, 0);
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
        bundle_lab::fix_checksum(&mut bad, at);
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
fn another_key_is_a_refusal_that_names_the_directory() {
    let lab = Lab::new();
    lab.write("image", &image_with_holes());
    lab.run(&lab.create(&["--key", "a.key"]));
    lab.run(&["bundle", "keygen", "--public", "other/x.pub", "--secret", "x.key"]);
    let out = lab.run(&["bundle", "verify", "b", "--keys", "other"]);
    assert_eq!(out.code, 3);
    has(&out.stderr, "twinhull: bundle b: signed by ");
    has(&out.stderr, "0 of the keys in other, 1 needed");
    lab.run(&lab.create(&[]));
    let out = lab.run(&["bundle", "verify", "b", "--keys", "keys"]);
    has(&out.stderr, "signed by nobody");
    assert_eq!(out.code, 3);
}

#[test]
fn two_of_two_keys_must_be_different_ones() {
    let lab = Lab::new();
    lab.write("image", &image_with_holes());
    lab.run(&lab.create(&["--key", "a.key"]));
    lab.run(&["bundle", "keygen", "--public", "keys/second.pub", "--secret", "second.key"]);
    let verify = ["bundle", "verify", "b", "--keys", "keys", "--signatures", "2"];
    assert_eq!(lab.run(&verify).code, 3);
    // The same key again takes the place of its old signature.
    assert_eq!(lab.run(&["bundle", "sign", "b", "--key", "a.key"]).code, 0);
    assert_eq!(lab.run(&verify).code, 3);
    assert_eq!(lab.run(&["bundle", "sign", "b", "--key", "second.key"]).code, 0);
    let out = lab.run(&verify);
    assert_eq!(out.code, 0, "{}", out.stderr);
    // A signature of ours that does not fit is damage, even if the others would do.
    let mut bad = split(&lab.read("b"));
    let text = String::from_utf8(bad[1].1.clone()).unwrap();
    bad[1].1 = text.replace("file:manifest.toml", "file:manifest.tomL").into_bytes();
    lab.write("b", &join(&bad));
    assert_eq!(lab.run(&["bundle", "verify", "b", "--keys", "keys"]).code, 1);
    let mut out_of_order = split(&lab.read("b"));
    out_of_order.swap(1, 2);
    lab.write("b", &join(&out_of_order));
    assert_eq!(lab.run(&["bundle", "verify", "b", "--keys", "keys"]).code, 1);
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

#[test]
fn what_cannot_be_a_bundle_is_named_in_one_line() {
    let lab = Lab::new();
    lab.write("empty", b"");
    lab.write("zeros", &[0; 4096]);
    lab.write("text", &b"not a bundle at all\n".repeat(100));
    lab.write("short", b"PK");
    let tar = lab.shell("tar --format=ustar -cf other.tar text");
    assert_eq!(tar.code, 0);
    for (what, expected) in [
        ("empty", "empty: is empty"),
        ("keys", "keys: is a directory; give the bundle file"),
        ("missing", "missing: no such file; give a FILE"),
        ("zeros", "bundle zeros: "),
        ("text", "bundle text: not a bundle"),
        ("short", "bundle short: ends after 2 bytes"),
        ("other.tar", "bundle other.tar: not a bundle"),
        ("http://127.0.0.1:1/os.bundle", "http://127.0.0.1:1/os.bundle: Connection refused"),
        ("http://twinhull.invalid/x", "http://twinhull.invalid/x: no such host; check the address"),
    ] {
        for command in ["inspect", "verify"] {
            let out = lab.run(&["bundle", command, what, "--keys", "keys"]);
            assert_eq!((out.code, out.stderr.lines().count()), (1, 1), "{what}: {}", out.stderr);
            has(&out.stderr, expected);
        }
    }
    let out = lab.shell("\"$TWINHULL\" bundle verify - --keys keys </dev/null");
    has(&out.stderr, "bundle standard input: empty");
}

#[test]
fn answers_of_a_server_are_told() {
    let lab = Lab::new();
    lab.write("image", &image_with_holes());
    lab.run(&lab.create(&["--key", "a.key"]));
    let bundle = lab.read("b");
    let len = bundle.len();
    let head = |status: &str, len: usize| format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\n\r\n");
    let whole = [head("200 OK", len).as_bytes(), &bundle].concat();
    let cut = [head("200 OK", len).as_bytes(), &bundle[..len / 2]].concat();
    // Without a length only the bundle itself tells where it ends.
    let open_end = [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", &bundle[..]].concat();
    let open_cut = open_end[..open_end.len() - 700].to_vec();
    let longer = [head("200 OK", len + 1).as_bytes(), &bundle, b"x"].concat();
    for (answer, code, expected) in [
        (whole, 0, "good"),
        (cut, 1, "the connection broke after "),
        (open_end, 0, "good"),
        (open_cut, 1, "cut short"),
        (longer, 1, "bytes follow after the end"),
        (head("404 Not Found", 0).into_bytes(), 1, "404 Not Found; check the address"),
        (head("401 Unauthorized", 0).into_bytes(), 1, "401 Unauthorized; it wants to know who asks"),
        (head("503 Service Unavailable", 0).into_bytes(), 1, "try again later"),
        (head("200 OK", 0).into_bytes(), 1, "empty: not a bundle"),
        (b"garbage\r\n\r\n".to_vec(), 1, "/os.bundle: "),
    ] {
        let url = bundle_lab::serve_once(answer);
        let out = lab.run(&["bundle", "verify", &format!("{url}?token=secret"), "--keys", "keys"]);
        assert_eq!(out.code, code, "{expected}: {}", out.stderr);
        let text = if code == 0 { &out.stdout } else { &out.stderr };
        has(text, expected);
        has(text, "127.0.0.1");
        assert!(text.lines().count() == 1 && !text.contains("secret"), "{text}");
    }
}

#[test]
fn https_needs_a_certificate_that_the_settings_trust() {
    let lab = Lab::new();
    if !lab.has_program("openssl") {
        println!("SKIPPED: needs openssl");
        return;
    }
    lab.write("image", &image_with_holes());
    lab.run(&lab.create(&["--key", "a.key"]));
    let server = bundle_lab::Tls::start(&lab);
    let verify = |ca: &str| {
        lab.write("settings.toml", format!("[provision]\nca_bundle = {:?}\n", lab.path(ca)).as_bytes());
        let url = format!("https://127.0.0.1:{}/b", server.port);
        lab.run(&["--config", "settings.toml", "bundle", "verify", &url, "--keys", "keys"])
    };
    let out = verify("cert.pem");
    assert_eq!((out.code, out.stderr.as_str()), (0, ""));
    let out = verify("missing.pem");
    assert_eq!(out.code, 1);
    has(&out.stderr, "no certificates to trust in");
    let other = lab.shell(
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout /dev/null -out other.pem -subj /CN=x -days 9 2>&1",
    );
    assert_eq!(other.code, 0);
    let out = verify("other.pem");
    assert_eq!(out.code, 1);
    has(&out.stderr, "the server's certificate: ");
}

#[test]
fn the_real_minisign_accepts_what_we_sign_and_we_what_it_signs() {
    let lab = Lab::new();
    if !lab.has_program("minisign") {
        println!("SKIPPED: needs minisign");
        return;
    }
    lab.write("image", &image_with_holes());
    lab.run(&lab.create(&["--key", "a.key"]));
    // Ours, with a key of ours.
    let check = "tar -xf b && minisign -Vm manifest.toml -x manifest.toml.*.minisig -p";
    let out = lab.shell(&format!("{check} keys/a.pub"));
    assert_eq!(out.code, 0, "{}", out.stderr);
    has(&out.stdout, "Signature and comment signature verified");
    // minisign's keys, plain and with a password, in our hands.
    let out = lab.shell(
        "minisign -G -W -p keys/m.pub -s m.key; printf 'pw\\npw\\n' | minisign -G -p keys/n.pub -s n.key",
    );
    assert_eq!(out.code, 0, "{}", out.stderr);
    lab.write("pw", b"pw\n");
    lab.run(&lab.create(&[]));
    assert_eq!(lab.run(&["bundle", "sign", "b", "--key", "m.key"]).code, 0);
    let out = lab.shell(&format!("rm *.minisig; {check} keys/m.pub"));
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert_eq!(lab.run(&["bundle", "sign", "b", "--key", "n.key", "--password-file", "pw"]).code, 0);
    let out = lab.shell(
        "rm *.minisig; tar -xf b; minisign -Vm manifest.toml -x $(ls *.minisig | tail -1) -p keys/n.pub \
         || minisign -Vm manifest.toml -x $(ls *.minisig | head -1) -p keys/n.pub",
    );
    assert_eq!(out.code, 0, "{}", out.stderr);
    let out = lab.run(&["bundle", "verify", "b", "--keys", "keys", "--signatures", "2"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    // minisign's signature, made elsewhere.
    lab.run(&lab.create(&[]));
    let out = lab
        .shell("tar -xf b manifest.toml && minisign -S -s m.key -m manifest.toml -c hello -x made.minisig");
    assert_eq!(out.code, 0, "{}", out.stderr);
    let wrong = ["bundle", "sign", "b", "--signature", "made.minisig", "--public", "keys/n.pub"];
    assert_eq!(lab.run(&wrong).code, 3);
    let right = ["bundle", "sign", "b", "--signature", "made.minisig", "--public", "keys/m.pub"];
    assert_eq!(lab.run(&right).code, 0);
    let out = lab.run(&["bundle", "verify", "b", "--keys", "keys"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    // Its old kind of signature is not accepted.
    let out = lab.shell("minisign -S -l -s m.key -m manifest.toml -x old.minisig");
    assert_eq!(out.code, 0, "{}", out.stderr);
    let old = ["bundle", "sign", "b", "--signature", "old.minisig", "--public", "keys/m.pub"];
    has(&lab.run(&old).stderr, "sign again without -l");
}

#[test]
fn what_a_bundle_says_is_shown_and_that_nobody_checked_it() {
    let lab = Lab::new();
    lab.write("image", &image_with_holes());
    lab.run(&lab.create(&["--key", "a.key", "--provides", "kernel=6.1.0", "--min-version", "1.0.0"]));
    let out = lab.run(&["bundle", "inspect", "b"]);
    for expected in
        ["2.1.0", "intel-nuc, other-type (amd64)", "kernel 6.1.0", "from 1.0.0", "anybody may have made"]
    {
        has(&out.stdout, expected);
    }
    let json = lab.run(&["bundle", "inspect", "b", "--json", "--keys", "keys"]).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["signatures"][0]["state"], "good");
    assert_eq!(json["manifest"]["compatible"][1], "other-type");
    assert_eq!(json["manifest"]["payload"][0]["size"], image_with_holes().len());
}

#[test]
fn mistakes_on_the_command_line_are_usage_errors() {
    let lab = Lab::new();
    lab.write("image", &noise(2000, 1));
    lab.write("tiny", &noise(1023, 1));
    for (args, code) in [
        (vec!["bundle"], 2),
        (vec!["bundle", "frobnicate"], 2),
        (vec!["bundle", "create", "--image", "image"], 2),
        (lab.create(&["--level", "23"]), 2),
        (lab.create(&["--frame-size", "5"]), 2),
        (lab.create(&["--min-version", "2"]), 2),
        (lab.create(&["--provides", "systemd=1"]), 2),
        (lab.create(&["--arch", "a b"]), 1),
        (lab.create(&["--image", "tiny"]), 1),
        (lab.create(&["--image", "keys"]), 1),
        (lab.create(&["--key", "missing.key"]), 1),
        (vec!["bundle", "verify", "b"], 2),
        (vec!["bundle", "verify", "b", "--keys", "keys", "--signatures", "0"], 2),
        (vec!["bundle", "sign", "b"], 2),
        (vec!["bundle", "sign", "b", "--signature", "x"], 2),
    ] {
        let out = lab.run(&args);
        assert_eq!((out.code, out.stderr.lines().count()), (code, 1), "{args:?}: {}", out.stderr);
        assert!(!lab.path("b").exists(), "{args:?} left a bundle");
    }
    let help = lab.run(&["bundle", "create", "--help"]);
    assert_eq!(help.code, 0);
    for word in ["create", "sign", "keygen", "inspect", "verify", "Examples"] {
        has(&help.stdout, word);
    }
}

#[test]
fn a_pipe_is_enough() {
    let lab = Lab::new();
    lab.write("image", &noise(3_000_000, 1));
    lab.run(&lab.create(&["--key", "a.key"]));
    let out = lab.shell("cat b | \"$TWINHULL\" bundle verify - --keys keys");
    assert_eq!(out.code, 0, "{}", out.stderr);
    let out = lab.shell("head -c 2000000 b | \"$TWINHULL\" bundle verify - --keys keys");
    assert_eq!(out.code, 1);
    has(&out.stderr, "standard input: root.frames: ends after 2000000 bytes");
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
            let text = bundle_lab::describe_again(&text, &bad);
            bundle_lab::sign_with(&signer, &mut bad, &text);
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

#[test]
fn the_frames_of_a_bundle_are_plain_zstd() {
    let lab = Lab::new();
    if !lab.has_program("zstd") {
        println!("SKIPPED: needs zstd");
        return;
    }
    // An image without zero blocks: its frames, one after the other, are the image.
    let image = noise(300 * 4096, 9);
    lab.bundle(&image);
    let out = lab.shell("tar -xOf b root.frames | zstd -dc | cmp - image");
    assert_eq!(out.code, 0, "{}", out.stderr);
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
    fs::remove_file(lab.path("big")).unwrap();
    assert!(!Path::new("big").exists());
}
