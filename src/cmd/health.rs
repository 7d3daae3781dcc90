//! `twinhull health`, and the checks that decide a trial.

use std::path::Path;
use std::time::Duration;

use super::hooks;
use crate::cli::{Command, Context};
use crate::config::Settings;
use crate::engine::{Engine, supervisor};
use crate::model::record::Before;
use crate::update::health::{Check, look};
use crate::{Result, provision, sys};

pub(super) const COMMAND: Command =
    Command { name: "health", summary: "look once at everything that a trial must pass", help: HELP, run };

const HELP: &str = "\
twinhull health: look once at everything that a trial must pass

Usage: twinhull health [--json]

The checks: systemd answers, where it is PID 1; the container engine answers; the supervisor container runs and is not unhealthy; each unit of health.units is
active; the cloud API answers, if it did before the update; each executable in /usr/lib/twinhull/health.d exits with 0
within health.check_deadline_s.

Looks and tells, changes nothing: `twinhull resume` acts on the same checks. Exit 1 if one does not pass.
With --json: a list of {check, passed, output}.
";

fn run(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    if let Some(arg) = parser.next().map_err(crate::cli::usage("health"))? {
        return Err(crate::cli::usage("health")(arg.unexpected()));
    }
    let settings = context.settings()?;
    let expected = Before { api_reachable: true, supervisor_healthy: true };
    let findings = look(&mut checks(context, &settings, expected));
    if context.json {
        sys::out::line(&serde_json::json!(findings).to_string());
    } else {
        for f in &findings {
            let mark = if f.passed { "pass" } else { "FAIL" };
            let line = format!("{mark}  {}  {}", f.check, f.output.trim_end().replace('\n', "\n      "));
            sys::out::line(line.trim_end());
        }
    }
    Ok(u8::from(findings.iter().any(|f| !f.passed)))
}

/// The checks that a trial must pass; `before` says what the old system could do.
pub(super) fn checks<'a>(context: &'a Context, settings: &'a Settings, before: Before) -> Vec<Check<'a>> {
    let mut checks = Vec::new();
    let deadline = Duration::from_secs(settings.health.check_deadline_s);
    // What sd_booted(3) looks for.
    if context.root.path("/run/systemd/system").is_dir() {
        checks.push(Check { name: "systemd".into(), look: Box::new(systemd_answers) });
    }
    for unit in &settings.health.units {
        checks.push(Check { name: format!("unit {unit}"), look: Box::new(move || unit_is_active(unit)) });
    }
    if settings.engine.enabled {
        checks.push(Check {
            name: "engine".into(),
            look: Box::new(|| {
                let engine = Engine::connect(&settings.engine, &context.root).map_err(|e| e.to_string())?;
                engine.ping().map_err(|e| e.to_string())
            }),
        });
    }
    if settings.engine.enabled && settings.supervisor.enabled {
        checks.push(Check {
            name: "supervisor".into(),
            look: Box::new(move || {
                let engine = Engine::connect(&settings.engine, &context.root).map_err(|e| e.to_string())?;
                let health = supervisor::health(&engine).map_err(|e| e.to_string())?;
                // A supervisor that was unhealthy under the old system (no network, say) need only run.
                let fit = health.is_good() || (!before.supervisor_healthy && health.runs());
                if fit { Ok(()) } else { Err(health.to_string()) }
            }),
        });
    }
    if before.api_reachable && provision::is_managed(&context.root, settings) {
        checks.push(Check {
            name: "cloud API".into(),
            look: Box::new(|| provision::ping(&context.root, settings).map_err(|e| e.to_string())),
        });
    }
    for script in own_checks(context, settings) {
        checks.push(Check {
            name: script.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            look: Box::new(move || {
                let outcome = hooks::run_program(context, &script, deadline).map_err(|e| e.to_string())?;
                if outcome.success { Ok(()) } else { Err(format!("{}: {}", outcome.ending, outcome.output)) }
            }),
        });
    }
    checks
}

/// The image's own checks. A directory that cannot be listed is itself a failed check: see the error in the log.
fn own_checks(context: &Context, settings: &Settings) -> Vec<std::path::PathBuf> {
    let dir = context.root.path(&settings.health.checks);
    sys::file::list(&dir).unwrap_or_else(|e| {
        log::error!("health: {e}");
        vec![dir]
    })
}

/// Whether PID 1 still does its work: one that crashed freezes, and the system runs on without it, for a while.
fn systemd_answers() -> std::result::Result<(), String> {
    let show = ["show", "--property=SystemState"];
    let asked = sys::command::run(Path::new("systemctl"), &show, Duration::from_secs(30))
        .map_err(|e| e.to_string())?;
    if asked.success { Ok(()) } else { Err(format!("{}: {}", asked.ending, asked.output.trim_end())) }
}

/// Whether systemd says that `unit` is active; else its state and its last lines.
fn unit_is_active(unit: &str) -> std::result::Result<(), String> {
    let run = |program: &str, args: &[&str]| {
        sys::command::run(Path::new(program), args, Duration::from_secs(30)).map_err(|e| e.to_string())
    };
    let state = run("systemctl", &["is-active", unit])?;
    if state.success {
        return Ok(());
    }
    let show = run("systemctl", &["show", "--property=Result,ExecMainStatus,SubState", unit])?;
    // What the unit itself said, not what systemd says of it.
    let own = format!("_SYSTEMD_UNIT={unit}");
    let lines = run("journalctl", &["--no-pager", "--output=cat", "--boot", "--lines=3", &own])?;
    // A unit that systemd started several times says the same each time.
    let mut said: Vec<&str> = lines.output.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    said.dedup();
    let state = format!("{} ({})", state.output.trim(), show.output.trim().replace('\n', " "));
    Err(if said.is_empty() { state } else { format!("{state}: {}", said.join("\n")) })
}

/// What is true of this system now, to be asked of the next one.
pub(super) fn before(context: &Context, settings: &Settings) -> Before {
    let supervisor_healthy = Engine::connect(&settings.engine, &context.root)
        .and_then(|engine| supervisor::health(&engine))
        .is_ok_and(|h| h.is_good());
    let api_reachable =
        provision::is_managed(&context.root, settings) && provision::ping(&context.root, settings).is_ok();
    Before { api_reachable, supervisor_healthy }
}
