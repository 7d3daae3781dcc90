//! The request to end: SIGTERM and SIGINT as a descriptor that can be waited for.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::unix_socket::{self, Ready};
use crate::{Doing, Result};

/// Readable from the moment that somebody asked this process to end. Clones share the descriptor.
#[derive(Debug, Clone)]
pub struct Termination(Arc<SignalFd>);

impl Termination {
    /// Blocks both signals in this thread, and so in those it starts later, and opens the descriptor.
    ///
    /// # Errors
    /// `Failed` if the kernel refuses.
    pub fn catch() -> Result<Self> {
        let doing = || "catch SIGTERM";
        let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
        signals.thread_block().map_err(std::io::Error::from).doing(doing)?;
        let fd = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        Ok(Self(Arc::new(fd.map_err(std::io::Error::from).doing(doing)?)))
    }

    /// Waits for `limit` or for the request, whichever comes first; says whether the request has come.
    ///
    /// # Errors
    /// As poll(2).
    pub fn wait(&self, limit: Duration) -> Result<bool> {
        // The signal is never read, so the answer stays yes.
        Ok(unix_socket::wait(None, Some(self.as_fd()), Some(limit)).doing(|| "wait")? == Ready::Interrupted)
    }
}

impl AsFd for Termination {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
