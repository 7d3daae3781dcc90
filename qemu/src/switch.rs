//! The A/B switch of a board: an update that is committed though the power fails twice and somebody reboots it, one that panics
//! three times, one that hangs three times.
//!
//! The same scenario for every board; what differs is in `boards`, `machine`, `boot_partition` and `bootloader`.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Outcome;
use crate::bootloader::{TRIES, gives_up, other, pid1_starts, trial_boot};
use crate::cloud::Cloud;
use crate::device::Device;
use crate::hardware::Setup;
use crate::images::{FIRST_VERSION, Fault, Lab};
use crate::machine::Disk;
use crate::timeline::Timeline;

const MINUTE: Duration = Duration::from_secs(60);
/// What the first update is, and what all others return to.
const GOOD: &str = "2.0.0";
const PANICS: &str = "3.0.0";
const HANGS: &str = "4.0.0";
/// While this file is there, one of the health checks fails.
const HOLD: &str = "/mnt/state/lab-hold";

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
    let second = lab.second_disk(&disk)?;

    let setup = Setup { second_disk: second.as_ref().map(|s| s.image.clone()), ..Setup::default() };
    let mut device = Device::switch_on_with(lab, &Disk { file: &disk, format: "raw" }, &setup)?;
    let mut scenario = Scenario { lab, cloud: &cloud, device: &mut device, timeline: &mut timeline, seen };
    let outcome = scenario.play();
    if outcome.is_err() {
        eprintln!("\nThe console's last lines:\n{}\n", device.last_lines(30));
    }
    outcome?;
    if let Some(second) = second {
        second.check_untouched()?;
        timeline.note("lab", "the second disk, with the same labels, is as it was");
    }
    Ok(())
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
        self.facts()?;
        self.show_status(&settled('A', FIRST_VERSION))?;

        self.timeline.chapter("A good update, with two power cuts and a reboot in its trial");
        self.succeeds(GOOD, 'B')?;

        self.timeline.chapter("An update that panics in each of its boots");
        let words = if self.lab.board.has_pstore { "its last boot failed: kernel panic: " } else { "" };
        self.fails(PANICS, Fault::BrokenInit, "Kernel panic - not syncing:", words)?;
        self.seen.rollback = true;
        if !self.lab.board.has_watchdog {
            return Ok(());
        }
        self.timeline.chapter("An update that hangs in each of its boots");
        let words = "its last boot failed: it hung and the watchdog reset the machine";
        self.fails(HANGS, Fault::Hang, self.lab.board.system.sign_of_hang(), words)?;
        self.seen.hang = true;
        Ok(())
    }

    /// Installs an update that is committed in the end. What counts as a failed boot, and what does not: the power is cut
    /// early in the first boot, and late in the second; the third is rebooted in order, and has its try back.
    fn succeeds(&mut self, version: &str, slot: char) -> Outcome {
        self.device.ask(&format!("touch {HOLD} && sync"), MINUTE)?;
        self.install(version, Fault::None, slot)?;
        self.note_trial_boot(slot, 1)?;
        self.power_cut("early in this boot")?;
        self.note_trial_boot(slot, 2)?;
        self.on_trial(version, slot, 1)?;
        self.power_cut("when the system was up")?;
        self.note_trial_boot(slot, 3)?;
        let status = self.on_trial(version, slot, 0)?;
        let failure = &status["update"]["failure"];
        if failure != "power was lost, or somebody reset the machine" {
            return Err(format!("expected to be told of the power cut, not of {failure}: {status}"));
        }
        self.timeline.note("status", &format!("an earlier boot failed: {failure}"));
        self.device.start("systemctl reboot")?;
        self.timeline.note("lab", "this boot is asked to end: its try is given back");
        self.note_trial_boot(slot, 3)?;
        self.on_trial(version, slot, 0)?;
        self.device.ask(&format!("rm {HOLD} && sync"), MINUTE)?;
        let committed = self.device.status_until("the commit", 12 * MINUTE, |s| {
            s["phase"] == "steady" && s["update"]["last"].to_string().contains(version)
        })?;
        self.expect(&committed, slot, version)?;
        let last = format!("Last update {version} of slot {slot}: committed: passed its health checks");
        self.show_status(&[&settled(slot, version)[..], &[last]].concat())
    }

    fn power_cut(&mut self, when: &str) -> Outcome {
        self.device.power_cut()?;
        self.timeline.note("lab", &format!("the power is cut {when}, and comes back"));
        Ok(())
    }

    /// Waits until the new system is up, and sees that it is on trial with so many tries left.
    fn on_trial(&mut self, version: &str, slot: char, tries_left: usize) -> Outcome<Value> {
        self.device.booted()?;
        let status = self.device.status()?;
        let trial = &status["boot"]["trial"];
        let os = &status["os"];
        if status["phase"] != "on-trial"
            || (&os["version"], &os["slot"]) != (&version.into(), &slot.to_string().into())
            || (&trial["slot"], &trial["tries_left"]) != (&slot.to_string().into(), &tries_left.into())
        {
            return Err(format!(
                "expected {version} on trial in slot {slot}, {tries_left} tries left: {status}"
            ));
        }
        self.timeline
            .note("status", &format!("{version} runs on trial, {tries_left} tries left after this one"));
        Ok(status)
    }

    /// What the device says that it is, and where its partitions are.
    fn facts(&mut self) -> Outcome {
        let (board, status) = (self.lab.board, self.device.status()?);
        let device = &status["device"];
        if device["type"] != board.device_type || device["arch"] != board.arch() {
            return Err(format!("expected {} of {}: {status}", board.device_type, board.arch()));
        }
        let root = self.device.ask("cat /run/twinhull/root-device", MINUTE)?.trim().to_owned();
        let disk = root.trim_end_matches(|c: char| c.is_ascii_digit());
        let mounts = self.device.ask("cat /proc/mounts", MINUTE)?;
        for place in ["/mnt/boot", "/mnt/state", "/mnt/data"] {
            let line = mounts.lines().find(|l| l.split(' ').nth(1) == Some(place)).unwrap_or_default();
            if !line.starts_with(&format!("/dev/{disk}")) {
                return Err(format!("the root is {root}, but on {place} there is {line:?}"));
            }
        }
        self.timeline.note(
            "device",
            &format!(
                "{} of {}; boot, state and data are on the disk of {root}",
                board.device_type,
                board.arch()
            ),
        );
        Ok(())
    }

    /// Installs an update into slot A that fails in each of its boots with `sign` on the console, and sees the old
    /// system come back by itself, and give a reason with `words`.
    fn fails(&mut self, version: &str, fault: Fault, sign: &str, words: &str) -> Outcome {
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
        let reason = last["reason"].to_string();
        if !reason.contains(words) {
            return Err(format!("expected the reason to say {words:?}: {reason}"));
        }
        let last =
            format!("Last update {version} of slot {slot}: rolled back: slot {slot} used up its tries");
        self.show_status(&[&settled(other(slot), GOOD)[..], &[last]].concat())
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

    /// The lines of `twinhull status` about the switch, which must begin in these words.
    fn show_status(&mut self, expected: &[String]) -> Outcome {
        let said = self.device.run("twinhull status", 2 * MINUTE)?.output;
        for words in expected {
            let words = words.replace(CHOOSER, self.lab.board.bootloader.chooser());
            let line = said.lines().find(|l| l.starts_with(&words));
            let line = line.ok_or_else(|| format!("expected `twinhull status` to say {words:?}: {said}"))?;
            self.timeline.note("status", line);
        }
        Ok(())
    }
}

/// Stands for the bootloader's name.
const CHOOSER: &str = "CHOOSER";

/// What `twinhull status` says of a device at rest.
fn settled(slot: char, version: &str) -> [String; 3] {
    [
        format!("OS          {version} in slot {slot}"),
        format!("Boot plan   {CHOOSER}: primary slot {slot}"),
        "Phase       steady: no update is under way".into(),
    ]
}
