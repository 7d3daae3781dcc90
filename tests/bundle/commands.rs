//! The subcommands as a person meets them.

use crate::lab::{self, Lab, has, image_with_holes, join, noise, split};

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
    let made =
        lab.run(&["bundle", "keygen", "--public", "keys/second.pub", "--secret", "second.key", "--json"]);
    assert_eq!(made.stdout, "{\"public\":\"keys/second.pub\",\"secret\":\"second.key\"}\n");
    let verify = ["bundle", "verify", "b", "--keys", "keys", "--signatures", "2"];
    assert_eq!(lab.run(&verify).code, 3);
    // The same key again takes the place of its old signature.
    assert_eq!(lab.run(&["bundle", "sign", "b", "--key", "a.key"]).code, 0);
    assert_eq!(lab.run(&verify).code, 3);
    let told = lab.run(&["bundle", "sign", "b", "--key", "second.key", "--json"]).stdout;
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["bundle"], told["signed_by"].as_array().unwrap().len()), (&"b".into(), 2));
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
fn what_cannot_be_a_bundle_is_named_in_one_line() {
    let lab = Lab::new();
    lab.write("empty", b"");
    lab.write("zeros", &[0; 4096]);
    lab.write("text", &b"not a bundle at all\n".repeat(100));
    lab.write("short", b"PK");
    lab.write("two\nlines\x1b[31m", b"text");
    lab.write("image", &noise(5000, 1));
    lab.run(&lab.create(&[]));
    lab.write("appended", &[&lab.read("b")[..], b"x"].concat());
    let tar = lab.shell("tar --format=ustar -cf other.tar text");
    assert_eq!(tar.code, 0);
    for (what, expected) in [
        ("empty", "empty: is empty"),
        ("keys", "keys: is a directory; give the bundle file"),
        ("missing", "missing: no such file; give a FILE"),
        ("zeros", "bundle zeros: not a bundle"),
        ("text/x", "text/x: Not a directory"),
        ("two\nlines\x1b[31m", "bundle two\\nlines\\u{1b}[31m: "),
        ("http://127.0.0.1:99999/os.bundle", "port 99999: expected 1 to 65535; check the address"),
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
    for command in ["inspect", "verify"] {
        assert_eq!(lab.run(&["bundle", command, "", "--keys", "keys"]).code, 2);
    }
    let out = lab.run(&["bundle", "sign", "appended", "--key", "a.key"]);
    has(&out.stderr, "something was appended; get the bundle again");
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
        (cut, 1, "the download stopped after "),
        (open_end, 0, "good"),
        (open_cut, 1, "cut short"),
        (longer, 1, "bytes follow after the end"),
        (head("404 Not Found", 0).into_bytes(), 1, "404 Not Found; check the address"),
        (head("401 Unauthorized", 0).into_bytes(), 1, "401 Unauthorized; it wants to know who asks"),
        (head("503 Service Unavailable", 0).into_bytes(), 1, "try again later"),
        (head("200 OK", 0).into_bytes(), 1, "empty: not a bundle"),
        (b"garbage\r\n\r\n".to_vec(), 1, "/os.bundle: "),
    ] {
        let url = lab::serve_once(answer);
        let out = lab.run(&["bundle", "verify", &format!("{url}?token=secret"), "--keys", "keys"]);
        assert_eq!(out.code, code, "{expected}: {}", out.stderr);
        let text = if code == 0 { &out.stdout } else { &out.stderr };
        has(text, expected);
        has(text, "127.0.0.1");
        assert!(!text.contains("secret"), "{text}");
        // Attempts to go on are told as well.
        let lines = text.lines().filter(|l| !l.contains("trying again")).count();
        assert_eq!(lines, 1, "{text}");
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
    let server = lab::Tls::start(&lab);
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

/// What is made never takes the place of what it is made from, and one key signs once.
#[test]
fn no_input_is_written_over_and_no_key_is_taken_twice() {
    let lab = Lab::new();
    lab.write("image", &noise(20_000, 1));
    lab.write("file", b"boot");
    std::fs::hard_link(lab.path("image"), lab.path("also-the-image")).unwrap();
    assert_eq!(lab.run(&lab.create(&[])).code, 0);
    let files = ["image", "a.key", "file", "b"].map(|f| (f, std::fs::read(lab.path(f)).unwrap()));
    for args in [
        lab.create(&["-o", "image"]),
        lab.create(&["-o", "also-the-image"]),
        lab.create(&["-o", "./image"]),
        lab.create(&["--key", "a.key", "-o", "a.key"]),
        lab.create(&["--boot-file", "x=file", "-o", "file"]),
        lab.create(&["--hook", "x=file", "-o", "file"]),
        lab.create(&["--key", "a.key", "--key", "a.key"]),
        vec!["bundle", "sign", "b", "--key", "a.key", "--key", "a.key"],
        vec!["bundle", "delta", "--from", "image", "--to", "b", "-o", "image"],
        vec!["bundle", "delta", "--from", "image", "--to", "b", "-o", "b"],
    ] {
        let out = lab.run(&args);
        assert_eq!((out.code, out.stderr.lines().count()), (2, 1), "{args:?}: {}", out.stderr);
        for (name, before) in &files {
            assert!(std::fs::read(lab.path(name)).unwrap() == *before, "{args:?} changed {name}");
        }
    }
}

#[test]
fn output_that_cannot_be_written_is_a_failure_unless_the_reader_went_away() {
    let lab = Lab::new();
    for (to, code) in [("/dev/full", 1), ("/dev/null", 0)] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_twinhull"));
        let to = std::fs::OpenOptions::new().write(true).open(to).unwrap();
        let output = command.args(["version"]).stdout(to).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert_eq!(output.stderr.is_empty(), code == 0, "{output:?}");
    }
    let pipe = format!("{} --help | true; exit ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_twinhull"));
    let output = std::process::Command::new("bash").args(["-c", &pipe]).current_dir(lab.path("")).output();
    let output = output.unwrap();
    assert_eq!((output.status.code(), output.stderr.is_empty()), (Some(0), true), "{output:?}");
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
        (lab.create(&["--prefix-size", "5"]), 2),
        (lab.create(&["--min-version", "2"]), 2),
        (lab.create(&["--provides", "systemd=1"]), 2),
        (lab.create(&["--arch", "a b"]), 2),
        (lab.create(&["--disk", "image"]), 2),
        (lab.create(&["--image", "tiny"]), 2),
        (lab.create_of("tiny", &[]), 1),
        (lab.create_of("keys", &[]), 1),
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
fn only_files_are_replaced() {
    let lab = Lab::new();
    lab.write("image", &noise(5000, 1));
    lab.run(&lab.create(&["--key", "a.key"]));
    let made =
        lab.shell("mkfifo pipe && ln -s a.key link && ln -s nowhere dangling && mkdir dir && cp b other/b");
    assert_eq!(made.code, 0, "{}", made.stderr);
    // A node as /dev/null is one, but not that one.
    let is_root = lab.shell("mknod node c 1 3").code == 0;
    let before = lab.shell("ls -lR").stdout;
    let there = ["pipe", "link", "dangling", "dir"].into_iter().chain(is_root.then_some("node"));
    for out in there.chain(["-"]) {
        let delta = vec!["bundle", "delta", "--from", "image", "--to", "b", "-o", out];
        let key = vec!["bundle", "keygen", "--public", out, "--secret", "new.key"];
        for args in [lab.create(&["-o", out]), delta, key] {
            if out == "-" && args[1] == "keygen" {
                continue;
            }
            let ended = lab.run(&args);
            assert_ne!(ended.code, 0, "{args:?}");
            assert_eq!(ended.stderr.lines().count(), 1, "{args:?}: {}", ended.stderr);
            has(&ended.stderr, out);
            assert_eq!(lab.shell("ls -lR").stdout, before, "{args:?}");
        }
    }
    // What signs a bundle behind a link would put a file in the place of the link.
    lab.shell("ln -s b to-b");
    let ended = lab.run(&["bundle", "sign", "to-b", "--key", "a.key"]);
    has(&ended.stderr, "write to-b: a symbolic link is there");
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
