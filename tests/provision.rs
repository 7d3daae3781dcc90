//! The built `twinhull provision` against the cloud of the lab, in the clear and behind TLS.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::cast_possible_truncation)]

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
use twinhull::sys::http::HttpSettings;
use twinhull::sys::tls_date;

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

    fn status(&self) -> Value {
        serde_json::from_slice(&self.status_command(&["--json"]).stdout).unwrap()
    }

    fn status_text(&self) -> String {
        String::from_utf8(self.status_command(&[]).stdout).unwrap()
    }

    fn status_command(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinhull"));
        command.arg("--root").arg(self.dir.path()).arg("status").args(args).output().unwrap()
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

// ---- the table: each answer and each fault, what `status` says of it, and how it ends

/// What stands between the device and the cloud.
enum Way {
    /// Nothing.
    Plain,
    /// TLS with this certificate of the fixtures, at this host name; whether the device knows its authority.
    Tls(&'static str, &'static str, bool),
    /// This address instead of the cloud's.
    Address(&'static str),
    /// A proxy in the environment, at this address.
    Proxy(String),
    /// A server that answers whatever it is asked with these bytes, and then closes; as `https://` or not.
    Raw(&'static str, Vec<u8>),
}

/// How a row ends, when the fault is over and the device tries again.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Registered at the first try: it was no fault at all.
    AtOnce,
    /// Registered at the next try.
    Next,
    /// Not before somebody acts.
    Stays,
}

struct Row {
    what: &'static str,
    way: Way,
    plays: Vec<Play>,
    /// A device that the cloud has already: fleet and device key.
    known: Option<(u64, &'static str)>,
    kind: &'static str,
    words: &'static str,
    end: End,
}

const DEVICE_KEY: &str = "ask for the device with its own key: ";
const FOUND: &str = "ask for the device with the provisioning key: ";
const HANDED: &str = "hand over the device key: ";
const LATE: Duration = Duration::from_secs(5);

/// Bytes of no protocol.
fn garbage() -> Vec<u8> {
    (0..4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// More than any answer of the API.
fn endless() -> Vec<u8> {
    [b"HTTP/1.1 201 Created\r\n\r\n".to_vec(), vec![b'x'; 3 << 20]].concat()
}

/// The address of a server that answers every connection with `bytes`.
fn raw(bytes: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // The request first, or closing would reset the connection.
            let _ = stream.read(&mut [0; 64 * 1024]);
            let _ = stream.write_all(&bytes);
        }
    });
    address
}

const UUID: &str = "0123456789abcdef0123456789abcdef";

fn answer(status: u16, headers: &[&str], body: &str) -> Vec<Play> {
    vec![Play::Answer(status, headers.iter().map(|h| (*h).to_owned()).collect(), body.to_owned())]
}

/// A proxy that answers every request with `status`, or connects if that is 200.
fn proxy(status: u16) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || drop(pass_through(stream.unwrap(), status)));
        }
    });
    format!("http://{address}")
}

fn pass_through(mut client: TcpStream, status: u16) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let to = head.strip_prefix("CONNECT ").and_then(|r| r.split(' ').next()).unwrap_or_default().to_owned();
    write!(client, "HTTP/1.1 {status} x\r\n\r\n")?;
    if status != 200 {
        return Ok(());
    }
    let mut server = TcpStream::connect(to)?;
    let (mut from, mut back) = (client.try_clone()?, server.try_clone()?);
    let up = std::thread::spawn(move || io::copy(&mut from, &mut server));
    io::copy(&mut back, &mut client)?;
    client.shutdown(std::net::Shutdown::Both)?;
    let _ = up.join();
    Ok(())
}

fn table() -> Vec<Row> {
    let row =
        |what, plays, kind, words, end| Row { what, way: Way::Plain, plays, known: None, kind, words, end };
    let by = |what, way, kind, words, end| Row { what, way, plays: vec![], known: None, kind, words, end };
    let exchange = |what, before, fault: Vec<Play>, kind, words| Row {
        known: Some((7, "another")),
        ..row(what, [vec![Play::AsAlways; before], fault].concat(), kind, words, Next)
    };
    let html = "<html>Log in</html>";
    use End::{AtOnce, Next, Stays};
    vec![
        row("201", vec![], "", "", AtOnce),
        row(
            "400",
            answer(400, &[], "UUID must be specified"),
            "refused-400",
            "refuses the request (400: UUID must be specified); check applicationId, deviceType and uuid",
            Next,
        ),
        row(
            "401",
            answer(401, &[], r#"{"error":"API key required"}"#),
            "key-rejected-401",
            "rejects the provisioning key (401); it may have expired or belong to another fleet: put a new apiKey",
            Next,
        ),
        row(
            "403",
            answer(403, &[], "Invalid os_version"),
            "forbidden-403",
            "the API forbids it (403: Invalid os_version)",
            Next,
        ),
        row(
            "404",
            answer(404, &[], "Unknown device type"),
            "not-found-404",
            "check deviceType and apiEndpoint",
            Next,
        ),
        Row { known: Some((7, "ours")), ..row("409, ours: an answer was lost", vec![], "", "", AtOnce) },
        Row {
            known: Some((7, "another")),
            ..row("409, our fleet's, another key: key exchange", vec![], "", "", AtOnce)
        },
        Row {
            known: Some((8, "theirs")),
            ..row(
                "409, another fleet's",
                vec![],
                "conflict-409",
                "another device, which this provisioning key may not see, has this uuid",
                Stays,
            )
        },
        row(
            "429 with Retry-After",
            answer(429, &["Retry-After: 40"], ""),
            "too-many-429",
            "asks to wait for 40 s (429)",
            Next,
        ),
        row("429 without", answer(429, &[], ""), "too-many-429", "the API asks to wait (429)", Next),
        row("500", answer(500, &[], ""), "server-5xx", "the API is not well (500)", Next),
        row("503", answer(503, &[], html), "server-5xx", "the API is not well (503)", Next),
        row(
            "503 with Retry-After",
            answer(503, &["Retry-After: 9"], html),
            "server-5xx",
            "the API is not well (503) and asks to wait for 9 s",
            Next,
        ),
        row("418", answer(418, &[], ""), "unexpected-answer", "unexpected answer 418; is apiEndpoint", Next),
        row(
            "log-in page behind the registration",
            [vec![Play::AsAlways], answer(200, &[], html)].concat(),
            "unreadable-answer",
            "is there a log-in page in between",
            Next,
        ),
        row(
            "device key refused for a while",
            [vec![Play::AsAlways], answer(401, &[], "")].concat(),
            "key-not-accepted",
            "does not accept it yet; it may remember an earlier refusal",
            Next,
        ),
        // The key exchange of a uuid that the cloud knows with another key, and a fault at each of its requests.
        exchange("409, then no GET with the device key", 1, answer(503, &[], ""), "server-5xx", DEVICE_KEY),
        exchange("409, then 403 to the device key", 1, answer(403, &[], ""), "forbidden-403", DEVICE_KEY),
        exchange("409, then 401 to the provisioning key", 2, answer(401, &[], ""), "key-rejected-401", FOUND),
        exchange("409, then 429 to the provisioning key", 2, answer(429, &[], ""), "too-many-429", FOUND),
        exchange("409, then a log-in page", 2, answer(200, &[], html), "unreadable-answer", FOUND),
        exchange("409, then the exchange is refused", 3, answer(400, &[], ""), "refused-400", HANDED),
        exchange("409, then the exchange breaks", 3, vec![Play::CloseBefore], "network", HANDED),
        exchange("409, the exchange's answer is lost", 3, vec![Play::CloseAfter], "network", HANDED),
        exchange("409, the exchange's answer is late", 3, vec![Play::Late(LATE)], "timeout", HANDED),
        exchange(
            "409, the new key not yet accepted",
            4,
            answer(401, &[], ""),
            "key-not-accepted",
            DEVICE_KEY,
        ),
        row("closed before", vec![Play::CloseBefore], "network", "register the device: ", Next),
        row("closed after", vec![Play::CloseAfter], "network", "register the device: ", Next),
        row("time-out", vec![Play::Late(Duration::from_secs(5))], "timeout", "no answer in time", Next),
        by(
            "an answer cut in its head",
            Way::Raw("http", b"HTTP/1.1 201 Cre".to_vec()),
            "network",
            "register the device: ",
            Next,
        ),
        by(
            "an answer cut in its body",
            Way::Raw("http", b"HTTP/1.1 201 Created\r\nContent-Length: 90\r\n\r\n{\"id\": 10".to_vec()),
            "network",
            "register the device: ",
            Next,
        ),
        by(
            "an answer cut in a chunk",
            Way::Raw("http", b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n{".to_vec()),
            "network",
            "register the device: ",
            Next,
        ),
        by("garbage", Way::Raw("http", garbage()), "network", "register the device: ", Next),
        by("another protocol", Way::Raw("http", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), "network", "", Next),
        by(
            "an answer without an end",
            Way::Raw("http", endless()),
            "network",
            "the response body is larger",
            Next,
        ),
        by("garbage instead of TLS", Way::Raw("https", garbage()), "tls", "register the device: ", Next),
        by("the TLS handshake breaks off", Way::Raw("https", Vec::new()), "network", "register", Next),
        by(
            "the TLS server refuses",
            // A fatal alert, handshake_failure; RFC 8446, section 6.
            Way::Raw("https", vec![21, 3, 3, 0, 2, 2, 40]),
            "tls",
            "register the device: ",
            Next,
        ),
        by(
            "a log-in page somewhere else",
            Way::Raw(
                "http",
                b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/login\r\nContent-Length: 0\r\n\r\n"
                    .to_vec(),
            ),
            "network",
            "register the device: ",
            Next,
        ),
        by("nobody listens", Way::Address("http://127.0.0.1:1"), "network", "Connection refused", Next),
        by("no such host", Way::Address("http://nowhere.invalid"), "network", "no such host", Next),
        by(
            "https, but the server speaks plain http",
            Way::Address("https://"),
            "network",
            "unexpected end of file",
            Next,
        ),
        by("the fleet's own authority", Way::Tls("server", "127.0.0.1", true), "", "", AtOnce),
        by(
            "unknown authority",
            Way::Tls("server", "127.0.0.1", false),
            "tls",
            "balenaRootCA in config.json must hold it",
            Next,
        ),
        by("another host's certificate", Way::Tls("server", "localhost", true), "tls", "certificate", Next),
        by(
            "certificate from the future",
            Way::Tls("future", "127.0.0.1", true),
            "clock-wrong",
            "the clock is wrong, waiting for the time",
            Next,
        ),
        by(
            "expired certificate",
            Way::Tls("expired", "127.0.0.1", true),
            "certificate-expired",
            "it must be renewed, or else this clock is ahead",
            Next,
        ),
        by("through a proxy", Way::Proxy(proxy(200)), "", "", AtOnce),
        by("the proxy forbids it", Way::Proxy(proxy(403)), "proxy", "the proxy: ", Next),
        by("the proxy wants a password", Way::Proxy(proxy(407)), "proxy", "check HTTPS_PROXY", Next),
        by(
            "the proxy is not there",
            Way::Proxy("http://127.0.0.1:1".into()),
            "network",
            "Connection refused",
            Next,
        ),
    ]
}

impl Row {
    fn address(&self, cloud: &Cloud) -> String {
        match &self.way {
            Way::Plain | Way::Proxy(_) => cloud.url(),
            Way::Tls(certificate, host, _) => behind_tls(cloud, certificate).replace("127.0.0.1", host),
            Way::Address("https://") => cloud.url().replace("http://", "https://"),
            Way::Address(url) => (*url).to_owned(),
            Way::Raw(scheme, bytes) => format!("{scheme}://{}", raw(bytes.clone())),
        }
    }

    fn device(&self, cloud: &Cloud) -> Device {
        let device = Device::managed(&self.address(cloud));
        let mut config = device.config();
        config["uuid"] = UUID.into();
        config["deviceApiKey"] = "ours".into();
        if let Way::Tls(_, _, true) = self.way {
            let pem = fs::read(fixture("ca.crt")).unwrap();
            config["balenaRootCA"] = base64::engine::general_purpose::STANDARD.encode(pem).into();
        }
        // There are certificates to trust, but not this one.
        fs::create_dir_all(device.path("etc/ssl/certs")).unwrap();
        fs::copy(fixture("server.crt"), device.path("etc/ssl/certs/ca-certificates.crt")).unwrap();
        fs::write(device.path("mnt/boot/config.json"), config.to_string()).unwrap();
        let settings = "[provision]\nretry_s = 1\nretry_max_s = 1\ntimeout_s = 2\n";
        fs::write(device.path("etc/twinhull/test.toml"), settings).unwrap();
        device
    }

    fn try_once(&self, device: &Device) -> Output {
        let mut command = device.command(&["--once"]);
        for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
            command.env_remove(name);
        }
        if let Way::Proxy(address) = &self.way {
            command.env("ALL_PROXY", address);
        }
        command.output().unwrap()
    }
}

#[test]
fn each_answer_and_each_fault_ends_as_the_table_says() {
    for row in table() {
        let what = row.what;
        let cloud = started();
        if let Some((fleet, key)) = row.known {
            cloud.add_device(fleet, UUID, key);
        }
        row.plays.iter().for_each(|play| cloud.play(play.clone()));
        let device = row.device(&cloud);
        let output = row.try_once(&device);
        let said = stderr(&output);
        assert_eq!(output.status.success(), row.end == End::AtOnce, "{what}: {said}");
        if row.end != End::AtOnce {
            let status = device.status();
            let last = &status["provision"]["last_try"];
            assert_eq!(last["kind"], row.kind, "{what}: {last}");
            let text = last["text"].as_str().unwrap();
            assert!(text.contains(row.words), "{what}: {text}");
            assert_eq!(text.lines().count(), 1, "{what}");
            let shown = format!("not registered: {text} (failed 1 times");
            assert!(device.status_text().contains(&shown), "{what}: {}", device.status_text());
            assert!(device.config()["apiKey"].is_string(), "{what}: the provisioning key must stay");
            for key in ["provisioning-key", "ours"] {
                assert!(!said.contains(key) && !status.to_string().contains(key), "{what}: {key} is told");
            }
            // A key never went to somebody who is not trusted.
            if let Way::Tls(..) = row.way {
                assert!(cloud.log().iter().all(|l| l["who"] == "nobody"), "{what}");
            }
            // The fault is over.
            let mut config = device.config();
            config["apiEndpoint"] = cloud.url().into();
            fs::write(device.path("mnt/boot/config.json"), config.to_string()).unwrap();
            let again = device.command(&["--once"]).env_remove("ALL_PROXY").output().unwrap();
            assert_eq!(again.status.success(), row.end == End::Next, "{what}: {}", stderr(&again));
        }
        if row.end == End::Stays {
            continue;
        }
        let (config, devices) = (device.config(), cloud.devices());
        assert_eq!(devices.len(), 1, "{what}: one device in the cloud");
        assert_eq!((&config["uuid"], &config["deviceId"]), (&json!(UUID), &json!(1001)), "{what}");
        assert!(config["apiKey"].is_null() && devices[0].has_key("ours"), "{what}");
        assert_eq!(device.status()["provision"]["registered"], true, "{what}");
    }
}

fn trusting(ca: &str) -> HttpSettings {
    HttpSettings {
        ca_bundle: fixture(ca),
        extra_ca_pem: None,
        connect_timeout: Duration::from_secs(20),
        read_timeout: Duration::from_secs(20),
        client: None,
    }
}

/// Seconds since 1970, as `date -u -d DATE +%s` gives them.
const START_OF_2020: u64 = 1_577_836_800;
const START_OF_2090: u64 = 3_786_912_000;
const MARCH_2026: u64 = 1_772_323_200;

#[test]
fn a_date_is_believed_only_of_a_server_that_is_trusted_at_that_date() {
    let cloud = started();
    let ask = |url: &str, ca: &str, now: u64| {
        let port = url.rsplit(':').next().unwrap().parse().unwrap();
        tls_date::ask("127.0.0.1", port, &trusting(ca), Duration::from_secs(now)).map(|d| d.as_secs())
    };
    let (server, future) = (behind_tls(&cloud, "server"), behind_tls(&cloud, "future"));
    let expired = behind_tls(&cloud, "expired");
    // Without a date of its own it is the moment from which the certificate is valid.
    assert_eq!(ask(&server, "ca.crt", 0), Ok(START_OF_2020));
    assert_eq!(ask(&future, "ca.crt", MARCH_2026), Ok(START_OF_2090));
    let say = |times: usize, date: &str| {
        (0..times).for_each(|_| cloud.play(answer(200, &[&format!("Date: {date}")], "").remove(0)));
    };
    say(2, "Sun, 01 Mar 2026 00:00:00 GMT");
    assert_eq!(ask(&server, "ca.crt", 0), Ok(MARCH_2026));
    // A date before what is certain moves nothing back.
    say(1, "Sun, 01 Mar 2026 00:00:00 GMT");
    assert_eq!(ask(&future, "ca.crt", 0), Ok(START_OF_2090));
    // A certificate that expired may not tell a date after its end.
    say(2, "Sun, 01 Mar 2026 00:00:00 GMT");
    assert!(ask(&expired, "ca.crt", 0).unwrap_err().to_string().contains("certificate"));
    // And nobody else's word counts.
    let e = ask(&future, "server.crt", 0).unwrap_err().to_string();
    assert!(e.contains("invalid peer certificate"), "{e}");
}

#[test]
fn a_clock_that_is_behind_is_set_to_the_authenticated_date() {
    let cloud = started();
    let row = Row {
        what: "clock",
        way: Way::Tls("future", "127.0.0.1", true),
        plays: vec![],
        known: None,
        kind: "",
        words: "",
        end: End::Next,
    };
    let device = row.device(&cloud);
    let root = twinhull::Root::new(device.dir.path());
    let settings = twinhull::config::Settings::load(&root, None).unwrap();
    let times = std::cell::RefCell::new(Vec::new());
    // The clock of this machine stays as it is, so the attempt fails again.
    let set_time = |to: Duration| {
        times.borrow_mut().push(to.as_secs());
        Ok(())
    };
    let provisioner = twinhull::provision::Provisioner {
        root: &root,
        settings: &settings,
        clock: &twinhull::sys::clock::BootClock,
        set_time: &set_time,
        observer: &|_| Ok(()),
    };
    let e = provisioner.once().unwrap_err().to_string();
    assert!(e.contains("the clock is wrong"), "{e}");
    assert_eq!(times.into_inner(), [START_OF_2090]);
}
