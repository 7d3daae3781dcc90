//! The lab's supervisor: what runs in the container `balena_supervisor` of the lab's images.
//!
//! A stand-in with the outer face of balena's supervisor: its health address, its use of the engine's socket, and its
//! state reports to the cloud. Of the real one it lacks everything that runs services.
//!
//! Environment: `DOCKER_SOCKET`, `LISTEN_PORT` (may be empty: 48484), `LAB_SUPERVISOR_VERSION` (from the image).
//! Files: `/mnt/root/mnt/boot/config.json`, `/mnt/root/etc/os-release`; while `/data/lab-unhealthy` exists, and is empty
//! or names its version, it says that it is unhealthy, for tests.
#![allow(clippy::disallowed_methods, clippy::disallowed_macros)]

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const DEFAULT_PORT: u16 = 48484;
const CONFIG_JSON: &str = "/mnt/root/mnt/boot/config.json";
const OS_RELEASE: &str = "/mnt/root/etc/os-release";
const UNHEALTHY_SWITCH: &str = "/data/lab-unhealthy";
const ENGINE_EVERY: Duration = Duration::from_secs(3);
const CLOUD_EVERY: Duration = Duration::from_secs(10);
/// The engine may be silent for this long before we are unhealthy.
const ENGINE_GRACE: Duration = Duration::from_secs(15);
const CALL_DEADLINE: Duration = Duration::from_secs(5);
const LIMIT_BYTES: u64 = 4 * 1024 * 1024;

/// When the engine last answered, or why it did not.
struct Engine {
    answered: Instant,
    trouble: String,
}

fn main() -> ExitCode {
    let port = port(std::env::var("LISTEN_PORT").ok().as_deref());
    match std::env::args().nth(1).as_deref() {
        Some("healthcheck") => healthcheck(port),
        Some("images") => images(),
        Some(other) => {
            eprintln!("lab-supervisor: no command {other:?}; there are `healthcheck` and `images`");
            ExitCode::from(2)
        }
        None => serve(port),
    }
}

fn serve(port: u16) -> ExitCode {
    end_on_sigterm();
    let version = version();
    println!("lab supervisor {version} on 127.0.0.1:{port}");
    let listener = match TcpListener::bind(("127.0.0.1", port)) {
        Ok(listener) => listener,
        Err(e) => {
            eprintln!("lab-supervisor: listen on 127.0.0.1:{port}: {e}");
            return ExitCode::FAILURE;
        }
    };
    let engine = Arc::new(Mutex::new(Engine { answered: Instant::now(), trouble: String::new() }));
    let watched = Arc::clone(&engine);
    thread::spawn(move || watch_engine(&watched));
    thread::spawn(move || report_to_cloud(&version, port));
    for stream in listener.incoming() {
        if let Err(e) = stream.and_then(|s| answer(s, &engine)) {
            eprintln!("lab-supervisor: answer a request: {e}");
        }
    }
    ExitCode::FAILURE
}

/// `GET /v1/healthy` of the supervisor in this container: what the image's HEALTHCHECK runs.
fn healthcheck(port: u16) -> ExitCode {
    let asked = TcpStream::connect(("127.0.0.1", port))
        .and_then(|s| deadlines(s, TcpStream::set_read_timeout, TcpStream::set_write_timeout))
        .and_then(|s| request(s, "GET", "/v1/healthy", "localhost", &[], ""));
    match asked {
        Ok((200, _)) => ExitCode::SUCCESS,
        Ok((status, body)) => {
            println!("{status} {}", body.trim());
            ExitCode::FAILURE
        }
        Err(e) => {
            println!("127.0.0.1:{port}: {e}");
            ExitCode::FAILURE
        }
    }
}

/// The images that the engine has, a line each: name, id, bytes. What `docker images` shows, where there is no such command.
fn images() -> ExitCode {
    let list = call_engine(&socket(), "/images/json")
        .and_then(|body| Ok(serde_json::from_str::<Value>(&body)?))
        .and_then(|list| list.as_array().cloned().ok_or_else(|| io::Error::other("not a list")));
    match list {
        Ok(list) => {
            for image in list {
                let id = image["Id"].as_str().unwrap_or("?");
                for name in image["RepoTags"].as_array().into_iter().flatten() {
                    println!("{} {id}, {} bytes", name.as_str().unwrap_or("?"), image["Size"]);
                }
            }
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("lab-supervisor: GET /images/json: {e}");
            ExitCode::FAILURE
        }
    }
}

fn answer(stream: TcpStream, engine: &Mutex<Engine>) -> io::Result<()> {
    let mut stream = deadlines(stream, TcpStream::set_read_timeout, TcpStream::set_write_timeout)?;
    let mut line = String::new();
    BufReader::new(&stream).take(8192).read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/ping")) => ("200 OK", "OK".to_owned()),
        (Some("GET"), Some("/v1/healthy")) => match unhealthy(engine) {
            None => ("200 OK", "OK".to_owned()),
            Some(why) => ("500 Internal Server Error", why),
        },
        _ => ("404 Not Found", "Not Found".to_owned()),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

fn unhealthy(engine: &Mutex<Engine>) -> Option<String> {
    if fs::read_to_string(UNHEALTHY_SWITCH).is_ok_and(|which| which.is_empty() || which == version()) {
        return Some(format!("{UNHEALTHY_SWITCH} says so"));
    }
    let engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
    let silent = engine.answered.elapsed();
    (silent > ENGINE_GRACE).then(|| format!("no engine for {} s: {}", silent.as_secs(), engine.trouble))
}

/// Pings the engine and lists its containers, for ever. Says so in the log only when the answer changes.
fn watch_engine(engine: &Mutex<Engine>) {
    let socket = socket();
    let mut said = String::new();
    loop {
        let state = match ask_engine(&socket) {
            Ok(containers) => {
                engine.lock().unwrap_or_else(PoisonError::into_inner).answered = Instant::now();
                format!("engine answers on {socket}: {containers} containers")
            }
            Err(e) => {
                engine.lock().unwrap_or_else(PoisonError::into_inner).trouble = format!("{socket}: {e}");
                format!("engine does not answer on {socket}: {e}")
            }
        };
        if state != said {
            println!("{state}");
            said = state;
        }
        thread::sleep(ENGINE_EVERY);
    }
}

fn socket() -> String {
    std::env::var("DOCKER_SOCKET").unwrap_or_else(|_| "/var/run/balena-engine.sock".into())
}

fn call_engine(socket: &str, path: &str) -> io::Result<String> {
    let stream = UnixStream::connect(socket)?;
    let stream = deadlines(stream, UnixStream::set_read_timeout, UnixStream::set_write_timeout)?;
    match request(stream, "GET", path, "localhost", &[], "")? {
        (200, body) => Ok(body),
        (status, body) => Err(io::Error::other(format!("GET {path}: {status} {}", body.trim()))),
    }
}

fn ask_engine(socket: &str) -> io::Result<usize> {
    call_engine(socket, "/_ping")?;
    let list: Value = serde_json::from_str(&call_engine(socket, "/containers/json?all=1")?)?;
    list.as_array().map(Vec::len).ok_or_else(|| io::Error::other("GET /containers/json: not a list"))
}

/// Reports our state once the device is registered, for ever.
///
/// A cloud that cannot be reached makes nobody unhealthy: a device must run without one.
fn report_to_cloud(version: &str, port: u16) {
    let mut said = String::new();
    loop {
        let state = match report(version, port) {
            Ok(outcome) => outcome,
            Err(e) => format!("report to the cloud: {e}"),
        };
        if state != said {
            println!("{state}");
            said = state;
        }
        thread::sleep(CLOUD_EVERY);
    }
}

fn report(version: &str, port: u16) -> io::Result<String> {
    let config: Value = serde_json::from_str(&fs::read_to_string(CONFIG_JSON)?)?;
    let text = |key: &str| config.get(key).and_then(Value::as_str).filter(|s| !s.is_empty());
    let Some(api) = text("apiEndpoint") else { return Ok("unmanaged: no apiEndpoint in config.json".into()) };
    // The device key is written before it is registered; the provisioning key goes once it is.
    let (Some(uuid), Some(key), None) = (text("uuid"), text("deviceApiKey"), text("apiKey")) else {
        return Ok("not registered yet".into());
    };
    let Some(host) = api.strip_prefix("http://").map(|h| h.trim_end_matches('/')) else {
        return Ok(format!("no report: {api}: the lab's supervisor speaks http only"));
    };
    let state = json!({ uuid: {
        "status": "Idle",
        "os_version": os_release("PRETTY_NAME"),
        "os_variant": os_release("VARIANT_ID"),
        "supervisor_version": version,
        "api_port": port,
        "is_online": true,
        "apps": {},
    }});
    let authority = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let address = authority.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("no address"))?;
    let stream = TcpStream::connect_timeout(&address, CALL_DEADLINE)?;
    let stream = deadlines(stream, TcpStream::set_read_timeout, TcpStream::set_write_timeout)?;
    let authorization = format!("Bearer {key}");
    let headers = [("Authorization", authorization.as_str()), ("Content-Type", "application/json")];
    let (status, body) = request(stream, "PATCH", "/device/v3/state", host, &headers, &state.to_string())?;
    Ok(format!("reported state of {uuid} to {api}: {status} {}", body.trim()).trim_end().to_owned())
}

/// A field of the host's os-release, without its quotes.
fn os_release(field: &str) -> String {
    let text = fs::read_to_string(OS_RELEASE).unwrap_or_default();
    let value = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix('='));
    value.unwrap_or_default().trim_matches('"').to_owned()
}

/// One HTTP/1.0 request, so that the answer is never chunked; the answer ends with the connection.
fn request(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    host: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> io::Result<(u16, String)> {
    let mut head = format!("{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes())?;
    let mut answer = String::new();
    stream.take(LIMIT_BYTES).read_to_string(&mut answer)?;
    let (head, body) =
        answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("an answer without an end"))?;
    let status = head.split_whitespace().nth(1).and_then(|s| s.parse().ok());
    Ok((status.ok_or_else(|| io::Error::other("an answer without a status"))?, body.to_owned()))
}

type SetTimeout<S> = fn(&S, Option<Duration>) -> io::Result<()>;

fn deadlines<S>(stream: S, read: SetTimeout<S>, write: SetTimeout<S>) -> io::Result<S> {
    read(&stream, Some(CALL_DEADLINE))?;
    write(&stream, Some(CALL_DEADLINE))?;
    Ok(stream)
}

fn port(text: Option<&str>) -> u16 {
    text.and_then(|t| t.parse().ok()).unwrap_or(DEFAULT_PORT)
}

fn version() -> String {
    std::env::var("LAB_SUPERVISOR_VERSION").unwrap_or_else(|_| env!("CARGO_PKG_VERSION").into())
}

/// The first process of a container has no default action for SIGTERM: without a handler `stop` would have to kill.
fn end_on_sigterm() {
    const SIGTERM: i32 = 15;
    unsafe extern "C" {
        fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
        fn _exit(code: i32) -> !;
    }
    extern "C" fn end(number: i32) {
        // SAFETY: _exit is async-signal-safe and does not return.
        unsafe { _exit(128 + number) }
    }
    // SAFETY: `end` has the signature that signal(2) wants and calls nothing that a handler may not.
    unsafe { signal(SIGTERM, end) };
}
