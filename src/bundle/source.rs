//! Where a bundle comes from: a file, standard input, or a server.

use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use super::address::Token;
use super::fetch::{Fetch, Limits, Meter};
use crate::sys::http::HttpSettings;
use crate::{Doing, Error, Result, sys};

const BUFFER_LEN: usize = 64 * 1024;

/// A stream of bytes with a name for messages, of which parts can be left out.
pub struct Source {
    from: From,
    name: String,
    len_bytes: Option<u64>,
    position: u64,
}

enum From {
    /// Can only be read.
    Stream(BufReader<Box<dyn Read + Send>>),
    File(BufReader<std::fs::File>),
    Server(Box<Fetch>),
}

/// How servers are reached, and what may be fetched from them.
#[derive(Debug, Clone)]
pub struct Reach {
    /// Certificates and deadlines.
    pub http: HttpSettings,
    /// What one server is shown of who asks.
    pub token: Option<Token>,
    /// What a download may cost.
    pub limits: Limits,
}

/// Opens `what`: a file, `-` for standard input, or an `http://` or `https://` address.
///
/// # Errors
/// `Usage` for no name at all; `Failed`, naming the file or address and what to do, if it is a directory, empty, missing, refused, or cannot
/// be reached.
pub fn open(what: &str, reach: &Reach) -> Result<Source> {
    match what {
        "" => Err(Error::usage("the name of the bundle is empty; give a FILE, an http(s):// URL, or -")),
        "-" => Ok(Source::stream(Box::new(io::stdin()), name_of(what))),
        url if is_url(url) => {
            let name = name_of(url);
            let Reach { http, token, limits } = reach;
            let fetch = Fetch::open(url, http, token.clone(), *limits).doing(|| name.clone())?;
            let len_bytes = fetch.len_bytes();
            Ok(Source { from: From::Server(Box::new(fetch)), name, len_bytes, position: 0 })
        }
        path => file(Path::new(path)),
    }
}

impl Source {
    fn stream(from: Box<dyn Read + Send>, name: String) -> Self {
        let from = From::Stream(BufReader::with_capacity(BUFFER_LEN, from));
        Self { from, name, len_bytes: None, position: 0 }
    }

    /// How long it is, if that is known.
    pub const fn len_bytes(&self) -> Option<u64> {
        self.len_bytes
    }

    /// What to call it: a path or address, without passwords.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether what is not read need not be fetched either, and fetching is what costs.
    pub fn is_worth_skipping(&self) -> bool {
        match &self.from {
            From::Server(fetch) => fetch.gives_parts(),
            From::Stream(_) | From::File(_) => false,
        }
    }

    /// What was fetched from a server.
    pub fn meter(&self) -> Meter {
        match &self.from {
            From::Server(fetch) => fetch.meter(),
            From::Stream(_) | From::File(_) => Meter::default(),
        }
    }

    /// Says what will be read from now on, in ascending order; a server is then asked for just that.
    pub fn plan(&mut self, ranges: impl IntoIterator<Item = Range<u64>>) {
        if let From::Server(fetch) = &mut self.from {
            fetch.plan(ranges);
        }
    }

    /// Goes on at `range.start`, of which at least `range` will be read. Never backwards.
    ///
    /// # Errors
    /// `Failed` as reading.
    pub fn skip_to(&mut self, range: Range<u64>) -> Result<()> {
        let forward = range.start.checked_sub(self.position).ok_or_else(|| {
            Error::inconsistent(format!("byte {} of {} was read before", range.start, self.name))
        })?;
        self.position = range.start;
        match &mut self.from {
            From::Server(fetch) => Ok(fetch.skip_to(range)?),
            From::File(file) => Ok(file.seek(SeekFrom::Start(range.start)).map(drop)?),
            From::Stream(stream) => match io::copy(&mut stream.take(forward), &mut io::sink())? {
                n if n == forward => Ok(()),
                _ => Err(Error::failed("ends too early: cut short; get it again")),
            },
        }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = match &mut self.from {
            From::Stream(stream) => stream.read(buffer),
            From::File(file) => file.read(buffer),
            From::Server(fetch) => fetch.read(buffer),
        }?;
        self.position += n as u64;
        Ok(n)
    }
}

fn file(path: &Path) -> Result<Source> {
    let name = path.display().to_string();
    let facts = match path.metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::failed(
                "no such file; give a FILE, an http(s):// URL, or - for standard input",
            )
            .within(name));
        }
        found => found.doing(|| name.clone())?,
    };
    let wrong = |text: &str| Err(Error::failed(text).within(name.clone()));
    if facts.is_dir() {
        return wrong("is a directory; give the bundle file in it");
    }
    if facts.is_file() && facts.len() == 0 {
        return wrong("is empty; see that the bundle was written or fetched to its end");
    }
    let file = sys::file::open_read(path)?;
    // A block device may be longer than what was written to it, and a pipe has no length.
    if !facts.is_file() {
        return Ok(Source::stream(Box::new(file), name));
    }
    let from = From::File(BufReader::with_capacity(BUFFER_LEN, file));
    Ok(Source { from, name, len_bytes: Some(facts.len()), position: 0 })
}

fn is_url(what: &str) -> bool {
    ["http://", "https://"].iter().any(|p| what.get(..p.len()).is_some_and(|s| s.eq_ignore_ascii_case(p)))
}

/// What `what` of [`open`] is called in messages: a path, or an address without what it may hold of secrets.
pub fn name_of(what: &str) -> String {
    match what {
        "-" => "standard input".into(),
        url if is_url(url) => without_secrets(url),
        path => path.into(),
    }
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

    fn impatient(what: &str) -> Result<Source> {
        let http = HttpSettings {
            ca_bundle: "/nonexistent".into(),
            extra_ca_pem: None,
            connect_timeout: Duration::from_millis(500),
            read_timeout: Duration::from_secs(9),
            client: None,
        };
        let limits = Limits { stall: Duration::from_millis(300), max_bytes: None };
        open(what, &Reach { http, token: None, limits })
    }

    #[test]
    fn a_server_that_falls_silent_is_given_up() {
        let e = impatient(&silent_server("")).map(|_| ()).unwrap_err().to_string();
        assert!(e.contains("/b: the server stopped answering; check"), "{e}");
        let half = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc";
        let mut source = impatient(&silent_server(half)).unwrap();
        assert_eq!(source.len_bytes(), Some(1000));
        let e = Error::from(source.read_to_end(&mut Vec::new()).unwrap_err()).to_string();
        assert!(
            e.starts_with("the download stopped after 3 of 1000 bytes: nothing came for 0.3 s; given up"),
            "{e}"
        );
    }
}
