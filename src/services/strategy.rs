//! How a service's container is replaced: its labels say.

use std::time::Duration;

use crate::feature::Labels;

const STRATEGY: &str = "io.balena.update.strategy";
const TIMEOUT: &str = "io.balena.update.handover-timeout";
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// In which order old and new come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// The new image is there before the old container ends. Also for values that are not known.
    DownloadThenKill,
    /// The old container is removed before the new image is fetched: for little memory.
    KillThenDownload,
    /// And its image, too: for little room.
    DeleteThenDownload,
    /// Both run until the new one says that it is ready, or for this long.
    HandOver(Duration),
}

impl Strategy {
    /// Of labels with today's names.
    pub fn of(labels: &Labels) -> Self {
        match labels.get(STRATEGY).map(String::as_str) {
            Some("kill-then-download") => Self::KillThenDownload,
            Some("delete-then-download") => Self::DeleteThenDownload,
            Some("hand-over") => {
                let ms = labels.get(TIMEOUT).and_then(|t| t.parse().ok()).filter(|ms| *ms > 0);
                Self::HandOver(ms.map_or(TIMEOUT_DEFAULT, Duration::from_millis))
            }
            _ => Self::DownloadThenKill,
        }
    }

    /// The old container goes before the new image comes.
    pub const fn kills_first(self) -> bool {
        matches!(self, Self::KillThenDownload | Self::DeleteThenDownload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_of_labels() {
        let of = |strategy: &str, timeout: &str| {
            let pairs = [(STRATEGY, strategy), (TIMEOUT, timeout)];
            Strategy::of(&pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
        };
        assert_eq!(Strategy::of(&Labels::new()), Strategy::DownloadThenKill);
        assert_eq!(of("hand-over", "1500"), Strategy::HandOver(Duration::from_millis(1500)));
        for bad in ["", "0", "-1", "1.5", "soon"] {
            assert_eq!(of("hand-over", bad), Strategy::HandOver(TIMEOUT_DEFAULT), "{bad:?}");
        }
        assert_eq!(of("delete-then-download", ""), Strategy::DeleteThenDownload);
        assert_eq!(of("Hand-Over", ""), Strategy::DownloadThenKill);
        assert!(of("kill-then-download", "").kills_first() && !of("x", "").kills_first());
    }
}
