//! First boot with a preload archive and without a network: the engine has the images, and the supervisor runs from them.

use std::time::Duration;

use serde_json::Value;

use crate::Outcome;
use crate::cloud::Cloud;
use crate::delivered::{self, Delivered};
use crate::device::{BOOT, Device};
use crate::hardware::Setup;
use crate::images::{FIRST_VERSION, Fault, Lab};
use crate::machine::Disk;
use crate::timeline::Timeline;

const MINUTE: Duration = Duration::from_secs(60);

const EXPECTED: [&str; 10] = [
    "no network card",
    "data partition grown",
    "unpacked before the engine",
    "time and bytes",
    "engine lists the images",
    "apps.json in its place",
    "supervisor healthy from the preloaded image",
    "nothing asked of the cloud",
    "no unit failed",
    "nothing unpacked twice",
];

/// Plays it. The error says what was missing.
pub fn play(lab: &Lab) -> Outcome {
    let mut t = Timeline::begin();
    t.chapter("What the device is delivered with");
    lab.base()?;
    let delivered = delivered::make(lab)?;
    t.note("lab", &format!("{} holds {}", delivered.engine, delivered.images.join(", ")));
    let packed = &delivered.packed;
    t.note(
        "lab",
        &format!(
            "twinhull preload pack: {} bytes, {} segments, for {} files that take {} bytes",
            packed["len_bytes"], packed["segments"], packed["files"], packed["bytes"]
        ),
    );
    let cloud = lab.cloud()?;
    let os = lab.os(FIRST_VERSION, Fault::None)?;
    // The engine's program of the lab: it has no command line of the engine's own.
    let tools = lab.directory("delivered/lab")?;
    let program = lab.program("lab-supervisor");
    std::fs::copy(&program, tools.join("lab-supervisor"))
        .map_err(|e| format!("{}: {e}", program.display()))?;
    let disk = lab.disk_named("disk.img", &os, &lab.managed(&cloud), &delivered.data)?;

    // Where a board has one: with the same labels, and nothing may be unpacked there.
    let second = lab.second_disk(&disk)?;
    let second_disk = second.as_ref().map(|s| s.image.clone());
    let setup = Setup { without_network: true, second_disk, ..Setup::default() };
    let mut device = Device::switch_on_with(lab, &Disk { file: &disk, format: "raw" }, &setup)?;
    if let Err(e) = tell(&delivered, &cloud, &mut device, &mut t) {
        eprintln!("\nThe console's last lines:\n{}\n", device.last_lines(30));
        return Err(e);
    }
    if let Some(second) = second {
        second.check_untouched()?;
        t.note("lab", "the second disk, with the same labels, is as it was");
    }
    t.note("lab", &format!("QEMU used {:.0} s of processor time", device.machine.cpu_seconds()?));
    let missing = t.missing(&EXPECTED);
    if !missing.is_empty() {
        return Err(format!("not seen: {}", missing.join("; ")));
    }
    println!("\nAll {} expected events were seen.", EXPECTED.len());
    Ok(())
}

fn tell(delivered: &Delivered, cloud: &Cloud, device: &mut Device, t: &mut Timeline) -> Outcome {
    t.chapter("First boot, without a network");
    let grown = device.console("data partition grown from ", BOOT)?;
    t.reach("data partition grown", "console", &format!("data partition grown from {grown}"));
    device.booted()?;
    let cards = device.ask("ls /sys/class/net | grep -vx -e lo -e docker0 -e 'veth.*' || true", MINUTE)?;
    if !cards.trim().is_empty() {
        return Err(format!("the device has the network cards {cards}"));
    }
    t.reach("no network card", "device", "/sys/class/net has no network card");

    let unit = "journalctl -b -o cat --no-pager -u twinhull-preload";
    let said = wait_for_journal(device, unit, "unpacked /mnt/data/preload/apps.preload")?;
    for line in said.lines().filter(|l| l.contains("unpacked") || l.ends_with(" 100 %")) {
        t.note("journal", line);
    }
    let status = healthy(device)?;
    let shown = device.ask(
        "systemctl show twinhull-preload docker -p ExecMainStartTimestampMonotonic,ExecMainExitTimestampMonotonic --value",
        MINUTE,
    )?;
    let [begun, ended, engine] = times(&shown)?;
    if engine < ended {
        return Err(format!("the engine was started before the archive was unpacked: {shown}"));
    }
    t.reach(
        "unpacked before the engine",
        "systemd",
        "docker.service was started after twinhull-preload.service ended",
    );
    let seconds = (ended - begun) as f64 / 1e6;
    let (archive, unpacked) = (number(&delivered.packed["len_bytes"])?, number(&delivered.packed["bytes"])?);
    t.reach(
        "time and bytes",
        "systemd",
        &format!(
            "twinhull-preload.service took {seconds:.1} s: {archive} bytes read, {unpacked} bytes on disk ({:.1} MB/s)",
            unpacked as f64 / 1e6 / seconds
        ),
    );

    let images = "DOCKER_SOCKET=/run/docker.sock /mnt/data/lab/lab-supervisor images";
    let listed = device.ask(images, MINUTE)?;
    let mut names: Vec<&str> = listed.lines().filter_map(|l| l.split(' ').next()).collect();
    names.sort_unstable();
    if names != delivered.images {
        return Err(format!("the engine lists {names:?}, expected {:?}", delivered.images));
    }
    for line in listed.lines() {
        t.note("engine", line);
    }
    t.reach("engine lists the images", "engine", &format!("{} images, as on the build host", names.len()));
    let apps = std::fs::read_to_string(&delivered.apps).map_err(|e| format!("apps.json: {e}"))?;
    if device.ask("cat /mnt/data/apps.json", MINUTE)? != apps {
        return Err("/mnt/data/apps.json is not what was packed".into());
    }
    t.reach("apps.json in its place", "device", "/mnt/data/apps.json is what was packed");

    let left =
        device.ask("ls -A /mnt/data/preload; ls -d /mnt/data/supervisor 2>/dev/null || true", MINUTE)?;
    if !left.trim().is_empty() {
        return Err(format!("expected no archive to be left on the data partition: {left}"));
    }
    let container = &status["supervisor"]["container"];
    let watcher = device.ask("journalctl -b -o cat --no-pager -u twinhull-supervisor", MINUTE)?;
    if container["image"] != "lab/supervisor:1.0.0" || watcher.contains("loaded") || watcher.contains("pull")
    {
        return Err(format!("not from the preloaded image: {container}: {watcher}"));
    }
    t.reach(
        "supervisor healthy from the preloaded image",
        "status",
        &format!("balena_supervisor of lab/supervisor:1.0.0: {}", status["supervisor"]["detail"]),
    );
    let provision = &status["provision"];
    t.note("status", &format!("registered: {}", provision["registered"]));
    let asked = cloud.log().len();
    if asked > 0 || provision["registered"] != false {
        return Err(format!("the cloud was asked {asked} times; {provision}"));
    }
    t.reach("nothing asked of the cloud", "cloud", "0 requests");
    device.no_unit_failed()?;
    t.reach("no unit failed", "systemd", "running, no unit failed");

    t.chapter("Second boot");
    let id = container["id"].clone();
    device.start("systemctl reboot")?;
    device.booted()?;
    let again = healthy(device)?;
    let said = device.ask(unit, MINUTE)?;
    if !said.contains("nothing to unpack")
        || said.contains("unpacked")
        || again["supervisor"]["container"]["id"] != id
    {
        return Err(format!("the second boot is to find everything done: {said}; {again}"));
    }
    t.reach(
        "nothing unpacked twice",
        "journal",
        &format!("twinhull-preload.service had nothing to do; supervisor {}", again["supervisor"]["detail"]),
    );
    Ok(())
}

fn healthy(device: &mut Device) -> Outcome<Value> {
    device.status_until("a healthy supervisor", 10 * MINUTE, |s| s["supervisor"]["state"] == "healthy")
}

/// Asks for a unit's journal until it has `text`.
fn wait_for_journal(device: &mut Device, command: &str, text: &str) -> Outcome<String> {
    let deadline = std::time::Instant::now() + BOOT;
    loop {
        let said = device.ask(command, MINUTE)?;
        if said.contains(text) {
            return Ok(said);
        }
        if std::time::Instant::now() > deadline {
            return Err(format!("waited in vain for {text:?}; the journal has: {said}"));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Begin and end of the first unit, begin of the second, in microseconds since the boot.
fn times(shown: &str) -> Outcome<[u64; 3]> {
    let all: Vec<u64> = shown.lines().filter_map(|l| l.trim().parse().ok()).collect();
    match all.as_slice() {
        [begun, ended, engine, ..] if 0 < *begun && begun < ended => Ok([*begun, *ended, *engine]),
        _ => Err(format!("systemctl shows no times: {shown}")),
    }
}

fn number(value: &Value) -> Outcome<u64> {
    value.as_u64().ok_or_else(|| format!("preload pack says {value} where a number is expected"))
}
