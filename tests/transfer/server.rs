//! A web server that misbehaves on purpose.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What it does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vice {
    /// Nothing.
    None,
    /// Closes each connection after so many bytes of a body.
    Closes(u64),
    /// Has never heard of Range.
    NoParts,
    /// Has never heard of Range, and closes the first connection half way.
    NoPartsClosesOnce,
    /// Gives parts at first, and answers 200 with everything from the third request on.
    ForgetsParts,
    /// The file is another one from the third request on.
    Changes,
    /// The file is another one from the third request on, and nothing but its length tells.
    ChangesSilently,
    /// Gives another part than it was asked for.
    Shifts,
    /// Says that it gives another part than it was asked for.
    Lies,
    /// Gives parts without saying which.
    Wordless,
    /// Says with each answer that the file has another length.
    Grows,
    /// Promises more bytes than it sends, and closes.
    Promises,
    /// Sends more bytes than it promised.
    Overflows,
    /// Sends wrong bytes from the third request on.
    Corrupts,
    /// Falls silent after so many bytes in all.
    Stalls(u64),
    /// Closes every connection after so many bytes in all.
    Goes(u64),
    /// Is not there any more after so many bytes in all: nobody listens.
    Vanishes(u64),
    /// Is overloaded at every other request.
    Busy,
}

pub struct Server {
    pub url: String,
    state: Arc<State>,
}

/// Given the head of a request in lower case, the head of another answer than the file.
pub type Rule = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

struct State {
    file: Vec<u8>,
    vice: Vice,
    rule: Rule,
    heads: Mutex<Vec<String>>,
    sent: AtomicU64,
    requests: AtomicU64,
    asked: Mutex<Vec<String>>,
}

impl Server {
    pub fn start(file: Vec<u8>, vice: Vice) -> Self {
        Self::with(file, vice, None, Box::new(|_| None))
    }

    /// One with `rule`, and behind TLS if there is a certificate for it.
    pub fn with(file: Vec<u8>, vice: Vice, tls: Option<Arc<rustls::ServerConfig>>, rule: Rule) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}/os.bundle", listener.local_addr().unwrap());
        let (sent, requests, asked) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::default());
        let state = Arc::new(State { file, vice, rule, heads: Mutex::default(), sent, requests, asked });
        let shared = state.clone();
        std::thread::spawn(move || {
            loop {
                let Ok((stream, _)) = listener.accept() else { continue };
                if matches!(shared.vice, Vice::Vanishes(limit) if shared.sent.load(Ordering::SeqCst) >= limit)
                {
                    return;
                }
                let (state, tls) = (shared.clone(), tls.clone());
                // A client that goes away is no error here.
                std::thread::spawn(move || match tls {
                    None => serve(&state, stream).unwrap_or(()),
                    Some(tls) => {
                        let connection = rustls::ServerConnection::new(tls).unwrap();
                        serve(&state, rustls::StreamOwned::new(connection, stream)).unwrap_or(());
                    }
                });
            }
        });
        Self { url, state }
    }

    /// The heads of all requests, in lower case.
    pub fn heads(&self) -> Vec<String> {
        self.state.heads.lock().unwrap().clone()
    }

    /// Bytes of bodies that were handed to the network.
    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }

    /// The ranges that were asked for.
    pub fn asked(&self) -> Vec<String> {
        self.state.asked.lock().unwrap().clone()
    }
}

fn serve(state: &State, mut stream: impl Read + Write) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read(&mut byte)? == 0 {
                return Ok(());
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let number = state.requests.fetch_add(1, Ordering::SeqCst);
        state.heads.lock().unwrap().push(head.clone());
        if let Some(other) = (state.rule)(&head) {
            stream.write_all(format!("HTTP/1.1 {other}\r\nContent-Length: 0\r\n\r\n").as_bytes())?;
            stream.flush()?;
            continue;
        }
        let range = head.lines().find_map(|l| l.strip_prefix("range: bytes="));
        state.asked.lock().unwrap().push(range.unwrap_or("").to_owned());
        if !answer(state, &mut stream, number, range)? {
            return Ok(());
        }
    }
}

/// `false`: the connection ends.
fn answer(
    state: &State,
    stream: &mut (impl Read + Write),
    number: u64,
    range: Option<&str>,
) -> std::io::Result<bool> {
    let len = state.file.len();
    let later = number >= 2;
    let gone = |limit: u64| state.sent.load(Ordering::SeqCst) >= limit;
    match state.vice {
        Vice::Goes(limit) | Vice::Vanishes(limit) if gone(limit) => return Ok(false),
        Vice::Busy if number % 2 == 1 => {
            stream.write_all(b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n")?;
            return Ok(true);
        }
        _ => {}
    }
    let no_parts = matches!(state.vice, Vice::NoParts | Vice::NoPartsClosesOnce)
        || (state.vice == Vice::ForgetsParts && later);
    let changed = later && matches!(state.vice, Vice::Changes);
    let (first, last) = match range.filter(|_| !no_parts && !changed) {
        Some(range) => {
            let (first, last) = range.split_once('-').unwrap();
            (first.parse::<usize>().unwrap(), last.parse::<usize>().unwrap().min(len - 1))
        }
        None => (0, len - 1),
    };
    let part = range.is_some() && !no_parts && !changed;
    let tag = if changed { "\"new\"" } else { "\"one\"" };
    let mut head = String::from(if part { "HTTP/1.1 206 Partial\r\n" } else { "HTTP/1.1 200 OK\r\n" });
    if state.vice != Vice::ChangesSilently {
        head += &format!("ETag: {tag}\r\n");
    }
    let mut body = state.file[first..=last].to_vec();
    let total = match state.vice {
        Vice::ChangesSilently if later => len + 1,
        Vice::Grows => len + usize::try_from(number).unwrap(),
        _ => len,
    };
    let told = if state.vice == Vice::Lies && later { first + 1 } else { first };
    if part && state.vice != Vice::Wordless {
        head += &format!("Content-Range: bytes {told}-{last}/{total}\r\n");
    }
    let promised = if state.vice == Vice::Promises { body.len() + 1000 } else { body.len() };
    head += &format!("Content-Length: {promised}\r\n\r\n");
    match state.vice {
        Vice::Shifts if later && last + 1 < len => body = state.file[first + 1..=last + 1].to_vec(),
        Vice::Overflows => body.extend([0xee; 5000]),
        Vice::Corrupts if later => body.iter_mut().for_each(|b| *b ^= 1),
        _ => {}
    }
    stream.write_all(head.as_bytes())?;
    let mut left = match state.vice {
        Vice::Closes(bytes) => bytes,
        Vice::NoPartsClosesOnce if number == 0 => len as u64 / 2,
        Vice::Stalls(limit) | Vice::Goes(limit) | Vice::Vanishes(limit) => {
            limit.saturating_sub(state.sent.load(Ordering::SeqCst))
        }
        _ => u64::MAX,
    };
    for piece in body.chunks(4096) {
        let n = (piece.len() as u64).min(left) as usize;
        stream.write_all(&piece[..n])?;
        state.sent.fetch_add(n as u64, Ordering::SeqCst);
        left -= n as u64;
        if n < piece.len() {
            if matches!(state.vice, Vice::Stalls(_)) {
                // Until the client closes.
                let _ = stream.read(&mut [0]);
            }
            return Ok(false);
        }
    }
    stream.flush()?;
    Ok(state.vice != Vice::Promises)
}
