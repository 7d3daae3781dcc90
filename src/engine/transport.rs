//! ureq over a Unix socket. The only file that uses `ureq::unversioned`, which is outside semver: the version of
//! ureq is pinned in Cargo.toml, and a newer one is tried here first.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Agent, Timeout, config::Config};

use crate::sys::termination::Termination;
use crate::sys::unix_socket::{self, Ready};

/// What one connection keeps in each direction. The watcher holds two connections and must stay small.
const BUFFER_BYTES: usize = 16 * 1024;

/// How long one read may wait: for a limit that changes between reads (ureq's own is fixed when the request is
/// made), and until this process is asked to end. Both show as a per-read time-out, after which the stream goes on.
#[derive(Debug)]
pub(super) struct Patience {
    limit: Mutex<Duration>,
    termination: Termination,
}

impl Patience {
    pub(super) fn new(limit: Duration, termination: Termination) -> Self {
        Self { limit: Mutex::new(limit), termination }
    }

    /// Changes the limit of the reads to come.
    pub(super) fn set(&self, limit: Duration) {
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner) = limit;
    }

    fn limit(&self) -> Duration {
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client of the server at `socket`; its reads are subject to `patience`, if given.
pub(super) fn agent(socket: &Path, patience: Option<Arc<Patience>>) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        // Else http_proxy and ALL_PROXY would be obeyed.
        .proxy(None)
        .user_agent(concat!("twinhull/", env!("CARGO_PKG_VERSION")))
        .input_buffer_size(BUFFER_BYTES)
        .output_buffer_size(BUFFER_BYTES)
        .max_idle_connections(1)
        .max_idle_connections_per_host(1)
        .build();
    Agent::with_parts(config, UnixConnector { socket: socket.into(), patience }, NoResolver)
}

#[derive(Debug)]
struct UnixConnector {
    socket: PathBuf,
    patience: Option<Arc<Patience>>,
}

impl Connector for UnixConnector {
    type Out = UnixTransport;

    fn connect(
        &self,
        details: &ConnectionDetails,
        _: Option<()>,
    ) -> Result<Option<UnixTransport>, ureq::Error> {
        let limit = details.timeout.not_zero().map_or(Duration::MAX, |t| *t);
        // Bounded even for callers without a deadline; a queue that stays full for a minute is a dead engine.
        let stream = match unix_socket::connect(&self.socket, limit.min(Duration::from_secs(60))) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(ureq::Error::Timeout(details.timeout.reason));
            }
            other => other?,
        };
        let buffers =
            LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(UnixTransport { stream, buffers, patience: self.patience.clone() }))
    }
}

struct UnixTransport {
    stream: UnixStream,
    buffers: LazyBuffers,
    patience: Option<Arc<Patience>>,
}

impl Transport for UnixTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let timeout = timeout.for_write();
        self.stream.set_write_timeout(timeout.not_zero().map(|t| *t))?;
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        match self.stream.write_all(output) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(ureq::Error::Timeout(timeout.reason)),
            other => Ok(other?),
        }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let timeout = timeout.for_read();
        let mut reason = timeout.reason;
        // A deadline that has passed already is one that passes now.
        let mut limit = (!timeout.after.is_not_happening()).then_some(*timeout.after);
        if let Some(patience) = &self.patience {
            let own = patience.limit();
            if limit.is_none_or(|l| own < l) {
                (limit, reason) = (Some(own), Timeout::PerRead);
            }
        }
        let interrupt = self.patience.as_ref().map(|p| p.termination.as_fd());
        match unix_socket::wait(Some(self.stream.as_fd()), interrupt, limit)? {
            Ready::Input => {}
            Ready::TimedOut => return Err(ureq::Error::Timeout(reason)),
            Ready::Interrupted => return Err(ureq::Error::Timeout(Timeout::PerRead)),
        }
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        unix_socket::is_idle(&self.stream)
    }
}

impl fmt::Debug for UnixTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnixTransport").finish_non_exhaustive()
    }
}

/// There is no name to resolve, but ureq wants at least one address.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut one = self.empty();
        one.push(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
        Ok(one)
    }
}
