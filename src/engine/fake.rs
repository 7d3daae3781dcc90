//! An engine on the wire: canned replies on a Unix socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

/// What the fake does with one request.
pub enum Reply {
    /// These bytes; the connection stays.
    Keep(Vec<u8>),
    /// These bytes, then the end of the connection.
    Close(Vec<u8>),
    /// These pieces one by one, each when the test says so, then the end.
    OnDemand(Vec<Vec<u8>>, Receiver<()>),
    /// These bytes, then nothing for as long as the client waits.
    Hang(Vec<u8>),
}

/// A listener and the requests that came in, as `METHOD PATH` with `login …` if one came along, the body after a space
/// if there is one, and `(in chunks)` if it came so.
pub struct Fake {
    pub socket: PathBuf,
    pub requests: Receiver<String>,
    pub connections: Arc<AtomicUsize>,
    _dir: tempfile::TempDir,
}

impl Fake {
    /// Answers `GET /version` as dockerd 20.10 does, and all else by `reply(METHOD PATH)`.
    pub fn new(mut reply: impl FnMut(&str) -> Reply + Send + 'static) -> Self {
        Self::raw(move |request| match request {
            "GET /version" => ok(r#"{"Version":"20.10.24","ApiVersion":"1.41","MinAPIVersion":"1.12"}"#),
            other => reply(other),
        })
    }

    /// Answers all by `reply`.
    pub fn raw(reply: impl FnMut(&str) -> Reply + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("engine.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (sender, requests) = channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = connections.clone();
        std::thread::spawn(move || {
            let reply = Arc::new(Mutex::new(reply));
            for stream in listener.incoming() {
                counter.fetch_add(1, Ordering::SeqCst);
                let (reply, sender) = (reply.clone(), sender.clone());
                std::thread::spawn(move || {
                    serve(stream.unwrap(), &mut |request| reply.lock().unwrap()(request), &sender)
                });
            }
        });
        Self { socket, requests, connections, _dir: dir }
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<String> {
        self.requests.try_iter().collect()
    }
}

fn serve(stream: UnixStream, reply: &mut dyn FnMut(&str) -> Reply, seen: &Sender<String>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    while let Some((request, login, body)) = read_request(&mut reader) {
        let _ = seen.send(format!("{request} {login}{body}").trim_end().to_owned());
        match reply(&request) {
            Reply::Keep(bytes) => writer.write_all(&bytes).unwrap(),
            // Whoever asked may have heard enough.
            Reply::Close(bytes) => return drop(writer.write_all(&bytes)),
            Reply::OnDemand(pieces, go) => {
                for piece in pieces {
                    if go.recv().is_err() || writer.write_all(&piece).is_err() {
                        return;
                    }
                }
                let _ = go.recv();
                return;
            }
            Reply::Hang(bytes) => {
                writer.write_all(&bytes).unwrap();
                let _ = reader.read(&mut [0]);
                return;
            }
        }
    }
}

/// `METHOD PATH`, the registry's login and the body, or `None` at the end of the connection.
fn read_request(reader: &mut BufReader<UnixStream>) -> Option<(String, String, String)> {
    let mut first = String::new();
    if reader.read_line(&mut first).ok()? == 0 {
        return None;
    }
    let (mut length, mut chunked, mut login) = (0, false, String::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if let Some(value) = line.trim().strip_prefix("x-registry-auth: ") {
            login = format!("login {value} ");
        }
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        chunked |= line == "transfer-encoding: chunked";
        length = line.strip_prefix("content-length: ").map_or(length, |n| n.parse().unwrap());
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let mut more = chunked;
    while more {
        let mut size = String::new();
        // Whoever sent it may be gone.
        if reader.read_line(&mut size).ok()? == 0 {
            return None;
        }
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk).ok()?;
        body.extend(&chunk[..size]);
        more = size > 0;
    }
    if chunked {
        body.extend(b" (in chunks)");
    }
    let request = first.rsplit_once(" HTTP/").unwrap().0.to_owned();
    Some((request, login, String::from_utf8_lossy(&body).into_owned()))
}

/// A whole answer with a status.
pub fn answer(status: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
        .into()
}

/// A whole answer that says 200.
pub fn ok(body: &str) -> Reply {
    Reply::Keep(answer("200 OK", body))
}

/// The head of an answer in chunks.
pub const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";

/// One chunk.
pub fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}
