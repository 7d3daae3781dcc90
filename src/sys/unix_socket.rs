//! Stream sockets of the Unix kind, with a deadline on the connect and a wait that somebody else may end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::clock::{BootClock, Clock};

/// Connects to the listener at `path`; waits at most `deadline` for a place in its queue.
///
/// # Errors
/// As connect(2); `WouldBlock` when the deadline passes: the queue of a hung server is full.
pub fn connect(path: &Path, deadline: Duration) -> io::Result<UnixStream> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // For Unix sockets a blocking connect obeys the send time-out (net/unix/af_unix.c, unix_stream_connect).
    let limit = deadline.max(Duration::from_millis(1));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(limit))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, None)?;
    Ok(UnixStream::from(socket))
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// The awaited descriptor has something to read, an error or its end.
    Input,
    /// The other descriptor has.
    Interrupted,
    /// Neither within the time given.
    TimedOut,
}

/// Waits until `input` can be read, `interrupt` can be read, or `limit` has passed (`None`: without limit).
///
/// # Errors
/// As poll(2).
pub fn wait(
    input: Option<BorrowedFd<'_>>,
    interrupt: Option<BorrowedFd<'_>>,
    limit: Option<Duration>,
) -> io::Result<Ready> {
    let end = limit.map(|l| BootClock.since_boot().saturating_add(l));
    loop {
        let left = end.map(|e| e.saturating_sub(BootClock.since_boot()));
        let left = left.map(|l| Timespec {
            tv_sec: i64::try_from(l.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(l.subsec_nanos()) as _,
        });
        let mut fds: Vec<PollFd<'_>> = [interrupt, input]
            .into_iter()
            .flatten()
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => return Ok(Ready::TimedOut),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let first_ready = fds.first().is_some_and(|f| !f.revents().is_empty());
        return Ok(if interrupt.is_some() && first_ready { Ready::Interrupted } else { Ready::Input });
    }
}

/// Whether an idle connection is still open and silent: only such a one may carry another request.
pub fn is_idle(stream: &UnixStream) -> bool {
    matches!(wait(Some(stream.as_fd()), None, Some(Duration::ZERO)), Ok(Ready::TimedOut))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_says_what_came_and_prefers_the_interrupt() {
        let (a, mut b) = UnixStream::pair().unwrap();
        let (c, mut d) = UnixStream::pair().unwrap();
        let ready = |ms| wait(Some(a.as_fd()), Some(c.as_fd()), Some(Duration::from_millis(ms))).unwrap();
        assert_eq!(ready(0), Ready::TimedOut);
        assert!(is_idle(&a));
        io::Write::write_all(&mut b, b"x").unwrap();
        assert_eq!(ready(10_000), Ready::Input);
        assert!(!is_idle(&a));
        io::Write::write_all(&mut d, b"x").unwrap();
        assert_eq!(ready(10_000), Ready::Interrupted);
    }

    #[test]
    fn connect_gives_up_on_a_full_queue() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let _first = connect(&path, Duration::from_secs(10)).unwrap();
        let e = connect(&path, Duration::from_millis(50)).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
    }
}
