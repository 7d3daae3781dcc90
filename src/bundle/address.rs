//! Asking a server for a file. Redirects are followed here and not by the HTTP library, because the token that says who
//! asks is for one server only, and because a redirect that was followed once need not be asked for again.

use std::path::Path;

use rustls::{AlertDescription, CertificateError};
use ureq::http::uri::{Authority, PathAndQuery, Scheme};
use ureq::http::{HeaderValue, Response, StatusCode, Uri, header};
use ureq::{Agent, Body};

use crate::sys::http::{self, HttpSettings};
use crate::{Doing, Error, Result, sys};

/// The longest token, in bytes.
const TOKEN_LIMIT_BYTES: u64 = 16 * 1024;
/// One more, and it is taken for a circle.
const REDIRECTS_MAX: u32 = 10;

/// A bearer token (RFC 6750), and the one server that it is shown to.
#[derive(Debug, Clone)]
pub struct Token {
    /// The header's value; marked as sensitive, so that no log shows it.
    value: HeaderValue,
    host: String,
    port: u16,
}

impl Token {
    /// The token in `file`, for the server of `url` alone: same host, same port, and only over TLS. `None` if `url` is
    /// not an `https://` address: nobody is shown the token then, and the file is not read.
    ///
    /// # Errors
    /// `Failed`, naming the file, if it cannot be read or holds anything but one line without white space.
    pub fn load(file: &Path, url: &str) -> Result<Option<Self>> {
        let Some((host, port)) = url.parse().ok().as_ref().and_then(tls_server) else {
            if url.starts_with("http://") {
                log::warn!("token {}: is not sent over http://, only over https://", file.display());
            }
            return Ok(None);
        };
        let doing = || format!("token {}", file.display());
        let text = sys::file::read_text(file, TOKEN_LIMIT_BYTES).doing(doing)?;
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            // What it holds is nobody's business.
            return Err(
                Error::failed("expected one line without white space, the token alone").within(doing())
            );
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {text}"))
            .map_err(|_| Error::failed("not to be sent in a header").within(doing()))?;
        value.set_sensitive(true);
        Ok(Some(Self { value, host, port }))
    }

    /// What `url`'s server is shown: nothing, if it is not the one that the token is for.
    fn for_server_of(&self, url: &Uri) -> Option<&HeaderValue> {
        tls_server(url).filter(|(host, port)| *host == self.host && *port == self.port).map(|_| &self.value)
    }
}

/// Host and port of an `https://` address.
fn tls_server(url: &Uri) -> Option<(String, u16)> {
    let is_https = url.scheme() == Some(&Scheme::HTTPS);
    let host = url.host().filter(|host| is_https && !host.is_empty())?;
    Some((host.to_ascii_lowercase(), url.port_u16().unwrap_or(443)))
}

/// Why there is no answer, in words for a person, and what to do about it.
#[derive(Debug)]
pub struct NoAnswer {
    pub why: String,
    pub advice: &'static str,
}

/// A file on a server.
pub struct Address {
    agent: Agent,
    /// What was asked for.
    url: Uri,
    /// Where the server sent us, if it did.
    found: Option<Uri>,
    token: Option<Token>,
    /// Requests, those included that were answered by a redirect.
    pub requests: u64,
}

impl Address {
    /// `url`, asked for as `settings` say, and with `token` if it is for this server.
    ///
    /// # Errors
    /// `Failed` if it is no address, or the certificates cannot be read.
    pub fn new(url: &str, settings: &HttpSettings, token: Option<Token>) -> Result<Self> {
        let url: Uri = url.parse().map_err(|e| Error::failed(format!("not an address: {e}")))?;
        Ok(Self { agent: http::agent_without_redirects(settings)?, url, found: None, token, requests: 0 })
    }

    /// Asks with these headers as well, and follows redirects. Any answer but a redirect is an answer.
    ///
    /// # Errors
    /// If nothing answers, or only with redirects that lead nowhere.
    pub fn ask(&mut self, headers: &[(&'static str, &str)]) -> std::result::Result<Response<Body>, NoAnswer> {
        let known = self.found.take();
        if let Some(url) = &known {
            let answer = self.follow(url.clone(), headers)?;
            // Such addresses are often made for a time only; the first one knows another.
            let is_over = matches!(answer.status().as_u16(), 400 | 401 | 403 | 404 | 410);
            if !is_over {
                return Ok(answer);
            }
        }
        self.follow(self.url.clone(), headers)
    }

    fn follow(
        &mut self,
        from: Uri,
        headers: &[(&'static str, &str)],
    ) -> std::result::Result<Response<Body>, NoAnswer> {
        let mut url = from;
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self.agent.get(&url);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            if let Some(value) = self.token.as_ref().and_then(|t| t.for_server_of(&url)) {
                request = request.header(header::AUTHORIZATION, value);
            }
            self.requests += 1;
            let answer = request
                .call()
                .map_err(|e| NoAnswer { why: http::reason(&e), advice: advice(http::tls_error(&e)) })?;
            if !is_redirect(answer.status()) {
                self.found = (url != self.url).then_some(url);
                return Ok(answer);
            }
            let location = answer.headers().get(header::LOCATION).and_then(|l| l.to_str().ok());
            url = location.and_then(|l| join(&url, l)).ok_or_else(|| NoAnswer {
                why: format!("the server says {}, and no address that could be followed", answer.status()),
                advice: "check the address",
            })?;
        }
        let why = format!("redirected more than {REDIRECTS_MAX} times");
        Err(NoAnswer { why, advice: "check the address" })
    }
}

/// What to do about an error of TLS, or of the network.
const fn advice(error: Option<&rustls::Error>) -> &'static str {
    match error {
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => "set the clock, or renew the certificate",
            CertificateError::UnknownIssuer => {
                "its authority belongs into the image's (provision.ca_bundle), or into balenaRootCA of config.json"
            }
            _ => "check the address",
        },
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)) => {
            "it wants a client certificate: bundle.client_cert and bundle.client_key"
        }
        Some(rustls::Error::AlertReceived(_)) => {
            "it may not accept our certificate (bundle.client_cert), or want one"
        }
        _ => "check the address and the network",
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a `Location` leads from `base` (RFC 3986, 5.2.2). `None` if that is no `http` or `https` address.
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, authority, rest) = match location.split_once("://") {
        Some((scheme, rest)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
            let at = rest.find(['/', '?']).unwrap_or(rest.len());
            (scheme.parse().ok()?, rest.get(..at)?.parse().ok()?, rest.get(at..)?)
        }
        _ => {
            let scheme: Scheme = base.scheme()?.clone();
            match location.strip_prefix("//") {
                Some(rest) => {
                    let at = rest.find(['/', '?']).unwrap_or(rest.len());
                    (scheme, rest.get(..at)?.parse::<Authority>().ok()?, rest.get(at..)?)
                }
                None => (scheme, base.authority()?.clone(), location),
            }
        }
    };
    if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
        return None;
    }
    let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
    let is_whole = rest != location || path.starts_with('/');
    let path = match path {
        "" if is_whole => "/".to_owned(),
        "" => base.path().to_owned(),
        path if is_whole => without_dots(path),
        path => without_dots(&format!("{}/{path}", base.path().rsplit_once('/').map_or("", |(dir, _)| dir))),
    };
    let query = query.map_or_else(String::new, |q| format!("?{q}"));
    let path_and_query: PathAndQuery = format!("{path}{query}").parse().ok()?;
    Uri::builder().scheme(scheme).authority(authority).path_and_query(path_and_query).build().ok()
}

/// An absolute path without `.` and `..` (RFC 3986, 5.2.4).
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_dots = matches!(segment, "." | "..");
        if segment == ".." {
            kept.pop();
        }
        if !is_dots {
            kept.push(segment);
        } else if segments.peek().is_none() {
            kept.push("");
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, url: &str) -> Result<Option<Token>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        sys::durable::replace(&path, text.as_bytes(), 0o600).unwrap();
        Token::load(&path, url)
    }

    #[test]
    fn the_token_is_for_one_server_over_tls_only() {
        let token = token("s3cret\n", "https://Updates.example.com/a").unwrap().unwrap();
        assert!(!format!("{token:?}").contains("s3cret"));
        for (url, is_shown) in [
            ("https://updates.example.com/b?c", true),
            ("https://UPDATES.EXAMPLE.COM:443/", true),
            ("https://updates.example.com:8443/a", false),
            ("http://updates.example.com/a", false),
            ("http://updates.example.com:443/a", false),
            ("https://evil.example.com/a", false),
            ("https://updates.example.com.evil.org/a", false),
            ("https://updates.example.com@evil.org/a", false),
            ("https://example.com/a", false),
        ] {
            assert_eq!(token.for_server_of(&url.parse().unwrap()).is_some(), is_shown, "{url}");
        }
        let value = token.for_server_of(&"https://updates.example.com/".parse().unwrap()).unwrap();
        assert_eq!(value.as_bytes(), b"Bearer s3cret");
    }

    #[test]
    fn without_tls_the_token_is_not_even_read() {
        for url in ["http://h/a", "/mnt/a.bundle", "-"] {
            assert!(Token::load(Path::new("/nonexistent"), url).unwrap().is_none());
        }
        let e = Token::load(Path::new("/nonexistent"), "https://h/").unwrap_err().to_string();
        assert!(e.contains("token /nonexistent: "), "{e}");
    }

    #[test]
    fn what_is_no_token_is_not_shown_in_the_error() {
        for text in ["", "\n", "two words", "s3cret\nX-Other: y", "caf\u{e9}"] {
            let e = token(text, "https://h/").unwrap_err().to_string();
            assert!(e.ends_with("expected one line without white space, the token alone"), "{e}");
        }
    }

    #[test]
    fn locations_are_followed_as_rfc_3986_says() {
        // The examples of RFC 3986, 5.4, as far as they are http, without ';' parameters.
        for (location, expected) in [
            ("http://g/x", Some("http://g/x")),
            ("https://g", Some("https://g/")),
            ("https://g?y", Some("https://g/?y")),
            ("//g", Some("http://g/")),
            ("//g/x?y", Some("http://g/x?y")),
            ("/g", Some("http://a/g")),
            ("g", Some("http://a/b/c/g")),
            ("./g", Some("http://a/b/c/g")),
            ("g/", Some("http://a/b/c/g/")),
            ("?y", Some("http://a/b/c/d?y")),
            ("g?y", Some("http://a/b/c/g?y")),
            ("g?y=x://z", Some("http://a/b/c/g?y=x://z")),
            ("g#s", Some("http://a/b/c/g")),
            ("", Some("http://a/b/c/d")),
            (".", Some("http://a/b/c/")),
            ("..", Some("http://a/b/")),
            ("../g", Some("http://a/b/g")),
            ("../../../../g", Some("http://a/g")),
            ("/./g", Some("http://a/g")),
            ("/../g", Some("http://a/g")),
            ("ftp://g/x", None),
            ("file:///etc/passwd", None),
            ("http://", None),
            ("http://a b/", None),
        ] {
            let joined = join(&"http://a/b/c/d?q".parse().unwrap(), location);
            assert_eq!(joined.map(|u| u.to_string()).as_deref(), expected, "{location:?}");
        }
    }
}
