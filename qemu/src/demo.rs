//! The main job, end to end: every line comes from the device's console, its status, its engine or the cloud's log.

use std::time::Duration;

use serde_json::Value;

use crate::Outcome;
use crate::cloud::Cloud;
use crate::device::{BOOT, Device};
use crate::images::{FIRST_VERSION, Fault, Lab, bundle_url};
use crate::machine::Disk;
use crate::timeline::Timeline;

const MINUTE: Duration = Duration::from_secs(60);
/// What all of QEMU may use of the processor.
const CPU_BUDGET_S: f64 = 900.0;

/// What is installed, in this order.
const UPDATES: [(&str, Fault); 3] =
    [("2.0.0", Fault::None), ("3.0.0", Fault::BrokenInit), ("4.0.0", Fault::NoEngine)];

/// What must be seen; a line that is missing fails the demonstration.
const EXPECTED: [&str; 25] = [
    "first boot from slot A",
    "data partition grown",
    "registered",
    "provisioning key gone",
    "engine ready",
    "supervisor healthy",
    "supervisor reports to the cloud",
    "no unit failed",
    "2.0.0 installed into B",
    "2.0.0 on trial with 3 tries",
    "2.0.0 boots from B",
    "2.0.0 healthy",
    "2.0.0 committed",
    "no unit failed after the update",
    "3.0.0 installed into A",
    "3.0.0 fails its first boot",
    "3.0.0 fails its second boot",
    "3.0.0 fails its third boot",
    "3.0.0 given up by the bootloader",
    "3.0.0 rolled back, with the reason",
    "4.0.0 installed into A",
    "4.0.0 boots from A",
    "4.0.0 rolled back, with the check's output",
    "supervisor healthy at the end",
    "within the processor budget",
];

/// Plays it. The error says what was missing.
pub fn play(lab: &Lab) -> Outcome {
    let mut timeline = Timeline::begin();
    timeline.chapter("Images");
    timeline.note("lab", "base: systemd, dbus, Docker and a kernel from Debian packages");
    lab.base()?;
    let cloud = lab.cloud()?;
    let os = lab.os(FIRST_VERSION, Fault::None)?;
    let disk = lab.disk(&os, &cloud)?;
    timeline.note("lab", "disk of 3 GiB: OS 1.0.0 in slot A, slot B empty, data partition of 160 MiB");
    for (version, fault) in UPDATES {
        let bytes = lab.bundle(&lab.os(version, fault)?, version)?;
        timeline.note("lab", &format!("bundle {version} made and signed with minisign's key: {bytes} bytes"));
    }

    let disk = Disk { file: &disk, format: "raw" };
    let mut device = Device::switch_on(lab, &disk)?;
    let told = tell(&cloud, &mut device, &mut timeline);
    if let Err(e) = told {
        eprintln!("\nThe console's last lines:\n{}\n", device.last_lines(30));
        return Err(e);
    }
    let cpu = device.machine.cpu_seconds()?;
    let text = format!("QEMU used {cpu:.0} s of processor time, of at most {CPU_BUDGET_S:.0} s");
    if cpu > CPU_BUDGET_S {
        timeline.note("lab", &text);
    } else {
        timeline.reach("within the processor budget", "lab", &text);
    }
    let missing = timeline.missing(&EXPECTED);
    if !missing.is_empty() {
        return Err(format!("not seen: {}", missing.join("; ")));
    }
    println!("\nAll {} expected events were seen.", EXPECTED.len());
    Ok(())
}

fn tell(cloud: &Cloud, device: &mut Device, t: &mut Timeline) -> Outcome {
    t.chapter("First boot");
    first_boot(cloud, device, t)?;

    t.chapter("A good update");
    install(device, t, cloud, "2.0.0", "B", "2.0.0 installed into B")?;
    t.reach("2.0.0 on trial with 3 tries", "status", "slot A is the primary, slot B on trial with 3 tries");
    device.start("systemctl reboot")?;
    trial_boot(device, t, 3, 1)?;
    booted_slot(device, t, "2.0.0 boots from B", "B", "2.0.0")?;
    let last = |s: &Value| s["update"]["last"].to_string();
    let status = device
        .status_until("the commit", 8 * MINUTE, |s| s["phase"] == "steady" && last(s).contains("2.0.0"))?;
    let journal = device.ask("journalctl -b -u twinhull-resume -o cat --no-pager", MINUTE)?;
    for line in journal.lines().filter(|l| l.starts_with("health: ")) {
        t.note("journal", line);
    }
    if !journal.contains("health: all pass") {
        return Err(format!("the journal does not say that all checks pass: {journal}"));
    }
    t.reach("2.0.0 healthy", "status", &format!("supervisor {}", text(&status["supervisor"]["detail"])));
    if status["boot"]["primary"] != "B" || !status["boot"]["trial"].is_null() {
        return Err(format!("not committed: {status}"));
    }
    t.reach("2.0.0 committed", "status", &last_update(device)?);
    device.no_unit_failed()?;
    t.reach("no unit failed after the update", "systemd", "running, no unit failed");

    t.chapter("An update whose init is broken");
    install(device, t, cloud, "3.0.0", "A", "3.0.0 installed into A")?;
    device.start("systemctl reboot")?;
    for (n, name) in
        ["3.0.0 fails its first boot", "3.0.0 fails its second boot", "3.0.0 fails its third boot"]
            .into_iter()
            .enumerate()
    {
        trial_boot(device, t, 2, n + 1)?;
        let why = device.console("Kernel panic - not syncing:", BOOT)?;
        t.reach(name, "console", &format!("Kernel panic:{why}"));
    }
    device.console("partition 2 used up its tries, back to partition 3", BOOT)?;
    t.reach(
        "3.0.0 given up by the bootloader",
        "console",
        "GRUB: partition 2 used up its tries, back to partition 3",
    );
    device.booted()?;
    rolled_back(device, t, "3.0.0 rolled back, with the reason", "3.0.0", &["used up its tries"])?;

    t.chapter("An update whose container engine does not start");
    install(device, t, cloud, "4.0.0", "A", "4.0.0 installed into A")?;
    device.start("systemctl reboot")?;
    trial_boot(device, t, 2, 1)?;
    booted_slot(device, t, "4.0.0 boots from A", "A", "4.0.0")?;
    t.note("lab", "the health checks wait for the engine until their deadline");
    device.console("twinhull: booting partition 3", 15 * MINUTE)?;
    t.note("console", "GRUB boots partition 3 again");
    device.booted()?;
    rolled_back(
        device,
        t,
        "4.0.0 rolled back, with the check's output",
        "4.0.0",
        &["docker.service", "stroage-driver"],
    )?;
    let status =
        device.status_until("a healthy supervisor", 5 * MINUTE, |s| s["supervisor"]["state"] == "healthy")?;
    t.reach(
        "supervisor healthy at the end",
        "status",
        &format!(
            "OS {} in slot {}, supervisor {}",
            text(&status["os"]["version"]),
            text(&status["os"]["slot"]),
            text(&status["supervisor"]["detail"])
        ),
    );
    Ok(())
}

/// A device that starts for the first time, until its supervisor reports to the cloud.
pub fn first_boot(cloud: &Cloud, device: &mut Device, t: &mut Timeline) -> Outcome {
    device.console("twinhull: booting partition 2", BOOT)?;
    let slot = device.console("is /dev/nvme0n1p2: ", BOOT)?;
    if slot != "slot A" {
        return Err(format!("expected slot A, the console says {slot:?}"));
    }
    t.reach(
        "first boot from slot A",
        "console",
        "GRUB boots partition 2; PID 1: the root is /dev/nvme0n1p2, slot A",
    );
    let grown = device.console("data partition grown from ", BOOT)?;
    t.reach("data partition grown", "console", &format!("data partition grown from {grown}"));
    let init = device.console("twinhull: starting /sbin/init", BOOT)?;
    t.note("console", &format!("PID 1 hands over to /sbin/init{init}"));
    device.booted()?;

    let status =
        device.status_until("the registration", 5 * MINUTE, |s| s["provision"]["registered"] == true)?;
    let register = |e: &Value| e["path"] == "/device/register";
    let log = cloud.log();
    let answers: Vec<String> = log.iter().filter(|e| register(e)).map(|e| e["status"].to_string()).collect();
    if answers.last().map(String::as_str) != Some("201") {
        return Err(format!("POST /device/register was answered with {answers:?}"));
    }
    let id = status["provision"]["device_id"].to_string();
    t.reach("registered", "cloud", &format!("POST /device/register: 201, device {id}"));
    let config = device.ask("cat /mnt/boot/config.json", MINUTE)?;
    let config: Value = serde_json::from_str(&config).map_err(|e| format!("config.json: {e}"))?;
    let keys: Vec<&str> =
        config.as_object().map(|o| o.keys().map(String::as_str).collect()).unwrap_or_default();
    if keys.contains(&"apiKey") || !keys.contains(&"deviceApiKey") || !keys.contains(&"registered_at") {
        return Err(format!("config.json has the keys {keys:?}"));
    }
    t.reach(
        "provisioning key gone",
        "device",
        &format!("config.json has {}, and no apiKey", keys.join(", ")),
    );

    let status =
        device.status_until("the supervisor", 8 * MINUTE, |s| s["supervisor"]["state"] == "healthy")?;
    let engine = &status["supervisor"]["engine"];
    t.reach(
        "engine ready",
        "engine",
        &format!(
            "Docker {} (API {}) at {}",
            text(&engine["version"]),
            text(&engine["api"]),
            text(&engine["socket"])
        ),
    );
    let container = &status["supervisor"]["container"];
    t.reach(
        "supervisor healthy",
        "engine",
        &format!(
            "balena_supervisor of {}: {}",
            text(&container["image"]),
            text(&status["supervisor"]["detail"])
        ),
    );
    for _ in 0..120 {
        let reported = cloud.log().into_iter().find(|e| e["method"] == "PATCH" && e["status"] == 200);
        if let Some(entry) = reported {
            let text = format!(
                "{} {}: 200, from {}",
                text(&entry["method"]),
                text(&entry["path"]),
                text(&entry["who"])
            );
            t.reach("supervisor reports to the cloud", "cloud", &text);
            device.no_unit_failed()?;
            t.reach("no unit failed", "systemd", "running, no unit failed");
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    Err("the supervisor did not report its state to the cloud".into())
}

fn install(
    device: &mut Device,
    t: &mut Timeline,
    cloud: &Cloud,
    version: &str,
    slot: &str,
    name: &'static str,
) -> Outcome {
    let said = device.ask(&format!("twinhull install {}", bundle_url(cloud, version)), 20 * MINUTE)?;
    let summary = said.lines().find(|l| l.starts_with("fetched") && l.contains("bytes"));
    let summary = summary.ok_or_else(|| format!("install does not say how many bytes: {said}"))?;
    let served = cloud.log().iter().any(|e| e["path"].as_str().is_some_and(|p| p.contains(version)));
    if !served {
        return Err(format!("the cloud's log has no request for {version}"));
    }
    let status = device.status()?;
    let trial = &status["boot"]["trial"];
    if status["phase"] != "ready-to-reboot" || trial["slot"] != slot || trial["tries_left"] != 3 {
        return Err(format!("expected slot {slot} to be armed with 3 tries: {status}"));
    }
    t.reach(name, "device", &format!("twinhull install over HTTP into slot {slot}: {summary}"));
    Ok(())
}

fn trial_boot(device: &mut Device, t: &Timeline, partition: u32, n: usize) -> Outcome {
    device.console(&format!("twinhull: trial of partition {partition}, boot {n} of 3"), BOOT)?;
    t.note("console", &format!("GRUB: trial of partition {partition}, boot {n} of 3"));
    Ok(())
}

fn booted_slot(
    device: &mut Device,
    t: &mut Timeline,
    name: &'static str,
    slot: &str,
    version: &str,
) -> Outcome {
    device.booted()?;
    let status = device.status()?;
    if status["os"]["slot"] != slot || status["os"]["version"] != version {
        return Err(format!("expected {version} in slot {slot}: {status}"));
    }
    let tries = &status["boot"]["trial"]["tries_left"];
    t.reach(name, "status", &format!("OS {version} in slot {slot}, on trial, {tries} more tries"));
    Ok(())
}

fn rolled_back(
    device: &mut Device,
    t: &mut Timeline,
    name: &'static str,
    version: &str,
    reasons: &[&str],
) -> Outcome {
    let status = device.status_until("the old system to settle", 5 * MINUTE, |s| s["phase"] == "steady")?;
    let last = last_update(device)?;
    if status["os"]["slot"] != "B" || status["os"]["version"] != "2.0.0" || status["boot"]["primary"] != "B" {
        return Err(format!("not back on 2.0.0 in slot B: {status}"));
    }
    if !last.contains(version) || !reasons.iter().all(|r| last.contains(r)) {
        return Err(format!("the reason does not name {version} and {reasons:?}: {last}"));
    }
    t.reach(name, "status", &format!("OS 2.0.0 in slot B. {last}"));
    Ok(())
}

/// The line of `twinhull status` about the last update.
fn last_update(device: &mut Device) -> Outcome<String> {
    let said = device.run("twinhull status", 2 * MINUTE)?.output;
    said.lines()
        .find(|l| l.starts_with("Last update"))
        .map(str::to_owned)
        .ok_or_else(|| format!("twinhull status says nothing of the last update: {said}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}
