//! How long to wait before the next attempt.

use std::time::Duration;

/// The longest wait that a server may ask for.
const ASKED_MAX: Duration = Duration::from_secs(3600);

/// The wait after failed attempt number `failures` (from 1): doubles from `first` up to `max`, of which the second
/// half is left to chance, so that a thousand devices after a power cut do not come back together. A server that
/// asked for a pause gets at least that, up to an hour, and some chance on top.
pub(super) fn wait(
    failures: u32,
    first: Duration,
    max: Duration,
    asked: Option<Duration>,
    random: u64,
) -> Duration {
    let doubled = first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(31))).min(max);
    let half = doubled / 2;
    let half_ms = u64::try_from(half.as_millis()).unwrap_or(u64::MAX);
    let chance = Duration::from_millis(random % half_ms.saturating_add(1));
    match asked {
        Some(asked) => asked.min(ASKED_MAX) + chance,
        None => half + chance,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_cap_and_leave_half_to_chance() {
        let s = Duration::from_secs;
        let at = |failures, random| wait(failures, s(2), s(300), None, random);
        assert_eq!((at(1, 0), at(1, 1000)), (s(1), s(2)));
        assert_eq!((at(2, 0), at(2, 2000)), (s(2), s(4)));
        assert_eq!((at(9, 0), at(9, 150_000)), (s(150), s(300)));
        for random in [0, 1, 12345, u64::MAX] {
            for failures in [1, 5, 100, u32::MAX] {
                let w = at(failures, random);
                assert!(w >= s(1) && w <= s(300), "{failures} {random}: {w:?}");
            }
        }
    }

    #[test]
    fn a_server_that_asks_for_a_pause_gets_it_up_to_an_hour() {
        let s = Duration::from_secs;
        assert_eq!(wait(1, s(2), s(300), Some(s(40)), 0), s(40));
        assert_eq!(wait(1, s(2), s(300), Some(s(40)), 500), s(40) + Duration::from_millis(500));
        assert_eq!(wait(1, s(2), s(300), Some(s(999_999)), 0), s(3600));
    }
}
