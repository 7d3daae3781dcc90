//! A new supervisor on trial: what was asked for, and when it has passed or failed.
//!
//! The request lies in `/run` and `supervisor.conf` names the old supervisor until the new one has passed: whatever ends
//! the trial half-way (a power cut, a crash of the machine), the next start finds only the old one wanted.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::conf::Named;
use super::health::SupervisorHealth;
use crate::{Result, Root, sys};

const PATH: &str = "/run/twinhull/supervisor-trial.json";
/// So many ends are a crash loop. One is none: a supervisor may start anew when it has moved its database.
const ENDS: u32 = 3;

/// What `supervisor update` asks the watcher for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The supervisor to try; the engine has its image.
    pub named: Named,
    /// Seconds of the boot clock by which it must have passed.
    pub deadline_s: u64,
}

impl Request {
    /// The request that waits or is being tried, if there is one.
    ///
    /// # Errors
    /// `Failed`, naming the file, if it cannot be read or understood.
    pub fn load(root: &Root) -> Result<Option<Self>> {
        sys::json_file::read(&root.path(PATH))
    }

    /// Whether there is one; costs one look.
    pub fn is_there(root: &Root) -> bool {
        root.path(PATH).exists()
    }

    /// Hands it to the watcher.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    pub fn save(&self, root: &Root) -> Result<()> {
        sys::json_file::replace(&root.path(PATH), self)
    }

    /// It is settled.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    pub fn remove(root: &Root) -> Result<()> {
        sys::durable::remove(&root.path(PATH))
    }
}

/// How a trial ended; shown by `supervisor status` for the rest of this boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The supervisor that was tried.
    pub tried: Named,
    /// The one that ran before.
    pub before: Named,
    /// Why the old one runs again; `None`: the new one was kept.
    pub went_back: Option<String>,
}

/// A trial that goes on. Times are of the boot clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// What is tried.
    pub request: Request,
    ends: u32,
    good_since: Option<Duration>,
}

/// What is to be done about a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Look again.
    Wait,
    /// The new supervisor stays.
    Keep,
    /// The old one returns, and why.
    Back(String),
}

impl Trial {
    /// The trial of `request`.
    pub const fn new(request: Request) -> Self {
        Self { request, ends: 0, good_since: None }
    }

    /// The container ran, and does no longer.
    pub fn ended(&mut self) {
        self.ends = self.ends.saturating_add(1);
        self.good_since = None;
    }

    /// What the container's health means. It must be good for `settle`, before the deadline.
    pub fn judge(&mut self, health: &SupervisorHealth, now: Duration, settle: Duration) -> Verdict {
        match health {
            SupervisorHealth::Unhealthy { .. } => return Verdict::Back(health.to_string()),
            _ if self.ends >= ENDS => return Verdict::Back(format!("it ended {ENDS} times; {health}")),
            SupervisorHealth::Healthy | SupervisorHealth::Running => {
                let since = *self.good_since.get_or_insert(now);
                if now.saturating_sub(since) >= settle {
                    return Verdict::Keep;
                }
            }
            SupervisorHealth::Starting | SupervisorHealth::Stopped { .. } | SupervisorHealth::Missing => {
                self.good_since = None;
            }
        }
        if now >= Duration::from_secs(self.request.deadline_s) {
            return Verdict::Back(format!("not well in the time that it had; {health}"));
        }
        Verdict::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::SupervisorHealth as H;
    use super::*;

    fn trial() -> Trial {
        let named = Named { image: "a:2".into(), version: "v2".into() };
        Trial::new(Request { named, deadline_s: 100 })
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const SETTLE: Duration = s(30);

    fn stopped() -> H {
        H::Stopped { exit_code: 1, error: String::new() }
    }

    #[test]
    fn good_for_long_enough_is_kept() {
        for good in [H::Healthy, H::Running] {
            let mut trial = trial();
            assert_eq!(trial.judge(&H::Starting, s(10), SETTLE), Verdict::Wait);
            assert_eq!(trial.judge(&good, s(20), SETTLE), Verdict::Wait);
            assert_eq!(trial.judge(&good, s(49), SETTLE), Verdict::Wait);
            assert_eq!(trial.judge(&good, s(50), SETTLE), Verdict::Keep);
        }
    }

    #[test]
    fn unhealthy_goes_back_at_once() {
        let health = H::Unhealthy { output: "500".into() };
        assert_eq!(trial().judge(&health, s(1), SETTLE), Verdict::Back("unhealthy: 500".into()));
    }

    #[test]
    fn a_crash_loop_goes_back_and_one_end_only_starts_the_time_anew() {
        let mut trial = trial();
        assert_eq!(trial.judge(&H::Running, s(0), SETTLE), Verdict::Wait);
        trial.ended();
        assert_eq!(trial.judge(&stopped(), s(29), SETTLE), Verdict::Wait);
        assert_eq!(trial.judge(&H::Running, s(31), SETTLE), Verdict::Wait);
        trial.ended();
        trial.ended();
        let why = "it ended 3 times; stopped: exit code 1";
        assert_eq!(trial.judge(&stopped(), s(35), SETTLE), Verdict::Back(why.into()));
    }

    #[test]
    fn the_deadline_holds_for_what_never_says_anything() {
        for health in [H::Starting, stopped(), H::Missing] {
            let mut trial = trial();
            assert_eq!(trial.judge(&health, s(99), SETTLE), Verdict::Wait);
            assert!(matches!(trial.judge(&health, s(100), SETTLE), Verdict::Back(_)));
        }
        // What becomes good just before it has no more time to settle either.
        let mut late = trial();
        assert_eq!(late.judge(&H::Healthy, s(90), SETTLE), Verdict::Wait);
        assert!(matches!(late.judge(&H::Healthy, s(101), SETTLE), Verdict::Back(_)));
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        assert_eq!(Request::load(&root).unwrap(), None);
        trial().request.save(&root).unwrap();
        assert_eq!(Request::load(&root).unwrap(), Some(trial().request));
        Request::remove(&root).unwrap();
        assert_eq!(Request::load(&root).unwrap(), None);
    }
}
