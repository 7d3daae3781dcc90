//! What a container prints: its last words, and all of it as it comes.

use std::io::Read;
use std::sync::Arc;

use ureq::http::Method;

use super::client::{Answer, Engine, LOOK_DEADLINE, encode, explain, read_whole};
use super::stream::is_tick;
use super::transport::{self, Patience};
use crate::sys::termination::Termination;
use crate::{Doing, Error, Result};

/// Where a container wrote something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Standard output; a terminal, too.
    Out,
    /// Standard error.
    Err,
}

/// Takes what a container printed, in pieces as they come.
pub type Sink<'a> = dyn FnMut(Output, &[u8]) + 'a;

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

    /// The last `lines` lines (`None`: all) that the container printed; then, if `follow` says so, what it prints from
    /// now on, until it ends, is removed, or this process is asked to end.
    ///
    /// # Errors
    /// `Failed` if the engine does not answer or goes away, there is no such container, or its log driver keeps nothing
    /// that can be read.
    pub fn logs(
        &self,
        name: &str,
        lines: Option<u32>,
        follow: bool,
        termination: &Termination,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let doing = || format!("GET /containers/{name}/logs");
        let tail = lines.map_or_else(|| "all".into(), |n| n.to_string());
        let path = format!("/containers/{}/logs?stdout=true&stderr=true&follow={follow}", encode(name));
        // A connection of its own: this one never becomes idle, and its reads end when we are asked to.
        let patience = Arc::new(Patience::new(LOOK_DEADLINE, termination.clone()));
        let agent = transport::agent(self.socket(), Some(patience));
        let request = agent.get(self.url(&format!("{path}&tail={tail}"))).config();
        let request = request.timeout_connect(Some(LOOK_DEADLINE)).timeout_recv_response(Some(LOOK_DEADLINE));
        let mut response = request.build().call().map_err(|e| explain(e, LOOK_DEADLINE)).doing(doing)?;
        if response.status() != 200 {
            let answer: Answer = read_whole(&mut response, LOOK_DEADLINE).doing(doing)?;
            answer.expect(&[200], &doing())?;
        }
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut frames = Frames::default();
        let mut piece = [0; 4096];
        loop {
            match body.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(n) => frames.take(piece.get(..n).unwrap_or_default(), sink),
                Err(e) if is_tick(&e) => {
                    if termination.wait(std::time::Duration::ZERO)? {
                        return Ok(());
                    }
                }
                Err(e) => return Err(Error::from(e).within("the engine's answer broke off")).doing(doing),
            }
        }
    }
}

/// The text of a whole log; what is cut off at the end is shown as far as it goes.
fn demultiplex(raw: &[u8]) -> String {
    let mut text = Vec::new();
    let mut frames = Frames::default();
    frames.take(raw, &mut |_, piece| text.extend_from_slice(piece));
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

/// Takes a log apart as it comes, whatever its pieces.
///
/// Without a terminal it is frames: a stream number, three zeros, a length (4 bytes, big-endian) and that many bytes.
/// With one it is the text itself, which its beginning shows.
#[derive(Debug, Default)]
struct Frames {
    /// The bytes of a head that is not whole yet.
    head: Vec<u8>,
    /// Of the frame that is being read: where it was written, and the bytes to come.
    frame: Option<(Output, usize)>,
    /// It has no frames.
    plain: bool,
}

const HEAD_LEN: usize = 8;

impl Frames {
    fn take(&mut self, mut piece: &[u8], sink: &mut Sink<'_>) {
        while !piece.is_empty() {
            if self.plain {
                return sink(Output::Out, piece);
            }
            piece = match self.frame.take() {
                Some((output, left)) => {
                    let (now, rest) = piece.split_at(left.min(piece.len()));
                    sink(output, now);
                    self.frame = (now.len() < left).then(|| (output, left - now.len()));
                    rest
                }
                None => self.take_head(piece, sink),
            };
        }
    }

    fn take_head<'a>(&mut self, piece: &'a [u8], sink: &mut Sink<'_>) -> &'a [u8] {
        let (now, rest) = piece.split_at((HEAD_LEN - self.head.len()).min(piece.len()));
        self.head.extend_from_slice(now);
        let looks_right = self.head.iter().zip([2, 0, 0, 0]).all(|(byte, most)| *byte <= most);
        if !looks_right {
            self.plain = true;
            sink(Output::Out, &std::mem::take(&mut self.head));
        } else if let [stream, _, _, _, a, b, c, d] = *self.head {
            let output = if stream == 2 { Output::Err } else { Output::Out };
            let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
            self.frame = (length > 0).then_some((output, length));
            self.head.clear();
        }
        rest
    }
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

    #[test]
    fn pieces_of_any_size_give_the_same() {
        for size in 1..RAW.len() {
            let (mut frames, mut out, mut err) = (Frames::default(), Vec::new(), Vec::new());
            for piece in RAW.chunks(size) {
                frames.take(piece, &mut |output, text| match output {
                    Output::Out => out.extend_from_slice(text),
                    Output::Err => err.extend_from_slice(text),
                });
            }
            assert_eq!(
                (out.as_slice(), err.as_slice()),
                (b"hello\n".as_slice(), b"bad\n".as_slice()),
                "{size}"
            );
        }
    }
}
