//! What a container last printed.

use ureq::http::Method;

use super::client::{Engine, LOOK_DEADLINE, encode};
use crate::Result;

impl Engine {
    /// The last `lines` lines that the container printed, on standard output and error; empty if there is no such
    /// container, or its log driver keeps nothing that can be read.
    ///
    /// # Errors
    /// `Failed` if the engine does not answer.
    pub fn last_words(&self, name: &str, lines: u8) -> Result<String> {
        let path = format!("/containers/{}/logs?stdout=true&stderr=true&tail={lines}", encode(name));
        // 501: the driver cannot be read.
        let answer = self.change(Method::GET, &path, None, &[200, 404, 501], LOOK_DEADLINE)?;
        Ok(if answer.status == 200 { demultiplex(&answer.body) } else { String::new() })
    }
}

/// The text of a log without a terminal: frames of a stream number, three zeros, a length (4 bytes, big-endian) and
/// that many bytes. What is cut off at the end is shown as far as it goes; what has no frames is the text itself.
fn demultiplex(raw: &[u8]) -> String {
    let mut text = Vec::new();
    let mut rest = raw;
    while let [0..=2, 0, 0, 0, a, b, c, d, after @ ..] = rest {
        let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
        let (frame, next) = after.split_at(length.min(after.len()));
        text.extend_from_slice(frame);
        rest = next;
    }
    if text.is_empty() {
        text.extend_from_slice(rest);
    }
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As dockerd 20.10.24 sends it.
    const RAW: &[u8] = b"\x01\0\0\0\0\0\0\x06hello\n\x02\0\0\0\0\0\0\x04bad\n";

    #[test]
    fn frames_become_text() {
        assert_eq!(demultiplex(RAW), "hello\nbad");
        assert_eq!(demultiplex(b"of a terminal\r\n"), "of a terminal");
        assert_eq!(demultiplex(b""), "");
    }

    #[test]
    fn a_cut_shows_what_is_there() {
        assert_eq!(demultiplex(&RAW[..11]), "hel");
        for cut in 0..RAW.len() {
            assert!(demultiplex(&RAW[..cut]).len() <= cut);
        }
        // A length that lies.
        assert_eq!(demultiplex(b"\x01\0\0\0\xff\xff\xff\xffx"), "x");
    }
}
