//! Images: which are there, loading them from an archive, pulling and removing them.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::time::Duration;

use serde::Deserialize;
use ureq::SendBody;
use ureq::http::Method;

use super::api::Image;
use super::client::{CHANGE_DEADLINE, Engine, encode, explain, one_line, read_whole};
use super::stream::{Lines, Next};
use crate::{Doing, Error, Result};

/// Without a byte or a line for this long, a load is given up: SD cards stall for tens of seconds.
const LOAD_STALL: Duration = Duration::from_secs(120);
/// The same for a pull, of which some engines (Podman) tell nothing while a layer comes in.
const PULL_STALL: Duration = Duration::from_secs(600);

/// How a load or a pull goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Bytes of the archive that were sent so far.
    Sent(u64),
    /// Bytes of the image's layers that were pulled so far, of those that the registry has told of so far.
    Pulled {
        /// Bytes that are here.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// What the engine says it does.
    Says(String),
}

/// Called often during a load or a pull; an error from it ends that.
pub type OnProgress<'a> = dyn FnMut(&Progress) -> Result<()> + 'a;

/// One line of the engine's answer to a load or a pull.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    status: Option<String>,
    stream: Option<String>,
    error: Option<String>,
    /// Of a layer.
    id: Option<String>,
    #[serde(rename = "progressDetail")]
    progress: Option<Detail>,
}

/// How much of a layer is here, in bytes.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Detail {
    current: u64,
    total: u64,
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
        let request = request.timeout_per_read(Some(LOAD_STALL)).timeout_per_write(Some(LOAD_STALL)).build();
        let sent = request.send(SendBody::from_reader(&mut body));
        let mut response = sent.map_err(|e| explain(e, LOAD_STALL)).doing(doing)?;
        if response.status() != 200 {
            read_whole(&mut response, LOAD_STALL).doing(doing)?.expect(&[200], doing())?;
        }
        let mut names = Vec::new();
        each(Lines::new(response.into_body()), LOAD_STALL, |line| {
            let Some(says) = line.stream.or(line.status) else { return Ok(()) };
            let says = one_line(&says);
            let name = says.strip_prefix("Loaded image: ").or(says.strip_prefix("Loaded image ID: "));
            names.extend(name.map(str::to_owned));
            on_progress(&Progress::Says(says))
        })
        .doing(doing)?;
        Ok(names)
    }

    /// Pulls an image from its registry; `login` as [`login`](super::login) gives it. A name without tag and digest is
    /// `:latest`. Layers that are there are not pulled again.
    ///
    /// # Errors
    /// `Failed` with the engine's message, also where it comes inside of an answer that began well; whatever
    /// `on_progress` returns.
    pub fn pull(&self, name: &str, login: Option<&str>, on_progress: &mut OnProgress<'_>) -> Result<()> {
        let doing = || format!("pull {name}");
        let url = self.url(&format!("/images/create?fromImage={}", encode(&with_tag(name))));
        let mut request = self.agent().post(url);
        if let Some(login) = login {
            request = request.header("x-registry-auth", login);
        }
        let request = request.config().timeout_per_read(Some(PULL_STALL));
        let request = request.timeout_recv_response(Some(PULL_STALL)).build();
        let mut response = request.send(b"".as_slice()).map_err(|e| explain(e, PULL_STALL)).doing(doing)?;
        if response.status() != 200 {
            read_whole(&mut response, PULL_STALL).doing(doing)?.expect(&[200], &doing())?;
        }
        let mut layers = Layers::default();
        each(Lines::new(response.into_body()), PULL_STALL, |line| {
            let says = one_line(line.status.as_deref().or(line.stream.as_deref()).unwrap_or_default());
            match (line.id, line.progress) {
                (Some(id), Some(detail)) => match layers.add(id, &says, &detail) {
                    Some(progress) => on_progress(&progress),
                    None => Ok(()),
                },
                _ => on_progress(&Progress::Says(says)),
            }
        })
        .doing(doing)
    }

    /// Removes an image (by name or id) that no container uses. Gives whether it is gone: one that is used, or has
    /// other names, stays.
    ///
    /// # Errors
    /// `Failed` with the engine's message.
    pub fn remove_image(&self, name: &str) -> Result<bool> {
        let path = format!("/images/{}", encode(name));
        let answer = self.change(Method::DELETE, &path, None, &[200, 404, 409], CHANGE_DEADLINE)?;
        Ok(answer.status != 409)
    }
}

/// A name with tag or digest as it is, else with `:latest`: without one an engine would pull every tag.
pub(super) fn with_tag(name: &str) -> String {
    // A colon before the last slash belongs to a registry's port.
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains([':', '@']) { name.to_owned() } else { format!("{name}:latest") }
}

/// The layers of an image that is being pulled.
#[derive(Debug, Default)]
struct Layers(BTreeMap<String, (u64, u64)>);

impl Layers {
    /// Takes a line about a layer in; gives the sum, if it tells of bytes that come from the registry.
    fn add(&mut self, id: String, says: &str, detail: &Detail) -> Option<Progress> {
        match says {
            "Downloading" if detail.total > 0 => drop(self.0.insert(id, (detail.current, detail.total))),
            "Download complete" | "Pull complete" => {
                let (done, total) = self.0.get_mut(&id)?;
                *done = *total;
            }
            _ => return None,
        }
        let sum = |(done, total): (u64, u64), layer: &(u64, u64)| {
            (done.saturating_add(layer.0), total.saturating_add(layer.1))
        };
        let (done, total) = self.0.values().fold((0, 0), sum);
        Some(Progress::Pulled { done, total })
    }
}

/// Reads an answer that goes on, to its end. `stall` is for the text.
fn each(mut lines: Lines, stall: Duration, mut take: impl FnMut(Line) -> Result<()>) -> Result<()> {
    loop {
        let line = match lines.next()? {
            Next::Line(line) => line,
            Next::Tick => {
                let s = stall.as_secs();
                return Err(Error::failed(format!("the engine stopped in the middle: nothing for {s} s")));
            }
            Next::End => return Ok(()),
        };
        let line: Line = serde_json::from_slice(&line)
            .map_err(|e| Error::failed(format!("the engine's answer: {e}: {}", text(&line))))?;
        if let Some(error) = line.error {
            return Err(Error::failed(one_line(&error)));
        }
        take(line)?;
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
