//! The connection: which socket, which API version, and one call with its deadline.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::http::{Method, Request, Response};
use ureq::{Agent, AsSendBody, Body};

use super::api;
use super::transport;
use super::version::ApiVersion;
use crate::config;
use crate::{Doing, Error, Result, Root, sys};

/// Answers are lists and descriptions; more than this is not from an engine.
const LIMIT_BYTES: u64 = 8 * 1024 * 1024;
const PING_DEADLINE: Duration = Duration::from_secs(5);
/// For calls that only look something up.
pub(super) const LOOK_DEADLINE: Duration = Duration::from_secs(15);
/// For calls that write to the data partition, which may be a slow SD card.
pub(super) const CHANGE_DEADLINE: Duration = Duration::from_secs(120);

const NO_ANSWER: &str = "no answer within";

/// A container engine that has answered.
#[derive(Debug, Clone)]
pub struct Engine {
    agent: Agent,
    socket: PathBuf,
    api: ApiVersion,
    version: String,
}

/// The whole of a short answer.
pub(super) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Engine {
    /// Finds the engine's socket, asks for its version, and settles the API version to speak.
    ///
    /// # Errors
    /// `Failed` if there is no socket, or nobody answers on it, or the engine is too old.
    pub fn connect(settings: &config::Engine, root: &Root) -> Result<Self> {
        let found = settings.sockets.iter().map(|s| root.path(s)).find(|s| s.exists());
        let Some(socket) = found else {
            let names: Vec<_> = settings.sockets.iter().map(|s| root.path(s).display().to_string()).collect();
            return Err(Error::failed(format!(
                "engine: no socket at {}; start the engine, or name its socket in engine.sockets",
                names.join(", ")
            )));
        };
        // The engine's own name: others in /run are links that we made to it, and containers are compared by it.
        Self::at(&sys::file::without_links(&socket))
    }

    /// As [`connect`](Self::connect), with the engine that listens at `socket`.
    ///
    /// # Errors
    /// `Failed` if nobody answers or the engine is too old.
    pub fn at(socket: &Path) -> Result<Self> {
        let agent = transport::agent(socket, None);
        // Replaced below: /version is asked for without a version.
        let any = ApiVersion::negotiate("1.41".parse()?, None)?;
        let mut engine = Self { agent, socket: socket.into(), api: any, version: String::new() };
        let doing = || format!("engine at {}", socket.display());
        let told: api::Version = engine
            // Podman asks its runtime and the package manager first.
            .send(Method::GET, "http://engine/version", "GET /version", (), LOOK_DEADLINE)
            .and_then(|a| a.expect(&[200], "GET /version")?.json("GET /version"))
            .doing(doing)?;
        let oldest = told.min_api_version.as_deref().filter(|v| !v.is_empty()).map(str::parse).transpose();
        engine.api = oldest.and_then(|o| ApiVersion::negotiate(told.api_version.parse()?, o)).doing(doing)?;
        engine.version = told.version;
        Ok(engine)
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The engine's own version, for people.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The API version that is spoken.
    pub const fn api(&self) -> ApiVersion {
        self.api
    }

    /// Asks the engine for a sign of life; costs it next to nothing.
    ///
    /// # Errors
    /// `Failed` if it does not answer within 5 s.
    pub fn ping(&self) -> Result<()> {
        self.send(Method::GET, "http://engine/_ping", "GET /_ping", (), PING_DEADLINE)?
            .expect(&[200], "GET /_ping")?;
        Ok(())
    }

    pub(super) fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The address of `path`, which starts with a slash.
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://engine/v{}{path}", self.api)
    }

    /// `GET path`: its JSON, or `None` if the engine has no such thing.
    pub(super) fn look<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        let what = format!("GET {path}");
        let answer = self.send(Method::GET, &self.url(path), &what, (), LOOK_DEADLINE)?;
        if answer.status == 404 {
            return Ok(None);
        }
        answer.expect(&[200], &what)?.json(&what).map(Some)
    }

    /// A call that changes something. An answer whose status is not one of `expected` is an error.
    pub(super) fn change(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
        expected: &[u16],
        deadline: Duration,
    ) -> Result<Answer> {
        let what = format!("{method} {}", path.split('?').next().unwrap_or(path));
        let url = self.url(path);
        let answer = match body {
            Some(json) => self.send(method, &url, &what, json.to_string().as_bytes(), deadline)?,
            // Not `()`: a POST without a length goes out chunked, and `start` refuses a body of any kind.
            None if method == Method::POST => self.send(method, &url, &what, b"".as_slice(), deadline)?,
            None => self.send(method, &url, &what, (), deadline)?,
        };
        answer.expect(expected, &what)
    }

    /// `what` is the call as errors name it.
    fn send(
        &self,
        method: Method,
        url: &str,
        what: &str,
        body: impl AsSendBody,
        deadline: Duration,
    ) -> Result<Answer> {
        let doing = || what.to_owned();
        let request = Request::builder().method(method).uri(url).header("content-type", "application/json");
        let request = request.body(body).map_err(|e| Error::failed(e.to_string())).doing(doing)?;
        let request = self.agent.configure_request(request).timeout_global(Some(deadline)).build();
        let mut response = self.agent.run(request).map_err(|e| explain(e, deadline)).doing(doing)?;
        read_whole(&mut response, deadline).doing(doing)
    }
}

impl Answer {
    /// Itself, if its status is one of `statuses`; else an error with the engine's own message.
    pub(super) fn expect(self, statuses: &[u16], what: &str) -> Result<Self> {
        if statuses.contains(&self.status) {
            return Ok(self);
        }
        Err(Error::failed(format!("{what}: {} {}", self.status, self.message())))
    }

    fn json<T: DeserializeOwned>(&self, what: &str) -> Result<T> {
        serde_json::from_slice(&self.body)
            .map_err(|e| Error::failed(format!("{what}: the engine's answer: {e}")))
    }

    /// What the engine says of its failure: `message` of its JSON, or the text itself.
    fn message(&self) -> String {
        #[derive(serde::Deserialize)]
        struct Said {
            message: String,
        }
        match serde_json::from_slice::<Said>(&self.body) {
            Ok(said) => one_line(&said.message),
            Err(_) => one_line(&String::from_utf8_lossy(&self.body)),
        }
    }
}

/// Reads the rest of a short answer.
pub(super) fn read_whole(response: &mut Response<Body>, deadline: Duration) -> Result<Answer> {
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(LIMIT_BYTES).read_to_vec();
    Ok(Answer { status, body: body.map_err(|e| explain(e, deadline))? })
}

/// ureq's error in our words. `deadline` is the one that applied, for the text.
pub(super) fn explain(e: ureq::Error, deadline: Duration) -> Error {
    if let ureq::Error::Timeout(_) = e {
        return Error::failed(format!("{NO_ANSWER} {} s", deadline.as_secs_f32()));
    }
    // Through io::Error, which finds an error of ours inside.
    e.into_io().into()
}

/// Whether a call was not answered in time.
pub(super) fn is_timeout(e: &Error) -> bool {
    e.to_string().contains(NO_ANSWER)
}

/// Someone else's text on one line, at most 500 characters of it.
pub(super) fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").chars().take(500).collect()
}

/// `text` as part of a path or query. Slash, colon and at-sign stay: image names are made of them.
pub(super) fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/:@".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
