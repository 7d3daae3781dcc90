//! The supervisor and the engine below it on a real device: kept, started, replaced, gone back; the engine stopped, frozen,
//! damaged, and on a full disk. Every line comes from the device.

use std::time::Duration;

use serde_json::Value;

use crate::Outcome;
use crate::device::Device;
use crate::images::{FIRST_VERSION, Fault, Lab};
use crate::machine::Disk;
use crate::timeline::Timeline;

const MINUTE: Duration = Duration::from_secs(60);
/// The device is emulated, and the machine that emulates may be busy.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// What must be seen; a line that is missing fails the scenario.
const EXPECTED: [&str; 11] = [
    "created",
    "kept",
    "started",
    "replaced",
    "went back",
    "rolled back",
    "engine stopped and started",
    "engine frozen",
    "engine damaged",
    "full disk",
    "full disk at boot",
];

/// Plays it. The error says what was missing.
pub fn play(lab: &Lab) -> Outcome {
    let mut timeline = Timeline::begin();
    timeline.chapter("Images");
    lab.base()?;
    let cloud = lab.cloud()?;
    let os = lab.os(FIRST_VERSION, Fault::None)?;
    for version in ["2.0.0", "3.0.0"] {
        lab.supervisor_archive(version, &lab.directory("data/archives")?.join(format!("{version}.tar")))?;
    }
    let disk = lab.disk(&os, &cloud)?;
    timeline.note("lab", "OS 1.0.0 with supervisor 1.0.0; archives of 2.0.0 and 3.0.0 on the data partition");
    let mut device = Device::switch_on(lab, &Disk { file: &disk, format: "raw" })?;
    let told = tell(&mut Story { device: &mut device, t: &mut timeline });
    if let Err(e) = told {
        let journal = "journalctl -b -o short-monotonic --no-pager -n 60 -u twinhull-supervisor -u docker \
                       -u twinhull-engine -u twinhull-engine-restart";
        if let Ok(said) = device.run(journal, 2 * MINUTE) {
            eprintln!("\nThe journal's last lines:\n{}", said.output);
        }
        eprintln!("\nThe console's last lines:\n{}\n", device.last_lines(30));
        return Err(e);
    }
    let missing = timeline.missing(&EXPECTED);
    if !missing.is_empty() {
        return Err(format!("not seen: {}", missing.join("; ")));
    }
    println!("\nAll {} expected events were seen.", EXPECTED.len());
    Ok(())
}

struct Story<'a> {
    device: &'a mut Device,
    t: &'a mut Timeline,
}

fn tell(story: &mut Story) -> Outcome {
    story.t.chapter("Create, keep, start");
    story.device.booted()?;
    let first = story.healthy("lab/supervisor:1.0.0")?;
    story.reach("created", &format!("container {} of lab/supervisor:1.0.0", first.id));
    story.keep_and_start(&first)?;

    story.t.chapter("Replace, go back, roll back");
    story.replace_and_return(&first)?;

    story.t.chapter("The engine stops, hangs, is damaged");
    story.engine()?;

    story.t.chapter("The disk is full");
    story.full_disk()
}

/// The container as `supervisor status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    id: String,
    started_at: String,
}

impl Story<'_> {
    fn reach(&mut self, name: &'static str, text: &str) {
        self.t.reach(name, "device", text);
    }

    fn ask(&mut self, command: &str) -> Outcome<String> {
        self.device.ask(command, PATIENCE)
    }

    /// Asks until a command's exit code is 0.
    fn until(&mut self, what: &str, command: &str) -> Outcome<String> {
        let looped = format!("until {command}; do sleep 1; done 2>&1");
        self.ask(&looped).map_err(|e| format!("waited for {what}: {e}"))
    }

    /// Waits until the supervisor of `image` is healthy.
    fn healthy(&mut self, image: &str) -> Outcome<Seen> {
        let status = self.device.status_until(&format!("a healthy {image}"), PATIENCE, |s| {
            s["supervisor"]["state"] == "healthy" && s["supervisor"]["container"]["image"] == image
        })?;
        let container = &status["supervisor"]["container"];
        let text = |v: &Value| v.as_str().unwrap_or("?").to_owned();
        let id = text(&container["id"]).chars().take(12).collect();
        Ok(Seen { id, started_at: text(&container["started_at"]) })
    }

    fn journal_has(&mut self, unit: &str, text: &str) -> Outcome {
        let command = format!("journalctl -b -u {unit} -o cat --no-pager | grep -qF '{text}'");
        self.until(&format!("{unit} to say {text:?}"), &command).map(drop)
    }

    fn keep_and_start(&mut self, first: &Seen) -> Outcome {
        self.ask("systemctl kill --signal=KILL --kill-whom=main twinhull-supervisor")?;
        self.journal_has("twinhull-supervisor", "the container that runs is kept")?;
        let seen = self.healthy("lab/supervisor:1.0.0")?;
        if seen != *first {
            return Err(format!("the watcher was killed: expected {first:?}, found {seen:?}"));
        }
        self.reach(
            "kept",
            "the watcher was killed: systemd starts it again, the container runs on untouched",
        );

        self.ask("systemctl restart twinhull-supervisor")?;
        let seen = self.healthy("lab/supervisor:1.0.0")?;
        if seen.id != first.id || seen.started_at == first.started_at {
            return Err(format!(
                "the watcher was restarted: expected a new start of {first:?}, found {seen:?}"
            ));
        }
        self.reach(
            "started",
            "the watcher ended in order and stopped it: the same container is started again",
        );
        Ok(())
    }

    fn replace_and_return(&mut self, first: &Seen) -> Outcome {
        let said = self.ask("twinhull supervisor update --from /mnt/data/archives/2.0.0.tar")?;
        let last = said.lines().last().unwrap_or_default().to_owned();
        let second = self.healthy("lab/supervisor:2.0.0")?;
        if second.id == first.id || !last.contains("2.0.0 is kept") {
            return Err(format!("update to 2.0.0: {said}"));
        }
        self.reach("replaced", &last);

        self.ask("echo -n 3.0.0 >/mnt/data/resin-data/balena-supervisor/lab-unhealthy")?;
        let answer =
            self.device.run("twinhull supervisor update --from /mnt/data/archives/3.0.0.tar", PATIENCE)?;
        let last = answer.output.lines().last().unwrap_or_default().to_owned();
        let seen = self.healthy("lab/supervisor:2.0.0")?;
        let told = ["lab/supervisor:2.0.0 runs again", "lab-unhealthy says so"];
        if answer.code != 1 || seen.id != second.id || !told.iter().all(|text| last.contains(text)) {
            return Err(format!("update to 3.0.0: exit {}: {}", answer.code, answer.output));
        }
        self.reach("went back", &last);

        let said = self.ask("twinhull supervisor rollback")?;
        self.healthy("lab/supervisor:1.0.0")?;
        self.reach("rolled back", said.lines().last().unwrap_or_default());
        Ok(())
    }

    fn engine(&mut self) -> Outcome {
        let before = self.healthy("lab/supervisor:1.0.0")?;
        self.ask("systemctl stop docker.socket docker.service")?;
        self.journal_has("twinhull-supervisor", "waiting for the engine")?;
        self.ask("systemctl start docker.service")?;
        let seen = self.healthy("lab/supervisor:1.0.0")?;
        if seen.id != before.id {
            return Err(format!("the engine was stopped and started: expected {before:?}, found {seen:?}"));
        }
        self.reach("engine stopped and started", "the watcher waited, and started the same container again");

        self.ask("printf '[engine]\\nsilent_s = 20\\n' >/run/twinhull/lab-silent.toml")?;
        self.ask("systemctl restart twinhull-supervisor")?;
        self.healthy("lab/supervisor:1.0.0")?;
        let pid = self.ask("pidof dockerd")?;
        self.ask("kill -STOP $(pidof dockerd)")?;
        let answer = self.device.run("twinhull supervisor status", PATIENCE)?;
        if answer.code != 1 || !answer.output.contains("no answer within 15 s") {
            return Err(format!("status with a frozen engine: {}: {}", answer.code, answer.output));
        }
        self.journal_has("twinhull-engine-restart", "started again")?;
        let seen = self.healthy("lab/supervisor:1.0.0")?;
        if seen.id != before.id || self.ask("pidof dockerd")? == pid {
            return Err(format!("the frozen engine was not replaced: {seen:?}"));
        }
        self.ask("! journalctl -b -u twinhull-supervisor -o cat --no-pager | grep -qi 'watchdog timeout'")?;
        self.reach(
            "engine frozen",
            "dockerd got SIGSTOP: calls end after 15 s, systemd starts it again, the container is the same",
        );

        self.ask("systemctl stop twinhull-supervisor docker.socket docker.service")?;
        self.ask(
            "cd /mnt/data/docker && : >image/overlay2/repositories.json && \
             truncate -s 4096 volumes/metadata.db && \
             dd if=/dev/zero of=network/files/local-kv.db bs=4096 count=16 conv=notrunc status=none && sync",
        )?;
        self.device.start("systemctl reboot")?;
        self.device.booted()?;
        let seen = self.healthy("lab/supervisor:1.0.0")?;
        let status = self.device.status()?;
        let damaged = status["engine"]["damaged"].as_array().map_or(0, Vec::len);
        if seen.id != before.id || damaged != 3 {
            return Err(format!("after damage: {seen:?}: {status}"));
        }
        let said = self.ask("journalctl -b -u twinhull-engine -o cat --no-pager | grep 'was damaged'")?;
        for line in said.lines() {
            self.t.note("journal", line);
        }
        self.reach(
            "engine damaged",
            "three files are set aside before the engine starts; the container is the same",
        );
        Ok(())
    }

    fn full_disk(&mut self) -> Outcome {
        let before = self.healthy("lab/supervisor:1.0.0")?;
        self.until("room to be kept", "test -e /mnt/data/twinhull/reserve")?;
        let fill = "cd /mnt/data && for size in 1M 4k 1; do dd if=/dev/zero of=fill bs=$size oflag=append \
                    conv=notrunc,fsync status=none 2>/dev/null; done; \
                    for n in $(seq 2000); do echo x >fill-$n || break; done 2>/dev/null; df -B1 --output=avail . | tail -n1";
        let left = self.ask(fill)?;
        self.t.note("device", &format!("the data partition has {} bytes left", left.trim()));
        // As it ends on a bad day.
        self.ask("kill -KILL $(pidof lab-supervisor)")?;
        let deadline = "for n in $(seq 600); do twinhull supervisor status --json | grep -qF '\"started_at\":\"STAMP\"' \
                        || exit 0; sleep 1; done; exit 1";
        self.ask(&deadline.replace("STAMP", &before.started_at))?;
        let seen = self.healthy("lab/supervisor:1.0.0")?;
        if seen.id != before.id || seen.started_at == before.started_at {
            return Err(format!("on a full disk: expected a new start of {before:?}, found {seen:?}"));
        }
        self.reach(
            "full disk",
            "a supervisor that was killed is started again: the reserve was given up for it",
        );

        self.ask("find /mnt/data -maxdepth 1 -name 'fill*' -delete")?;
        self.until("room to be kept again", "test -e /mnt/data/twinhull/reserve")?;
        self.ask("systemctl stop twinhull-supervisor docker.socket docker.service")?;
        self.ask(fill)?;
        self.device.start("systemctl reboot")?;
        self.device.booted()?;
        let seen = self.healthy("lab/supervisor:1.0.0")?;
        if seen.id != before.id {
            return Err(format!("after a boot with a full disk: expected {before:?}, found {seen:?}"));
        }
        self.ask(
            "journalctl -b -u twinhull-engine -o cat --no-pager | grep -F 'the data partition is full'",
        )?;
        self.reach(
            "full disk at boot",
            "the reserve is given up before the engine starts; the container is the same",
        );
        Ok(())
    }
}
