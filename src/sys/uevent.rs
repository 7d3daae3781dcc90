//! The kernel's events about block devices, as a clock on which waiting ends when there is one.

use std::cell::OnceCell;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use super::clock::{BootClock, Clock};
use super::unix_socket::{Ready, wait};
use crate::{Doing, Result};

/// The group that the kernel itself sends to; udev's is another.
const FROM_KERNEL: u32 = 1;
/// The kernel's own limit for one event. Source: Linux 6.12, `UEVENT_BUFFER_SIZE` and the path before it.
const EVENT_LEN: usize = 8 * 1024;
const BLOCK: &[u8] = b"SUBSYSTEM=block";
/// Without events, as often is looked.
const POLL: Duration = Duration::from_millis(50);

/// Tells of block devices that come and go. Listens from the first wait on, which ends at once: what came before it is seen by
/// who then looks again, so none is missed; and most boots find their disk at the first look, and never wait.
#[derive(Debug, Default)]
pub struct BlockEvents(OnceCell<Option<OwnedFd>>);

fn open() -> Result<OwnedFd> {
    let doing = || "listen to the kernel's events";
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))
            .doing(doing)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, FROM_KERNEL)).doing(doing)?;
    Ok(socket)
}

/// Takes all events that wait; says whether one was of a block device. More than the queue holds is taken for one.
fn take(socket: &OwnedFd) -> bool {
    let mut event = vec![0; EVENT_LEN];
    let mut found = false;
    loop {
        match rustix::net::recv(socket, event.as_mut_slice(), RecvFlags::empty()) {
            Ok((n, _)) if n > 0 => {
                found |= event.get(..n).unwrap_or_default().split(|b| *b == 0).any(|field| field == BLOCK);
            }
            Err(rustix::io::Errno::NOBUFS) => found = true,
            Ok(_) | Err(_) => return found,
        }
    }
}

impl Clock for BlockEvents {
    fn since_boot(&self) -> Duration {
        BootClock.since_boot()
    }

    /// Waits for an event, and at most for `d`. A kernel that has no such events is polled.
    fn sleep(&self, d: Duration) {
        let is_first = self.0.get().is_none();
        let socket = self.0.get_or_init(|| {
            open().inspect_err(|e| log::warn!("{e}; looking for devices again and again instead")).ok()
        });
        let Some(socket) = socket else { return BootClock.sleep(d.min(POLL)) };
        if is_first {
            return;
        }
        let end = self.since_boot().saturating_add(d);
        loop {
            let left = end.saturating_sub(self.since_boot());
            match wait(Some(socket.as_fd()), None, Some(left)) {
                Ok(Ready::Input) if !take(socket) => {}
                Ok(_) => return,
                Err(_) => return BootClock.sleep(d.min(POLL)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_at_an_event_or_in_time() {
        BlockEvents(None.into()).sleep(Duration::from_secs(3600));
        let events = BlockEvents::default();
        // The first only begins to listen.
        events.sleep(Duration::from_secs(3600));
        events.sleep(Duration::from_millis(20));
        // What the kernel tells when a disk is looked at anew; only root may ask for it, where there is one.
        let Ok(disks) = super::super::file::list(std::path::Path::new("/sys/block")) else { return };
        let Some(disk) = disks.first() else { return };
        if !matches!(events.0.get(), Some(Some(_)))
            || super::super::file::write_setting(&disk.join("uevent"), "change").is_err()
        {
            return;
        }
        let before = BootClock.since_boot();
        events.sleep(Duration::from_secs(3600));
        assert!(BootClock.since_boot() < before + Duration::from_secs(1800));
    }
}
