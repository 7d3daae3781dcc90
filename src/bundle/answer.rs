//! What a server's answers mean: which part of which file, or what is wrong and whether it may go away.

use std::io;
use std::ops::Range;
use std::time::Duration;

use ureq::http::{HeaderMap, StatusCode};

use crate::Error;
use crate::sys::http;

/// Why there is no answer to go on with.
pub enum Trouble {
    /// It may go away by itself; the server may have said after how long.
    Passing(String, Option<Duration>),
    /// It will not.
    Final(Error),
}

/// What an answer with another status than asked for means; `under_way` if the file was there before.
pub fn refused(status: StatusCode, headers: &HeaderMap, under_way: bool) -> Trouble {
    let text = format!("the server says {status}; {}", advice(status.as_u16()));
    match status.as_u16() {
        408 | 429 | 500..=599 if under_way => {
            let pause = text_of(headers, "retry-after").and_then(|s| s.parse().ok()).map(Duration::from_secs);
            Trouble::Passing(text, pause)
        }
        412 | 416 if under_way => changed(),
        _ => Trouble::Final(Error::failed(text)),
    }
}

const fn advice(status: u16) -> &'static str {
    match status {
        401 | 403 => {
            "it wants to know who asks, or does not let us: check the address, and the token (bundle.token_file, sent \
             over https only) or client certificate"
        }
        404 | 410 => "check the address",
        407 => "the proxy wants credentials: check http_proxy",
        416 => "the file there is empty: see that the bundle was uploaded",
        429 | 500..=599 => "try again later",
        _ => "a bundle was expected: check the address",
    }
}

/// The file is not what it was.
pub fn changed() -> Trouble {
    Trouble::Final(Error::failed(
        "the file on the server is another one than when the download began; install again",
    ))
}

/// Why a body could not be read on.
pub fn why(e: &io::Error, stall: Duration) -> String {
    match e.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
        Some(ureq::Error::Timeout(_)) => format!("nothing came for {} s", stall.as_secs_f32()),
        Some(other) => http::reason(other),
        None => e.to_string(),
    }
}

/// A header, if it is there and text.
pub fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|v| v.to_str().ok()).map(|v| v.trim().to_owned())
}

/// What `If-Range` may be asked with: a strong ETag, else the time of the last change (RFC 9110, 13.1.5).
pub fn identity_of(headers: &HeaderMap) -> Option<String> {
    text_of(headers, "etag").filter(|tag| tag.starts_with('"')).or_else(|| text_of(headers, "last-modified"))
}

/// `bytes 0-99/1000` as the range, and the length of the whole.
pub fn content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, len) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, len): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, len.parse().ok()?);
    (first <= last && last < len).then(|| (first..last + 1, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        assert_eq!(content_range("bytes 0-99/1000"), Some((0..100, 1000)));
        assert_eq!(content_range("bytes 999-999/1000"), Some((999..1000, 1000)));
        for bad in
            ["", "bytes 0-99/*", "bytes 5-4/10", "bytes 0-10/10", "items 0-1/2", "bytes */10", "bytes 1/2-3"]
        {
            assert_eq!(content_range(bad), None, "{bad}");
        }
        assert_eq!(content_range(&format!("bytes 0-{}/{}", u64::MAX, u64::MAX)), None);
    }

    #[test]
    fn what_identifies_a_file_is_strong() {
        let with = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            identity_of(&headers)
        };
        assert_eq!(with("etag", "\"x\"").as_deref(), Some("\"x\""));
        assert_eq!(with("etag", "W/\"x\""), None);
        assert_eq!(with("last-modified", "yesterday").as_deref(), Some("yesterday"));
    }
}
