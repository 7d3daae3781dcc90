//! An installer's medium and a blank internal disk: power cuts while it is written, a retry, and the device's own first boot.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::boards::{NUC_FLASHED, NUC_INSTALLER};
use crate::cloud::Cloud;
use crate::demo;
use crate::device::{BOOT, Device};
use crate::hardware::Setup;
use crate::images::{FIRST_SUPERVISOR, FIRST_VERSION, Fault, Lab, run};
use crate::machine::Disk;
use crate::timeline::Timeline;

const MINUTE: Duration = Duration::from_secs(60);
/// Larger than the image: the copy of the table must find its way to the end.
const INTERNAL_MIB: u64 = 2048;
/// The first cut comes when so many bytes are on the internal disk.
const PARTLY_WRITTEN: u64 = 64 << 20;
/// What makes a disk bootable lies in so many bytes.
const HEAD_LEN: usize = 1024 * 1024;

const EXPECTED: [&str; 19] = [
    "the medium is not chosen",
    "the internal disk is chosen",
    "cut while writing",
    "not bootable after the first cut",
    "cut while reading back",
    "not bootable after the second cut",
    "the retry writes all of it",
    "settings carried over",
    "boot entry made",
    "flashed and switched off",
    "installer registered nothing",
    "first boot from slot A",
    "data partition grown",
    "registered",
    "provisioning key gone",
    "supervisor healthy",
    "no unit failed",
    "registered once",
    "the installer's section is gone",
];

/// Plays it. The error says what was missing.
pub fn play(lab: &Lab) -> Outcome {
    let mut t = Timeline::begin();
    t.chapter("Images");
    lab.base()?;
    let cloud = lab.cloud()?;
    let os = lab.os(FIRST_VERSION, Fault::None)?;
    let data = lab.directory("data")?;
    lab.supervisor_archive(FIRST_SUPERVISOR, &lab.directory("data/supervisor")?.join("supervisor.tar"))?;
    let flashed = lab.for_board(&NUC_FLASHED);
    let image = flashed.disk_named("image.img", &os, &lab.unmanaged(), &data)?;
    let delivered = lab.directory("installer-data")?;
    let bytes = lab.disk_bundle(&image, FIRST_VERSION, &delivered.join("disk.bundle"))?;
    std::fs::remove_file(&image).map_err(|e| format!("{}: {e}", image.display()))?;
    t.note(
        "lab",
        &format!(
            "disk.bundle made and signed: {bytes} bytes for a disk of {} MiB",
            NUC_FLASHED.layout.disk_mib
        ),
    );
    let mut config = lab.managed(&cloud);
    config["installer"] = serde_json::json!({ "target_devices": "nvme?n?" });
    let installer = lab.for_board(&NUC_INSTALLER);
    let medium = installer.disk_named("installer.img", &os, &config, &delivered)?;
    let internal = lab.file("internal.img");
    blank(&internal)?;
    t.note("lab", &format!("a blank internal disk of {INTERNAL_MIB} MiB, serial number internal"));

    let scenario =
        Scenario { lab, installer: &installer, medium: &medium, internal: &internal, cloud: &cloud };
    scenario.tell(&mut t)?;
    let missing = t.missing(&EXPECTED);
    if !missing.is_empty() {
        return Err(format!("not seen: {}", missing.join("; ")));
    }
    println!("\nAll {} expected events were seen.", EXPECTED.len());
    Ok(())
}

struct Scenario<'a> {
    lab: &'a Lab,
    installer: &'a Lab,
    medium: &'a Path,
    internal: &'a PathBuf,
    cloud: &'a Cloud,
}

impl Scenario<'_> {
    fn tell(&self, t: &mut Timeline) -> Outcome {
        t.chapter("The installer, the first time");
        let mut device = self.start_installer()?;
        self.and_show(&mut device, |device| self.until_partly_written(device, t))?;
        device.machine.cut()?;
        self.is_not_bootable(t, "not bootable after the first cut")?;

        t.chapter("The installer, the second time");
        let mut device = self.start_installer()?;
        self.and_show(&mut device, |device| self.until_read_back(device, t))?;
        device.machine.cut()?;
        self.is_not_bootable(t, "not bootable after the second cut")?;

        t.chapter("The installer, the third time");
        let mut device = self.start_installer()?;
        self.and_show(&mut device, |device| self.write_all(device, t))?;
        drop(device);

        t.chapter("The device, without the medium");
        let mut device = Device::switch_on(self.lab, &Disk { file: self.internal, format: "raw" })?;
        self.and_show(&mut device, |device| self.first_boot(device, t))
    }

    fn and_show<T>(&self, device: &mut Device, tell: impl FnOnce(&mut Device) -> Outcome<T>) -> Outcome<T> {
        tell(device).inspect_err(|_| eprintln!("\nThe console's last lines:\n{}\n", device.last_lines(30)))
    }

    fn start_installer(&self) -> Outcome<Device> {
        let setup = Setup { second_disk: Some(self.internal.clone()), ..Setup::default() };
        Device::switch_on_with(self.installer, &Disk { file: self.medium, format: "raw" }, &setup)
    }

    fn until_partly_written(&self, device: &mut Device, t: &mut Timeline) -> Outcome {
        device.console("twinhull: booting partition 2", BOOT)?;
        let own = "serial s0: this system runs from it";
        device.console(own, BOOT)?;
        t.reach("the medium is not chosen", "console", own);
        let target = chosen(device)?;
        t.reach("the internal disk is chosen", "console", &format!("target: {target}"));
        let deadline = Instant::now() + BOOT;
        while self.allocated()? < PARTLY_WRITTEN {
            if Instant::now() > deadline || !device.machine.runs() {
                return Err(format!("the internal disk has {} bytes only", self.allocated()?));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        t.reach("cut while writing", "lab", &format!("the plug is pulled after {} bytes", self.allocated()?));
        Ok(())
    }

    fn until_read_back(&self, device: &mut Device, t: &mut Timeline) -> Outcome {
        let text = format!("reading back {}: ", name(&chosen(device)?));
        let share = device.console(&text, BOOT)?;
        t.reach("cut while reading back", "lab", &format!("the plug is pulled: {text}{share}"));
        Ok(())
    }

    /// What was written to the internal disk so far, in bytes.
    fn allocated(&self) -> Outcome<u64> {
        let facts = std::fs::metadata(self.internal).map_err(|e| format!("internal.img: {e}"))?;
        Ok(facts.blocks() * 512)
    }

    /// Something was written to it, and nothing of it makes a computer start.
    fn is_not_bootable(&self, t: &mut Timeline, name: &'static str) -> Outcome {
        let file = std::fs::File::open(self.internal).map_err(|e| format!("internal.img: {e}"))?;
        let mut head = vec![0; HEAD_LEN];
        file.read_exact_at(&mut head, 0).map_err(|e| format!("internal.img: {e}"))?;
        let written = self.allocated()?;
        if head.iter().any(|b| *b != 0) || written < PARTLY_WRITTEN {
            return Err(format!("expected a disk without a beginning, {written} bytes written"));
        }
        t.note("lab", &format!("{written} bytes are allocated on the internal disk, its first MiB is empty"));
        let setup = Setup { without_network: true, ..Setup::default() };
        let mut device =
            Device::switch_on_with(self.lab, &Disk { file: self.internal, format: "raw" }, &setup)?;
        // What this firmware does when no disk has anything to start.
        device.console("UEFI Interactive Shell", 5 * MINUTE)?;
        let said = device.last_lines(1000);
        if said.contains("twinhull") || !said.contains("BdsDxe: failed to load") {
            return Err(format!("the internal disk starts something: {said}"));
        }
        t.reach(name, "console", "the firmware, alone with the internal disk, finds nothing to start");
        device.machine.cut()
    }

    fn write_all(&self, device: &mut Device, t: &mut Timeline) -> Outcome {
        let target = chosen(device)?;
        let (name, all) = (name(&target), format!("reading back {}: 100 %", name(&target)));
        device.console(&all, BOOT)?;
        t.reach("the retry writes all of it", "console", &all);
        let carried = device.console("carried over: ", BOOT)?;
        t.reach("settings carried over", "console", &format!("carried over: {carried}"));
        let entry = device.console("boot entry ", BOOT)?;
        t.reach("boot entry made", "console", &format!("boot entry {entry}"));
        device.console(&format!("/dev/{name} is written; take the installer's medium out"), BOOT)?;
        device.console("reboot: Power down", BOOT)?;
        device.machine.wait_off(2 * MINUTE)?;
        t.reach(
            "flashed and switched off",
            "console",
            &format!("/dev/{name} is written; reboot: Power down"),
        );
        let asked = self.cloud.log().len();
        if asked > 0 {
            return Err(format!("the installer asked the cloud {asked} times"));
        }
        t.reach("installer registered nothing", "cloud", "0 requests until now");
        Ok(())
    }

    fn first_boot(&self, device: &mut Device, t: &mut Timeline) -> Outcome {
        demo::first_boot(self.cloud, device, t)?;
        let disk = device.ask("cat /sys/block/nvme0n1/device/serial; ls -d /sys/block/nvme*", MINUTE)?;
        t.note(
            "device",
            &format!("its only disk: {}", disk.split_whitespace().collect::<Vec<_>>().join(", ")),
        );
        let devices = self.cloud.devices();
        let asked = self.cloud.log().iter().filter(|e| e["path"] == "/device/register").count();
        if devices.len() != 1 || asked != 1 {
            return Err(format!("{} devices after {asked} registrations", devices.len()));
        }
        t.reach("registered once", "cloud", "1 device, 1 POST /device/register");
        let config = device.ask("cat /mnt/boot/config.json", MINUTE)?;
        if config.contains("\"installer\"") {
            return Err("config.json still has the section installer".into());
        }
        t.reach("the installer's section is gone", "device", "config.json has no section installer");
        t.note(
            "lab",
            &format!("this boot took {:.0} s of QEMU's processor time", device.machine.cpu_seconds()?),
        );
        device.start("poweroff")?;
        device.machine.wait_off(5 * MINUTE)?;
        // The table's copy moved to the end of the larger disk.
        let said = run(Command::new("sfdisk").arg("--verify").arg(self.internal))?;
        match said.lines().find(|l| l.contains("No errors detected")) {
            Some(line) => t.note("sfdisk", line),
            None => return Err(format!("sfdisk --verify: {said}")),
        }
        Ok(())
    }
}

/// What the installer says of the disk that it chose.
fn chosen(device: &mut Device) -> Outcome<String> {
    let target = device.console("target: ", BOOT)?;
    match target.starts_with("/dev/") && target.contains("serial internal") {
        true => Ok(target),
        false => Err(format!("expected the disk with the serial number internal: {target}")),
    }
}

/// The kernel's name of it: which disk is found first is not certain.
fn name(target: &str) -> &str {
    let name = target.split(',').next().unwrap_or("");
    name.strip_prefix("/dev/").unwrap_or(name)
}

fn blank(disk: &Path) -> Outcome {
    std::fs::File::create(disk)
        .and_then(|f| f.set_len(INTERNAL_MIB << 20))
        .map_err(|e| format!("{}: {e}", disk.display()))
}
