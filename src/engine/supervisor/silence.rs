//! When an engine that does not answer is to be started again: later on a machine under load, and ever later.

use std::time::Duration;

/// The longest wait between two restarts.
const LONGEST: Duration = Duration::from_secs(3600);
/// An engine that works for this long is forgiven.
const GOOD_RUN: Duration = Duration::from_secs(600);
/// However much the machine has to do, an engine has no more than this many times the limit.
const MOST_PATIENCE: u32 = 4;

/// How long the engine has been silent. Times are of the boot clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Silence {
    since: Option<Duration>,
    /// It answers, but what it was asked to do was not done in time.
    stuck: bool,
    /// Restarts that were asked for and helped not, or not for long.
    asked: u32,
    good_since: Option<Duration>,
}

impl Silence {
    /// It answered. One that is stuck answers as well, and is silent still.
    pub fn answered(&mut self, now: Duration) {
        if self.stuck {
            return;
        }
        self.since = None;
        if now.saturating_sub(*self.good_since.get_or_insert(now)) >= GOOD_RUN {
            self.asked = 0;
        }
    }

    /// It did what it was asked to do.
    pub fn worked(&mut self) {
        self.stuck = false;
    }

    /// It did not do in time what it was asked to do.
    pub fn is_stuck(&mut self) {
        self.stuck = true;
    }

    /// It does not answer, or is stuck. Gives for how long, if that is too long: now it is to be started again.
    ///
    /// `load` is the number of tasks that each processor has to do.
    pub fn goes_on(&mut self, now: Duration, limit: Duration, load: f64) -> Option<Duration> {
        self.good_since = None;
        let silent = now.saturating_sub(*self.since.get_or_insert(now));
        let patience = 1 + (1..MOST_PATIENCE).map(|n| u32::from(load > f64::from(n))).sum::<u32>();
        let limit = limit.saturating_mul(patience << self.asked.min(8)).min(LONGEST.max(limit));
        if silent < limit {
            return None;
        }
        (self.since, self.stuck) = (Some(now), false);
        self.asked = self.asked.saturating_add(1);
        Some(silent)
    }

    /// Whether it answers but is stuck.
    pub const fn stuck(&self) -> bool {
        self.stuck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The seconds at which a restart is asked for, of an engine that is silent from 0 to `until`.
    fn asked(silence: &mut Silence, from: u64, until: u64, load: f64) -> Vec<u64> {
        (from..until).step_by(2).filter(|t| silence.goes_on(s(*t), s(180), load).is_some()).collect()
    }

    #[test]
    fn it_is_asked_ever_later_up_to_an_hour() {
        assert_eq!(
            asked(&mut Silence::default(), 0, 14_000, 0.0),
            [180, 540, 1260, 2700, 5580, 9180, 12_780]
        );
    }

    #[test]
    fn load_gives_it_more_time_but_not_for_ever() {
        for (load, expected) in [(0.9, 180), (1.5, 360), (2.1, 540), (3.5, 720), (99.0, 720)] {
            assert_eq!(asked(&mut Silence::default(), 0, 1000, load)[0], expected, "{load}");
        }
    }

    #[test]
    fn an_answer_ends_it_and_ten_good_minutes_forgive() {
        let mut silence = Silence::default();
        assert_eq!(asked(&mut silence, 0, 200, 0.0), [180]);
        silence.answered(s(200));
        assert_eq!(asked(&mut silence, 300, 700, 0.0), [660]);
        silence.answered(s(700));
        silence.answered(s(1299));
        assert_eq!(asked(&mut silence, 1300, 2100, 0.0), [2020]);
        silence.answered(s(3000));
        silence.answered(s(3600));
        assert_eq!(asked(&mut silence, 4000, 4300, 0.0), [4180]);
    }

    #[test]
    fn one_that_answers_and_does_nothing_is_silent() {
        let mut silence = Silence::default();
        silence.is_stuck();
        for t in 0..180 {
            silence.answered(s(t));
            assert_eq!(silence.goes_on(s(t), s(180), 0.0), None);
        }
        assert_eq!(silence.goes_on(s(180), s(180), 0.0), Some(s(180)));
        // Begun anew: whether the restart helped is not known yet.
        assert!(!silence.stuck());
        silence.is_stuck();
        silence.worked();
        silence.answered(s(181));
        assert_eq!(silence.goes_on(s(400), s(180), 0.0), None);
    }
}
