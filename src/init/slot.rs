//! Which slot to boot, on boards where PID 1 itself counts. Elsewhere it is that of `root=`.

use std::path::Path;

use super::mounts;
use crate::block::{BootedDisk, label};
use crate::boot::initramfs;
use crate::boot::resin::Partitions;
use crate::config::{Chooser, Settings};
use crate::model::Slot;
use crate::{Result, Root, sys};

/// Where the boot partition is mounted to count.
const COUNTER: &str = "/run/twinhull/counter";

/// Picks the slot, if the settings of the initramfs say `boot.chooser = "initramfs"`, and counts the boot: before anything
/// else that can fail. Whatever is wrong with the counter is no reason to stay down: it is given for `status` to show, and
/// the slot of `root=` boots, or the primary.
///
/// # Errors
/// `Failed` if those settings cannot be read.
pub(super) fn choose(disk: BootedDisk) -> Result<(BootedDisk, Option<String>)> {
    if Settings::load(&Root::default(), None)?.boot.chooser != Some(Chooser::Initramfs) {
        return Ok((disk, None));
    }
    let (slot, problem) = match mount(&disk) {
        Err(e) => (disk.slot(), Some(e)),
        Ok(partitions) => {
            let chosen = initramfs::choose(&mut initramfs::open(Path::new(COUNTER), partitions), disk.slot());
            sys::mount::detach(Path::new(COUNTER))?;
            chosen
        }
    };
    let problem = problem.map(|e| format!("boots cannot be counted: {e}; slot {slot} was booted"));
    if let Some(problem) = &problem {
        log::error!("{problem}");
    }
    Ok((disk.running(slot)?, problem))
}

fn mount(disk: &BootedDisk) -> Result<Partitions> {
    let [a, b] = Slot::ALL.map(|s| disk.slot_partition(s).map(|p| p.number));
    sys::switch_root::make_dir(Path::new(COUNTER))?;
    mounts::boot_at(disk.required(label::BOOT)?, Path::new(COUNTER))?;
    Ok(Partitions { a: a?, b: b? })
}
