//! Where a bundle comes from: a file, standard input, or a server.

use std::io::{self, Read};
use std::path::Path;

use crate::sys::http::{self, HttpSettings};
use crate::{Doing, Error, Result, sys};

/// A stream of bytes with a name for messages.
pub struct Source {
    from: Box<dyn Read>,
    name: String,
    len_bytes: Option<u64>,
}

/// Opens `what`: a file, `-` for standard input, or an `http://` or `https://` address.
///
/// # Errors
/// `Failed`, naming the file or address and what to do, if it is a directory, empty, missing, refused, or cannot
/// be reached.
pub fn open(what: &str, settings: &HttpSettings) -> Result<Source> {
    match what {
        "-" => Ok(Source { from: Box::new(io::stdin()), name: "standard input".into(), len_bytes: None }),
        url if is_url(url) => {
            let name = without_secrets(url);
            get(url, settings).doing(|| name.clone()).map(|source| Source { name, ..source })
        }
        path => file(Path::new(path)),
    }
}

impl Source {
    /// How long it is, if that is known.
    pub const fn len_bytes(&self) -> Option<u64> {
        self.len_bytes
    }

    /// What to call it: a path or address, without passwords.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.from.read(buffer)
    }
}

fn file(path: &Path) -> Result<Source> {
    let name = path.display().to_string();
    if !path.exists() {
        return Err(Error::failed("no such file; give a FILE, an http(s):// URL, or - for standard input")
            .within(name));
    }
    let file = sys::file::open_read(path)?;
    let facts = file.metadata().doing(|| name.clone())?;
    let wrong = |text: &str| Err(Error::failed(text).within(name.clone()));
    if facts.is_dir() {
        return wrong("is a directory; give the bundle file in it");
    }
    if facts.is_file() && facts.len() == 0 {
        return wrong("is empty; see that the bundle was written or fetched to its end");
    }
    // A block device may be longer than what was written to it, and a pipe has no length.
    let len_bytes = facts.is_file().then_some(facts.len());
    Ok(Source { from: Box::new(file), name, len_bytes })
}

fn get(url: &str, settings: &HttpSettings) -> Result<Source> {
    let agent = http::agent(settings)?;
    let response = agent
        .get(url)
        .call()
        .map_err(|e| Error::failed(format!("{}; check the address and the network", http::reason(&e))))?;
    let status = response.status();
    if status != 200 {
        return Err(Error::failed(format!("the server says {status}; {}", advice(status.as_u16()))));
    }
    let body = response.into_body();
    let len_bytes = body.content_length();
    let from = Body {
        from: Box::new(body.into_with_config().limit(u64::MAX).reader()),
        position: 0,
        len_bytes,
        silence_s: settings.read_timeout.as_secs_f32(),
    };
    Ok(Source { from: Box::new(from), name: String::new(), len_bytes })
}

const fn advice(status: u16) -> &'static str {
    match status {
        401 | 403 => "it wants to know who asks, or does not let us: check the address and its access",
        404 | 410 => "check the address",
        407 => "the proxy wants credentials: check http_proxy",
        429 | 500..=599 => "try again later",
        _ => "a bundle was expected: check the address",
    }
}

/// An answer's body, which says how far it came when it breaks off.
struct Body {
    from: Box<dyn Read>,
    position: u64,
    len_bytes: Option<u64>,
    silence_s: f32,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.from.read(buffer) {
            Ok(n) => {
                self.position += n as u64;
                Ok(n)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => Err(io::Error::other(self.broken(&e))),
        }
    }
}

impl Body {
    fn broken(&self, e: &io::Error) -> Error {
        let of = self.len_bytes.map_or_else(String::new, |len| format!(" of {len}"));
        let why = match e.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
            Some(ureq::Error::Timeout(_)) => format!("nothing came for {} s", self.silence_s),
            Some(other) => http::reason(other),
            None => e.to_string(),
        };
        Error::failed(format!("the connection broke after {}{of} bytes: {why}; try again", self.position))
    }
}

fn is_url(what: &str) -> bool {
    ["http://", "https://"].iter().any(|p| what.get(..p.len()).is_some_and(|s| s.eq_ignore_ascii_case(p)))
}

/// An address without user, password and query, which may hold a token.
fn without_secrets(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;

    #[test]
    fn names_hold_no_secrets() {
        for (url, name) in [
            ("http://h/a.bundle", "http://h/a.bundle"),
            ("https://u:p@h:8443/a@b?token=x#y", "https://h:8443/a@b"),
            ("HTTP://h?x", "HTTP://h"),
        ] {
            assert_eq!(without_secrets(url), name);
        }
        assert!(is_url("HTTPS://h") && !is_url("httpd.bundle") && !is_url("é"));
    }

    /// A server that says `head` to everybody, sends some bytes, and then nothing. It stays until the test ends.
    fn silent_server(head: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            // Until the client closes.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        format!("http://{address}/b")
    }

    fn impatient() -> HttpSettings {
        HttpSettings {
            ca_bundle: "/nonexistent".into(),
            extra_ca_pem: None,
            connect_timeout: Duration::from_millis(500),
            read_timeout: Duration::from_millis(300),
        }
    }

    #[test]
    fn a_server_that_falls_silent_is_given_up() {
        let e = open(&silent_server(""), &impatient()).map(|_| ()).unwrap_err().to_string();
        assert!(e.contains("/b: the server stopped answering; check"), "{e}");
        let half = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc";
        let mut source = open(&silent_server(half), &impatient()).unwrap();
        assert_eq!(source.len_bytes(), Some(1000));
        let e = Error::from(source.read_to_end(&mut Vec::new()).unwrap_err()).to_string();
        assert_eq!(e, "the connection broke after 3 of 1000 bytes: nothing came for 0.3 s; try again");
    }
}
