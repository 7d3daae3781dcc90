//! `twinhull resume`

use std::time::Duration;

use super::host::{Host, keep_try_used, runs_on_trial};
use super::{health, hooks, turn};
use crate::cli::{Command, Context};
use crate::sys::clock::{BootClock, Clock};
use crate::update::Next;
use crate::update::health::{Verdict, watch};
use crate::{Error, Result, sys};

/// Between two attempts to decide a trial.
const PAUSE: Duration = Duration::from_secs(10);

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

A trial never stays undecided: if it cannot be judged, or the verdict cannot be written (a full or read-only state partition,
settings that cannot be read), this tries again until the deadline, then reboots, and the bootloader counts.

May be repeated at any time; waits for an install that is under way. Exit 0 done, 4 if journal and boot plan contradict each
other (nothing is touched then, and a slot on trial is left at the deadline by a reboot).
";

fn run(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    if let Some(arg) = parser.next().map_err(crate::cli::usage("resume"))? {
        return Err(crate::cli::usage("resume")(arg.unexpected()));
    }
    let deadline = context.settings().unwrap_or_default().health.deadline();
    // If that cannot be found out at all, a reboot would not help either.
    let on_trial = || runs_on_trial(context);
    until_decided(&BootClock, deadline, on_trial, || take_up(context)).unwrap_or_else(|e| {
        log::error!("{e}");
        if let Err(e) = keep_try_used(&context.root) {
            log::error!("{e}");
        }
        reboot_into(context, None, "the trial cannot be decided; the bootloader counts this boot").map(|()| 0)
    })
}

/// The last error of a trial that could not be decided in time.
type Undecided = Error;

/// Repeats `step` until it succeeds, or fails with the system not on trial.
fn until_decided(
    clock: &impl Clock,
    deadline: Duration,
    on_trial: impl Fn() -> bool,
    mut step: impl FnMut() -> Result<u8>,
) -> std::result::Result<Result<u8>, Undecided> {
    loop {
        match step() {
            Err(e) if on_trial() => {
                if clock.since_boot() >= deadline {
                    return Err(e);
                }
                log::error!("{e}; trying again until {} s after boot", deadline.as_secs());
                clock.sleep(PAUSE);
            }
            decided => return Ok(decided),
        }
    }
}

fn take_up(context: &Context) -> Result<u8> {
    let turn = turn::wait(&context.root)?;
    let mut host = Host::open(context)?;
    match host.settle()? {
        Next::Nothing => Ok(0),
        // Armed during this very boot: whoever installed decides when to reboot.
        Next::Reboot { why } if host.machine.waits_for_reboot()? => {
            log::info!("{why}");
            Ok(0)
        }
        Next::Reboot { why } => reboot(context, &mut host, &why),
        Next::TryAgain { why } => try_again(context, &mut host, &why),
        Next::CheckHealth { tries_left } => {
            // While the checks run, `commit` and `rollback` may be used by hand.
            drop(turn);
            on_trial(context, &mut host, tries_left)
        }
    }
}

fn on_trial(context: &Context, host: &mut Host, tries_left: u8) -> Result<u8> {
    log::info!("slot {} is on trial, {tries_left} more tries; checking its health", host.machine.booted);
    let before = host.machine.before()?;
    let settings = host.settings.clone();
    let mut checks = health::checks(context, &settings, before);
    let settle = Duration::from_secs(settings.health.settle_s);
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
    let _turn = turn::wait(&context.root)?;
    match verdict {
        Verdict::Healthy => {
            host.machine.commit("passed its health checks")?;
            log::info!("slot {} is healthy and committed", host.machine.booted);
            Ok(0)
        }
        Verdict::Unhealthy(why) => match host.machine.condemn(&why)? {
            Next::Reboot { why } => reboot(context, host, &why),
            Next::Nothing | Next::CheckHealth { .. } | Next::TryAgain { .. } => Ok(0),
        },
    }
}

/// Reboots into the next try. One that cannot be counted or asked for ends the trial: with the reboot it would be tried for ever.
fn try_again(context: &Context, host: &mut Host, why: &str) -> Result<u8> {
    match host.end_boot(true) {
        Ok(argument) => reboot_into(context, argument, why).map(|()| 0),
        Err(e) => host.machine.condemn(&format!("its next try cannot be started: {e}")).map(|_| 0),
    }
}

/// Reboots in order, into whatever the boot plan says.
pub(super) fn reboot(context: &Context, host: &mut Host, why: &str) -> Result<u8> {
    // Without it the primary slot boots, which is as safe: the reboot must not wait for it.
    let argument = host.end_boot(true).unwrap_or_else(|e| {
        log::warn!("{e}; this reboot is no try of the armed system");
        None
    });
    reboot_into(context, argument, why).map(|()| 0)
}

/// Reboots in order; if systemd cannot do that (a bad image may lack anything), at once.
fn reboot_into(context: &Context, argument: Option<&str>, why: &str) -> Result<()> {
    log::warn!("rebooting: {why}");
    match sys::power::reboot(argument) {
        Err(e) if context.root.is_host() => {
            log::error!("{e}; restarting without it");
            sys::power::reboot_now()
        }
        asked => asked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock::TestClock;

    #[test]
    fn a_trial_that_cannot_be_decided_is_left_at_the_deadline() {
        let (clock, deadline) = (TestClock::default(), Duration::from_secs(60));
        let failed = || Err(Error::inconsistent("no space left"));
        assert!(until_decided(&clock, deadline, || true, failed).is_err());
        assert_eq!(clock.since_boot(), deadline);
    }

    #[test]
    fn what_works_in_the_end_decides_and_without_a_trial_an_error_is_an_error() {
        let (clock, deadline) = (TestClock::default(), Duration::from_secs(60));
        let mut left = 3;
        let step = || {
            left -= 1;
            if left > 0 { Err(Error::failed("no disk yet")) } else { Ok(0) }
        };
        assert_eq!(until_decided(&clock, deadline, || true, step), Ok(Ok(0)));
        let failed = || Err(Error::failed("no disk"));
        assert_eq!(until_decided(&clock, deadline, || false, failed), Ok(Err(Error::failed("no disk"))));
    }
}
