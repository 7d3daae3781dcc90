//! The device as the commands see it: settings, disk, journal and boot chooser put together.

use std::path::{Path, PathBuf};

use crate::block::BootedDisk;
use crate::boot::BootChooser;
use crate::cli::Context;
use crate::config::{Chooser, Settings};
use crate::model::record::State;
use crate::model::{BOOT_FAILURE, BootFailure, BootId, OS_RELEASE, OsRelease, Slot, Version};
use crate::update::{FileJournal, JournalStore, Machine, Next};
use crate::{Doing, Error, Result, Root, sys};

const JOURNAL: &str = "/mnt/state/twinhull/journal.json";
/// Whether this boot was ended in order already.
const BOOT_ENDED: &str = "/run/twinhull/boot-ended";
const SMALL_FILE_BYTES: u64 = 64 * 1024;

/// Any boot chooser.
pub type AnyChooser = Box<dyn BootChooser>;

/// A device that runs from one of its two slots.
pub struct Host {
    /// Its settings.
    pub settings: Settings,
    /// The disk that the running root is on.
    pub disk: BootedDisk,
    /// Journal and boot chooser.
    pub machine: Machine<AnyChooser, FileJournal>,
    /// Which bootloader.
    pub chooser: Chooser,
    failure_note: PathBuf,
    boot_ended: PathBuf,
}

impl Host {
    /// Opens the running device.
    ///
    /// # Errors
    /// `Failed`, saying what is missing and what to do.
    pub fn open(context: &Context) -> Result<Self> {
        let root = &context.root;
        let settings = context.settings()?;
        let (disk, chooser, kind) = bootloader(root, &settings)?;
        let booted = disk.slot();
        let boot_id =
            BootId(sys::file::read_text(&root.path("/proc/sys/kernel/random/boot_id"), SMALL_FILE_BYTES)?);
        let journal = FileJournal::new(open_state(root)?);
        let failure_note = root.path(BOOT_FAILURE);
        let boot_failure = sys::file::read_if_exists(&failure_note, SMALL_FILE_BYTES)?
            .and_then(|raw| BootFailure::parse(&String::from_utf8_lossy(&raw)));
        let machine = Machine { chooser, journal, booted, boot_id, boot_failure };
        Ok(Self { settings, disk, machine, chooser: kind, failure_note, boot_ended: root.path(BOOT_ENDED) })
    }

    /// Finishes what was cut short ([`Machine::settle`]). PID 1's note of a failed boot goes when no update is under
    /// way any more: the journal then has it, and a later failure must not be explained by it.
    ///
    /// # Errors
    /// As [`Machine::settle`].
    pub fn settle(&mut self) -> Result<Next> {
        self.machine.journal.set_damaged_aside()?;
        let next = self.machine.settle()?;
        if next == Next::Nothing && self.machine.boot_failure.take().is_some() {
            sys::durable::remove(&self.failure_note)?;
        }
        Ok(next)
    }

    /// Ends this boot in order ([`Machine::end_boot`]), once: the reboot that twinhull asks for is seen by
    /// `twinhull boot end` as well. Gives the argument that a reboot must carry.
    ///
    /// # Errors
    /// As [`Machine::end_boot`].
    pub fn end_boot(&mut self, reboots: bool) -> Result<Option<&'static str>> {
        if self.boot_ended.exists() {
            return Ok(None);
        }
        mark_ended(&self.boot_ended)?;
        Ok(self.machine.end_boot(reboots)?.and_then(|argument| argument.to_str().ok()))
    }

    /// The device of the slot that does not run.
    ///
    /// # Errors
    /// `Failed` if the disk has no such partition.
    pub fn target(&self) -> Result<(Slot, PathBuf, u64)> {
        let slot = self.machine.target();
        let partition = self.disk.slot_partition(slot)?;
        Ok((slot, partition.device.clone(), partition.len_bytes))
    }
}

/// From now on nothing gives the try of this boot back: it counts.
///
/// # Errors
/// `Failed`, naming the file.
pub fn keep_try_used(root: &Root) -> Result<()> {
    mark_ended(&root.path(BOOT_ENDED))
}

fn mark_ended(note: &Path) -> Result<()> {
    // In memory: it lasts as long as this boot.
    sys::durable::create_dir(sys::durable::parent(note)?)?;
    sys::durable::replace(note, b"", 0o644)
}

fn bootloader(root: &Root, settings: &Settings) -> Result<(BootedDisk, AnyChooser, Chooser)> {
    let disk = BootedDisk::find(root).doing(|| "disk of the running root")?;
    let (chooser, kind) = super::chooser::open(root, &settings.boot, &disk)?;
    Ok((disk, chooser, kind))
}

/// Whether the running slot is on trial, as far as can be found out: as the bootloader has it, else (the new system cannot mount
/// the boot partition, say) as the journal has it. Asked when the host cannot be opened: it takes the defaults if the settings
/// cannot be read.
pub fn runs_on_trial(context: &Context) -> bool {
    let root = &context.root;
    let settings = context.settings().unwrap_or_default();
    let by_plan = bootloader(root, &settings)
        .and_then(|(disk, chooser, _)| Ok(chooser.plan()?.tries(disk.slot()).is_some()));
    let by_journal = || -> Result<bool> {
        let booted = BootedDisk::find(root)?.slot();
        let record = FileJournal::new(open_state(root)?).load()?;
        Ok(matches!(record.state, State::Trial { target, .. } if target == booted))
    };
    by_plan.or_else(|_| by_journal()).unwrap_or(false)
}

/// The journal's path, if the state partition is really there: a journal on the root would not outlive an update.
fn open_state(root: &Root) -> Result<PathBuf> {
    let state = root.path("/mnt/state");
    if root.is_host() && !sys::file::is_mount_point(&state)? {
        return Err(Error::failed(format!(
            "state partition: nothing is mounted on {}; boot with twinhull's initramfs, or mount the partition resin-state",
            state.display()
        )));
    }
    Ok(root.path(JOURNAL))
}

/// The running OS's version: `VERSION_ID` of `/etc/os-release`.
///
/// # Errors
/// `Failed` if the file or the field is missing, or is no version.
pub fn os_version(root: &Root) -> Result<Version> {
    let path = root.path(OS_RELEASE);
    let os = OsRelease::parse(&sys::file::read_text(&path, SMALL_FILE_BYTES)?);
    os.get("VERSION_ID")
        .ok_or_else(|| Error::failed("no VERSION_ID"))
        .and_then(str::parse)
        .doing(|| path.display().to_string())
}
