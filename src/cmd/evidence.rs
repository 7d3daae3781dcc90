//! What the boot before this one has left behind, if it did not end in order: the kernel's last words in pstore, and what the
//! watchdog says.

use crate::model::{Evidence, last_words};
use crate::{Result, Root, sys};

const PSTORE: &str = "/sys/fs/pstore";
/// CRCs of the records that were looked at, a line each: pstore keeps records until somebody removes them (systemd-pstore
/// does), and an old panic explains nothing.
const SEEN: &str = "/mnt/state/twinhull/pstore-seen";
const LIMIT_BYTES: u64 = 1024 * 1024;
/// `WDIOF_CARDRESET` of linux/watchdog.h.
const CARD_RESET: u32 = 0x20;

/// Looks for it. What [`remember`] has seen is passed over.
///
/// # Errors
/// `Failed` if what was seen cannot be read.
pub(super) fn gather(root: &Root) -> Result<Evidence> {
    let seen = sys::file::read_if_exists(&root.path(SEEN), LIMIT_BYTES)?.unwrap_or_default();
    let seen = String::from_utf8_lossy(&seen).into_owned();
    let new: Vec<_> =
        records(root)?.into_iter().filter(|(id, _)| !seen.contains(id)).map(|(_, text)| text).collect();
    // A log may be kept in several records: the panic stands in one.
    let first = new.iter().find(|text| text.contains("Kernel panic - ")).or_else(|| new.first());
    Ok(Evidence { panic: first.and_then(|text| last_words(text)), watchdog: watchdog(root) })
}

/// Keeps which records are told by now.
///
/// # Errors
/// `Failed` if that cannot be kept: they would be told again.
pub(super) fn remember(root: &Root) -> Result<()> {
    let kept = root.path(SEEN);
    let all: String = records(root)?.into_iter().map(|(id, _)| format!("{id}\n")).collect();
    if sys::file::read_if_exists(&kept, LIMIT_BYTES)?.unwrap_or_default() == all.as_bytes() {
        return Ok(());
    }
    sys::durable::create_dir(sys::durable::parent(&kept)?)?;
    sys::durable::replace(&kept, all.as_bytes(), 0o644)
}

/// The kernel logs that pstore has, with the CRC of each.
fn records(root: &Root) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for path in sys::file::list(&root.path(PSTORE))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // One that could not be decompressed says nothing.
        if !name.starts_with("dmesg-") || name.ends_with(".enc.z") {
            continue;
        }
        if let Ok(raw) = sys::file::read(&path, LIMIT_BYTES) {
            let text = String::from_utf8_lossy(&raw).into_owned();
            found.push((format!("{:08x}", crc32fast::hash(&raw)), text));
        }
    }
    Ok(found)
}

fn watchdog(root: &Root) -> bool {
    let devices = sys::file::list(&root.path("/sys/class/watchdog")).unwrap_or_default();
    devices.iter().any(|device| {
        let status = sys::file::read_text(&device.join("bootstatus"), 64).unwrap_or_default();
        status.parse::<u32>().is_ok_and(|flags| flags & CARD_RESET != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Root, path: &str, text: &str) {
        let path = root.path(path);
        sys::durable::create_dir(path.parent().unwrap()).unwrap();
        sys::durable::replace(&path, text.as_bytes(), 0o644).unwrap();
    }

    #[test]
    fn a_panic_is_told_once_and_a_record_of_the_same_name_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let told = || {
            let panic = gather(&root).unwrap().panic;
            remember(&root).unwrap();
            panic
        };
        assert_eq!(told(), None);
        write(&root, "/sys/fs/pstore/console-ramoops-0", "Kernel panic - not syncing: no");
        write(&root, "/sys/fs/pstore/dmesg-efi-1.enc.z", "\0\0");
        write(&root, "/sys/fs/pstore/dmesg-ramoops-0", "[ 1.0] a\n");
        write(&root, "/sys/fs/pstore/dmesg-ramoops-1", "[ 1.0] b\n[ 1.1] Kernel panic - not syncing: x\n");
        assert_eq!(told().unwrap(), "not syncing: x; before it: b");
        assert_eq!(told(), None);
        write(&root, "/sys/fs/pstore/dmesg-ramoops-0", "[ 9.0] Kernel panic - not syncing: y\n");
        assert_eq!(told().unwrap(), "not syncing: y");
        assert_eq!(told(), None);
    }

    #[test]
    fn the_watchdog_says_so_with_one_flag() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        for (status, expected) in
            [("0\n", false), ("32\n", true), ("33\n", true), ("1\n", false), ("x\n", false)]
        {
            write(&root, "/sys/class/watchdog/watchdog0/bootstatus", status);
            assert_eq!(gather(&root).unwrap().watchdog, expected, "{status:?}");
        }
    }
}
