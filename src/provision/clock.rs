//! A clock that is behind: first a floor that needs nobody, then a date that is authenticated.
//!
//! Boards without a battery start in 1970, and every certificate is "not valid yet". The clock is never set back, and no
//! check is turned off for it.

use std::time::Duration;

use super::api::Identity;
use crate::sys::clock::unix_time;
use crate::sys::http::HttpSettings;
use crate::sys::tls_date;
use crate::{Error, Result, Root, sys};

/// The latest time that was authenticated, in seconds since 1970.
const LAST_SEEN: &str = "/mnt/state/twinhull/last-seen";
/// A floor behind this is a mistake of whoever built the image: 2100.
const ABSURD: Duration = Duration::from_secs(4_102_444_800);

/// The latest moment that is known to be past: the image's build (`/etc/timestamp` as Yocto and balenaOS write it, the
/// age of systemd's `/usr/lib/clock-epoch` and of `/usr/lib/os-release`), and what this device last saw for certain.
pub(super) fn floor(root: &Root) -> Duration {
    let text = |path: &str| sys::file::read_text(&root.path(path), 64).ok();
    let built = text("/etc/timestamp").and_then(|t| timestamp(&t));
    let seen = text(LAST_SEEN).and_then(|t| t.parse().ok()).map(Duration::from_secs);
    let age = |path: &str| sys::file::modified(&root.path(path));
    let known = [built, seen, age("/usr/lib/clock-epoch"), age("/usr/lib/os-release")];
    known.into_iter().flatten().filter(|t| *t < ABSURD).max().unwrap_or_default()
}

/// `20260301120000`, in UTC.
fn timestamp(text: &str) -> Option<Duration> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let days = tls_date::days_since_1970(number(0, 4)?, number(4, 6)?, number(6, 8)?)?;
    let seconds = (number(8, 10)? * 60 + number(10, 12)?) * 60 + number(12, 14).unwrap_or(0);
    Some(Duration::from_secs(days * 86400 + seconds))
}

/// Notes that it is now, which a request over TLS has just shown. Only worth a write once a day.
pub(super) fn remember(root: &Root, who: &Identity) {
    let now = unix_time();
    let known = now < floor(root) + Duration::from_secs(86400);
    if known || !who.endpoint.starts_with("https://") || !root.path("/mnt/state").is_dir() {
        return;
    }
    let path = root.path(LAST_SEEN);
    let noted = sys::durable::parent(&path)
        .and_then(sys::durable::create_dir)
        .and_then(|()| sys::durable::replace(&path, format!("{}\n", now.as_secs()).as_bytes(), 0o644));
    if let Err(e) = noted {
        log::warn!("note the time: {e}");
    }
}

/// The date that the API tells, authenticated.
///
/// # Errors
/// `Failed` if it cannot be had.
pub(super) fn ask(endpoint: &str, settings: &HttpSettings) -> Result<Duration> {
    let rest =
        endpoint.strip_prefix("https://").ok_or_else(|| Error::failed("only https can tell a date"))?;
    let authority = rest.split('/').next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') => {
            (host, port.parse().map_err(|_| Error::failed(format!("{authority}: no port")))?)
        }
        _ => (authority, 443),
    };
    tls_date::ask(host.trim_matches(['[', ']']), port, settings, unix_time())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_latest_of_what_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        assert_eq!(floor(&root), Duration::ZERO);
        let write = |path: &str, text: &str| {
            let path = root.path(path);
            sys::durable::create_dir(path.parent().unwrap()).unwrap();
            sys::durable::replace(&path, text.as_bytes(), 0o644).unwrap();
        };
        // date -u -d "2026-03-01 12:34:56" +%s
        write("/etc/timestamp", "20260301123456\n");
        assert_eq!(floor(&root).as_secs(), 1_772_368_496);
        write(LAST_SEEN, "1800000000\n");
        assert_eq!(floor(&root).as_secs(), 1_800_000_000);
        write(LAST_SEEN, "9999999999\n");
        assert_eq!(floor(&root).as_secs(), 1_772_368_496, "a date after 2100 is nobody's");
        write("/usr/lib/os-release", "");
        assert!(floor(&root) >= unix_time() - Duration::from_secs(600));
    }
}
