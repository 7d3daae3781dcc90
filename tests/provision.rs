//! The built `twinhull provision` against the cloud of the lab, in the clear and behind TLS.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "../qemu/src/cloud.rs"]
mod cloud;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use cloud::{Cloud, Config, Fleet, Play};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

fn ask(cloud: &Cloud, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(cloud.address()).unwrap();
    stream.write_all(request.replace('\n', "\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn register(cloud: &Cloud, key: &str, body: &str) -> (u16, String) {
    let len = body.len();
    ask(
        cloud,
        &format!(
            "POST /device/register HTTP/1.1\nConnection: close\nAuthorization: Bearer {key}\nContent-Type: application/json\nContent-Length: {len}\n\n{body}"
        ),
    )
}

fn fleet() -> Fleet {
    "7:provisioning-key:intel-nuc".parse().unwrap()
}

/// What the real API (open-balena-api v49.0.12) was seen to answer.
#[test]
fn the_cloud_refuses_what_the_real_one_refuses() {
    let cloud = Cloud::start(Config::new("127.0.0.1:0").fleet(fleet())).unwrap();
    let uuid = "0123456789abcdef0123456789abcdef";
    let other = "fedcba9876543210fedcba9876543210";
    let good = format!(r#"{{"application":7,"device_type":"intel-nuc","uuid":"{uuid}","api_key":"k1"}}"#);
    let (status, body) = register(&cloud, "provisioning-key", &good);
    assert_eq!(
        (status, body.as_str()),
        (201, format!(r#"{{"id":1001,"uuid":"{uuid}","api_key":"k1"}}"#).as_str())
    );
    for (key, body, expected) in [
        ("wrong", good.clone(), (401, r#"{"error":"API key required"}"#)),
        ("", good.clone(), (401, r#"{"error":"API key required"}"#)),
        ("k1", good.clone(), (401, "")),
        ("provisioning-key", good.clone(), (409, r#""uuid" must be unique."#)),
        ("provisioning-key", good.replace(uuid, other), (409, r#""\"key\" must be unique.""#)),
        ("provisioning-key", good.replace("7", "8"), (401, "")),
        ("provisioning-key", good.replace("\"intel-nuc\"", "5"), (400, "")),
        ("provisioning-key", good.replace("intel-nuc", "toaster"), (404, "Unknown device type")),
        (
            "provisioning-key",
            good.replace(uuid, "ABC"),
            (400, "UUID must be a 32 or 62 character long lower case hex string."),
        ),
        (
            "provisioning-key",
            good.replace("\"api_key\":\"k1\"", "\"os_version\":\"Debian 12\"").replace(uuid, other),
            (403, "Invalid os_version"),
        ),
    ] {
        let (status, text) = register(&cloud, key, &body);
        assert_eq!((status, text.as_str()), expected, "{key} {body}");
    }
    assert_eq!(cloud.devices().len(), 1);
    assert!(!format!("{:?}", cloud.log()).contains("provisioning-key"));
}

/// As RFC 9110, section 14: ranges, and the whole file where a range would be of another version.
#[test]
fn the_cloud_serves_files_whole_and_in_ranges() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("os.bundle"), "0123456789").unwrap();
    let log = dir.path().join("log");
    let cloud = Cloud::start(Config::new("127.0.0.1:0").files(dir.path()).log(&log)).unwrap();
    let get = |name: &str, headers: &str| {
        ask(&cloud, &format!("GET /bundles/{name} HTTP/1.1\nConnection: close\n{headers}\n"))
    };
    for (name, headers, expected) in [
        ("os.bundle", "", (200, "0123456789")),
        ("os.bundle", "Range: bytes=3-5\n", (206, "345")),
        ("os.bundle", "Range: bytes=7-\n", (206, "789")),
        ("os.bundle", "Range: bytes=-2\n", (206, "89")),
        ("os.bundle", "Range: bytes=10-\n", (416, "")),
        ("os.bundle", "Range: bytes=3-5\nIf-Range: \"other\"\n", (200, "0123456789")),
        ("none", "", (404, "Not Found")),
        ("..%2fos.bundle", "", (404, "Cannot GET /bundles/../os.bundle")),
    ] {
        let (status, body) = get(name, headers);
        assert_eq!((status, body.as_str()), expected, "{name} {headers}");
    }
    let lines = fs::read_to_string(log).unwrap();
    let bytes: Vec<_> =
        lines.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["bytes"].clone()).collect();
    assert_eq!(bytes[..5], [json!(10), json!(3), json!(3), json!(2), json!(0)]);
}

/// A device's root directory with a `config.json`.
struct Device {
    dir: tempfile::TempDir,
}

impl Device {
    fn new(config: &Value) -> Self {
        let device = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(device.path("mnt/boot")).unwrap();
        fs::create_dir_all(device.path("etc/twinhull")).unwrap();
        fs::write(device.path("etc/twinhull/test.toml"), "[provision]\nretry_s = 1\nretry_max_s = 1\n")
            .unwrap();
        fs::write(device.path("mnt/boot/config.json"), config.to_string()).unwrap();
        fs::write(device.path("mnt/boot/device-type.json"), r#"{"slug":"intel-nuc","arch":"amd64"}"#)
            .unwrap();
        device
    }

    /// As made for the fleet of [`fleet`].
    fn managed(url: &str) -> Self {
        Self::new(
            &json!({"apiEndpoint": url, "apiKey": "provisioning-key", "applicationId": "7", "mine": 1.50}),
        )
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinhull"));
        command.arg("--root").arg(self.dir.path()).arg("provision").args(args).stdin(Stdio::null());
        command.env_remove("NOTIFY_SOCKET");
        command
    }

    fn provision(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn config(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("mnt/boot/config.json")).unwrap()).unwrap()
    }

    fn last_kind(&self) -> String {
        let text = fs::read(self.path("run/twinhull/provision.json")).unwrap();
        serde_json::from_slice::<Value>(&text).unwrap()["kind"].as_str().unwrap().to_owned()
    }
}

fn started() -> Cloud {
    Cloud::start(Config::new("127.0.0.1:0").fleet(fleet())).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Waits until `true`.
fn until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "{what}: not within 60 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_device_registers_and_the_provisioning_key_is_gone() {
    let cloud = started();
    let device = Device::managed(&cloud.url());
    let output = device.provision(&["--once", "--json", "-vv"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let config = device.config();
    assert_eq!(said, json!({"registered": true, "managed": true, "uuid": config["uuid"], "device_id": 1001}));
    let names: Vec<_> = config.as_object().unwrap().keys().map(String::as_str).collect();
    let expected =
        ["apiEndpoint", "applicationId", "mine", "uuid", "deviceApiKey", "deviceId", "registered_at"];
    assert_eq!(names, expected);
    let key = config["deviceApiKey"].as_str().unwrap();
    assert!(cloud.devices()[0].has_key(key));
    let log = stderr(&output);
    assert!(
        log.contains("registered as device 1001") && !log.contains(key) && !log.contains("provisioning-key"),
        "{log}"
    );
    // Nothing else stays on the boot partition.
    assert_eq!(fs::read_dir(device.path("mnt/boot")).unwrap().count(), 2);
}

#[test]
fn what_nobody_can_retry_is_one_line_and_exit_1() {
    let missing = Device::new(&json!({}));
    fs::remove_file(missing.path("mnt/boot/config.json")).unwrap();
    let damaged = Device::new(&json!({}));
    fs::write(damaged.path("mnt/boot/config.json"), "{\"apiKey\": \"k\"\n \"uuid\": 5}").unwrap();
    let lacking = Device::new(&json!({"apiEndpoint": "http://127.0.0.1:1", "apiKey": "k"}));
    for (device, words) in [
        (&missing, "mnt/boot/config.json is missing; is the boot partition mounted? Put a file there"),
        (&damaged, "mnt/boot/config.json, line 2, column 2: expected `,` or `}`; nothing was changed"),
        (&lacking, "config.json lacks applicationId; put the number of the fleet there"),
    ] {
        let before = fs::read(device.path("mnt/boot/config.json")).ok();
        let output = device.provision(&[]);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.starts_with("twinhull: provision: ") && text.contains(words), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        if !words.contains("applicationId") {
            assert_eq!(fs::read(device.path("mnt/boot/config.json")).ok(), before);
        }
    }
}

#[test]
fn once_ends_with_the_reason_and_without_it_goes_on() {
    let cloud = started();
    let device = Device::managed(&cloud.url());
    cloud.play(Play::Answer(503, vec![], String::new()));
    let output = device.provision(&["--once"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "twinhull: provision: register the device: the API is not well (503)\n");
    assert_eq!(device.last_kind(), "server-5xx");
    cloud.play(Play::Answer(503, vec![], String::new()));
    assert!(device.provision(&[]).status.success());
    assert!(!device.path("run/twinhull/provision.json").exists());
}

#[test]
fn killed_while_the_api_answers_it_finds_its_device_again() {
    for (registered, play) in [(false, Play::AsAlways), (true, Play::Late(Duration::from_secs(600)))] {
        let cloud = started();
        let device = Device::managed(&cloud.url());
        cloud.play(play);
        if !registered {
            cloud.play(Play::Late(Duration::from_secs(600)));
        }
        let mut child = device.command(&[]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        until("the last request is there", || cloud.plays_left() == 0 && cloud.devices().len() == 1);
        child.kill().unwrap();
        child.wait().unwrap();
        let output = device.provision(&[]);
        assert!(output.status.success(), "{}", stderr(&output));
        let config = device.config();
        assert_eq!(cloud.devices().len(), 1);
        assert_eq!((&config["deviceId"], &config["apiKey"]), (&json!(1001), &Value::Null));
    }
}

#[test]
fn systemd_is_told_when_it_is_done() {
    let cloud = started();
    let device = Device::managed(&cloud.url());
    let address = device.path("notify");
    let socket = UnixDatagram::bind(&address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert!(device.command(&[]).env("NOTIFY_SOCKET", &address).output().unwrap().status.success());
    let mut messages = Vec::new();
    while !messages.last().is_some_and(|m: &String| m.starts_with("READY=1")) {
        let mut buffer = [0; 1024];
        let n = socket.recv(&mut buffer).unwrap();
        messages.push(String::from_utf8(buffer[..n].to_vec()).unwrap());
    }
    let uuid = device.config()["uuid"].as_str().unwrap().to_owned();
    let ready = format!("READY=1\nSTATUS=registered as device 1001, uuid {uuid}");
    assert_eq!(messages, ["STATUS=registering", ready.as_str()]);
}

// ---- behind TLS

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name)
}

/// Serves `cloud` over TLS with the certificate `name` of the fixtures.
fn behind_tls(cloud: &Cloud, name: &str) -> String {
    let chain = vec![CertificateDer::from_pem_file(fixture(&format!("{name}.crt"))).unwrap()];
    let key = PrivateKeyDer::from_pem_file(fixture(&format!("{name}.key"))).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let to = cloud.address();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            // A client that does not trust us goes away.
            let _ = pass_one(rustls::StreamOwned::new(connection, stream.unwrap()), to);
        }
    });
    url
}

/// Passes one request on, and its answer back.
fn pass_one(
    mut tls: rustls::StreamOwned<rustls::ServerConnection, TcpStream>,
    to: SocketAddr,
) -> io::Result<()> {
    let mut request = Vec::new();
    let head_len = loop {
        let mut chunk = [0; 4096];
        let n = tls.read(&mut chunk)?;
        request.extend(&chunk[..n]);
        let head = request.windows(4).position(|w| w == b"\r\n\r\n");
        if let Some(at) = head {
            break at;
        }
        if n == 0 {
            return Ok(());
        }
    };
    let head = String::from_utf8_lossy(&request[..head_len]).to_lowercase();
    let body_len = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    while request.len() < head_len + 4 + body_len {
        let mut chunk = [0; 4096];
        let n = tls.read(&mut chunk)?;
        request.extend(&chunk[..n]);
    }
    let mut plain = TcpStream::connect(to)?;
    plain.write_all(&request[..head_len])?;
    plain.write_all(b"\r\nConnection: close")?;
    plain.write_all(&request[head_len..])?;
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer)?;
    tls.write_all(&answer)?;
    tls.conn.send_close_notify();
    tls.flush()
}

/// A managed device that knows the fleet's own CA, or does not.
fn behind(url: &str, with_ca: bool) -> Device {
    let device = Device::managed(url);
    let mut config = device.config();
    if with_ca {
        let pem = fs::read(fixture("ca.crt")).unwrap();
        config["balenaRootCA"] = base64::engine::general_purpose::STANDARD.encode(pem).into();
    } else {
        // There are certificates to trust, but not this one.
        fs::create_dir_all(device.path("etc/ssl/certs")).unwrap();
        fs::copy(fixture("server.crt"), device.path("etc/ssl/certs/ca-certificates.crt")).unwrap();
    }
    fs::write(device.path("mnt/boot/config.json"), config.to_string()).unwrap();
    device
}

#[test]
fn the_fleets_own_ca_is_trusted() {
    let cloud = started();
    let device = behind(&behind_tls(&cloud, "server"), true);
    let output = device.provision(&["--once"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(device.config()["deviceId"], 1001);
}

#[test]
fn an_unknown_ca_is_a_tls_failure_that_says_what_to_do() {
    let cloud = started();
    let device = behind(&behind_tls(&cloud, "server"), false);
    let output = device.provision(&["--once"]);
    let text = stderr(&output);
    assert_eq!((output.status.code(), device.last_kind().as_str()), (Some(1), "tls"), "{text}");
    assert!(text.contains("certificate") && text.contains("balenaRootCA"), "{text}");
    assert!(cloud.log().is_empty(), "a key went to a server that is not trusted");
}

#[test]
fn a_certificate_from_the_future_is_told_as_a_wrong_clock() {
    let cloud = started();
    let device = behind(&behind_tls(&cloud, "future"), true);
    let output = device.provision(&["--once"]);
    let text = stderr(&output);
    assert_eq!((output.status.code(), device.last_kind().as_str()), (Some(1), "clock-wrong"), "{text}");
    assert!(text.contains("the clock is wrong"), "{text}");
}
