//! `twinhull status`

use serde_json::{Value, json};

use super::file_sets::{self, BootFiles};
use super::host::{Host, os_version};
use super::turn;
use crate::block::{FileDisk, seal};
use crate::cli::{Command, Context};
use crate::config::{ConfigJson, Origin, damaged_texts, keys};
use crate::engine::{mend, reserve};
use crate::model::phase::Phase;
use crate::model::record::{Ended, State};
use crate::model::{BOOT_NOTES, LASTING_NOTES, RESET_REQUEST};
use crate::{Error, Result, preload, provision, sys};

pub(super) const COMMAND: Command = Command {
    name: "status",
    summary: "say which system runs, what boots next, and how the last update ended",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull status: say which system runs, what boots next, and how the last update ended

Usage: twinhull status [--json]

Reads only. Shows the OS version and slot, the bootloader's plan (primary slot, trial and tries left), the phase that
follows from journal and plan, how the last update ended and why, registration, and the supervisor container.

Exit 1 if something that should be there is missing (the text says what, and what to do), 4 if journal and boot plan
contradict each other, else 0.

With --json, where null stands for what cannot be told: {os: {version, slot}, device: {type, arch, uuid},
boot: {chooser, primary, trial: null | {slot, tries_left}}, phase, boot_files: [{slot, of, files, missing: [..]}],
update: {state, release_floor, hooks: [..], failure: null | text, last: null | {result, target, release, reason}}, provision, supervisor,
config: {last_good_copy, problems: [..], damaged_texts: [..]}, boot_notes: {this_boot: [..], lasting: [..]},
preload: [{archive, state: unpacked|waiting|passed-over|failed}], engine: {damaged: [..]}, problems: [..]}
";

/// What a status consists of: each part is there, or the reason why it is not.
struct Report {
    json: serde_json::Map<String, Value>,
    lines: Vec<String>,
    problems: Vec<Error>,
}

fn run(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    if let Some(arg) = parser.next().map_err(crate::cli::usage("status"))? {
        return Err(crate::cli::usage("status")(arg.unexpected()));
    }
    // Nothing is left out that the help lists.
    let json = [
        "device",
        "boot",
        "phase",
        "boot_files",
        "update",
        "provision",
        "supervisor",
        "config",
        "preload",
        "engine",
    ]
    .map(|key| (key.into(), Value::Null));
    let mut report = Report { json: json.into_iter().collect(), lines: Vec::new(), problems: Vec::new() };
    let host = Host::open(context);
    report.os(context, host.as_ref().ok());
    report.device(context);
    report.config(context);
    report.boot_notes(context);
    report.preload(context);
    match &host {
        Ok(host) => {
            report.update(host, turn::is_taken(&context.root));
            report.boot_files(context, host);
        }
        Err(e) => report.problem(e.clone()),
    }
    report.services(context);
    Ok(report.print(context.json))
}

impl Report {
    fn problem(&mut self, e: Error) {
        // The same missing file stands behind several parts: say it once.
        if !self.problems.contains(&e) {
            self.problems.push(e);
        }
    }

    fn os(&mut self, context: &Context, host: Option<&Host>) {
        let slot = host.map(|h| h.machine.booted);
        let version = os_version(&context.root);
        if let (Ok(version), Some(slot)) = (&version, slot) {
            self.lines.push(format!("OS          {version} in slot {slot}"));
        }
        self.json.insert("os".into(), json!({ "version": version.as_ref().ok(), "slot": slot }));
        if let Err(e) = version {
            self.problem(e.within("OS version"));
        }
    }

    fn device(&mut self, context: &Context) {
        let settings = match context.settings() {
            Ok(settings) => settings,
            Err(e) => return self.problem(e),
        };
        let arch = crate::model::device::arch();
        let kind = provision::device_type(&context.root, &settings);
        let status = provision::status(&context.root, &settings);
        let uuid = status.uuid.clone();
        self.lines.push(format!(
            "Device      {} ({arch}), uuid {}",
            kind.as_deref().unwrap_or("of unknown type"),
            uuid.as_deref().unwrap_or("not made yet")
        ));
        self.lines.push(format!("Cloud       {status}"));
        self.json.insert("device".into(), json!({ "type": kind.as_ref().ok(), "arch": arch, "uuid": uuid }));
        self.json.insert("provision".into(), json!(status));
        status.problem.into_iter().chain(status.missing).for_each(|text| self.problem(Error::failed(text)));
        if let Err(e) = kind {
            self.problem(e);
        }
    }

    /// Whether `config.json` is as it should be. A damaged one is a problem until its last good copy is in its place,
    /// and a note for as long as its text is kept.
    fn config(&mut self, context: &Context) {
        let Ok(settings) = context.settings() else { return };
        let path = &settings.provision.config_json;
        // That it cannot be read at all is said by the parts that need it.
        let Ok(Some(config)) = ConfigJson::peek(&context.root, path) else { return };
        let mut found: Vec<String> = keys::check(&config)
            .into_iter()
            .map(|f| format!("config.json: {}: {}", f.key, f.problem))
            .collect();
        if let Origin::LastGood { why } = config.origin() {
            found
                .push(format!("{why}; the last good copy is used, `twinhull config apply` puts it in place"));
        }
        let kept = damaged_texts(&context.root, path).unwrap_or_else(|e| {
            self.problem(e.within("config.json"));
            Vec::new()
        });
        let kept: Vec<_> = kept.iter().map(|p| p.display().to_string()).collect();
        if !kept.is_empty() {
            let text =
                format!("damaged once, what it held is in {}; look at it, then remove it", kept.join(", "));
            self.lines.push(format!("config.json {text}"));
        }
        let last_good = config.origin() != &Origin::File;
        self.json.insert(
            "config".into(),
            json!({"last_good_copy": last_good, "problems": found, "damaged_texts": kept}),
        );
        found.into_iter().for_each(|text| self.problem(Error::failed(text)));
    }

    /// What the device was delivered with, and is not in its place.
    fn preload(&mut self, context: &Context) {
        let Ok(settings) = context.settings() else { return };
        let found = match super::preload::states(context, &settings) {
            Ok(found) => found,
            Err(e) => return self.problem(e.within("preload")),
        };
        let mut json = Vec::new();
        for (path, state) in found {
            let name = path.display();
            let (word, line) = match &state {
                Ok(preload::State::Unpacked) => ("unpacked", None),
                Ok(preload::State::Taken(place)) => {
                    let text = format!("{name} is passed over: {} is there already", place.display());
                    ("passed-over", Some(text))
                }
                Ok(preload::State::Waiting { segments, of }) => {
                    ("waiting", Some(format!("{name}: {segments} of {of} parts are unpacked")))
                }
                Err(_) => ("failed", None),
            };
            self.lines.extend(line.map(|text| format!("Preload     {text}")));
            json.push(json!({ "archive": path, "state": word }));
            if let Err(e) = state {
                self.problem(e.within(format!("preload {name}")));
            }
        }
        self.json.insert("preload".into(), json!(json));
    }

    /// What PID 1 left to be told.
    fn boot_notes(&mut self, context: &Context) {
        let mut read = |path: &str| {
            let notes = sys::file::read_if_exists(&context.root.path(path), 64 * 1024);
            let notes = notes.unwrap_or_else(|e| {
                self.problem(e.within("boot notes"));
                None
            });
            let text = String::from_utf8_lossy(notes.as_deref().unwrap_or_default());
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let (now, lasting) = (read(BOOT_NOTES), read(LASTING_NOTES));
        if !lasting.is_empty() {
            let text = lasting.join("; ");
            self.lines.push(format!("Boot notes  {text} (remove {LASTING_NOTES} when read)"));
        }
        if context.root.path(RESET_REQUEST).exists() {
            self.lines.push("Reset       requested for the next boot; `twinhull reset` says of what".into());
        }
        self.json.insert("boot_notes".into(), json!({"this_boot": now, "lasting": lasting}));
        now.into_iter().for_each(|text| self.problem(Error::failed(text)));
    }

    fn update(&mut self, host: &Host, under_way: bool) {
        self.journal(host);
        let (record, plan, phase) = match host.machine.observe() {
            Ok(seen) => seen,
            Err(e) => return self.problem(e),
        };
        let trial = plan.trial.map_or(String::new(), |t| {
            format!(", slot {} on trial with {} of its tries left", t.slot, t.tries_left)
        });
        self.lines.push(format!("Boot plan   {}: primary slot {}{trial}", host.chooser, plan.primary));
        // The disk alone cannot tell an install that was cut short from one that goes on.
        let installing = under_way && phase == Phase::InstallInterrupted;
        let name = if installing { "installing" } else { phase.name() };
        let meaning = if installing { "an install is under way".to_owned() } else { explain(&phase) };
        self.lines.push(format!("Phase       {name}: {meaning}"));
        self.seal(host);
        let floor = record.release_floor.max(host.settings.bundle.release_floor);
        if floor > 0 {
            self.lines.push(format!("Releases    from {floor} on are taken"));
        }
        if let Some(last) = &record.last {
            self.lines.push(format!("Last update {}", describe(last)));
        }
        let state = match &record.state {
            State::Idle => "idle",
            State::Installing { .. } => "installing",
            State::Trial { .. } => "trial",
        };
        let (hooks, failure): (Vec<&str>, _) = match &record.state {
            State::Trial { hooks, boots, .. } => {
                (hooks.iter().map(|h| h.name.as_str()).collect(), boots.failure.as_ref())
            }
            State::Idle | State::Installing { .. } => (Vec::new(), None),
        };
        if let Some(failure) = failure {
            self.lines.push(format!("Trial       an earlier boot of it failed: {failure}"));
        }
        if !hooks.is_empty() {
            self.lines
                .push(format!("Hooks       {}: run before the new system is committed", hooks.join(", ")));
        }
        let boot = json!({ "chooser": host.chooser.name(), "primary": plan.primary, "trial": plan.trial });
        self.json.insert("boot".into(), boot);
        self.json.insert("phase".into(), json!(name));
        let update = json!({ "state": state, "hooks": hooks, "failure": failure, "last": record.last,
            "release_floor": floor });
        self.json.insert("update".into(), update);
        if let Phase::Inconsistent { what } = phase {
            self.problem(Error::inconsistent(what));
        }
    }

    /// Whether the root that runs is checked as it is read.
    fn seal(&mut self, host: &Host) {
        let slot = host.disk.slot_partition(host.machine.booted);
        match slot.and_then(|p| FileDisk::open_read_only(&p.device)).and_then(|mut d| seal::read(&mut d, 0)) {
            Ok(Some(verity)) => {
                let text =
                    format!("Root        sealed: each block is checked, root hash {}", verity.root_hash);
                self.lines.push(text);
            }
            Ok(None) => {}
            Err(e) => self.problem(e.within("root")),
        }
    }

    /// The slots' boot files. The set of the slot that runs must be whole; the other is being written at times.
    fn boot_files(&mut self, context: &Context, host: &Host) {
        let found = match file_sets::boot_files(&context.root, host) {
            Ok(found) => found,
            Err(e) => return self.problem(e.within("boot files")),
        };
        for BootFiles { slot, of, files, missing } in &found {
            self.lines.push(format!("Boot files  slot {slot}: {files} of {of}"));
            if *slot == host.machine.booted && !missing.is_empty() {
                self.problem(Error::failed(format!(
                    "boot files of slot {slot}: {} missing; install again",
                    missing.join(", ")
                )));
            }
        }
        self.json.insert("boot_files".into(), json!(found));
    }

    /// A journal that makes no sense, now or once.
    fn journal(&mut self, host: &Host) {
        let journal = &host.machine.journal;
        match journal.damage() {
            Ok(None) => {}
            Ok(Some(what)) => self.problem(Error::failed(format!(
                "journal {what}; it counts as none, and `twinhull resume` keeps it aside"
            ))),
            Err(e) => self.problem(e),
        }
        let aside = journal.aside();
        if aside.exists() {
            let text =
                format!("damaged once, what it held is in {}; look at it, then remove it", aside.display());
            self.lines.push(format!("Journal     {text}"));
        }
    }

    fn services(&mut self, context: &Context) {
        let Ok(settings) = context.settings() else { return };
        match mend::kept(&settings.engine.storage, &context.root) {
            Ok(kept) if kept.is_empty() => {}
            Ok(kept) => {
                let kept: Vec<_> = kept.iter().map(|p| p.display().to_string()).collect();
                self.json.insert("engine".into(), json!({ "damaged": kept }));
                self.lines.push(format!(
                    "Engine      files of it were damaged once, what they held is in {}; look at it, then remove it",
                    kept.join(", ")
                ));
            }
            Err(e) => self.problem(e.within("engine")),
        }
        match reserve::is_full(&context.root) {
            Ok(false) => {}
            Ok(true) => self.problem(Error::failed("the data partition is full; remove what is not needed")),
            Err(e) => self.problem(e),
        }
        if !settings.supervisor.enabled {
            return;
        }
        let (line, json) = super::supervisor::report(context, &settings);
        self.lines.push(format!("Supervisor  {line}"));
        self.json.insert("supervisor".into(), json);
    }

    fn print(mut self, as_json: bool) -> u8 {
        let problems: Vec<_> = self.problems.iter().map(ToString::to_string).collect();
        if as_json {
            self.json.insert("problems".into(), json!(problems));
            sys::out::line(&Value::Object(self.json).to_string());
        } else {
            self.lines.extend(problems.iter().map(|p| format!("Problem     {p}")));
            sys::out::line(&self.lines.join("\n"));
        }
        self.problems.iter().map(|e| e.kind().exit_code()).max().unwrap_or(0)
    }
}

fn explain(phase: &Phase) -> String {
    match phase {
        Phase::Steady => "no update is under way".to_owned(),
        Phase::InstallInterrupted => "an install was cut short; install again".to_owned(),
        Phase::StrayTrial => {
            "a trial is armed that no journal knows; `twinhull resume` disarms it".to_owned()
        }
        Phase::ReadyToReboot => "the new system is armed; reboot to try it".to_owned(),
        Phase::TryAgain { tries_left } => {
            format!(
                "the new system did not come up; `twinhull resume` tries it again ({tries_left} more tries)"
            )
        }
        Phase::TrialFailed { why, .. } => why.clone(),
        Phase::OnTrial { tries_left } => {
            format!("the new system runs on trial; health checks decide ({tries_left} more tries)")
        }
        Phase::Condemned { why } => format!("this system is about to be left: {why}"),
        Phase::UnknownTrial => {
            "this system runs on trial, but the journal does not know of it; `twinhull resume` leaves it"
                .to_owned()
        }
        Phase::CommitLanded => "committed; the journal follows with `twinhull resume`".to_owned(),
        Phase::Inconsistent { what } => what.clone(),
    }
}

fn describe(last: &Ended) -> String {
    format!("{} of slot {}: {}: {}", last.release.version, last.target, last.result, last.reason)
}
