//! The date as a server tells it that is authenticated by TLS, for a host whose clock is behind.
//!
//! A clock that is behind finds a good certificate "not valid yet". Turning the check off would let anybody set the
//! clock. Instead the handshake is repeated *as if it were* the first moment at which the certificate is valid, with
//! everything else checked as always: if it then succeeds, an authority that we trust says that it is at least that
//! late, and the server is who it should be. Its `Date` is believed only if its certificate is valid at that date too.
//!
//! What this cannot see: a stolen certificate that expired, shown to a host with a clock from before. It could hold the
//! clock within its own validity, as it could without any of this.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::http::{HttpSettings, roots};
use crate::{Doing, Error, Result};

/// More certificates than this are not in one chain.
const ROUNDS: usize = 6;
const ANSWER_LIMIT_BYTES: u64 = 64 * 1024;

#[derive(Debug)]
struct Fixed(UnixTime);

impl TimeProvider for Fixed {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

/// How one handshake ended.
enum Seen {
    /// The server's date, if it tells one.
    Date(Option<Duration>),
    /// A certificate of its chain is valid only from then on.
    NotBefore(Duration),
}

/// The date, as time since 1970, that the server `host` tells; at least the moment from which its certificates are valid,
/// and at least `now`.
///
/// Goes straight to the server: through a proxy it is not to be had.
///
/// # Errors
/// `Failed` if the server cannot be reached, or is not trusted at any date.
pub fn ask(host: &str, port: u16, settings: &HttpSettings, now: Duration) -> Result<Duration> {
    let doing = || format!("ask {host} for the date");
    let mut at = now;
    let mut told = None;
    for _ in 0..ROUNDS {
        match handshake(host, port, settings, at).doing(doing)? {
            Seen::NotBefore(later) if later > at => at = later,
            Seen::NotBefore(_) => break,
            // Seen to be valid at the date that it told itself.
            Seen::Date(_) if told.is_some() => return Ok(at),
            Seen::Date(Some(date)) if date > at => {
                at = date;
                told = Some(date);
            }
            Seen::Date(_) => return Ok(at),
        }
    }
    Err(Error::failed("its certificates are valid at no date that it tells")).doing(doing)
}

fn handshake(host: &str, port: u16, settings: &HttpSettings, at: Duration) -> Result<Seen> {
    let mut store = RootCertStore::empty();
    for root in roots(settings)? {
        // Of a bundle of many, one that is odd is no reason to trust none.
        let _ = store.add(root.der().to_vec().into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let time = Arc::new(Fixed(UnixTime::since_unix_epoch(at)));
    let config = ClientConfig::builder_with_details(provider, time)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::failed(e.to_string()))?
        .with_root_certificates(store)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|e| Error::failed(e.to_string()))?;
    let connection =
        ClientConnection::new(Arc::new(config), name).map_err(|e| Error::failed(e.to_string()))?;
    let stream = connect(host, port, settings)?;
    let mut tls = StreamOwned::new(connection, stream);
    let request = format!("HEAD /ping HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    if let Err(e) = tls.write_all(request.as_bytes()).and_then(|()| tls.flush()) {
        let why = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let Some(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
            not_before, ..
        })) = why
        else {
            return Err(e.into());
        };
        return Ok(Seen::NotBefore(Duration::from_secs(not_before.as_secs())));
    }
    let mut answer = Vec::new();
    // A server that closes without TLS's own farewell has told its date all the same.
    let _ = tls.take(ANSWER_LIMIT_BYTES).read_to_end(&mut answer);
    Ok(Seen::Date(date_header(&String::from_utf8_lossy(&answer))))
}

fn connect(host: &str, port: u16, settings: &HttpSettings) -> Result<TcpStream> {
    let mut last = Error::failed("no such host");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, settings.connect_timeout) {
            Ok(stream) => {
                stream.set_read_timeout(Some(settings.read_timeout))?;
                stream.set_write_timeout(Some(settings.read_timeout))?;
                return Ok(stream);
            }
            Err(e) => last = e.into(),
        }
    }
    Err(last)
}

/// The `Date` of an answer's head.
fn date_header(answer: &str) -> Option<Duration> {
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    let named = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("date").then(|| value.trim().to_owned())
    };
    imf_fixdate(&head.lines().find_map(named)?)
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that servers may send.
///
/// Source: RFC 9110, section 5.6.7.
fn imf_fixdate(text: &str) -> Option<Duration> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split(' ').collect();
    let [_, day, month, year, time, "GMT"] = words.as_slice() else { return None };
    let month = MONTHS.iter().position(|m| m == month)?;
    let mut hms = time.split(':').map(|n| n.parse::<u64>().ok());
    let (h, m, s) = (hms.next()??, hms.next()??, hms.next()??);
    let days = days_since_1970(year.parse().ok()?, u64::try_from(month).ok()? + 1, day.parse().ok()?)?;
    (h < 24 && m < 60 && s <= 60).then(|| Duration::from_secs(((days * 24 + h) * 60 + m) * 60 + s))
}

/// Days from 1 January 1970 to a date of the Gregorian calendar; `None` for what is none, or before.
pub fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..10_000).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years are counted from March, so that the leap day is the last of its year.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    // 1 January 1970 counted in this way.
    days.checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_date() {
        // date -u -d "…" +%s
        for (text, expected) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Tue, 29 Feb 2000 23:59:59 GMT", Some(951_868_799)),
            ("Sun, 01 Mar 2026 00:00:00 GMT", Some(1_772_323_200)),
            ("Thu, 31 Dec 2099 12:00:00 GMT", Some(4_102_401_600)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Nov 1994 25:49:37 GMT", None),
            ("", None),
        ] {
            assert_eq!(imf_fixdate(text).map(|d| d.as_secs()), expected, "{text}");
        }
        let answer = "HTTP/1.1 200 OK\r\nServer: x\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\nDate: no";
        assert_eq!(date_header(answer).map(|d| d.as_secs()), Some(784_111_777));
    }
}
