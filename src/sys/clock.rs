//! Time. Deadlines run on the boot clock, which no NTP step moves; the wall clock is only ever told, not trusted.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since power-on, and waiting. The simulated world has one of its own, in which waiting costs nothing.
pub trait Clock {
    /// Time since boot, suspend included.
    fn since_boot(&self) -> Duration;
    /// Waits for `d`.
    fn sleep(&self, d: Duration);
}

/// The kernel's boot clock (`CLOCK_BOOTTIME`).
#[derive(Debug, Clone, Copy, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn since_boot(&self) -> Duration {
        read(ClockId::Boottime)
    }

    fn sleep(&self, d: Duration) {
        std::thread::sleep(d);
    }
}

/// A clock on which waiting costs nothing (tests only); it begins at what it holds.
#[cfg(test)]
#[derive(Debug, Default)]
pub struct TestClock(pub std::cell::Cell<Duration>);

#[cfg(test)]
impl Clock for TestClock {
    fn since_boot(&self) -> Duration {
        self.0.get()
    }

    fn sleep(&self, d: Duration) {
        self.0.set(self.0.get() + d);
    }
}

/// Wall-clock time since 1970; may be wrong by decades on a first boot.
pub fn unix_time() -> Duration {
    read(ClockId::Realtime)
}

/// Steps the wall clock.
///
/// # Errors
/// `Failed` without the right to set it.
pub fn set_unix_time(since_1970: Duration) -> crate::Result<()> {
    let secs = i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX);
    let time = rustix::time::Timespec { tv_sec: secs, tv_nsec: 0 };
    Ok(rustix::time::clock_settime(ClockId::Realtime, time)?)
}

fn read(id: ClockId) -> Duration {
    let t = clock_gettime(id);
    Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
}
