//! QEMU killed at moments spread over an update, from the first byte written to the commit.
//!
//! A kill loses what QEMU has not yet submitted to the host; what the drive was told to keep stays. Torn and reordered
//! writes are the simulation's part (`src/sim`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Outcome;
use crate::cloud::Cloud;
use crate::device::{BOOT, Device};
use crate::images::{FIRST_VERSION, Fault, Lab, bundle_url, run};
use crate::machine::Disk;

const MINUTE: Duration = Duration::from_secs(60);
const NEXT: &str = "2.0.0";
/// The last moments are spread over the reboot and the trial, the others over the install.
const AFTER_INSTALL: usize = 6;

/// When the plug is pulled.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Moment {
    /// After this share of the time that an install takes, in thousandths.
    Install(u32),
    /// As soon as the console shows this, and then so many milliseconds later.
    Console(&'static str, u64),
}

struct Sweep<'a> {
    lab: &'a Lab,
    cloud: Cloud,
    /// A device that runs 1.0.0, registered, with its supervisor; every cut starts from a copy on write of it.
    base: PathBuf,
    /// SHA-256 of the root images, and their length in bytes.
    digests: [(String, &'static str); 2],
    image_bytes: u64,
    install_time: Duration,
}

/// Cuts `cuts` times. The error says how often the device did not come back.
pub fn sweep(lab: &Lab, cuts: usize) -> Outcome {
    let sweep = Sweep::prepare(lab)?;
    println!("{:>3}  {:<42}  {:<34}  came back as", "cut", "moment", "the console's last line before it");
    let mut failed = 0;
    for n in 0..cuts {
        let full = n == 0 || n + 3 >= cuts;
        if let Err(e) = sweep.cut(n, moment(n, cuts), full) {
            println!("     FAILED: {e}");
            failed += 1;
        }
    }
    println!(
        "{cuts} cuts, {} came back on a whole slot and took a second install, {failed} failed",
        cuts - failed
    );
    if failed == 0 { Ok(()) } else { Err(format!("{failed} of {cuts} cuts failed")) }
}

fn moment(n: usize, cuts: usize) -> Moment {
    let later = AFTER_INSTALL.min(cuts / 2);
    let during = cuts - later;
    if n < during {
        // Beyond 1000 the install is just over: arming is the last thing it does.
        let share = (n * 1040 + 520) / during;
        return Moment::Install(u32::try_from(share).unwrap_or(u32::MAX));
    }
    match n - during {
        0 => Moment::Console("boots next, 3 tries", 0),
        1 => Moment::Console("twinhull: trial of partition 3, boot 1", 0),
        2 => Moment::Console("twinhull: starting /sbin/init", 0),
        3 => Moment::Console("Take up an update", 500),
        4 => Moment::Console("health: all pass", 0),
        _ => Moment::Console("is healthy and committed", 0),
    }
}

impl<'a> Sweep<'a> {
    fn prepare(lab: &'a Lab) -> Outcome<Self> {
        println!("images and bundle");
        lab.base()?;
        let cloud = lab.cloud()?;
        let first = lab.root(FIRST_VERSION, Fault::None)?;
        let next = lab.root(NEXT, Fault::None)?;
        lab.bundle(&next, NEXT)?;
        let base = lab.disk(&first, &cloud)?;
        let digests = [(digest(&first)?, FIRST_VERSION), (digest(&next)?, NEXT)];
        let image_bytes = std::fs::metadata(&first).map_err(|e| format!("{}: {e}", first.display()))?.len();

        println!("first boot, to a device at rest");
        let mut device = Device::switch_on(&Disk { file: &base, format: "raw" }, &lab.work)?;
        device.booted()?;
        healthy(&mut device)?;
        device.start("poweroff")?;
        device.machine.wait_off(5 * MINUTE)?;

        let mut sweep = Self { lab, cloud, base, digests, image_bytes, install_time: Duration::ZERO };
        println!("one install without a cut, for its time");
        let mut device = sweep.switch_on(true)?;
        let begun = Instant::now();
        device.ask(&sweep.install(), 20 * MINUTE)?;
        sweep.install_time = begun.elapsed();
        Ok(sweep)
    }

    fn install(&self) -> String {
        format!("twinhull install {}", bundle_url(&self.cloud, NEXT))
    }

    /// Boots the device: from a new copy of the base, or the one of the last cut.
    fn switch_on(&self, anew: bool) -> Outcome<Device> {
        let overlay = self.lab.file("cut.qcow2");
        if anew {
            run(Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
                .arg(&self.base)
                .arg(&overlay))?;
        }
        let mut device = Device::switch_on(&Disk { file: &overlay, format: "qcow2" }, &self.lab.work)?;
        device.booted()?;
        Ok(device)
    }

    fn cut(&self, n: usize, moment: Moment, to_the_end: bool) -> Outcome {
        let mut device = self.switch_on(true)?;
        healthy(&mut device)?;
        device.console_skip()?;
        // Its output on the console shows where it was cut.
        device.start(&format!("{} >/dev/ttyS0 2>&1 && sleep 1 && systemctl reboot", self.install()))?;
        match moment {
            Moment::Install(share) => std::thread::sleep(self.install_time * share / 1000),
            Moment::Console(text, later_ms) => {
                if text.starts_with("health:") || text.starts_with("is healthy") {
                    device.booted()?;
                    device.start("journalctl -b -f -n all -o cat -u twinhull-resume >/dev/ttyS0 2>&1")?;
                }
                device.console(text, BOOT)?;
                std::thread::sleep(Duration::from_millis(later_ms));
            }
        }
        let last = device.last_lines(1);
        device.machine.cut()?;

        let mut device = self.switch_on(false)?;
        let status = self.whole(&mut device)?;
        let at = match moment {
            Moment::Install(share) => format!("{:.1} % of the install's time", f64::from(share) / 10.0),
            Moment::Console(text, 0) => format!("at {text:?}"),
            Moment::Console(text, ms) => format!("{ms} ms after {text:?}"),
        };
        let last: String = last.chars().take(34).collect();
        println!("{:>3}  {at:<42}  {last:<34}  {}", n + 1, shown(&status));

        // A trial that survived the cut ends first: nothing may be installed over it.
        let status = device.status_until("the phase to be steady or ready", 12 * MINUTE, |s| {
            s["phase"] == "steady" || s["phase"] == "ready-to-reboot"
        })?;
        let target = if status["os"]["slot"] == "A" { "B" } else { "A" };
        device.ask(&self.install(), 20 * MINUTE)?;
        let armed = device.status()?;
        if armed["boot"]["trial"]["slot"] != target {
            return Err(format!("the second install did not arm slot {target}: {armed}"));
        }
        if to_the_end {
            device.start("systemctl reboot")?;
            device.booted()?;
            let status = device
                .status_until("the commit of the second install", 12 * MINUTE, |s| s["phase"] == "steady")?;
            if status["os"]["slot"] != target || status["os"]["version"] != NEXT {
                return Err(format!("the second install was not committed: {status}"));
            }
            self.whole(&mut device)?;
            println!("     second install committed: {}", shown(&status));
        }
        Ok(())
    }

    /// The device runs a slot whose every byte is that of a version; gives its status.
    fn whole(&self, device: &mut Device) -> Outcome<Value> {
        let status = device.status()?;
        let command =
            format!("head -c {} \"$(findmnt -n -o SOURCE /)\" | sha256sum | cut -d' ' -f1", self.image_bytes);
        let found = device.ask(&command, 10 * MINUTE)?;
        let version = self.digests.iter().find(|(digest, _)| digest == found.trim());
        match version {
            Some((_, version)) if status["os"]["version"] == *version => Ok(status),
            Some(_) | None => {
                Err(format!("the running slot is no whole version ({}): {status}", found.trim()))
            }
        }
    }
}

fn shown(status: &Value) -> String {
    let text = |v: &Value| v.as_str().unwrap_or("?").to_owned();
    format!(
        "{} in {}, {}",
        text(&status["os"]["version"]),
        text(&status["os"]["slot"]),
        text(&status["phase"])
    )
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
        let shares: Vec<u32> =
            all.iter().filter_map(|m| if let Moment::Install(s) = m { Some(*s) } else { None }).collect();
        assert_eq!(shares.len(), 14);
        assert!(shares.is_sorted() && shares.first() < Some(&100) && shares.last() > Some(&950));
        assert_eq!(all.last(), Some(&Moment::Console("is healthy and committed", 0)));
        assert_eq!((0..1).map(|n| moment(n, 1)).collect::<Vec<_>>(), [Moment::Install(520)]);
    }
}
