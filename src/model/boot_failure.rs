//! Why PID 1 gave a boot up: the note that it leaves on the state partition for the next system to show.

use super::{BootId, Slot};

/// Where the note is kept, as a path of the host.
pub const BOOT_FAILURE: &str = "/mnt/state/twinhull/boot-failed";

/// What PID 1 could not do in this boot, one line each: a problem for as long as the boot lasts.
pub const BOOT_NOTES: &str = "/run/twinhull/boot-notes";

/// What PID 1 had to do once and for all, one line each; whoever has read it removes the file.
pub const LASTING_NOTES: &str = "/mnt/state/twinhull/boot-notes";

/// One boot that did not reach the root's own init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFailure {
    /// The slot that was being booted; `None` if it was not found.
    pub slot: Option<Slot>,
    /// The boot that failed.
    pub boot_id: BootId,
    /// Why, on one line.
    pub reason: String,
}

impl BootFailure {
    /// The note as it is written: `key: value` lines.
    pub fn to_text(&self) -> String {
        let slot = self.slot.map_or("unknown".into(), |s| s.to_string());
        let reason = self.reason.replace('\n', " ");
        format!("slot: {slot}\nboot id: {}\nreason: {reason}\n", self.boot_id.0)
    }

    /// Reads a note; `None` if it is none (unknown keys are passed over).
    pub fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            text.lines()
                .find_map(|l| l.strip_prefix(key).and_then(|l| l.strip_prefix(": ")))
                .map(str::to_owned)
        };
        Some(Self {
            slot: value("slot")?.parse().ok(),
            boot_id: BootId(value("boot id")?),
            reason: value("reason")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        for slot in [Some(Slot::A), Some(Slot::B), None] {
            let note =
                BootFailure { slot, boot_id: BootId("1234".into()), reason: "mount: no: really".into() };
            assert_eq!(BootFailure::parse(&note.to_text()), Some(note));
        }
    }

    #[test]
    fn text_of_this_release() {
        let note = "slot: B\nboot id: 11-22\nreason: exec /sbin/init: No such file or directory\n";
        let parsed = BootFailure::parse(note).unwrap();
        assert_eq!((parsed.slot, parsed.boot_id.0.as_str()), (Some(Slot::B), "11-22"));
        assert_eq!(parsed.to_text(), note);
    }

    #[test]
    fn anything_else_is_none() {
        for text in ["", "slot: A\n", "boot id: 1\nreason: x\n", "\0\0\0"] {
            assert_eq!(BootFailure::parse(text), None);
        }
    }
}
