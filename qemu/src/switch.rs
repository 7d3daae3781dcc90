//! The A/B switch of a board: an update that is committed, one that panics three times, one that hangs three times.
//!
//! The same scenario for every board; what differs is in `boards`, `machine`, `boot_partition` and `bootloader`.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Outcome;
use crate::bootloader::{TRIES, gives_up, other, pid1_starts, trial_boot};
use crate::cloud::Cloud;
use crate::device::Device;
use crate::images::{FIRST_VERSION, Fault, Lab};
use crate::machine::Disk;
use crate::timeline::Timeline;

const MINUTE: Duration = Duration::from_secs(60);
/// What the first update is, and what all others return to.
const GOOD: &str = "2.0.0";
const PANICS: &str = "3.0.0";
const HANGS: &str = "4.0.0";

/// What was seen on a board.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Boots of the panicking system that the bootloader counted.
    pub tries: usize,
    /// Whether the old system came back from it, and `status` says why.
    pub rollback: bool,
    /// The same for the hanging system.
    pub hang: bool,
    /// Seconds from the first image to the end.
    pub seconds: u64,
}

/// Plays it: what was seen, and what was not, if anything was not.
pub fn play(lab: &Lab) -> (Seen, Outcome) {
    let begun = Instant::now();
    let mut seen = Seen::default();
    let outcome = play_until_the_end(lab, &mut seen);
    seen.seconds = begun.elapsed().as_secs();
    (seen, outcome)
}

fn play_until_the_end(lab: &Lab, seen: &mut Seen) -> Outcome {
    let mut timeline = Timeline::begin();
    let [machine, bootloader, disk_words] = lab.board.words();
    timeline.chapter(&format!("{}: {machine}, {bootloader}, {disk_words}", lab.board.name));
    lab.base()?;
    let cloud = lab.cloud()?;
    let os = lab.os(FIRST_VERSION, Fault::None)?;
    if !lab.board.has_network() {
        // The disk comes with all that will be installed.
        for (version, fault) in [(GOOD, Fault::None), (PANICS, Fault::BrokenInit), (HANGS, Fault::Hang)] {
            if fault != Fault::Hang || lab.board.has_watchdog {
                make_bundle(lab, &timeline, version, fault)?;
            }
        }
    }
    let disk = lab.disk(&os, &cloud)?;
    timeline.note("lab", "disk made: OS 1.0.0 in slot A, slot B empty");

    let mut device = Device::switch_on(lab, &Disk { file: &disk, format: "raw" })?;
    let mut scenario = Scenario { lab, cloud: &cloud, device: &mut device, timeline: &mut timeline, seen };
    let outcome = scenario.play();
    if outcome.is_err() {
        eprintln!("\nThe console's last lines:\n{}\n", device.last_lines(30));
    }
    outcome
}

fn make_bundle(lab: &Lab, timeline: &Timeline, version: &str, fault: Fault) -> Outcome {
    let os = lab.os(version, fault)?;
    let bytes = lab.bundle(&os, version)?;
    timeline.note("lab", &format!("bundle {version} made and signed: {bytes} bytes"));
    Ok(())
}

struct Scenario<'a> {
    lab: &'a Lab,
    cloud: &'a Cloud,
    device: &'a mut Device,
    timeline: &'a mut Timeline,
    seen: &'a mut Seen,
}

impl Scenario<'_> {
    fn play(&mut self) -> Outcome {
        pid1_starts(self.device, 'A')?;
        self.timeline.note("console", "PID 1: slot A");
        self.device.booted()?;
        let ready = self.ready()?;
        self.expect(&ready, 'A', FIRST_VERSION)?;
        self.show_status()?;

        self.timeline.chapter("A good update");
        self.install(GOOD, Fault::None, 'B')?;
        self.note_trial_boot('B', 1)?;
        self.device.booted()?;
        let committed = self.device.status_until("the commit", 12 * MINUTE, |s| {
            s["phase"] == "steady" && s["update"]["last"].to_string().contains(GOOD)
        })?;
        self.expect(&committed, 'B', GOOD)?;
        self.show_status()?;

        self.timeline.chapter("An update that panics in each of its boots");
        self.fails(PANICS, Fault::BrokenInit, "Kernel panic - not syncing:")?;
        self.seen.rollback = true;
        if !self.lab.board.has_watchdog {
            return Ok(());
        }
        self.timeline.chapter("An update that hangs in each of its boots");
        self.fails(HANGS, Fault::Hang, self.lab.board.system.sign_of_hang())?;
        self.seen.hang = true;
        Ok(())
    }

    /// Installs an update into slot A that fails in each of its boots with `sign` on the console, and sees the old
    /// system come back by itself.
    fn fails(&mut self, version: &str, fault: Fault, sign: &str) -> Outcome {
        let slot = 'A';
        self.install(version, fault, slot)?;
        for n in 1..=TRIES {
            self.note_trial_boot(slot, n)?;
            let rest = self.device.console(sign, 15 * MINUTE)?;
            self.timeline.note("console", &format!("{sign}{rest}"));
            self.seen.tries = self.seen.tries.max(n);
        }
        let (source, text) = gives_up(self.lab, self.device, slot)?;
        self.timeline.note(source, &text);
        self.device.booted()?;
        let status =
            self.device.status_until("the old system to settle", 5 * MINUTE, |s| s["phase"] == "steady")?;
        self.expect(&status, other(slot), GOOD)?;
        let last = &status["update"]["last"];
        if last["result"] != "rolled-back" || !last.to_string().contains(version) {
            return Err(format!("expected {version} to be rolled back: {status}"));
        }
        self.show_status()
    }

    fn note_trial_boot(&mut self, slot: char, n: usize) -> Outcome {
        let (source, text) = trial_boot(self.lab, self.device, slot, n)?;
        self.timeline.note(source, &text);
        Ok(())
    }

    /// Installs an update and reboots into it.
    fn install(&mut self, version: &str, fault: Fault, slot: char) -> Outcome {
        if self.lab.board.has_network() {
            make_bundle(self.lab, self.timeline, version, fault)?;
        }
        let command = format!("twinhull install {}", self.lab.bundle_address(self.cloud, version));
        let said = self.device.ask(&command, 30 * MINUTE)?;
        let summary = said.lines().find(|l| l.starts_with("fetched") && l.contains("bytes"));
        let summary = summary.ok_or_else(|| format!("install does not say how many bytes: {said}"))?;
        self.timeline.note("device", &format!("{command}: {summary}"));
        let status = self.device.status()?;
        let trial = &status["boot"]["trial"];
        if status["phase"] != "ready-to-reboot"
            || trial["slot"] != slot.to_string()
            || trial["tries_left"] != TRIES
        {
            return Err(format!("expected slot {slot} to be armed with {TRIES} tries: {status}"));
        }
        self.timeline.note("status", &format!("slot {slot} on trial with {TRIES} tries"));
        self.device.start("systemctl reboot")
    }

    /// The first boot's end: at rest, and with its supervisor if the system has one.
    fn ready(&mut self) -> Outcome<Value> {
        self.device.status_until("the first boot to settle", 10 * MINUTE, |s| {
            s["phase"] == "steady"
                && (!self.lab.board.system.has_engine() || s["supervisor"]["state"] == "healthy")
        })
    }

    /// What runs and boots is that slot, for good.
    fn expect(&self, status: &Value, slot: char, version: &str) -> Outcome {
        let slot = slot.to_string();
        let boot = &status["boot"];
        let settled = boot["primary"] == slot && boot["trial"].is_null();
        match settled && status["os"]["slot"] == slot && status["os"]["version"] == version {
            true => Ok(()),
            false => Err(format!("expected {version} in slot {slot}, and no trial: {status}")),
        }
    }

    /// The lines of `twinhull status` about the switch.
    fn show_status(&mut self) -> Outcome {
        let said = self.device.run("twinhull status", 2 * MINUTE)?.output;
        for word in ["OS ", "Boot plan", "Phase", "Last update"] {
            if let Some(line) = said.lines().find(|l| l.starts_with(word)) {
                self.timeline.note("status", line);
            }
        }
        Ok(())
    }
}
