//! A file on a web server, read in ascending order: only the parts that are wanted, and on through lost connections.
//!
//! Nothing here is trusted: what arrives is compared with signed hashes later. What is checked here is checked so that
//! a server that misbehaves costs a clear message instead of a download that cannot succeed.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::time::Duration;

use ureq::Body;
use ureq::http::Response;

use super::address::{Address, NoAnswer, Token};
use super::answer::{Trouble, changed, content_range, identity_of, refused, text_of, why};
use crate::sys::clock::{BootClock, Clock};
use crate::sys::http::HttpSettings;
use crate::{Error, Result};

/// The first request, and any that nothing was planned for: manifest and signatures are about as long.
const FIRST_BYTES: u64 = 4096;
/// Where requests cost little, one is for this share of what was fetched before, within these bounds: what a process fetched
/// in vain when it was killed, the request under way, stays a small part of what it fetched, however short it lived.
const REQUEST_SHARE: u64 = 128;
const REQUEST_MIN: u64 = 8 * 1024;
const REQUEST_MAX: u64 = 64 * 1024;
/// No link is taken for faster, in bytes a second: what requests saved would gain there is less than anybody notices.
const RATE_MAX: f64 = 20e6;
/// A connection that brought so much before it broke is worth opening again at once.
const WORTHWHILE_BYTES: u64 = 4 * 1024;
/// The wait before the second attempt in vain; doubles up to the longest.
const RETRY: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// A file that must be read from its beginning after each break is given up after so many breaks without progress.
const RESTARTS_MAX: u32 = 4;

/// What a download may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long nothing may come, whatever the number of attempts.
    pub stall: Duration,
    /// How many bytes may be fetched in all.
    pub max_bytes: Option<u64>,
}

/// One file on a server.
pub struct Fetch {
    address: Address,
    limits: Limits,
    /// `None` before the first answer.
    file: Option<File>,
    answer: Option<Answer>,
    position: u64,
    /// What will be read, in order; may lie behind the position.
    planned: VecDeque<Range<u64>>,
    meter: Meter,
    /// Attempts since something new came.
    failures: u32,
    /// When something new came.
    alive: Duration,
}

/// The file as the server described it first.
struct File {
    len: Option<u64>,
    /// Its strong ETag, or the time of its last change.
    identity: Option<String>,
    /// Whether the server gives parts of it.
    parts: bool,
}

/// An answer that is being read.
struct Answer {
    body: Box<dyn Read + Send>,
    /// Where the next byte of it belongs.
    at: u64,
    /// Where it ends, if the server said.
    end: Option<u64>,
    /// How much it brought.
    brought: u64,
}

/// What was fetched, and how fast.
#[derive(Debug, Clone, Copy, Default)]
pub struct Meter {
    /// Bytes of bodies.
    pub bytes: u64,
    /// Requests.
    pub requests: u64,
    /// Time spent waiting for answers and their bodies.
    waiting: Duration,
    /// The shortest time from a request to its answer.
    latency: Option<Duration>,
}

impl Meter {
    /// How many bytes come in the time that one more request takes.
    pub fn bytes_per_request(&self) -> u64 {
        let latency = self.latency.unwrap_or_default().as_secs_f64();
        // Answers differ; but where they take longer than twice the shortest, it is the link that lets them wait.
        let transfer = self.waiting.as_secs_f64() - 2.0 * latency * self.requests as f64;
        let rate = (self.bytes as f64 / transfer.max(1e-4)).min(RATE_MAX);
        let bytes = rate * latency;
        // A float's `as` saturates, which is what is meant.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bytes = bytes as u64;
        bytes
    }

    /// For how many bytes a request should be: so many that the wait for its answer is a small part of the time that they take, and
    /// not many more.
    fn request_bytes(&self) -> u64 {
        let share = (self.bytes / REQUEST_SHARE).clamp(REQUEST_MIN, REQUEST_MAX);
        self.bytes_per_request().saturating_mul(4).max(share)
    }
}

impl Fetch {
    /// Asks for the file.
    ///
    /// # Errors
    /// `Failed`, saying what to do, if the server cannot be reached or does not give it.
    pub fn open(url: &str, settings: &HttpSettings, token: Option<Token>, limits: Limits) -> Result<Self> {
        let read_timeout = settings.read_timeout.min(limits.stall);
        let settings = HttpSettings { read_timeout, ..settings.clone() };
        let mut fetch = Self {
            address: Address::new(url, &settings, token)?,
            limits,
            file: None,
            answer: None,
            position: 0,
            planned: VecDeque::new(),
            meter: Meter::default(),
            failures: 0,
            alive: BootClock.since_boot(),
        };
        fetch.connect().map_err(|trouble| match trouble {
            Trouble::Passing(text, _) => Error::failed(text),
            Trouble::Final(e) => e,
        })?;
        Ok(fetch)
    }

    /// The file's length, if the server told it.
    pub fn len_bytes(&self) -> Option<u64> {
        self.file.as_ref().and_then(|f| f.len)
    }

    /// Whether parts can be left out.
    pub fn gives_parts(&self) -> bool {
        self.file.as_ref().is_some_and(|f| f.parts)
    }

    /// What was fetched so far.
    pub const fn meter(&self) -> Meter {
        self.meter
    }

    /// Says what will be read from now on, in ascending order.
    pub fn plan(&mut self, ranges: impl IntoIterator<Item = Range<u64>>) {
        self.planned = ranges.into_iter().collect();
    }

    /// Goes on at `range.start`, of which at least `range` will be read. Never backwards.
    ///
    /// # Errors
    /// As reading, if bytes in between must be read all the same.
    pub fn skip_to(&mut self, range: Range<u64>) -> io::Result<()> {
        if !self.gives_parts() {
            return self.read_over(range.start);
        }
        // What was asked for already is on its way, and a connection that is read to the end can be used again.
        if let Some(end) = self.answer.as_ref().and_then(|a| a.end) {
            self.read_over(range.start.min(end))?;
            if range.start < end {
                return Ok(());
            }
        }
        self.position = range.start;
        while self.planned.front().is_some_and(|p| p.end <= range.start) {
            self.planned.pop_front();
        }
        if !self.planned.front().is_some_and(|p| p.contains(&range.start)) {
            self.planned.push_front(range);
        }
        Ok(())
    }

    fn read_over(&mut self, to: u64) -> io::Result<()> {
        let mut away = vec![0; 64 * 1024];
        while self.position < to {
            let n = usize::try_from(to - self.position).unwrap_or(usize::MAX).min(away.len());
            if self.read(away.get_mut(..n).unwrap_or_default())? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    fn next_range(&self) -> Range<u64> {
        let end = match self.planned.iter().find(|p| p.contains(&self.position)) {
            Some(planned) => planned.end.min(self.position.saturating_add(self.meter.request_bytes())),
            None => self.position.saturating_add(FIRST_BYTES),
        };
        self.position..self.len_bytes().map_or(end, |len| end.min(len))
    }

    fn connect(&mut self) -> std::result::Result<(), Trouble> {
        let known = self.file.as_ref();
        let range = known.is_none_or(|f| f.parts).then(|| self.next_range());
        let wanted = range.as_ref().map_or(self.len_bytes(), |r| known.map(|_| r.end - r.start));
        self.afford(wanted.unwrap_or(0))?;
        let bytes = range.as_ref().map(|r| format!("bytes={}-{}", r.start, r.end.saturating_sub(1)));
        let identity = known.and_then(|f| f.identity.as_ref()).filter(|_| range.is_some());
        let mut headers = Vec::new();
        headers.extend(bytes.as_deref().map(|bytes| ("Range", bytes)));
        headers.extend(identity.map(|identity| ("If-Range", identity.as_str())));
        let asked = BootClock.since_boot();
        let answer = self.address.ask(&headers);
        self.meter.requests = self.address.requests;
        let answer = answer.map_err(|NoAnswer { why, advice }| {
            // Under way the advice would be wrong: it did work before.
            Trouble::Passing(if self.file.is_some() { why } else { format!("{why}; {advice}") }, None)
        })?;
        let took = BootClock.since_boot().saturating_sub(asked);
        self.meter.waiting += took;
        // The first one has the connection to make.
        if self.meter.requests > 1 {
            self.meter.latency = Some(self.meter.latency.map_or(took, |l| l.min(took)));
        }
        match answer.status().as_u16() {
            206 if range.is_some() => self.part(answer, range.unwrap_or(0..0)),
            200 => self.whole(answer),
            _ => Err(refused(answer.status(), answer.headers(), self.file.is_some())),
        }
    }

    /// A part of the file: it must be the part that was asked for, of the file that we know.
    fn part(&mut self, answer: Response<Body>, asked: Range<u64>) -> std::result::Result<(), Trouble> {
        let headers = answer.headers();
        let text = text_of(headers, "content-range").unwrap_or_default();
        let odd = || {
            Trouble::Final(Error::failed(format!(
                "the server answers with {text:?} where bytes {}-{} were asked for; use another server, or install from a file",
                asked.start,
                asked.end.saturating_sub(1)
            )))
        };
        let (given, len) = content_range(&text).ok_or_else(odd)?;
        let known_len = self.len_bytes();
        if given.start != asked.start || given.end > asked.end || known_len.is_some_and(|known| known != len)
        {
            // Another length is another file; another part is nonsense.
            return Err(if given.start == asked.start && given.end <= asked.end { changed() } else { odd() });
        }
        let identity = identity_of(headers);
        match &self.file {
            Some(file) if file.identity.is_some() && identity.is_some() && file.identity != identity => {
                return Err(changed());
            }
            Some(_) => {}
            None => self.file = Some(File { len: Some(len), identity, parts: true }),
        }
        self.answer = Some(Answer::new(answer, given.start, Some(given.end)));
        Ok(())
    }

    /// The whole file, from its beginning: what a server sends that knows no parts, or whose file is another one now.
    fn whole(&mut self, answer: Response<Body>) -> std::result::Result<(), Trouble> {
        let identity = identity_of(answer.headers());
        let len = answer.body().content_length();
        if let Some(file) = &mut self.file {
            let same = match (&file.identity, &identity) {
                (Some(before), Some(now)) => before == now,
                _ => file.len == len,
            };
            if !same {
                return Err(changed());
            }
            file.parts = false;
            let len = file.len;
            self.afford(len.unwrap_or(0))?;
            self.answer = Some(Answer::new(answer, 0, len));
        } else {
            self.file = Some(File { len, identity, parts: false });
            self.afford(len.unwrap_or(0))?;
            self.answer = Some(Answer::new(answer, 0, len));
        }
        Ok(())
    }

    /// Refuses what would cost more than was allowed.
    fn afford(&self, bytes: u64) -> std::result::Result<(), Trouble> {
        match self.limits.max_bytes {
            Some(max) if self.meter.bytes.saturating_add(bytes) > max => {
                Err(Trouble::Final(too_much(self.meter.bytes.saturating_add(bytes), max)))
            }
            _ => Ok(()),
        }
    }

    /// Reads from the present answer what is of use. `None`: it is at its end, or broke.
    fn some(&mut self, buffer: &mut [u8]) -> std::result::Result<Option<usize>, String> {
        let Some(answer) = &mut self.answer else { return Ok(None) };
        let left = answer.end.map_or(u64::MAX, |end| end.saturating_sub(answer.at));
        if left == 0 {
            // Its end is read too, so that the connection can be used again.
            let _ = answer.body.read(&mut [0]);
            self.answer = None;
            return Ok(None);
        }
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let asked = BootClock.since_boot();
        let result = answer.body.read(buffer.get_mut(..n).unwrap_or_default());
        self.meter.waiting += BootClock.since_boot().saturating_sub(asked);
        let n = result.map_err(|e| why(&e, self.limits.stall))?;
        self.meter.bytes += n as u64;
        answer.brought += n as u64;
        if n == 0 && answer.end.is_none() {
            // The server did not say how long it is, so this is its end.
            let len = answer.at;
            if let Some(file) = &mut self.file {
                file.len = Some(len);
            }
            return Ok(Some(0));
        }
        if n == 0 {
            return Err("the server closed the connection".into());
        }
        answer.at += n as u64;
        // After a restart from the beginning, what was read before comes again.
        let again =
            usize::try_from(self.position.saturating_sub(answer.at - n as u64)).unwrap_or(usize::MAX).min(n);
        buffer.copy_within(again..n, 0);
        if again < n {
            self.alive = BootClock.since_boot();
            if answer.brought >= WORTHWHILE_BYTES || answer.end == Some(answer.at) {
                self.failures = 0;
            }
        }
        self.position = self.position.max(answer.at);
        Ok(if again < n { Some(n - again) } else { None })
    }

    /// After a failed attempt: waits, or gives up.
    fn bear(&mut self, what: &str, pause: Option<Duration>) -> Result<()> {
        self.answer = None;
        self.failures += 1;
        let silent = BootClock.since_boot().saturating_sub(self.alive);
        let restarts = !self.gives_parts() && self.failures > RESTARTS_MAX;
        if silent >= self.limits.stall || restarts {
            let of = self.len_bytes().map_or_else(String::new, |len| format!(" of {len}"));
            return Err(Error::failed(format!(
                "the download stopped after {}{of} bytes: {what}; given up after {} attempts, install again to go on",
                self.position, self.failures
            )));
        }
        let doubled = RETRY.saturating_mul(2_u32.saturating_pow(self.failures.saturating_sub(2).min(16)));
        let wait = if self.failures == 1 { Duration::ZERO } else { doubled.min(RETRY_MAX) };
        let wait = wait.max(pause.unwrap_or_default()).min(self.limits.stall.saturating_sub(silent));
        log::info!("{what}; trying again in {:.1} s", wait.as_secs_f32());
        BootClock.sleep(wait);
        Ok(())
    }
}

impl Read for Fetch {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self.some(buffer) {
                Ok(Some(n)) => return Ok(n),
                Ok(None) if self.answer.is_some() => continue,
                Ok(None) => {}
                Err(what) => self.bear(&what, None).map_err(io::Error::other)?,
            }
            if self.answer.is_some() {
                continue;
            }
            if self.len_bytes().is_some_and(|len| self.position >= len) {
                return Ok(0);
            }
            match self.connect() {
                Ok(()) => {}
                Err(Trouble::Passing(what, pause)) => self.bear(&what, pause).map_err(io::Error::other)?,
                Err(Trouble::Final(e)) => return Err(io::Error::other(e)),
            }
        }
    }
}

impl Answer {
    fn new(answer: Response<Body>, at: u64, end: Option<u64>) -> Self {
        let body = Box::new(answer.into_body().into_with_config().limit(u64::MAX).reader());
        Self { body, at, end, brought: 0 }
    }
}

/// The refusal of a download that is too large.
pub fn too_much(bytes: u64, max: u64) -> Error {
    Error::refused(format!(
        "{bytes} bytes would be fetched, at most {max} are allowed; raise --max-download, or install from a file"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_grow_with_what_was_fetched_and_with_the_wait_for_answers() {
        let second = Duration::from_secs(1);
        let near = |bytes| Meter { bytes, waiting: second, ..Meter::default() };
        for (bytes, request) in [(4096, 8192), (4 << 20, 32 << 10), (1 << 30, 64 << 10)] {
            assert_eq!(near(bytes).request_bytes(), request);
        }
        // A server 100 ms away on a link of 1 MB a second, asked four times: 100 kB come in the time of a request.
        let far = Meter { requests: 4, latency: Some(second / 10), ..near(200_000) };
        assert_eq!((far.bytes_per_request(), far.request_bytes()), (100_000, 400_000));
        // A link of which nothing is known but the wait is taken for a quick one.
        let new = Meter { requests: 2, latency: Some(second / 2), ..near(12_000) };
        assert_eq!(new.bytes_per_request(), 10_000_000);
    }
}
