//! A sealed root: an update whose root is checked by dm-verity is committed; one with a single wrong bit in its slot, in a
//! place where no file system would look, is not mounted, and the old system comes back.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Outcome;
use crate::bootloader::{TRIES, gives_up, other, pid1_starts, trial_boot};
use crate::device::Device;
use crate::images::{FIRST_VERSION, Fault, Lab, run};
use crate::machine::Disk;
use crate::timeline::Timeline;

const MINUTE: Duration = Duration::from_secs(60);
const GOOD: &str = "2.0.0";
const DAMAGED: &str = "3.0.0";
/// Before ext4's superblock, in the same block of the hash tree.
const WRONG_BYTE: u64 = 600;

/// What `bundle create` is told of a hash tree.
pub struct Seal {
    /// Its root hash.
    pub root: String,
    /// Where it lies.
    pub offset: u64,
}

/// Appends a hash tree to a root image, with the real veritysetup.
pub fn append_hash_tree(image: &Path) -> Outcome<Seal> {
    let size = std::fs::metadata(image).map_err(|e| format!("{}: {e}", image.display()))?.len();
    let offset = size.next_multiple_of(4096);
    let said = run(Command::new("veritysetup")
        .args(["format", &format!("--hash-offset={offset}")])
        .arg(format!("--data-blocks={}", size / 4096))
        .args([image, image]))?;
    let root = said.lines().find_map(|l| l.strip_prefix("Root hash:")).map(str::trim).map(str::to_owned);
    Ok(Seal { root: root.ok_or_else(|| format!("veritysetup says no root hash: {said}"))?, offset })
}

/// Plays it.
pub fn play(lab: &Lab) -> Outcome {
    let timeline = Timeline::begin();
    timeline.chapter(&format!("{}: a sealed root", lab.board.name));
    lab.base()?;
    let cloud = lab.cloud()?;
    let disk = lab.disk(&lab.os(FIRST_VERSION, Fault::None)?, &cloud)?;
    let mut device = Device::switch_on(lab, &Disk { file: &disk, format: "raw" })?;
    let outcome = scenario(lab, &cloud, &mut device, &timeline);
    if outcome.is_err() {
        eprintln!("\nThe console's last lines:\n{}\n", device.last_lines(30));
    }
    outcome
}

fn scenario(lab: &Lab, cloud: &crate::cloud::Cloud, device: &mut Device, timeline: &Timeline) -> Outcome {
    pid1_starts(device, 'A')?;
    device.booted()?;
    device.status_until("the first boot to settle", 10 * MINUTE, |s| s["phase"] == "steady")?;
    timeline.note("device", &root_of(device)?);

    timeline.chapter("A sealed update");
    let seal = install(lab, cloud, device, timeline, GOOD)?;
    device.start("systemctl reboot")?;
    trial_boot(lab, device, 'B', 1)?;
    let said = device.console("resin-rootB is sealed, with root hash ", 10 * MINUTE)?;
    if said != format!("{}: /dev/dm-0", seal.root) {
        return Err(format!("expected root hash {} on /dev/dm-0, PID 1 says {said}", seal.root));
    }
    timeline.note("console", &format!("resin-rootB is sealed, with root hash {said}"));
    device.booted()?;
    device.status_until("the commit", 12 * MINUTE, |s| {
        s["phase"] == "steady" && s["os"]["slot"] == "B" && s["os"]["version"] == GOOD
    })?;
    let root = root_of(device)?;
    timeline.note("device", &root);
    if !root.starts_with("/dev/dm-0 / ext4 ro") {
        return Err(format!("expected the root to be /dev/dm-0, it is {root}"));
    }

    timeline.chapter("A sealed update, and one bit of its slot falls over");
    let slot = 'A';
    install(lab, cloud, device, timeline, DAMAGED)?;
    let target = lab.board.layout.place(crate::layout::Role::Root(0)).ok_or("no slot A")?.number;
    let spoil =
        format!("printf x | /bin/busybox dd of=/dev/vda{target} bs=1 seek={WRONG_BYTE} conv=notrunc && sync");
    device.ask(&spoil, MINUTE)?;
    device.start("systemctl reboot")?;
    for n in 1..=TRIES {
        let (source, text) = trial_boot(lab, device, slot, n)?;
        timeline.note(source, &text);
        let reason = device.console("boot failed: ", 15 * MINUTE)?;
        timeline.note("console", &format!("boot failed: {reason}"));
    }
    let (source, text) = gives_up(lab, device, slot)?;
    timeline.note(source, &text);
    device.booted()?;
    let status = device.status_until("the old system to settle", 5 * MINUTE, |s| s["phase"] == "steady")?;
    let last = &status["update"]["last"];
    if status["os"]["slot"] != other(slot).to_string()
        || last["result"] != "rolled-back"
        || !last["reason"].to_string().contains("resin-rootA")
    {
        return Err(format!("expected {DAMAGED} to be rolled back, with PID 1's reason: {status}"));
    }
    timeline.note("status", &last.to_string());
    Ok(())
}

/// The line of /proc/mounts about the root.
fn root_of(device: &mut Device) -> Outcome<String> {
    let said = device.ask("grep ' / ' /proc/mounts", MINUTE)?;
    let last = said.lines().last().unwrap_or_default();
    Ok(last.trim().to_owned())
}

/// Makes a sealed version, and has it installed.
fn install(
    lab: &Lab,
    cloud: &crate::cloud::Cloud,
    device: &mut Device,
    timeline: &Timeline,
    version: &str,
) -> Outcome<Seal> {
    let os = lab.os(version, Fault::None)?;
    let seal = append_hash_tree(&os.root)?;
    let bytes = lab.sealed_bundle(&os, version, &seal)?;
    timeline.note("lab", &format!("bundle {version} made, sealed and signed: {bytes} bytes"));
    device.ask(&format!("twinhull install {}", lab.bundle_address(cloud, version)), 30 * MINUTE)?;
    timeline.note("device", &format!("installed {version}"));
    Ok(seal)
}
