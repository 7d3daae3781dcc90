//! `twinhull resume`

use super::host::Host;
use super::{health, hooks};
use crate::cli::{Command, Context};
use crate::sys::clock::BootClock;
use crate::update::Next;
use crate::update::health::{Verdict, watch};
use crate::{Result, sys};

pub(super) const COMMAND: Command = Command {
    name: "resume",
    summary: "take up where the disk says the device stands: finish, check health, commit or roll back",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull resume: take up where the disk says the device stands

Usage: twinhull resume

Run once in every boot (twinhull-resume.service). With no update under way it does nothing. An interrupted install is
put in order. On a trial it repeats the health checks until all have passed for health.settle_s seconds, runs the hooks that
came with the bundle, each with its deadline, and commits; if the checks do not pass before health.deadline_s after boot, or a
hook fails, it records why, calls the trial off and reboots into the old system.

May be repeated at any time. Exit 0 done, 4 if journal and boot plan contradict each other (nothing is touched then).
";

fn run(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    if let Some(arg) = parser.next().map_err(crate::cli::usage("resume"))? {
        return Err(crate::cli::usage("resume")(arg.unexpected()));
    }
    let mut host = Host::open(context)?;
    match host.settle()? {
        Next::Nothing => Ok(0),
        // Armed during this very boot: whoever installed decides when to reboot.
        Next::Reboot { why } if host.machine.waits_for_reboot()? => {
            log::info!("{why}");
            Ok(0)
        }
        Next::Reboot { why } => reboot(&mut host, &why),
        Next::CheckHealth { tries_left } => on_trial(context, &mut host, tries_left),
    }
}

fn on_trial(context: &Context, host: &mut Host, tries_left: u8) -> Result<u8> {
    log::info!("slot {} is on trial, {tries_left} more tries; checking its health", host.machine.booted);
    let before = host.machine.before()?;
    let settings = host.settings.clone();
    let mut checks = health::checks(context, &settings, before);
    let settle = std::time::Duration::from_secs(settings.health.settle_s);
    let mut shown = None;
    let verdict = watch(&BootClock, settings.health.deadline(), settle, &mut checks, |findings| {
        let failed: Vec<_> = findings.iter().filter(|f| !f.passed).map(|f| f.check.clone()).collect();
        if shown.as_ref() != Some(&failed) {
            let text = if failed.is_empty() {
                "all pass".into()
            } else {
                format!("waiting for {}", failed.join(", "))
            };
            log::info!("health: {text}");
            sys::notify::status(&text);
            shown = Some(failed);
        }
    });
    drop(checks);
    let verdict = match verdict {
        Verdict::Healthy => match hooks::run(context, &host.machine.hooks()?) {
            Ok(()) => Verdict::Healthy,
            Err(e) => Verdict::Unhealthy(e.to_string()),
        },
        unhealthy @ Verdict::Unhealthy(_) => unhealthy,
    };
    match verdict {
        Verdict::Healthy => {
            host.machine.commit()?;
            log::info!("slot {} is healthy and committed", host.machine.booted);
            Ok(0)
        }
        Verdict::Unhealthy(why) => match host.machine.condemn(&why)? {
            Next::Reboot { why } => reboot(host, &why),
            Next::Nothing | Next::CheckHealth { .. } => Ok(0),
        },
    }
}

/// Reboots in order.
pub(super) fn reboot(host: &mut Host, why: &str) -> Result<u8> {
    log::warn!("rebooting: {why}");
    // Without it the primary slot boots, which is as safe: the reboot must not wait for it.
    let argument = host.end_boot(true).unwrap_or_else(|e| {
        log::warn!("{e}; this reboot is no try of the armed system");
        None
    });
    sys::power::reboot(argument)?;
    Ok(0)
}
