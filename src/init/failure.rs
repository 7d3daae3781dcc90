//! The end of a boot that cannot go on.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::model::{BOOT_FAILURE, BootFailure, BootId, Slot};
use crate::sys::clock::{BootClock, Clock};
use crate::sys::mount::MountFlags;
use crate::{Doing, Error, Result, Root, sys};

/// How long the reason stays on the console.
const READABLE: Duration = Duration::from_secs(3);
const STATE: &str = "/mnt/state";
/// A file that the initramfs of a development image has, and no other.
const DEVELOPMENT: &str = "/development";
/// How long the offer of a rescue shell stands: a device on a desk must come back by itself, too.
const RESCUE_PATIENCE: Duration = Duration::from_secs(10);

/// What is known by now. The panic hook needs it too, so it cannot be a value that is passed on.
static KNOWN: Mutex<Known> = Mutex::new(Known { slot: None, state: None });

struct Known {
    slot: Option<Slot>,
    state: Option<State>,
}

#[derive(Clone)]
enum State {
    /// Found, not mounted.
    Device(PathBuf),
    /// Mounted at this directory.
    Mounted(PathBuf),
}

fn learn(f: impl FnOnce(&mut Known)) {
    // Poisoned only by a panic in here, and there is none to be had.
    if let Ok(mut known) = KNOWN.lock() {
        f(&mut known);
    }
}

/// From now on a failure is one of this slot.
pub(super) fn slot_is(slot: Slot) {
    learn(|k| k.slot = Some(slot));
}

/// From now on a failure can be kept on this device.
pub(super) fn state_is_on(device: &Path) {
    learn(|k| k.state = Some(State::Device(device.to_owned())));
}

/// From now on a failure is kept in this directory.
pub(super) fn state_is_mounted(at: &Path) {
    learn(|k| k.state = Some(State::Mounted(at.to_owned())));
}

/// Says why the boot failed, keeps it if it can, and restarts the machine.
pub(super) fn end(reason: &str) -> ! {
    let reason = &reason.replace('\n', " ");
    sys::kmsg::alert(&format!("boot failed: {reason}"));
    // The panic hook may come here while the lock is held.
    let known = KNOWN.try_lock().map(|k| (k.slot, k.state.clone())).unwrap_or((None, None));
    match keep(known.0, known.1, reason) {
        Ok(()) => sys::kmsg::alert("the reason is kept on the state partition; restarting"),
        Err(e) => sys::kmsg::alert(&format!("the reason is not kept: {e}; restarting")),
    }
    rescue();
    sys::switch_root::remount_read_only();
    BootClock.sleep(READABLE);
    sys::power::reboot_now()
}

/// On development images only: a shell, if somebody presses a key; else the machine goes on to restart by itself.
fn rescue() {
    if !Path::new(DEVELOPMENT).exists() {
        return;
    }
    let Some((shell, root)) = shell_in(Path::new("/"), Path::new("/sysroot")) else {
        return sys::kmsg::alert("no rescue shell: neither the initramfs nor the root has /bin/sh");
    };
    let offered = sys::rescue::console()
        .and_then(|console| sys::rescue::offer_shell(&console, shell, root, RESCUE_PATIENCE));
    if let Err(e) = offered {
        sys::kmsg::alert(&e.to_string());
    }
}

/// The shell, and the root to run it in: the initramfs's own, else that of the root, if it is mounted by now.
fn shell_in<'a>(initramfs: &Path, sysroot: &'a Path) -> Option<(&'static Path, Option<&'a Path>)> {
    let shell = Path::new("/bin/sh");
    let has = |root: &Path| Root::new(root).path(shell).symlink_metadata().is_ok();
    match (has(initramfs), has(sysroot)) {
        (true, _) => Some((shell, None)),
        (false, true) => Some((shell, Some(sysroot))),
        (false, false) => None,
    }
}

fn keep(slot: Option<Slot>, state: Option<State>, reason: &str) -> Result<()> {
    let dir = match state {
        None => return Err(Error::failed("no state partition was found")),
        Some(State::Mounted(dir)) => dir,
        Some(State::Device(device)) => {
            let dir = PathBuf::from("/run/twinhull/state");
            sys::switch_root::make_dir(&dir)?;
            sys::mount::mount(&device, &dir, "ext4", MountFlags::NOATIME, "")?;
            dir
        }
    };
    let boot_id = sys::file::read_text(Path::new("/proc/sys/kernel/random/boot_id"), 64)
        .unwrap_or_else(|_| "unknown".into());
    let note = BootFailure { slot, boot_id: BootId(boot_id), reason: reason.into() };
    let inside = Path::new(BOOT_FAILURE).strip_prefix(STATE).map_err(|e| Error::failed(e.to_string()))?;
    let path = dir.join(inside);
    if let Some(parent) = path.parent() {
        sys::durable::create_dir(parent)?;
    }
    sys::durable::replace(&path, note.to_text().as_bytes(), 0o644).doing(|| "keep the reason")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initramfs_goes_before_the_root_and_without_a_shell_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let [initramfs, sysroot] = ["initramfs", "sysroot"].map(|d| dir.path().join(d));
        let shell = Path::new("/bin/sh");
        assert_eq!(shell_in(&initramfs, &sysroot), None);
        sys::durable::create_dir(&sysroot.join("bin")).unwrap();
        // As in most roots: a link that means something only inside of it.
        std::os::unix::fs::symlink("/bin/busybox.nosuid", sysroot.join("bin/sh")).unwrap();
        assert_eq!(shell_in(&initramfs, &sysroot), Some((shell, Some(sysroot.as_path()))));
        sys::durable::create_dir(&initramfs.join("bin")).unwrap();
        sys::durable::replace(&initramfs.join("bin/sh"), b"", 0o755).unwrap();
        assert_eq!(shell_in(&initramfs, &sysroot), Some((shell, None)));
    }
}
