//! When the supervisor may be started again: at once after a good run, ever later in a crash loop.

use std::time::Duration;

/// The wait after the first crash; it doubles with each further one.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// A run of this length ends a crash loop.
const GOOD_RUN: Duration = Duration::from_secs(600);

/// How often it ended of late. Times are of the boot clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    crashes: u32,
    /// Since when it runs well.
    good_since: Option<Duration>,
}

impl Pace {
    /// It was seen running, and not unhealthy.
    pub fn runs_well(&mut self, now: Duration) {
        let since = *self.good_since.get_or_insert(now);
        if now.saturating_sub(since) >= GOOD_RUN {
            self.crashes = 0;
        }
    }

    /// It was seen unhealthy: the good run is over.
    pub fn runs_badly(&mut self) {
        self.good_since = None;
    }

    /// It ended, or could not be started. Gives how long to wait before the next start.
    pub fn ended(&mut self, now: Duration) -> Duration {
        if self.good_since.is_some_and(|since| now.saturating_sub(since) >= GOOD_RUN) {
            self.crashes = 0;
        }
        self.good_since = None;
        let wait = FIRST.saturating_mul(2_u32.saturating_pow(self.crashes.min(16))).min(LONGEST);
        self.crashes = self.crashes.saturating_add(1);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_crash_loop_slows_down_to_a_minute() {
        let mut pace = Pace::default();
        let mut now = s(100);
        let mut waits = Vec::new();
        for _ in 0..9 {
            pace.runs_well(now);
            now += s(5);
            let wait = pace.ended(now);
            waits.push(wait.as_secs());
            now += wait;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn ten_good_minutes_end_it_but_unhealthy_ones_do_not_count() {
        let mut pace = Pace::default();
        for _ in 0..5 {
            pace.ended(s(0));
        }
        pace.runs_well(s(10));
        pace.runs_well(s(609));
        assert_eq!(pace.ended(s(609)), s(32));
        pace.runs_well(s(1000));
        pace.runs_badly();
        pace.runs_well(s(1500));
        assert_eq!(pace.ended(s(1700)), s(60));
        pace.runs_well(s(2000));
        assert_eq!(pace.ended(s(2600)), s(1));
    }
}
