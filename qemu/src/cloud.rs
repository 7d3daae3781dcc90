//! A local server that answers as the cloud API does, and refuses what it refuses.
//!
//! Plain HTTP/1.1 with threads, std and serde_json only, so that the lab and the tests use the same one. What it
//! answers was written down from open-balena-api v49: 401 without or with a wrong key, 409 for a taken uuid or
//! key, 400 for what the schema refuses, 403 for an `os_version` without a semantic version, 404 for an unknown
//! device type, and 304 (not 401) for the state of an unknown device. Besides the API it serves a directory under
//! `/bundles/` (with ranges), and `/lab/devices` and `/lab/log` show what it knows. Keys are never logged or shown.

// A test tool: it listens, logs and sleeps by itself, outside the rules for the shipped program.
#![allow(clippy::disallowed_methods, clippy::disallowed_macros, dead_code)]

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

const HEAD_LIMIT: u64 = 64 * 1024;
const BODY_LIMIT: usize = 8 * 1024 * 1024;

/// A fleet: devices register into it with its provisioning key.
#[derive(Clone)]
pub struct Fleet {
    /// The application's number, as in `applicationId`.
    pub id: u64,
    /// The provisioning key, as in `apiKey`.
    pub key: String,
    /// The device type of the fleet.
    pub device_type: String,
}

/// `ID:KEY:TYPE`, as on the lab's command line.
impl FromStr for Fleet {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wrong =
            || format!("fleet: expected ID:KEY:TYPE (ID a number), found {} fields", s.split(':').count());
        let mut parts = s.splitn(3, ':').map(str::to_owned);
        let (Some(id), Some(key), Some(device_type)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong());
        };
        let id = id.parse().map_err(|_| wrong())?;
        if key.is_empty() || device_type.is_empty() {
            return Err(wrong());
        }
        Ok(Self { id, key, device_type })
    }
}

/// What the server is to be.
#[derive(Clone)]
pub struct Config {
    listen: String,
    fleets: Vec<Fleet>,
    files: Option<PathBuf>,
    log: Option<PathBuf>,
}

impl Config {
    /// A server on `listen`, such as `127.0.0.1:0` (any free port), without fleets.
    pub fn new(listen: impl Into<String>) -> Self {
        Self { listen: listen.into(), fleets: Vec::new(), files: None, log: None }
    }

    /// Adds a fleet.
    #[must_use]
    pub fn fleet(mut self, fleet: Fleet) -> Self {
        self.fleets.push(fleet);
        self
    }

    /// Serves the files of `dir` under `/bundles/`.
    #[must_use]
    pub fn files(mut self, dir: impl Into<PathBuf>) -> Self {
        self.files = Some(dir.into());
        self
    }

    /// Appends one JSON line per request to `file`.
    #[must_use]
    pub fn log(mut self, file: impl Into<PathBuf>) -> Self {
        self.log = Some(file.into());
        self
    }
}

/// A device that registered.
#[derive(Clone)]
pub struct Device {
    /// The device's number.
    pub id: u64,
    /// Its uuid.
    pub uuid: String,
    /// The fleet's number.
    pub fleet: u64,
    /// Its device type.
    pub device_type: String,
    /// Everything else it said when it registered, without the key.
    pub said: Value,
    /// The state that it, or its supervisor, last reported for itself.
    pub state: Value,
    keys: Vec<String>,
}

impl Device {
    /// Whether `key` is one of its keys.
    pub fn has_key(&self, key: &str) -> bool {
        self.keys.iter().any(|k| k == key)
    }

    fn shown(&self) -> Value {
        json!({"id": self.id, "uuid": self.uuid, "fleet": self.fleet, "device_type": self.device_type,
               "keys": self.keys.len(), "said": self.said, "state": self.state})
    }
}

/// A fault that one request meets instead of, or after, its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Play {
    /// This answer; the server does nothing. Headers as `Name: value`.
    Answer(u16, Vec<String>, String),
    /// The connection is closed before the server did anything.
    CloseBefore,
    /// The server does what was asked and closes the connection instead of answering.
    CloseAfter,
    /// The server does what was asked and answers only after this time.
    Late(Duration),
    /// This request is answered as always: to reach a later one.
    AsAlways,
}

#[derive(Default)]
struct State {
    devices: Vec<Device>,
    plays: VecDeque<Play>,
    log: Vec<Value>,
    next_id: u64,
}

struct Shared {
    config: Config,
    state: Mutex<State>,
    log_file: Option<Mutex<File>>,
    stopping: AtomicBool,
}

/// The running server; it stops when this is dropped.
pub struct Cloud {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

impl Cloud {
    /// Listens and serves in threads of its own.
    pub fn start(config: Config) -> io::Result<Self> {
        let listener = TcpListener::bind(&config.listen)?;
        let address = listener.local_addr()?;
        let log_file = match &config.log {
            Some(path) => Some(Mutex::new(OpenOptions::new().create(true).append(true).open(path)?)),
            None => None,
        };
        let state = Mutex::new(State { next_id: 1001, ..State::default() });
        let shared = Arc::new(Shared { config, state, log_file, stopping: AtomicBool::new(false) });
        let theirs = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || accept(&listener, &theirs));
        Ok(Self { shared, address, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://ADDRESS`, as for `apiEndpoint`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The devices registered so far.
    pub fn devices(&self) -> Vec<Device> {
        self.shared.state().devices.clone()
    }

    /// The requests so far: `time` (seconds since 1970), `method`, `path`, `status`, `who`, `bytes`.
    pub fn log(&self) -> Vec<Value> {
        self.shared.state().log.clone()
    }

    /// Makes the next API request meet `play`; several calls queue up.
    pub fn play(&self, play: Play) {
        self.shared.state().plays.push_back(play);
    }

    /// How many of them no request has met yet.
    pub fn plays_left(&self) -> usize {
        self.shared.state().plays.len()
    }

    /// Puts a device there that somebody else registered.
    pub fn add_device(&self, fleet: u64, uuid: &str, key: &str) -> u64 {
        let device_type = self.shared.config.fleets.iter().find(|f| f.id == fleet);
        let device_type = device_type.map(|f| f.device_type.clone()).unwrap_or_default();
        self.shared.state().add(fleet, uuid, device_type, key.to_owned(), Value::Null)
    }

    /// Makes these devices all that it knows, as if nothing had been asked yet.
    pub fn set_devices(&self, devices: Vec<Device>) {
        let next_id = devices.iter().map(|d| d.id + 1).max().unwrap_or(1001);
        *self.shared.state() = State { devices, next_id, ..State::default() };
    }

    /// Serves until the process ends.
    pub fn serve(mut self) {
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        match stream {
            Ok(stream) => {
                let shared = Arc::clone(shared);
                std::thread::spawn(move || {
                    // A client that goes away is its own affair.
                    let _ = serve(&stream, &shared);
                });
            }
            // Out of file descriptors, for example: others may free some.
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Answers the requests of one connection until it ends.
fn serve(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(300)))?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        let keep = request.keep_alive;
        let ours = request.path.starts_with("/lab/");
        let play = if ours { None } else { shared.state().plays.pop_front() };
        let mut answer = match &play {
            Some(Play::CloseBefore) => {
                shared.log(&request, "nobody", None, 0);
                return Ok(());
            }
            Some(Play::Answer(status, headers, body)) => {
                let mut answer = Answer::new(*status, "text/html; charset=utf-8", body.clone().into_bytes());
                answer.headers.extend(headers.iter().cloned());
                answer
            }
            Some(Play::CloseAfter | Play::Late(_) | Play::AsAlways) | None => shared.answer(&request),
        };
        if play == Some(Play::CloseAfter) {
            shared.log(&request, &answer.who, None, 0);
            return Ok(());
        }
        if let Some(Play::Late(d)) = play {
            std::thread::sleep(d);
        }
        // A file is logged with the bytes that really went out; the rest before the client can know of it, so that
        // whoever has the answer finds it in the log.
        let is_file = answer.file.is_some();
        if !ours && !is_file {
            shared.log(&request, &answer.who, Some(answer.status), answer.body.len() as u64);
        }
        let sent = answer.send(stream, &request.method, keep);
        if is_file {
            shared.log(&request, &answer.who, Some(answer.status), answer.sent);
        }
        sent?;
        if !keep {
            break;
        }
    }
    Ok(())
}

// ---- requests

struct Request {
    method: String,
    path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    keep_alive: bool,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The API key: `Authorization: Bearer KEY` or `?apikey=KEY`.
    fn key(&self) -> Option<&str> {
        let bearer = self.header("authorization").and_then(|h| h.strip_prefix("Bearer "));
        bearer.or_else(|| self.query("apikey")).filter(|k| !k.is_empty())
    }

    /// The body as an object: JSON, or a form whose values are strings. `None`: it is not one.
    fn object(&self) -> Option<Value> {
        if self.header("content-type").is_some_and(|t| t.starts_with("application/x-www-form-urlencoded")) {
            let text = std::str::from_utf8(&self.body).ok()?;
            return Some(Value::Object(
                pairs(text).into_iter().map(|(k, v)| (k, Value::String(v))).collect(),
            ));
        }
        serde_json::from_slice(&self.body).ok().filter(Value::is_object)
    }

    /// For the log: the path and what was asked, without the key.
    fn shown(&self) -> String {
        let asked: Vec<_> =
            self.query.iter().filter(|(n, _)| n != "apikey").map(|(n, v)| format!("{n}={v}")).collect();
        if asked.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, asked.join("&")) }
    }
}

fn bad(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Reads one request; `None` at the end of the connection.
fn read_request(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Request>> {
    let mut head = reader.by_ref().take(HEAD_LIMIT);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next()) else {
        return Err(bad("request line"));
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: method.to_owned(),
        path: decode(path),
        query: pairs(query),
        headers: Vec::new(),
        body: Vec::new(),
        keep_alive: version == "HTTP/1.1",
    };
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Err(bad("request head"));
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| bad("header"))?;
        request.headers.push((name.to_owned(), value.trim().to_owned()));
    }
    if request.header("connection").is_some_and(|c| c.eq_ignore_ascii_case("close")) {
        request.keep_alive = false;
    }
    if request.header("expect").is_some() {
        reader.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    if request.header("transfer-encoding").is_some_and(|t| t.eq_ignore_ascii_case("chunked")) {
        request.body = read_chunked(reader)?;
    } else if let Some(len) = request.header("content-length") {
        let len: usize = len.parse().map_err(|_| bad("content-length"))?;
        if len > BODY_LIMIT {
            return Err(bad("body too long"));
        }
        request.body = vec![0; len];
        reader.read_exact(&mut request.body)?;
    }
    Ok(Some(request))
}

fn read_chunked(reader: &mut BufReader<&TcpStream>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = line.trim().split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).map_err(|_| bad("chunk size"))?;
        if body.len().saturating_add(size) > BODY_LIMIT {
            return Err(bad("body too long"));
        }
        let mut chunk = vec![0; size];
        reader.read_exact(&mut chunk)?;
        body.extend(chunk);
        let mut end = String::new();
        reader.read_line(&mut end)?;
        if size == 0 {
            return Ok(body);
        }
    }
}

fn pairs(text: &str) -> Vec<(String, String)> {
    let parts = text.split('&').filter(|p| !p.is_empty());
    parts.map(|p| p.split_once('=').unwrap_or((p, ""))).map(|(k, v)| (form(k), form(v))).collect()
}

fn form(text: &str) -> String {
    decode(&text.replace('+', " "))
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while let Some(&b) = bytes.get(i) {
        let code = text.get(i + 1..i + 3).filter(|_| b == b'%').and_then(|h| u8::from_str_radix(h, 16).ok());
        out.push(code.unwrap_or(b));
        i += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

// ---- answers

struct Answer {
    status: u16,
    headers: Vec<String>,
    body: Vec<u8>,
    /// A part of a file instead of `body`: from the file's present position, this many bytes.
    file: Option<(File, u64)>,
    who: String,
    /// Bytes of the file that went out.
    sent: u64,
}

impl Answer {
    fn new(status: u16, content_type: &str, body: Vec<u8>) -> Self {
        let headers = vec![format!("Content-Type: {content_type}")];
        Self { status, headers, body, file: None, who: "nobody".into(), sent: 0 }
    }

    fn text(status: u16, text: &str) -> Self {
        Self::new(status, "text/html; charset=utf-8", text.into())
    }

    fn json(status: u16, value: &Value) -> Self {
        Self::new(status, "application/json; charset=utf-8", value.to_string().into_bytes())
    }

    fn empty(status: u16) -> Self {
        Self::text(status, "")
    }

    fn key_required() -> Self {
        Self::json(401, &json!({"error": "API key required"}))
    }

    fn by(mut self, who: impl Into<String>) -> Self {
        self.who = who.into();
        self
    }

    fn send(&mut self, mut to: &TcpStream, method: &str, keep: bool) -> io::Result<()> {
        let len = self.file.as_ref().map_or(self.body.len() as u64, |(_, len)| *len);
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for header in &self.headers {
            head.push_str(&format!("{header}\r\n"));
        }
        if !matches!(self.status, 204 | 304) {
            head.push_str(&format!("Content-Length: {len}\r\n"));
        }
        head.push_str(if keep { "\r\n" } else { "Connection: close\r\n\r\n" });
        let mut first = head.into_bytes();
        let bodiless = method == "HEAD" || matches!(self.status, 204 | 304);
        if !bodiless && self.file.is_none() {
            first.extend_from_slice(&self.body);
        }
        to.write_all(&first)?;
        if let Some((file, len)) = self.file.as_mut().filter(|_| !bodiless) {
            let mut rest = *len;
            let mut chunk = vec![0; 64 * 1024];
            while rest > 0 {
                let want = usize::try_from(rest).unwrap_or(usize::MAX).min(chunk.len());
                let part = chunk.get_mut(..want).unwrap_or_default();
                let n = file.read(part)?;
                if n == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                to.write_all(part.get(..n).unwrap_or_default())?;
                self.sent += n as u64;
                rest -= n as u64;
            }
        }
        to.flush()
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        206 => "Partial Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        409 => "Conflict",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

// ---- what it knows and decides

/// Whose key a request carries.
#[derive(Clone)]
enum Who {
    Nobody,
    Stranger,
    Fleet(Fleet),
    Device(u64, String, u64),
}

impl Who {
    fn shown(&self) -> String {
        match self {
            Self::Nobody => "nobody".into(),
            Self::Stranger => "wrong key".into(),
            Self::Fleet(f) => format!("fleet {}", f.id),
            Self::Device(id, _, _) => format!("device {id}"),
        }
    }

    /// Whether this key may see the device.
    fn may_see(&self, device: &Device) -> bool {
        match self {
            Self::Nobody | Self::Stranger => false,
            Self::Fleet(f) => f.id == device.fleet,
            Self::Device(id, _, _) => *id == device.id,
        }
    }
}

impl State {
    fn add(&mut self, fleet: u64, uuid: &str, device_type: String, key: String, said: Value) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let uuid = uuid.to_owned();
        self.devices.push(Device { id, uuid, fleet, device_type, said, state: Value::Null, keys: vec![key] });
        id
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self, request: &Request, who: &str, status: Option<u16>, bytes: u64) {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let time = time as f64 / 1000.0;
        let line = json!({"time": time, "method": request.method, "path": request.shown(), "status": status,
                          "who": who, "bytes": bytes, "range": request.header("range")});
        if let Some(file) = &self.log_file {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            // A full disk must not end the answers; the log in memory still has the line.
            let _ = writeln!(file, "{line}");
        }
        self.state().log.push(line);
    }

    fn who(&self, request: &Request) -> Who {
        let Some(key) = request.key() else { return Who::Nobody };
        if let Some(fleet) = self.config.fleets.iter().find(|f| f.key == key) {
            return Who::Fleet(fleet.clone());
        }
        let state = self.state();
        let device = state.devices.iter().find(|d| d.has_key(key));
        device.map_or(Who::Stranger, |d| Who::Device(d.id, d.uuid.clone(), d.fleet))
    }

    fn answer(&self, request: &Request) -> Answer {
        let who = self.who(request);
        let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        let answer = match (request.method.as_str(), parts.as_slice()) {
            ("GET", ["ping"]) => Answer::text(200, "OK"),
            ("GET" | "HEAD", ["connectivity-check"]) => Answer::empty(204),
            ("GET", ["os", "v1", "config"]) => Answer::json(
                200,
                &json!({"services": {"openvpn": {"config": "", "ca": ""}, "ssh": {"authorized_keys": ""}},
                        "config": {"overrides": {}, "whitelist": []}, "schema_version": "1.0.0"}),
            ),
            ("POST", ["device", "register"]) => self.register(request, &who),
            ("POST", ["api-key", "device", id, "device-key"]) => self.set_key(request, &who, id),
            ("GET", ["v6" | "v7", "device"]) => self.find_device(request, &who),
            ("GET", ["v6" | "v7", one]) if one.starts_with("device(") => self.one_device(&who, one),
            ("PATCH", ["v6" | "v7", one]) if one.starts_with("device(") => {
                self.patch_device(request, &who, one)
            }
            ("GET", ["device", "v3", uuid, "state"]) => self.target_state(&who, uuid),
            ("PATCH", ["device", "v3", "state"]) => self.report(request, &who),
            ("GET", ["lab", "devices"]) => {
                Answer::json(200, &self.state().devices.iter().map(Device::shown).collect())
            }
            ("GET", ["lab", "log"]) => Answer::json(200, &Value::Array(self.state().log.clone())),
            ("GET" | "HEAD", ["bundles", name]) => self.file(request, name),
            _ => Answer::text(404, &format!("Cannot {} {}", request.method, request.path)),
        };
        answer.by(who.shown())
    }

    fn register(&self, request: &Request, who: &Who) -> Answer {
        let fleet = match who {
            Who::Nobody | Who::Stranger => return Answer::key_required(),
            Who::Device(..) => return Answer::empty(401),
            Who::Fleet(fleet) => fleet,
        };
        let Some(body) = request.object() else { return Answer::empty(400) };
        let text = |name: &str| body.get(name).and_then(Value::as_str).filter(|t| !t.is_empty());
        for name in [
            "device_type",
            "uuid",
            "api_key",
            "os_version",
            "os_variant",
            "supervisor_version",
            "mac_address",
        ] {
            if body.get(name).is_some_and(|v| !v.is_string()) {
                return Answer::empty(400);
            }
        }
        let application = match body.get("application") {
            Some(Value::String(s)) => s.parse::<u64>().ok(),
            Some(n) => n.as_u64(),
            None => None,
        };
        let Some(application) = application else {
            return Answer::text(400, "Application ID must be a valid integer");
        };
        let Some(device_type) = text("device_type") else {
            return Answer::text(400, "Device type must be specified");
        };
        let Some(uuid) = text("uuid") else { return Answer::text(400, "UUID must be specified") };
        if !matches!(uuid.len(), 32 | 62) || !uuid.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Answer::text(400, "UUID must be a 32 or 62 character long lower case hex string.");
        }
        if application != fleet.id {
            return Answer::empty(401);
        }
        if !self.config.fleets.iter().any(|f| f.device_type == device_type) {
            return Answer::text(404, "Unknown device type");
        }
        if text("os_version").is_some_and(|v| !has_semver(v)) {
            return Answer::text(403, "Invalid os_version");
        }
        let mut state = self.state();
        if state.devices.iter().any(|d| d.uuid == uuid) {
            return Answer::text(409, "\"uuid\" must be unique.");
        }
        let key = text("api_key").map_or_else(|| format!("{:032x}", state.next_id), str::to_owned);
        if state.devices.iter().any(|d| d.has_key(&key)) || self.config.fleets.iter().any(|f| f.key == key) {
            return Answer::json(409, &Value::String("\"key\" must be unique.".into()));
        }
        let mut said = body.clone();
        if let Some(said) = said.as_object_mut() {
            said.retain(|name, _| name != "api_key");
        }
        let id = state.add(fleet.id, uuid, device_type.to_owned(), key.clone(), said);
        Answer::json(201, &json!({"id": id, "uuid": uuid, "api_key": key}))
    }

    /// `POST /api-key/device/ID/device-key`: the device gets another key.
    fn set_key(&self, request: &Request, who: &Who, id: &str) -> Answer {
        if matches!(who, Who::Nobody | Who::Stranger) {
            return Answer::key_required();
        }
        let body = request.object().unwrap_or_default();
        let Some(key) = body.get("apiKey").and_then(Value::as_str).filter(|k| !k.is_empty()) else {
            return Answer::text(400, "apiKey must be a non-empty string");
        };
        let mut state = self.state();
        let owner = state.devices.iter().find(|d| d.has_key(key)).map(|d| d.id);
        let Some(device) = state.devices.iter_mut().find(|d| id.parse() == Ok(d.id) && who.may_see(d)) else {
            return Answer::empty(401);
        };
        match owner {
            Some(owner) if owner != device.id => {
                return Answer::json(409, &Value::String("\"key\" must be unique.".into()));
            }
            Some(_) => {}
            None => device.keys.push(key.to_owned()),
        }
        Answer::json(200, &Value::String(key.to_owned()))
    }

    /// `GET /v7/device?$filter=uuid eq '…'`: what this key may see of it.
    fn find_device(&self, request: &Request, who: &Who) -> Answer {
        if matches!(who, Who::Nobody | Who::Stranger) {
            return Answer::empty(401);
        }
        let filter = request.query("$filter").unwrap_or_default();
        let Some(uuid) = filter.strip_prefix("uuid eq '").and_then(|r| r.strip_suffix('\'')) else {
            return Answer::text(400, "Malformed url");
        };
        let only_id = request.query("$select") == Some("id");
        let state = self.state();
        let found = state.devices.iter().filter(|d| d.uuid == uuid && who.may_see(d));
        let found =
            found.map(|d| if only_id { json!({"id": d.id}) } else { json!({"id": d.id, "uuid": d.uuid}) });
        Answer::json(200, &json!({"d": found.collect::<Value>()}))
    }

    fn one_device(&self, who: &Who, one: &str) -> Answer {
        if matches!(who, Who::Nobody | Who::Stranger) {
            return Answer::empty(401);
        }
        let state = self.state();
        let found =
            state.devices.iter().filter(|d| one == format!("device(uuid='{}')", d.uuid) && who.may_see(d));
        Answer::json(
            200,
            &json!({"d": found.map(|d| json!({"id": d.id, "uuid": d.uuid})).collect::<Value>()}),
        )
    }

    fn patch_device(&self, request: &Request, who: &Who, one: &str) -> Answer {
        let state = self.state();
        let found =
            state.devices.iter().any(|d| one == format!("device(uuid='{}')", d.uuid) && who.may_see(d));
        match (found, request.object()) {
            (false, _) => Answer::empty(401),
            (true, None) => Answer::empty(400),
            (true, Some(_)) => Answer::text(200, "OK"),
        }
    }

    /// `GET /device/v3/UUID/state`. An unknown device or a wrong key is told that nothing changed, not 401.
    fn target_state(&self, who: &Who, uuid: &str) -> Answer {
        match who {
            Who::Device(_, own, _) if own == uuid => {
                Answer::json(200, &json!({uuid: {"name": "device", "config": {}, "apps": {}}}))
            }
            Who::Device(..) | Who::Fleet(_) | Who::Nobody | Who::Stranger => Answer::empty(304),
        }
    }

    /// `PATCH /device/v3/state`: `{UUID: {…}}`.
    fn report(&self, request: &Request, who: &Who) -> Answer {
        let Who::Device(id, uuid, _) = who else { return Answer::empty(401) };
        let Some(body) = request.object() else { return Answer::empty(400) };
        let Some(told) = body.get(uuid) else { return Answer::empty(401) };
        let mut state = self.state();
        if let Some(device) = state.devices.iter_mut().find(|d| d.id == *id) {
            device.state = told.clone();
        }
        Answer::text(200, "OK")
    }

    /// One file of the directory, whole or one range of it.
    fn file(&self, request: &Request, name: &str) -> Answer {
        let Some(dir) = &self.config.files else { return Answer::text(404, "Not Found") };
        if name.contains('/') || name.starts_with('.') {
            return Answer::text(404, "Not Found");
        }
        send_file(&dir.join(name), request).unwrap_or_else(|_| Answer::text(404, "Not Found"))
    }
}

fn send_file(path: &Path, request: &Request) -> io::Result<Answer> {
    let mut file = File::open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let len = about.len();
    let changed = about.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let etag = format!("\"{changed:x}-{len:x}\"");
    // A range of another version of the file would be a mix: If-Range makes it the whole file.
    let same = request.header("if-range").is_none_or(|t| t == etag);
    let range = request.header("range").filter(|_| same).and_then(|r| r.strip_prefix("bytes="));
    let mut answer = Answer::new(200, "application/octet-stream", Vec::new());
    answer.headers.extend(["Accept-Ranges: bytes".into(), format!("ETag: {etag}")]);
    let (start, end) = match range.map(|r| parse_range(r, len)) {
        None | Some(Wanted::Whole) => (0, len),
        Some(Wanted::Part(start, end)) => {
            answer.status = 206;
            answer.headers.push(format!("Content-Range: bytes {start}-{}/{len}", end - 1));
            (start, end)
        }
        Some(Wanted::Outside) => {
            answer.status = 416;
            answer.headers.push(format!("Content-Range: bytes */{len}"));
            return Ok(answer);
        }
    };
    file.seek(SeekFrom::Start(start))?;
    answer.file = Some((file, end - start));
    Ok(answer)
}

enum Wanted {
    /// Several ranges, or none that can be read: the whole file is a correct answer.
    Whole,
    /// From the first to before the second.
    Part(u64, u64),
    Outside,
}

fn parse_range(text: &str, len: u64) -> Wanted {
    let Some((first, last)) = text.split_once('-') else { return Wanted::Whole };
    let (start, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(a), Ok(b)) if a <= b => (a, b.saturating_add(1).min(len)),
        (Ok(a), _) if last.is_empty() => (a, len),
        (_, Ok(n)) if first.is_empty() => (len.saturating_sub(n), len),
        _ => return Wanted::Whole,
    };
    if start < end { Wanted::Part(start, end) } else { Wanted::Outside }
}

/// Whether there is an `x.y.z` in it, as in `balenaOS 2.46.1+rev1`.
fn has_semver(text: &str) -> bool {
    text.split(|c: char| c.is_whitespace() || c == 'v').any(|word| {
        let core = word.split(['+', '-']).next().unwrap_or_default();
        let numbers: Vec<_> = core.split('.').collect();
        numbers.len() == 3 && numbers.iter().all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    })
}
