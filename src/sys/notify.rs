//! systemd's notification socket: readiness, status line, watchdog.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// How long one message may wait for a place in the service manager's queue.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sends one message, such as `READY=1` or `STATUS=…`, to the service manager. Nobody listening is fine.
///
/// Written by hand: the protocol is one datagram (sd_notify(3)), a crate would be larger than this.
pub fn notify(message: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
    };
    let sent = address.and_then(|a| {
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read (its queue holds ten) must not stop us: what it misses it is told again.
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.send_to_addr(message.as_bytes(), &a)
    });
    if let Err(e) = sent {
        log::debug!("notify systemd: {e}");
    }
}

/// Shows `text` as the unit's status line.
pub fn status(text: &str) {
    notify(&format!("STATUS={text}"));
}

/// How often the service manager wants `WATCHDOG=1`: half of its limit. `None`: no watchdog.
pub fn watchdog_interval() -> Option<Duration> {
    let limit_us: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    Some(Duration::from_micros(limit_us / 2))
}
