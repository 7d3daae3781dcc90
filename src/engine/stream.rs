//! Answers that go on: JSON lines with a tick between them.

use std::io::{self, Read};

use ureq::{BodyReader, Timeout};

use crate::{Error, Result};

/// Longer lines are not from an engine.
const LINE_LIMIT: usize = 256 * 1024;

/// Reads lines off a body whose reads time out now and then.
pub(super) struct Lines {
    body: BodyReader<'static>,
    /// Bytes that came after the last whole line.
    rest: Vec<u8>,
}

/// What the next read brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A line that is not empty, without its end.
    Line(Vec<u8>),
    /// Nothing came in the time of one read. The stream goes on.
    Tick,
    /// The stream ended as it should.
    End,
}

impl Lines {
    pub(super) fn new(body: ureq::Body) -> Self {
        Self { body: body.into_with_config().limit(u64::MAX).reader(), rest: Vec::new() }
    }

    /// Waits for the next line, for at most one read.
    ///
    /// # Errors
    /// `Failed` if the engine went away in the middle of its answer.
    pub(super) fn next(&mut self) -> Result<Next> {
        loop {
            if let Some(line) = self.take_line() {
                return Ok(Next::Line(line));
            }
            let mut chunk = [0; 4096];
            match self.body.read(&mut chunk) {
                Ok(0) if self.rest.iter().all(u8::is_ascii_whitespace) => return Ok(Next::End),
                Ok(0) => return Ok(Next::Line(std::mem::take(&mut self.rest))),
                Ok(n) => self.rest.extend(chunk.iter().take(n)),
                Err(e) if is_tick(&e) => return Ok(Next::Tick),
                Err(e) => return Err(Error::from(e).within("the engine's answer broke off")),
            }
            if self.rest.len() > LINE_LIMIT {
                return Err(Error::failed(format!(
                    "the engine's answer: a line longer than {LINE_LIMIT} bytes"
                )));
            }
        }
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        loop {
            let end = self.rest.iter().position(|b| *b == b'\n')?;
            let mut line: Vec<u8> = self.rest.drain(..=end).collect();
            line.truncate(line.trim_ascii_end().len());
            if !line.is_empty() {
                return Some(line);
            }
        }
    }
}

/// ureq reports a per-read time-out of a body as an `Other` that holds its own error.
pub(super) fn is_tick(e: &io::Error) -> bool {
    let inner = e.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
    matches!(inner, Some(ureq::Error::Timeout(Timeout::PerRead)))
}
