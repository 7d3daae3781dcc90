//! Images: which are there, and loading them from an archive.

use std::io::{self, Read};
use std::time::Duration;

use serde::Deserialize;
use ureq::SendBody;

use super::api::Image;
use super::client::{Engine, encode, explain, one_line, read_whole};
use super::stream::{Lines, Next};
use crate::{Doing, Error, Result};

/// Without a byte or a line for this long, a load is given up: SD cards stall for tens of seconds.
const STALL_DEADLINE: Duration = Duration::from_secs(120);

/// How a load goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Bytes of the archive that were sent so far.
    Sent(u64),
    /// What the engine says it does.
    Says(String),
}

/// Called often during a load; an error from it ends the load.
pub type OnProgress<'a> = dyn FnMut(&Progress) -> Result<()> + 'a;

/// One line of the engine's answer to a load or a pull.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    status: Option<String>,
    stream: Option<String>,
    error: Option<String>,
}

impl Engine {
    /// The image called `name` (name with tag or digest, or an id), or `None`.
    ///
    /// # Errors
    /// `Failed` if the engine does not answer.
    pub fn image(&self, name: &str) -> Result<Option<Image>> {
        self.look(&format!("/images/{}/json", encode(name)))
    }

    /// Loads an archive in `docker save` format, streamed. Gives what the engine says it has loaded.
    ///
    /// A load that was cut off leaves layers that a second one uses; no image is there before its layers are.
    ///
    /// # Errors
    /// `Failed` with the engine's message, also where it comes inside of an answer that began well; whatever
    /// `on_progress` returns.
    pub fn load(&self, archive: impl Read, on_progress: &mut OnProgress<'_>) -> Result<Vec<String>> {
        let doing = || "POST /images/load";
        let mut body = Counting { archive, sent: 0, on_progress: &mut *on_progress };
        let url = self.url("/images/load?quiet=0");
        let request = self.agent().post(url).header("content-type", "application/x-tar").config();
        let request =
            request.timeout_per_read(Some(STALL_DEADLINE)).timeout_per_write(Some(STALL_DEADLINE)).build();
        let sent = request.send(SendBody::from_reader(&mut body));
        let mut response = sent.map_err(|e| explain(e, STALL_DEADLINE)).doing(doing)?;
        if response.status() != 200 {
            read_whole(&mut response, STALL_DEADLINE).doing(doing)?.expect(&[200], doing())?;
        }
        loaded(Lines::new(response.into_body()), on_progress).doing(doing)
    }
}

fn loaded(mut lines: Lines, on_progress: &mut OnProgress<'_>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    loop {
        let line = match lines.next()? {
            Next::Line(line) => line,
            Next::Tick => {
                let s = STALL_DEADLINE.as_secs();
                return Err(Error::failed(format!("the engine stopped in the middle: nothing for {s} s")));
            }
            Next::End => return Ok(names),
        };
        let line: Line = serde_json::from_slice(&line)
            .map_err(|e| Error::failed(format!("the engine's answer: {e}: {}", text(&line))))?;
        if let Some(error) = line.error {
            return Err(Error::failed(one_line(&error)));
        }
        let Some(says) = line.stream.or(line.status) else { continue };
        let says = one_line(&says);
        if let Some(name) = says.strip_prefix("Loaded image: ").or(says.strip_prefix("Loaded image ID: ")) {
            names.push(name.to_owned());
        }
        on_progress(&Progress::Says(says))?;
    }
}

fn text(line: &[u8]) -> String {
    one_line(&String::from_utf8_lossy(line))
}

/// Tells how much was read, on the way through.
struct Counting<'a, 'b, R> {
    archive: R,
    sent: u64,
    on_progress: &'a mut OnProgress<'b>,
}

impl<R: Read> Read for Counting<'_, '_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.archive.read(buf)?;
        self.sent = self.sent.saturating_add(n as u64);
        (self.on_progress)(&Progress::Sent(self.sent)).map_err(io::Error::other)?;
        Ok(n)
    }
}
