//! Whether a system on trial is fit to stay: checks repeated until all pass for a while, or the deadline is over.

use std::time::Duration;

use crate::sys::clock::Clock;

/// One thing that must be true of a healthy system.
pub struct Check<'a> {
    /// Its name, as people see it: `engine`, `unit docker.service`.
    pub name: String,
    /// Looks once. The error is what was found, with the output that explains it.
    pub look: Box<dyn FnMut() -> Result<(), String> + 'a>,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// The check's name.
    pub check: String,
    /// Whether it passed.
    pub passed: bool,
    /// What was found, if it did not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub output: String,
}

/// The end of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every check passed, for as long as asked.
    Healthy,
    /// The deadline is over: the checks that did not pass in the last look, on one line.
    Unhealthy(String),
}

/// Time between two looks: as often as this, unless looking takes so long that it would slow down the very boot that is judged.
const TICK: Duration = Duration::from_secs(2);
/// It is at least so many times what a look took,
const REST: u32 = 9;
/// and at most this.
const LONGEST_TICK: Duration = Duration::from_secs(20);

/// Looks at every check once.
pub fn look(checks: &mut [Check]) -> Vec<Finding> {
    checks
        .iter_mut()
        .map(|c| {
            let output = (c.look)().err();
            Finding { check: c.name.clone(), passed: output.is_none(), output: output.unwrap_or_default() }
        })
        .collect()
}

/// Looks until all checks have passed for `settle` without a break, or the boot clock passes `deadline`. `each` is
/// told every look.
pub fn watch(
    clock: &impl Clock,
    deadline: Duration,
    settle: Duration,
    checks: &mut [Check],
    mut each: impl FnMut(&[Finding]),
) -> Verdict {
    let mut good_since = None;
    loop {
        let begun = clock.since_boot();
        let findings = look(checks);
        each(&findings);
        let now = clock.since_boot();
        if findings.iter().all(|f| f.passed) {
            if now >= *good_since.get_or_insert(now) + settle {
                return Verdict::Healthy;
            }
        } else {
            good_since = None;
            if now >= deadline {
                return Verdict::Unhealthy(describe(&findings, now));
            }
        }
        let rest = (now.saturating_sub(begun) * REST).clamp(TICK, LONGEST_TICK);
        // There is a look at the deadline.
        clock.sleep(rest.min(deadline.saturating_sub(now).max(TICK)));
    }
}

fn describe(findings: &[Finding], now: Duration) -> String {
    let failed: Vec<_> = findings
        .iter()
        .filter(|f| !f.passed)
        .map(|f| format!("{}: {}", f.check, f.output.trim().replace('\n', " | ")))
        .collect();
    format!("health checks failed {} s after boot: {}", now.as_secs(), failed.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock::TestClock;

    /// Runs a watch of 100 s with 10 s to settle; the check passes at the seconds for which `passes` is true.
    fn watched(passes: impl Fn(u64) -> bool) -> (Verdict, u64) {
        let clock = TestClock::default();
        let mut checks = vec![Check {
            name: "engine".into(),
            look: Box::new(|| {
                if passes(clock.since_boot().as_secs()) { Ok(()) } else { Err("no\nanswer".into()) }
            }),
        }];
        let verdict = watch(&clock, Duration::from_secs(100), Duration::from_secs(10), &mut checks, |_| ());
        drop(checks);
        (verdict, clock.since_boot().as_secs())
    }

    #[test]
    fn slow_looks_are_taken_less_often() {
        for (took, expected) in [(0, 51), (1, 11), (2, 6), (3, 6), (30, 3)] {
            let (clock, looks) = (TestClock::default(), std::cell::Cell::new(0));
            let look = || {
                looks.set(looks.get() + 1);
                clock.sleep(Duration::from_secs(took));
                Err("no answer".into())
            };
            let mut checks = vec![Check { name: "engine".into(), look: Box::new(look) }];
            watch(&clock, Duration::from_secs(100), Duration::from_secs(10), &mut checks, |_| ());
            drop(checks);
            assert_eq!(looks.get(), expected, "{took} s");
            assert_eq!(clock.since_boot().as_secs(), 100 + took, "the last look is at the deadline");
        }
    }

    #[test]
    fn healthy_only_after_passing_without_a_break() {
        assert_eq!(watched(|_| true), (Verdict::Healthy, 10));
        assert_eq!(watched(|s| s >= 20), (Verdict::Healthy, 30));
        assert_eq!(watched(|s| s != 6), (Verdict::Healthy, 18));
    }

    #[test]
    fn unhealthy_at_the_deadline_with_the_output() {
        let expected = "health checks failed 100 s after boot: engine: no | answer".to_owned();
        assert_eq!(watched(|_| false), (Verdict::Unhealthy(expected), 100));
    }

    #[test]
    fn a_check_that_comes_and_goes_never_settles() {
        assert!(matches!(watched(|s| s % 8 != 0), (Verdict::Unhealthy(_), _)));
    }
}
