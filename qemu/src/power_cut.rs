//! QEMU killed at moments spread over an update, from the first byte written to the commit.
//!
//! The moments of the install go by its own progress, not by time, so that they are the same on a busy machine. A kill
//! loses what QEMU has not yet submitted to the host; what the drive was told to keep stays. Torn and reordered writes
//! are the simulation's part (`src/sim`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Outcome;
use crate::cloud::Cloud;
use crate::device::{BOOT, Device};
use crate::images::{FIRST_VERSION, Fault, Lab, bundle_url, run};
use crate::layout::Role;
use crate::machine::Disk;

const MINUTE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
const NEXT: &str = "2.0.0";
/// The last moments are spread over arming, the reboot and the trial, the others over the install.
const AFTER_INSTALL: usize = 6;
/// Of the moments of an install, how many of ten lie in the reading back.
const READ_BACK_TENTHS: usize = 3;
/// The slots, in the order of their partitions.
const SLOTS: [&str; 2] = ["A", "B"];

/// When the plug is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// As soon as this many thousandths of the image are written.
    Written(u64),
    /// As soon as this many thousandths of the slot are read back.
    ReadBack(u64),
    /// As soon as the console shows this, and then so many milliseconds later.
    Console(&'static str, u64),
    /// As soon as the journal of `twinhull resume` shows this.
    Journal(&'static str),
}

struct Sweep<'a> {
    lab: &'a Lab,
    cloud: Cloud,
    /// A device that runs 1.0.0, registered, with its supervisor; every cut starts from a copy on write of it.
    base: PathBuf,
    /// SHA-256 of the root images, and their versions.
    digests: [(String, &'static str); 2],
}

/// Cuts `cuts` times. The error says how often the device did not come back.
pub fn sweep(lab: &Lab, cuts: usize) -> Outcome {
    let sweep = Sweep::prepare(lab).inspect_err(|_| show_console(lab))?;
    println!(
        "cut  {:<44}  {:<24}  {:<24}  then",
        "the plug is pulled", "slots at that moment", "came back as"
    );
    let mut failed = 0;
    for n in 0..cuts {
        // A few updates are followed to their commit; of the others it is enough that they are armed.
        let to_the_end = n == 0 || n + 3 >= cuts;
        let moment = moment(n, cuts);
        match sweep.cut(moment, to_the_end) {
            Ok(line) => println!("{:>3}  {:<44}  {line}", n + 1, moment.to_string()),
            Err(e) => {
                failed += 1;
                println!("{:>3}  {:<44}  FAILED: {e}", n + 1, moment.to_string());
                sweep.keep_evidence(n + 1);
            }
        }
    }
    println!("{cuts} cuts: {} came back on a whole slot and took a second install", cuts - failed);
    if failed == 0 { Ok(()) } else { Err(format!("{failed} of {cuts} cuts failed")) }
}

fn moment(n: usize, cuts: usize) -> Moment {
    const LATER: [Moment; AFTER_INSTALL] = [
        Moment::Console("\"event\":\"armed\"", 0),
        Moment::Console("twinhull: trial of partition 3, boot 1", 0),
        Moment::Console("twinhull: starting /sbin/init", 0),
        Moment::Console("twinhull-resume.service", 500),
        Moment::Journal("health: all pass"),
        Moment::Journal("is healthy and committed"),
    ];
    let during = cuts - AFTER_INSTALL.min(cuts / 2);
    if let Some(moment) = n.checked_sub(during).and_then(|later| LATER.get(later)) {
        return *moment;
    }
    let read_back = during * READ_BACK_TENTHS / 10;
    let written = during - read_back;
    let thousandths = |n: usize, of: usize| u64::try_from(n * 1000 / of).unwrap_or(1000);
    match n.checked_sub(written) {
        None => Moment::Written(thousandths(n, written)),
        Some(n) => Moment::ReadBack(thousandths(n, read_back)),
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Written(0) => f.write_str("before the first byte is written"),
            Self::Written(share) => write!(f, "{} % written", share / 10),
            Self::ReadBack(share) => write!(f, "{} % read back", share / 10),
            Self::Console(text, 0) => write!(f, "console: {text}"),
            Self::Console(text, ms) => write!(f, "{ms} ms after console: {text}"),
            Self::Journal(text) => write!(f, "journal: {text}"),
        }
    }
}

impl<'a> Sweep<'a> {
    fn prepare(lab: &'a Lab) -> Outcome<Self> {
        println!("images and bundle");
        lab.base()?;
        let cloud = lab.cloud()?;
        let first = lab.os(FIRST_VERSION, Fault::None)?;
        let next = lab.os(NEXT, Fault::None)?;
        lab.bundle(&next, NEXT)?;
        let base = lab.disk(&first, &cloud)?;
        let digests = [(digest(&first.root)?, FIRST_VERSION), (digest(&next.root)?, NEXT)];

        println!("first boot, to a device at rest");
        let mut device = Device::switch_on(lab, &Disk { file: &base, format: "raw" })?;
        device.booted()?;
        healthy(&mut device)?;
        device.start("poweroff")?;
        device.machine.wait_off(5 * MINUTE)?;
        Ok(Self { lab, cloud, base, digests })
    }

    fn install(&self) -> String {
        format!("twinhull --json install {}", bundle_url(&self.cloud, NEXT))
    }

    fn overlay(&self) -> PathBuf {
        self.lab.file("cut.qcow2")
    }

    /// A fresh copy on write of the device at rest.
    fn renew(&self) -> Outcome {
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(&self.base)
            .arg(self.overlay()))
        .map(drop)
    }

    /// Boots the device, until its network is there.
    fn switch_on(&self) -> Outcome<Device> {
        let mut device = Device::switch_on(self.lab, &Disk { file: &self.overlay(), format: "qcow2" })?;
        device.booted()?;
        self.wait_for_network(&mut device)?;
        Ok(device)
    }

    fn wait_for_network(&self, device: &mut Device) -> Outcome {
        let port = self.cloud.address().port();
        device.ask(&format!("until : </dev/tcp/10.0.2.2/{port}; do sleep 0.3; done"), 3 * MINUTE).map(drop)
    }

    /// One cut and what follows; the line says how it went.
    fn cut(&self, moment: Moment, to_the_end: bool) -> Outcome<String> {
        self.renew()?;
        let mut device = self.switch_on()?;
        if !matches!(moment, Moment::Written(_) | Moment::ReadBack(_)) {
            // The trial is asked for what the old system could do: it should be able to do everything.
            healthy(&mut device)?;
        }
        device.console_shell()?;
        device.console_skip()?;
        // Its output on the console shows how far it is.
        device.start(&format!("{} >/dev/ttyS0 2>&1 && sleep 1 && systemctl reboot", self.install()))?;
        wait_for(&mut device, moment)?;
        device.machine.cut()?;
        let slots = self.slots()?;

        let mut device = self.switch_on()?;
        let status = device.status()?;
        self.check_whole(&status, &slots)?;
        let came_back = shown(&status);
        // A trial that survived the cut ends first: nothing may be installed over it.
        let status = device.status_until("the update to end", 12 * MINUTE, |s| s["phase"] == "steady")?;
        let last = status["update"]["last"]["result"].as_str().unwrap_or("no update").to_owned();

        let target = if status["os"]["slot"] == "A" { "B" } else { "A" };
        device.ask(&self.install(), 20 * MINUTE)?;
        let armed = device.status()?;
        if armed["boot"]["trial"]["slot"] != target {
            return Err(format!("the second install did not arm slot {target}: {armed}"));
        }
        let mut then = format!("{last}; second install armed in {target}");
        if to_the_end {
            device.start("systemctl reboot")?;
            device.booted()?;
            let status = device.status_until("the commit", 12 * MINUTE, |s| s["phase"] == "steady")?;
            device.machine.cut()?;
            if status["os"]["slot"] != target || status["os"]["version"] != NEXT {
                return Err(format!("the second install was not committed: {status}"));
            }
            self.check_whole(&status, &self.slots()?)?;
            then.push_str(" and committed");
        }
        Ok(format!("{:<24}  {came_back:<24}  {then}", described(&slots)))
    }

    /// What the two slots hold, while the machine is off: a version, or `None` if it is no whole one.
    fn slots(&self) -> Outcome<[Option<&'static str>; 2]> {
        let mut versions = [None, None];
        let part = self.lab.file("slot.raw");
        for (n, version) in versions.iter_mut().enumerate() {
            let place = self.lab.board.layout.place(Role::Root(n)).ok_or("the disk lacks a slot")?;
            let slot = format!(
                "driver=raw,offset={},size={},file.driver=qcow2,file.file.driver=file,file.file.filename={}",
                place.start_mib << 20,
                place.len_mib << 20,
                self.overlay().display()
            );
            run(Command::new("qemu-img").args(["convert", "-O", "raw", "--image-opts", &slot]).arg(&part))?;
            let found = digest(&part)?;
            *version = self.digests.iter().find(|(digest, _)| *digest == found).map(|(_, version)| *version);
        }
        Ok(versions)
    }

    /// The slot that runs is whole, and of the version that it says.
    fn check_whole(&self, status: &Value, slots: &[Option<&'static str>; 2]) -> Outcome {
        let slot = SLOTS.iter().position(|name| status["os"]["slot"] == *name);
        match slot.and_then(|n| slots.get(n).copied().flatten()) {
            Some(version) if status["os"]["version"] == version => Ok(()),
            Some(_) | None => Err(format!("it runs a slot that is no whole version: {status}")),
        }
    }

    /// Before the next cut overwrites it.
    fn keep_evidence(&self, cut: usize) {
        show_console(self.lab);
        let console = self.lab.file("console.log");
        for (file, kept) in
            [(console, format!("cut-{cut}.console.log")), (self.overlay(), format!("cut-{cut}.qcow2"))]
        {
            // Only of use with --keep; without the file there is nothing to keep.
            let _ = std::fs::rename(file, self.lab.file(&kept));
        }
    }
}

/// Prints the last lines of the console, if there is one yet.
fn show_console(lab: &Lab) {
    if let Ok(said) = std::fs::read(lab.file("console.log")) {
        let said = String::from_utf8_lossy(&said).replace('\r', "");
        let lines: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
        println!("{}", lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n"));
    }
}

fn wait_for(device: &mut Device, moment: Moment) -> Outcome {
    match moment {
        Moment::Written(0) => device.console("\"event\":\"begin\"", BOOT).map(drop),
        Moment::Written(share) => wait_for_progress(device, "written", share),
        Moment::ReadBack(share) => wait_for_progress(device, "read", share),
        Moment::Console(text, later_ms) => {
            device.console(text, BOOT)?;
            std::thread::sleep(Duration::from_millis(later_ms));
            Ok(())
        }
        Moment::Journal(text) => {
            device.booted()?;
            // The login would take the terminal away from journalctl.
            device.console_shell()?;
            device.start("journalctl -b -f -n all -o cat -u twinhull-resume >/dev/ttyS0 2>&1")?;
            device.console(text, BOOT).map(drop)
        }
    }
}

/// Waits until the install has `share` thousandths of the image behind it, by the `key` of its events.
fn wait_for_progress(device: &mut Device, key: &str, share: u64) -> Outcome {
    let deadline = Instant::now() + BOOT;
    loop {
        let said = device.console_unread()?;
        let armed = said.contains("\"event\":\"armed\"");
        if armed || progress(&said, key).is_some_and(|done| done >= share) {
            return Ok(());
        }
        if !device.machine.runs() || Instant::now() > deadline {
            return Err(format!("the install did not come to {share}/1000 of {key:?}"));
        }
        std::thread::sleep(POLL);
    }
}

/// Thousandths of the image in the newest event that has `key`. The kernel may talk in between.
fn progress(said: &str, key: &str) -> Option<u64> {
    let start = said.rfind(&format!("\"{key}\":"))?;
    let event = said.get(start..)?.lines().next()?;
    let number = |key: &str| {
        let digits = event.split_once(&format!("\"{key}\":"))?.1;
        let end = digits.find(|c: char| !c.is_ascii_digit())?;
        digits.get(..end)?.parse::<u64>().ok()
    };
    number(key)?.checked_mul(1000)?.checked_div(number("image_bytes")?)
}

fn described(slots: &[Option<&'static str>; 2]) -> String {
    let words: Vec<String> = SLOTS
        .iter()
        .zip(slots)
        .map(|(name, version)| format!("{name} {}", version.unwrap_or("not whole")))
        .collect();
    words.join(", ")
}

fn shown(status: &Value) -> String {
    let text = |v: &Value| v.as_str().unwrap_or("?").to_owned();
    let (version, slot) = (text(&status["os"]["version"]), text(&status["os"]["slot"]));
    format!("{version} in {slot}, {}", text(&status["phase"]))
}

fn healthy(device: &mut Device) -> Outcome {
    device
        .status_until("a healthy supervisor", 10 * MINUTE, |s| s["supervisor"]["state"] == "healthy")
        .map(drop)
}

fn digest(file: &Path) -> Outcome<String> {
    let said = run(Command::new("sha256sum").arg(file))?;
    said.split(' ').next().map(str::to_owned).ok_or_else(|| "sha256sum says nothing".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_go_from_the_first_write_to_the_commit() {
        let all: Vec<_> = (0..20).map(|n| moment(n, 20)).collect();
        assert_eq!(all[0], Moment::Written(0));
        assert_eq!(all[9], Moment::Written(900));
        assert_eq!(all[10], Moment::ReadBack(0));
        assert_eq!(all[13], Moment::ReadBack(750));
        assert_eq!(all[14], Moment::Console("\"event\":\"armed\"", 0));
        assert_eq!(all[19], Moment::Journal("is healthy and committed"));
        for cuts in 1..50 {
            let all: Vec<_> = (0..cuts).map(|n| moment(n, cuts)).collect();
            assert!((1..cuts).all(|n| !all[..n].contains(&all[n])), "{cuts} cuts: {all:?}");
        }
    }

    #[test]
    fn progress_is_that_of_the_newest_event() {
        let said = "{\"event\":\"progress\",\"fetched\":9,\"written\":100,\"image_bytes\":400,\"bundle_bytes\":90}\n\
                    {\"event\":\"progress\",\"fetched\":9,\"written\":200,\"image_bytes\":400,\"bundle_bytes\":90}\n";
        assert_eq!(progress(said, "written"), Some(500));
        assert_eq!(progress(said, "read"), None);
        assert_eq!(progress("{\"event\":\"read-back\",\"read\":30,\"image_bytes\":400}", "read"), Some(75));
        assert_eq!(progress("\"written\":1", "written"), None, "a line that is not complete");
    }
}
