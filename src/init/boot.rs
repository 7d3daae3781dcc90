//! The sequence.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use super::doctor::{Health, Role};
use super::notes::Notes;
use super::{data, failure, find, mounts, persist, reset, slot, verity};
use crate::block::{BootedDisk, ROOT_DEVICE_NOTE, label};
use crate::config::Settings;
use crate::model::Cmdline;
use crate::sys::clock::{BootClock, Clock};
use crate::{Result, Root, sys};

const SYSROOT: &str = "/sysroot";
const STATE: &str = "/mnt/state";
const IN_MEMORY: &str = "what would be kept there lasts for this boot only";
/// Time that a kernel panic stays on the console.
const PANIC_S: u32 = 5;

/// Boots. Never returns: ends as the next init, or in a reboot.
pub fn run() -> ! {
    sys::switch_root::on_panic(|what| failure::end(what));
    match boot() {
        Ok(never) => match never {},
        Err(e) => failure::end(&e.to_string()),
    }
}

fn boot() -> Result<Infallible> {
    mounts::kernel()?;
    sys::log::install(Box::new(sys::kmsg::Kmsg::open()?), log::LevelFilter::Info);
    log::info!("twinhull {} starts as PID 1", env!("CARGO_PKG_VERSION"));
    sys::switch_root::restart_on_panic(PANIC_S)?;
    let cmdline = Cmdline::parse(&sys::file::read_text(Path::new("/proc/cmdline"), 64 * 1024)?);

    let (disk, uncounted) = slot::choose(find_disk(&cmdline)?)?;
    remember(&disk)?;
    let sysroot = Root::new(SYSROOT);
    sys::switch_root::make_dir(Path::new(SYSROOT))?;
    // Before anything of the disk is mounted; if it cannot be done, the device still works with what it has.
    let data = data::find(&disk).map(|data| match cmdline.emergency() {
        true => data,
        false => data::grow_partition(&disk, &data).unwrap_or_else(|e| {
            log::warn!("{e}; the boot goes on with the old size");
            data
        }),
    });

    let root = verity::checked(disk.slot_partition(disk.slot())?)?;
    mounts::root(&root, &cmdline, Path::new(SYSROOT))?;
    let settings = Settings::load(&sysroot, None)?;
    let state = disk.state_without_label().map_or_else(|| disk.required(label::STATE).cloned(), Ok);
    let health = match state.and_then(|s| mounts::ext4(&s, STATE, Role::State, &cmdline, &sysroot)) {
        Ok(health) => health,
        Err(e) => mounts::in_memory(STATE, &sysroot).map(|()| Health::Lost(format!("{e}; {IN_MEMORY}")))?,
    };
    failure::state_is_mounted(&sysroot.path(STATE));
    let mut notes = Notes::default();
    uncounted.iter().for_each(|problem| notes.problem(problem));
    notes.add(label::STATE, &health);
    let boot = disk.required(label::BOOT).and_then(|boot| mounts::boot(boot, &cmdline, &sysroot));
    notes.add(label::BOOT, &boot.unwrap_or_else(|e| Health::Lost(e.to_string())));
    let health = match &data {
        Ok(data) => mounts::ext4(data, "/mnt/data", Role::Data, &cmdline, &sysroot)?,
        Err(e) => Health::Lost(e.to_string()),
    };
    notes.add(label::DATA, &health);
    let data = data.ok().filter(|_| !matches!(health, Health::Lost(_)));
    let has_data = data.is_some();
    if !cmdline.emergency() {
        if let Some(data) = &data
            && let Err(e) = data::grow_file_system(data, &sysroot.path("/mnt/data"))
        {
            log::warn!("{e}; the boot goes on with the old size");
        }
        match reset::carry_out(&sysroot, has_data) {
            Ok(emptied) => notes.emptied(&emptied),
            Err(e) => notes.problem(&e.to_string()),
        }
    }
    let persisted = persist::machine_id(&sysroot, &mut notes)
        .and_then(|()| persist::bind_all(&settings.init.persist, &sysroot, &mut notes));
    if has_data && let Err(e) = bind_resin_data(&sysroot) {
        notes.problem(&format!("/resin-data is empty: {e}"));
    }
    notes.keep(&sysroot);
    persisted?;
    // A name is no reason to fail a boot.
    if let Err(e) = persist::host_name(&settings, &sysroot) {
        log::warn!("host name: {e}");
    }

    let next = next_init(&cmdline, &settings);
    mounts::hand_over(&sysroot)?;
    sys::switch_root::switch(Path::new(SYSROOT))?;
    failure::state_is_mounted(Path::new(STATE));
    log::info!("starting {} after {:.1} s", next.display(), BootClock.since_boot().as_secs_f32());
    Err(sys::switch_root::become_program(&next))
}

fn find_disk(cmdline: &Cmdline) -> Result<BootedDisk> {
    find::load_modules(Path::new("/modules"))?;
    let spec = cmdline.root()?;
    let patience = cmdline.rootwait().unwrap_or(find::PATIENCE);
    let events = sys::uevent::BlockEvents::default();
    let disk = find::wait_for_disk(&Root::default(), &spec, patience, &events)?;
    if let Some(state) = disk.partition(label::STATE) {
        failure::state_is_on(&state.device);
    }
    for other in &disk.also_matching {
        log::warn!("root={spec} is also on {}; {} is used", other.display(), disk.device.display());
    }
    let partition = disk.slot_partition(disk.slot())?;
    log::info!("root={spec} is {}: slot {}", partition.device.display(), disk.slot());
    Ok(disk)
}

/// Keeps which slot this is, for the reason of a failed boot and for the running system.
fn remember(disk: &BootedDisk) -> Result<()> {
    failure::slot_is(disk.slot());
    let partition = disk.slot_partition(disk.slot())?;
    // For the running system: another disk with the same labels may be plugged in later.
    if let Some(name) = partition.device.file_name() {
        let note = Path::new(ROOT_DEVICE_NOTE);
        sys::switch_root::make_dir(note.parent().unwrap_or(note))?;
        sys::switch_root::note(note, &format!("{}\n", name.to_string_lossy()))?;
    }
    Ok(())
}

/// balenaOS shows this directory of the data partition at the root as well, if the image has a place for it.
fn bind_resin_data(sysroot: &Root) -> Result<()> {
    let place = sysroot.path("/resin-data");
    if !place.is_dir() {
        return Ok(());
    }
    let source = sysroot.path("/mnt/data/resin-data");
    sys::durable::create_dir(&source)?;
    sys::mount::bind(&source, &place)
}

/// The program that takes over: the kernel's `init=` goes first, as it would without an initramfs.
pub(super) fn next_init(cmdline: &Cmdline, settings: &Settings) -> PathBuf {
    let asked = cmdline.value("init").or_else(|| cmdline.value("twinhull.next")).filter(|p| !p.is_empty());
    asked.map_or_else(|| settings.init.next.clone(), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_the_next_init_before_the_settings() {
        let settings = Settings::default();
        for (line, expected) in [
            ("", "/sbin/init"),
            ("init=/bin/sh", "/bin/sh"),
            ("init=", "/sbin/init"),
            ("twinhull.next=/bin/other", "/bin/other"),
            ("twinhull.next=/bin/other init=/bin/sh", "/bin/sh"),
        ] {
            assert_eq!(next_init(&Cmdline::parse(line), &settings), Path::new(expected), "{line}");
        }
    }
}
