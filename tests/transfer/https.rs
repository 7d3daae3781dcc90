//! Servers behind TLS: whom the device trusts, how it says who it is, and that nobody else learns that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use crate::server::{Rule, Server, Vice};
use crate::support::{Device, outcome, pattern, run};
use crate::{Bench, assert_installed, event, install};

const TOKEN: &str = "s3cret-t0ken";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name)
}

/// The certificate `name` of the fixtures; with `clients`, only those are let in whose certificate that authority signed.
fn tls(name: &str, clients: Option<&Path>) -> Option<Arc<rustls::ServerConfig>> {
    let chain = vec![CertificateDer::from_pem_file(fixture(&format!("{name}.crt"))).unwrap()];
    let key = PrivateKeyDer::from_pem_file(fixture(&format!("{name}.key"))).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    Some(Arc::new(builder.with_single_cert(chain, key).unwrap()))
}

/// Lets in who shows the token.
fn guarded() -> Rule {
    let shown = format!("authorization: bearer {TOKEN}\r\n");
    Box::new(move |head| (!head.contains(&shown)).then(|| "401 Unauthorized".into()))
}

fn redirect(to: String) -> Rule {
    Box::new(move |_| Some(format!("302 Found\r\nLocation: {to}")))
}

/// A device that trusts the fixtures' authority, with these settings for bundles.
fn device(bench: &Bench, settings: &str) -> Device {
    let device = bench.device();
    device.write("etc/ssl/certs/ca-certificates.crt", &fs::read_to_string(fixture("ca.crt")).unwrap());
    device.write("etc/twinhull/stall.toml", &format!("[bundle]\nstall_s = 1\n{settings}"));
    device.write("mnt/state/token", &format!("{TOKEN}\n"));
    device
}

const WITH_TOKEN: &str = "token_file = \"/mnt/state/token\"\n";

fn shown_to(server: &Server) -> usize {
    server.heads().iter().filter(|h| h.contains("authorization") || h.contains(TOKEN)).count()
}

#[test]
fn the_token_is_shown_to_the_bundles_own_server_and_to_nobody_else() {
    let bench = Bench::new();
    let image = pattern(2 << 20, 99);
    let bundle = bench.bundle(&image);
    let file = || bundle.clone();
    let open = || -> Rule { Box::new(|_| None) };

    // The server itself: each request carries it.
    let server = Server::with(file(), Vice::None, tls("server", None), guarded());
    let output = install(&device(&bench, ""), &server.url, &[]);
    assert_eq!(outcome(&output).0, 1);
    assert!(outcome(&output).1.contains("401 Unauthorized; it wants to know who asks"), "{output:?}");
    let with_token = device(&bench, WITH_TOKEN);
    let output = install(&with_token, &server.url, &["-vv"]);
    assert_installed(&with_token, &output, &image);
    let told = [output.stdout, output.stderr].concat();
    assert!(!String::from_utf8_lossy(&told).contains(TOKEN), "the token is in the log");

    // A redirect within the server keeps it; one to another port, or away from TLS, does not.
    let to_itself: Rule = Box::new(|head| {
        let shown = head.contains(TOKEN);
        match (head.starts_with("get /os.bundle "), shown) {
            (_, false) => Some("401 Unauthorized".into()),
            (true, true) => Some("301 Moved\r\nLocation: v2/os-2.bundle".into()),
            (false, true) => None,
        }
    });
    let server = Server::with(file(), Vice::None, tls("server", None), to_itself);
    let with_token = device(&bench, WITH_TOKEN);
    assert_installed(&with_token, &install(&with_token, &server.url, &[]), &image);
    for behind in [tls("server", None), None] {
        let other = Server::with(file(), Vice::None, behind, open());
        let server = Server::with(Vec::new(), Vice::None, tls("server", None), redirect(other.url.clone()));
        let with_token = device(&bench, WITH_TOKEN);
        assert_installed(&with_token, &install(&with_token, &server.url, &[]), &image);
        assert_eq!((shown_to(&other), shown_to(&server) > 0), (0, true));
        // The redirect is asked for once, not for each part.
        assert!(server.heads().len() == 1 && other.heads().len() > 2, "{:?}", server.heads());
        // By a longer way back to the first server it is not shown either to those in between.
        let last = Server::with(file(), Vice::None, tls("server", None), open());
        let middle = Server::with(Vec::new(), Vice::None, None, redirect(last.url.clone()));
        let server = Server::with(Vec::new(), Vice::None, tls("server", None), redirect(middle.url.clone()));
        let with_token = device(&bench, WITH_TOKEN);
        assert_installed(&with_token, &install(&with_token, &server.url, &[]), &image);
        assert_eq!(shown_to(&middle) + shown_to(&last), 0);
    }

    // Without TLS it is not shown at all; nor to the server of a delta that is another one.
    let server = Server::with(file(), Vice::None, None, open());
    let with_token = device(&bench, WITH_TOKEN);
    assert_installed(&with_token, &install(&with_token, &server.url, &[]), &image);
    assert_eq!(shown_to(&server), 0);
    let with_token = device(&bench, WITH_TOKEN);
    let delta = bench.delta(&with_token.slots()[0]);
    let server = Server::with(file(), Vice::None, tls("server", None), guarded());
    let other = Server::with(delta.clone(), Vice::None, tls("server", None), open());
    let output = install(&with_token, &server.url, &["--delta", &other.url]);
    assert_installed(&with_token, &output, &image);
    assert_eq!((shown_to(&other), other.heads().is_empty()), (0, false));
    // It is, if the bundle is a file; and the option takes the place of the setting.
    let other = Server::with(delta, Vice::None, tls("server", None), guarded());
    let path = bench.file("b", &bundle);
    let without = device(&bench, "token_file = \"/nonexistent\"\n");
    let token = without.path("mnt/state/token").to_str().unwrap().to_owned();
    let output = install(&without, &path, &["--delta", &other.url, "--token-file", &token]);
    assert_installed(&without, &output, &image);
    assert!(shown_to(&other) > 0 && !outcome(&output).1.contains("delta:"), "{}", outcome(&output).1);
}

#[test]
fn a_token_that_cannot_be_read_is_named_and_never_shown() {
    let bench = Bench::new();
    let bundle = bench.bundle(&pattern(1 << 20, 3));
    let server = Server::with(bundle, Vice::None, tls("server", None), guarded());
    for (token, says) in [
        (None, "No such file or directory"),
        (Some("two s3cret words\n"), "expected one line"),
        (Some(""), "expected one line"),
    ] {
        let device = device(&bench, WITH_TOKEN);
        match token {
            Some(text) => device.write("mnt/state/token", text),
            None => fs::remove_file(device.path("mnt/state/token")).unwrap(),
        }
        let (code, text) = outcome(&install(&device, &server.url, &["-vv"]));
        assert_eq!((code, text.lines().count()), (1, 1), "{text}");
        assert!(
            text.contains("mnt/state/token") && text.contains(says) && !text.contains("s3cret"),
            "{text}"
        );
    }
    assert_eq!(server.heads(), Vec::<String>::new());
}

#[test]
fn a_server_that_is_not_to_be_trusted_is_told_in_one_line() {
    let bench = Bench::new();
    let image = pattern(1 << 20, 3);
    let bundle = bench.bundle(&image);
    let authority = fs::read_to_string(fixture("ca.crt")).unwrap();
    let other = bench.dir.path().join("other.pem");
    let make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /dev/null -subj /CN=x -days 9 -out";
    run("openssl", &[&make.split(' ').collect::<Vec<_>>()[..], &[other.to_str().unwrap()]].concat());
    let stranger = fs::read_to_string(&other).unwrap();
    for (name, host, trusted, says) in [
        (
            "server",
            "127.0.0.1",
            &stranger,
            "no authority that is trusted here signed it; its authority belongs",
        ),
        ("expired", "127.0.0.1", &authority, " days ago, by this device's clock; set the clock, or renew"),
        ("future", "127.0.0.1", &authority, " days yet, by this device's clock; set the clock, or renew"),
        ("server", "localhost", &authority, "not valid for name"),
        ("server", "127.0.0.1", &String::new(), "no certificates to trust in"),
    ] {
        let device = device(&bench, WITH_TOKEN);
        device.write("etc/ssl/certs/ca-certificates.crt", trusted);
        let server = Server::with(bundle.clone(), Vice::None, tls(name, None), Box::new(|_| None));
        let url = server.url.replace("127.0.0.1", host);
        let (code, text) = outcome(&install(&device, &url, &[]));
        assert_eq!((code, text.lines().count()), (1, 1), "{name}: {text}");
        assert!(text.starts_with("twinhull: install: https://") && text.contains(says), "{name}: {text}");
        assert_eq!((server.heads().len(), &device.status()["phase"]), (0, &"steady".into()));
    }
    // The fleet's own authority, as config.json has it.
    let device = device(&bench, "");
    device.write("etc/ssl/certs/ca-certificates.crt", &stranger);
    let encoded = run("base64", &["-w0", fixture("ca.crt").to_str().unwrap()]);
    device.write(
        "mnt/boot/config.json",
        &format!("{{\"deviceType\":\"intel-nuc\",\"balenaRootCA\":\"{}\"}}", encoded.trim()),
    );
    let server = Server::with(bundle, Vice::None, tls("server", None), Box::new(|_| None));
    assert_installed(&device, &install(&device, &server.url, &[]), &image);
}

/// An authority for clients, a certificate that it signed (`NAME.crt`, `NAME.key`), and one of somebody else.
fn client_certificates(dir: &Path) {
    let script = "
        for ca in ours theirs; do
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $ca-ca.key -out $ca-ca.crt \
                -subj /CN=$ca-ca -days 9
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $ca.key -out $ca.csr -subj /CN=$ca
            printf 'basicConstraints=CA:FALSE\\nextendedKeyUsage=clientAuth\\n' >$ca.ext
            openssl x509 -req -in $ca.csr -CA $ca-ca.crt -CAkey $ca-ca.key -CAcreateserial -extfile $ca.ext -days 9 \
                -out $ca.crt
        done";
    let made = Command::new("sh").args(["-ec", script]).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn a_server_that_wants_a_client_certificate_gets_it() {
    let bench = Bench::new();
    let image = pattern(1 << 20, 3);
    let bundle = bench.bundle(&image);
    client_certificates(bench.dir.path());
    let authority = bench.dir.path().join("ours-ca.crt");
    let server = Server::with(bundle, Vice::None, tls("server", Some(&authority)), Box::new(|_| None));
    let read = |name: &str| fs::read_to_string(bench.dir.path().join(name)).unwrap();
    let settings = "client_cert = \"/etc/me.crt\"\nclient_key = \"/etc/me.key\"\n";
    let with = |certificate: &str, key: &str| {
        let device = device(&bench, settings);
        device.write("etc/me.crt", certificate);
        device.write("etc/me.key", key);
        device
    };
    let known = with(&read("ours.crt"), &read("ours.key"));
    assert_installed(&known, &install(&known, &server.url, &[]), &image);
    let missing = with("", "");
    fs::remove_file(missing.path("etc/me.key")).unwrap();
    for (device, says) in [
        (device(&bench, ""), "bundle.client_cert"),
        (with(&read("theirs.crt"), &read("theirs.key")), "bundle.client_cert"),
        (with(&read("ours.crt"), &read("theirs.key")), "me.key: does not belong to the certificate"),
        (with(&read("ours.crt"), "no key"), "me.key: no PEM private key in it"),
        (with(&read("ours.key"), &read("ours.key")), "me.crt: no PEM certificate in it"),
        (with("", &read("ours.key")), "me.crt: no PEM certificate in it"),
        (missing, "me.crt: no PEM certificate in it"),
    ] {
        let (code, text) = outcome(&install(&device, &server.url, &[]));
        assert_eq!((code, text.lines().count()), (1, 1), "{text}");
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn redirects_that_end_or_go_round_in_circles_are_no_trouble() {
    let bench = Bench::new();
    let image = pattern(2 << 20, 99);
    let bundle = bench.bundle(&image);
    // An address for a few requests only, as storage services sign them.
    let asked = AtomicU64::new(0);
    let fleeting: Rule = Box::new(move |head| {
        let place = head.split(' ').nth(1).unwrap();
        match place.strip_prefix("/signed-") {
            None => Some(format!(
                "307 Over There\r\nLocation: /signed-{}",
                asked.fetch_add(1, Ordering::SeqCst) + 3
            )),
            Some(until) if asked.fetch_add(1, Ordering::SeqCst) >= until.parse().unwrap() => {
                Some("403 Forbidden".into())
            }
            Some(_) => None,
        }
    });
    let server = Server::with(bundle, Vice::None, None, fleeting);
    let device = bench.device();
    assert_installed(&device, &install(&device, &server.url, &[]), &image);
    assert!(server.heads().iter().filter(|h| h.starts_with("get /os.bundle")).count() > 1);

    for (rule, says) in [
        ("302 Found\r\nLocation: /os.bundle", "redirected more than 10 times; check the address"),
        ("302 Found\r\nLocation: ftp://h/x", "302 Found, and no address that could be followed"),
        ("302 Found", "302 Found, and no address that could be followed"),
    ] {
        let server = Server::with(Vec::new(), Vice::None, None, Box::new(move |_| Some(rule.into())));
        let device = bench.device();
        let (code, text) = outcome(&install(&device, &server.url, &[]));
        assert_eq!((code, text.lines().count()), (1, 1), "{text}");
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn secrets_in_an_address_are_not_shown() {
    let bench = Bench::new();
    let bundle = bench.bundle(&pattern(1 << 20, 3));
    let server = Server::with(bundle, Vice::None, None, Box::new(|_| None));
    let url = server.url.replace("http://", "http://me:pa55@") + "?sig=s1gned";
    for url in [url.clone(), url.replace("os.bundle", "os.bundle#")] {
        let device = bench.device();
        device.write("mnt/boot/device-type.json", r#"{"slug":"other","arch":"amd64"}"#);
        let output = install(&device, &url, &["-vv"]);
        let (code, text) = outcome(&output);
        assert_eq!(code, 3, "{text}");
        assert!(text.contains("twinhull: install http://127.0.0.1"), "{text}");
        assert!(!text.contains("pa55") && !text.contains("s1gned"), "{text}");
        assert_eq!(output.stdout, b"");
    }
    let device = bench.device();
    let explained = event(&install(&device, &url, &["--explain"]), "explain");
    assert!(!explained.to_string().contains("pa55"));
}
