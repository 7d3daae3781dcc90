//! The device: two slots, a journal, an environment block, and somebody who installs an update.

use std::cell::RefCell;
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::boot_set;
use super::files::{Files, MemoryStore};
use super::loader::Loader;
use super::power::{How, Interruption, Power};
use super::tree::{MemoryTree, TreeMedia};
use crate::block::{Disk, seal};
use crate::boot::BootChooser;
use crate::model::record::{Before, Outcome, Record, Release, State};
use crate::model::verity::SEAL_BYTES;
use crate::model::{BootId, BootPlan, Digest, Evidence, Slot, Verity};
use crate::update::{Goal, Image, Install, JournalStore, Machine, Next};
use crate::{Error, Kind, Result};

pub const TRIES: u8 = 3;
const BLOCK: usize = 8;
const IMAGE_BLOCKS: u8 = 3;
/// Room for the image, and the seal behind it.
const SLOT_LEN: u64 = 2 * SEAL_BYTES;

/// How a system behaves when it is booted. Each is one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Passes its health checks.
    Good,
    /// Starts, but fails its health checks.
    Unhealthy,
    /// Does not even start.
    Panics,
    /// Starts, fails its health checks, and the state partition cannot be written while it runs: full, or read-only.
    FillsState,
    /// Starts on a state partition that had to be made anew.
    LosesState,
}

fn image_of(version: u8, behaviour: Behaviour) -> Vec<u8> {
    (1..=IMAGE_BLOCKS).flat_map(|i| [version, behaviour as u8, i, 9, 9, 9, 9, 9]).collect()
}

/// Versions 1 and 2 are sealed, version 3 is not.
fn verity_of(version: u8) -> Option<Verity> {
    (version < 3).then_some(Verity { root_hash: Digest([version; 32]), hash_offset: 8 })
}

/// A slot that was sealed for version 1, whatever it holds.
fn slot_with(content: &[u8]) -> Vec<u8> {
    let mut slot = MemorySlot(content.to_vec());
    slot.0.resize(usize::try_from(SLOT_LEN).unwrap(), 0);
    seal::write(&mut slot, verity_of(1).as_ref(), content.len() as u64).unwrap();
    slot.0
}

/// A slot's bytes, while the device is off.
struct MemorySlot(Vec<u8>);

impl Disk for MemorySlot {
    fn len_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let at = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.0[at..at + buffer.len()]);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let at = usize::try_from(offset).unwrap();
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

fn release(version: u8) -> Release {
    Release {
        version: semver::Version::new(version.into(), 0, 0).to_string().parse().unwrap(),
        manifest: Digest([version; 32]),
        counter: version.into(),
    }
}

/// What the device's media hold: survives cuts.
#[derive(Debug, Clone)]
pub struct Media {
    journal: Option<Vec<u8>>,
    slots: [Vec<u8>; 2],
    /// Writes that are in the drive's cache: a power cut may lose any of them.
    cached: Vec<(Slot, usize, Vec<u8>)>,
}

type Shared = Rc<RefCell<Media>>;

/// The real record format; an atomic rename is one step.
#[derive(Debug, Clone)]
struct Journal {
    media: Shared,
    power: Power,
    writable: bool,
}

impl JournalStore for Journal {
    fn load(&self) -> Result<Record> {
        self.media.borrow().journal.as_deref().map_or(Ok(Record::new()), crate::update::decode_record)
    }

    fn store(&mut self, record: &Record) -> Result<()> {
        let raw = crate::update::encode_record(record)?;
        if !self.writable {
            return Err(Error::failed("no space left on the state partition"));
        }
        self.power.step()?;
        self.media.borrow_mut().journal = Some(raw);
        Ok(())
    }
}

/// A slot behind a drive with a write cache.
struct SlotDisk {
    media: Shared,
    power: Power,
    slot: Slot,
}

impl Disk for SlotDisk {
    fn len_bytes(&self) -> u64 {
        SLOT_LEN
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let media = self.media.borrow();
        let mut now = media.slots[self.slot as usize].clone();
        for (_, at, bytes) in media.cached.iter().filter(|(s, ..)| *s == self.slot) {
            now[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        let at = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&now[at..at + buffer.len()]);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.power.step()?;
        self.media.borrow_mut().cached.push((self.slot, usize::try_from(offset).unwrap(), bytes.to_vec()));
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.power.step()?;
        self.media.borrow_mut().land(|_| true);
        Ok(())
    }
}

impl Media {
    fn new() -> Self {
        Self {
            journal: None,
            slots: [slot_with(&image_of(1, Behaviour::Good)), slot_with(&[])],
            cached: Vec::new(),
        }
    }

    /// Cached writes reach the medium, those that `lands` lets.
    fn land(&mut self, lands: impl Fn(usize) -> bool) {
        for (i, (slot, at, bytes)) in std::mem::take(&mut self.cached).into_iter().enumerate() {
            if lands(i) {
                self.slots[slot as usize][at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
    }
}

/// How often an install that was cut short is asked for again, the first time included.
const INSTALLS: u8 = 4;

/// How a story ended.
#[derive(Debug, PartialEq, Eq)]
pub struct End {
    /// The slot that runs at the end.
    pub booted: Slot,
    /// What the journal says of the update.
    pub last: Option<Outcome>,
    /// And why it ended so.
    pub reason: String,
    /// The floor of the release counter, which is each version's number here.
    pub release_floor: u64,
    /// Whether the update was ever armed.
    pub armed: bool,
    /// Interruptions that happened.
    pub interrupted: usize,
    /// Those of them that were no orderly reboots.
    pub failures: usize,
    /// Whether the new system's kernel ever ran, if it is one that panics.
    pub panicked: bool,
}

/// The device and the update that somebody installs on it.
pub struct World {
    /// The last orderly reboot carried `0 tryboot`.
    tryboot: bool,
    /// What the boots before this one have left behind: pstore keeps it until it is read.
    evidence: Evidence,
    loader: Loader,
    files: Files,
    /// Boot files, if the bootloader reads any.
    boot_files: Rc<RefCell<TreeMedia>>,
    media: Shared,
    power: Power,
    behaviour: Behaviour,
    /// Whoever operates the device installs once more over the armed system, before the reboot.
    impatient: bool,
    boots: u32,
    /// A kernel has panicked.
    panicked: bool,
    armed: bool,
    /// A boot of the new system was counted since the last install began.
    tried: bool,
    /// The target was written to since the last install began, and not yet armed.
    writing: bool,
}

/// What stops a process or a boot.
enum Stop {
    Interrupted,
    Violation(String),
}

fn stop(e: Error) -> Stop {
    match e.kind() {
        Kind::PowerCut => Stop::Interrupted,
        _ => Stop::Violation(e.to_string()),
    }
}

impl World {
    pub fn new(loader: Loader, behaviour: Behaviour, impatient: bool) -> Self {
        Self {
            tryboot: false,
            evidence: Evidence::default(),
            loader,
            files: Rc::new(RefCell::new(loader.seed())),
            boot_files: Rc::new(RefCell::new(boot_set::seed())),
            media: Rc::new(RefCell::new(Media::new())),
            power: Power::default(),
            behaviour,
            impatient,
            boots: 0,
            panicked: false,
            armed: false,
            tried: false,
            writing: false,
        }
    }

    /// Plays the whole story: an install of version 2, reboots, health, until nothing is left to do; interrupted at
    /// each of `interruptions` in turn. Then the same version as a good image must install without trouble.
    ///
    /// The error says which promise was broken.
    pub fn play(&mut self, interruptions: &[Interruption]) -> std::result::Result<End, String> {
        let mut left = interruptions.iter();
        let mut next = left.next();
        self.power.set(next.map(|i| i.after_steps));
        let (mut interrupted, mut failures) = (0, 0);
        let mut installs_left = INSTALLS;
        let booted = 'power_on: loop {
            if self.boots > 60 {
                return Err("does not come to rest".into());
            }
            let booted = match self.boot() {
                Ok(Some(booted)) => booted,
                Ok(None) => continue,
                Err(Stop::Interrupted) => {
                    (interrupted, failures) = (interrupted + 1, failures + 1);
                    next = self.after_interruption(How::Cut, &mut left);
                    continue;
                }
                Err(Stop::Violation(what)) => return Err(what),
            };
            // Processes of this boot, until one asks for a reboot or nothing is left to do.
            loop {
                match self.process_and_reboot(booted, &mut installs_left) {
                    Ok(true) => continue 'power_on,
                    Ok(false) => break 'power_on booted,
                    Err(Stop::Violation(what)) => return Err(what),
                    Err(Stop::Interrupted) => {
                        interrupted += 1;
                        let how = next.map_or(How::Cut, |i| i.how);
                        failures += usize::from(how != How::Reboot);
                        next = self.after_interruption(how, &mut left);
                        match how {
                            How::Cut => continue 'power_on,
                            How::Kill => {}
                            How::Reboot => match self.reboot(booted) {
                                Ok(()) => continue 'power_on,
                                Err(Stop::Violation(what)) => return Err(what),
                                Err(Stop::Interrupted) => {
                                    (interrupted, failures) = (interrupted + 1, failures + 1);
                                    next = self.after_interruption(How::Cut, &mut left);
                                    continue 'power_on;
                                }
                            },
                        }
                    }
                }
            }
        };
        self.power.set(None);
        let Record { last, release_floor, .. } =
            self.machine(booted).journal.load().map_err(|e| e.to_string())?;
        let (last, reason) = last.map(|l| (l.result, l.reason)).unzip();
        let reason = reason.unwrap_or_default();
        Ok(End {
            booted,
            last,
            reason,
            release_floor,
            armed: self.armed,
            interrupted,
            failures,
            panicked: self.panicked,
        })
    }

    fn after_interruption<'i>(
        &mut self,
        how: How,
        left: &mut impl Iterator<Item = &'i Interruption>,
    ) -> Option<&'i Interruption> {
        // A cut loses some of the drive's cache: which part depends on when.
        let pattern = self.power.steps().wrapping_mul(2_654_435_761) >> 7;
        match how {
            How::Cut => {
                self.media.borrow_mut().land(|i| pattern >> (i % 16) & 1 == 1);
                self.boot_files.borrow_mut().land(|i| pattern >> (i % 16) & 1 == 1);
            }
            How::Kill => {}
            How::Reboot => {
                self.media.borrow_mut().land(|_| true);
                self.boot_files.borrow_mut().land(|_| true);
            }
        }
        let next = left.next();
        self.power.set(next.map(|i| i.after_steps));
        next
    }

    fn machine(&self, booted: Slot) -> Machine<Box<dyn BootChooser>, Journal> {
        let (media, power) = (self.media.clone(), self.power.clone());
        let writable = !self.runs(booted, Behaviour::FillsState);
        let store = MemoryStore::new(self.files.clone(), power.clone());
        Machine {
            chooser: self.loader.chooser(store),
            journal: Journal { media, power, writable },
            booted,
            boot_id: BootId(self.boots.to_string()),
            boot_failure: None,
        }
    }

    /// Whether `booted` holds the update, and it behaves so.
    fn runs(&self, booted: Slot, behaviour: Behaviour) -> bool {
        self.media.borrow().slots[booted as usize].starts_with(&image_of(2, behaviour))
    }

    /// One boot: the script's choice, then the chosen slot's kernel. `None`: it panicked.
    fn boot(&mut self) -> std::result::Result<Option<Slot>, Stop> {
        self.boots += 1;
        // One-shot: whatever comes of this boot, the next one does not have it.
        let asked = std::mem::take(&mut self.tryboot);
        let choice = self.loader.choose(&self.files.borrow(), asked);
        self.tried |= asked;
        if choice.writes() {
            self.power.step().map_err(|_| Stop::Interrupted)?;
            self.tried = choice.save_into(&mut self.files.borrow_mut());
        }
        let content = self.media.borrow().slots[choice.slot as usize].clone();
        let known = [(1, Behaviour::Good), (2, self.behaviour), (3, Behaviour::Good)];
        match known.into_iter().find(|(v, b)| content.starts_with(&image_of(*v, *b))) {
            None => Err(Stop::Violation(format!("slot {} was booted and is not whole", choice.slot))),
            Some((version, behaviour)) => {
                // PID 1 would not mount it, or mount it unchecked.
                let sealed = seal::read(&mut MemorySlot(content), 0).map_err(stop)?;
                if sealed != verity_of(version) {
                    return Err(Stop::Violation(format!(
                        "version {version} was booted with seal {sealed:?}"
                    )));
                }
                if self.loader.has_boot_files() {
                    boot_set::check(&self.boot_files.borrow(), choice.slot, version)
                        .map_err(Stop::Violation)?;
                }
                match behaviour {
                    Behaviour::LosesState => self.media.borrow_mut().journal = None,
                    Behaviour::Panics => {
                        self.panicked = true;
                        self.evidence.panic = Some("not syncing: no working init found".into());
                    }
                    Behaviour::Good | Behaviour::Unhealthy | Behaviour::FillsState => {}
                }
                Ok((behaviour != Behaviour::Panics).then_some(choice.slot))
            }
        }
    }

    /// One process, and the orderly reboot that it asks for.
    fn process_and_reboot(
        &mut self,
        booted: Slot,
        installs_left: &mut u8,
    ) -> std::result::Result<bool, Stop> {
        match self.machine(booted).begin_boot(&self.evidence).map_err(stop) {
            Err(Stop::Interrupted) => return Err(Stop::Interrupted),
            // That it cannot be kept ends nothing.
            Err(Stop::Violation(_)) => {}
            Ok(()) => self.evidence = Evidence::default(),
        }
        let reboot = match self.process(booted, installs_left) {
            // What `twinhull resume` does with a trial that it cannot decide, at the deadline: the boot counts.
            Err(Stop::Violation(_)) if self.runs(booted, Behaviour::FillsState) => {
                return Ok(self.machine(booted).chooser.plan().map_err(stop)?.tries(booted).is_some());
            }
            decided => decided?,
        };
        if reboot {
            self.reboot(booted)?;
        }
        Ok(reboot)
    }

    /// An orderly reboot, whoever asks for it.
    fn reboot(&mut self, booted: Slot) -> std::result::Result<(), Stop> {
        let argument = self.machine(booted).end_boot(true).map_err(stop)?;
        self.tryboot = argument.is_some();
        Ok(())
    }

    /// One process of twinhull: settles, checks health, and installs if somebody still wants to. `true`: reboot.
    fn process(&mut self, booted: Slot, installs_left: &mut u8) -> std::result::Result<bool, Stop> {
        let mut machine = self.machine(booted);
        match machine.settle().map_err(stop)? {
            Next::Reboot { .. } | Next::TryAgain { .. } => Ok(true),
            Next::CheckHealth { .. } => {
                self.power.step().map_err(stop)?;
                if [Behaviour::Unhealthy, Behaviour::FillsState].into_iter().any(|b| self.runs(booted, b)) {
                    machine.condemn("unhealthy").map_err(stop)?;
                    return Ok(true);
                }
                machine.commit("healthy").map_err(stop)?;
                Ok(false)
            }
            Next::Nothing => {
                let last = machine.journal.load().map_err(stop)?.last.map(|l| l.result);
                self.check_told(last)?;
                let settled = matches!(last, Some(Outcome::Committed | Outcome::RolledBack));
                if settled || *installs_left == 0 {
                    return Ok(false);
                }
                // Whoever operates the device asks again when an install was cut short, not when it was rolled back.
                *installs_left -= 1;
                self.install(machine, 2, self.behaviour).map_err(stop)?;
                if std::mem::take(&mut self.impatient) {
                    self.install(self.machine(booted), 2, self.behaviour).map_err(stop)?;
                }
                Ok(true)
            }
        }
    }

    /// The journal tells the truth about what was cut short.
    fn check_told(&mut self, last: Option<Outcome>) -> std::result::Result<(), Stop> {
        if std::mem::take(&mut self.tried) && last == Some(Outcome::Abandoned) {
            return Err(Stop::Violation("the new system was tried, but the journal says abandoned".into()));
        }
        if std::mem::take(&mut self.writing) && last != Some(Outcome::Abandoned) {
            return Err(Stop::Violation(format!("writing was cut short, but the journal says {last:?}")));
        }
        Ok(())
    }

    fn install(
        &mut self,
        mut machine: Machine<Box<dyn BootChooser>, Journal>,
        version: u8,
        behaviour: Behaviour,
    ) -> Result<()> {
        let content = image_of(version, behaviour);
        let root = Image { len_bytes: content.len() as u64, digest: Digest(Sha256::digest(&content).into()) };
        let has_boot_files = self.loader.has_boot_files();
        let sets = has_boot_files.then(|| boot_set::image(version)).into_iter().collect();
        let goal = Goal { root, verity: verity_of(version), sets, hooks: Vec::new() };
        let tree = MemoryTree { media: self.boot_files.clone(), power: self.power.clone() };
        let mut set = boot_set::set(tree, machine.target(), version);
        let mut sets: Vec<&mut dyn Disk> = Vec::new();
        if has_boot_files {
            sets.push(&mut set);
        }
        let booted = machine.booted;
        let mut disk =
            SlotDisk { media: self.media.clone(), power: self.power.clone(), slot: machine.target() };
        self.tried = false;
        self.writing = false;
        let begun = Install::begin(&mut machine, release(version), goal)?;
        self.writing = true;
        let armed = begun
            .write(&mut disk, &mut sets, |disk, sets| {
                content
                    .chunks(BLOCK)
                    .enumerate()
                    .try_for_each(|(i, b)| disk.write_at((i * BLOCK) as u64, b))?;
                sets.iter_mut().try_for_each(|set| boot_set::feed(*set, version))
            })?
            .read_back(&mut disk, &mut sets, |_| ())?
            .arm(TRIES, Before::default());
        // A chooser may have something to tidy up after its commit point: cut there, the trial is armed all the same.
        if armed.is_ok() || self.machine(booted).chooser.plan()?.trial.is_some() {
            self.armed = true;
            self.writing = false;
        }
        armed.map(drop)
    }

    /// The new system does nothing but reboot in order, and nobody installs again. How many boots of it that makes.
    pub fn reboot_each_boot_of_the_trial(&mut self) -> std::result::Result<u32, String> {
        let Ok(Some(old)) = self.boot() else { return Err("does not start".into()) };
        let machine = self.machine(old);
        self.install(machine, 2, Behaviour::Good).map_err(|e| e.to_string())?;
        let told = |stop| match stop {
            Stop::Interrupted => "interrupted".to_owned(),
            Stop::Violation(what) => what,
        };
        self.reboot(old).map_err(told)?;
        for tries in 0..100 {
            let booted = self.boot().map_err(told)?.ok_or("panicked")?;
            self.machine(booted).begin_boot(&self.evidence).map_err(|e| e.to_string())?;
            if booted == old {
                // A one-shot may have to be asked again.
                if !self.process(booted, &mut 0).map_err(told)? {
                    return Ok(tries);
                }
            }
            self.reboot(booted).map_err(told)?;
        }
        Err("goes on for ever".into())
    }

    /// After the story, with the power on: version 3 installs and is committed, from wherever the device stands.
    pub fn second_install(&mut self, booted: Slot) -> std::result::Result<(), String> {
        let floor = |world: &Self| world.machine(booted).release_floor().map_err(|e| e.to_string());
        let before = floor(self)?;
        self.install(self.machine(booted), 3, Behaviour::Good).map_err(|e| format!("second install: {e}"))?;
        if floor(self)? != before {
            return Err(format!("second install: the floor was {before} and is {}", floor(self)?));
        }
        let argument = self.machine(booted).chooser.before_reboot().map_err(|e| e.to_string())?;
        self.tryboot = argument.is_some();
        let mut nobody = 0;
        let now = match self.boot() {
            Ok(Some(now)) if now == !booted => now,
            Ok(other) => return Err(format!("second install: booted {other:?}")),
            Err(Stop::Interrupted) => return Err("second install: interrupted".into()),
            Err(Stop::Violation(what)) => return Err(format!("second install: {what}")),
        };
        while self.process(now, &mut nobody).map_err(|_| "second install: interrupted")? {}
        let (record, plan, _) = self.machine(now).observe().map_err(|e| e.to_string())?;
        let committed = matches!(&record.last, Some(l) if l.result == Outcome::Committed);
        let raised = record.release_floor == 3;
        if record.state == State::Idle && committed && raised && plan == BootPlan::settled(now) {
            Ok(())
        } else {
            Err(format!("second install: {record:?} {plan:?}"))
        }
    }

    /// From now on the boot partition holds other bytes than were written.
    pub fn wear_boot_partition_out(&self) {
        self.boot_files.borrow_mut().worn = true;
    }

    /// The plan, the journal's state, for the promises at the end.
    pub fn at_rest(&self, booted: Slot) -> std::result::Result<(BootPlan, State), String> {
        let (record, plan, _) = self.machine(booted).observe().map_err(|e| e.to_string())?;
        Ok((plan, record.state))
    }
}
