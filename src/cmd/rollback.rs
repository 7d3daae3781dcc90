//! `twinhull rollback`

use serde_json::json;

use super::host::Host;
use super::turn;
use crate::cli::{Command, Context, usage};
use crate::model::Slot;
use crate::update::Next;
use crate::{Result, sys};

pub(super) const COMMAND: Command = Command {
    name: "rollback",
    summary: "call the running trial, or the update that waits for its reboot, off",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull rollback: call the running trial, or the update that waits for its reboot, off

Usage: twinhull rollback [--reason TEXT] [--no-reboot] [--json]

On a trial: the reason is recorded, the old system is made the next to boot, and the device reboots into it. Before the
reboot into a new system: it is disarmed, nothing else happens.

  --reason TEXT  what `twinhull status` says of it afterwards
  --no-reboot    this command does not reboot. twinhull-resume.service, which watches every trial, does it all the same
                 when its checks have ended, at the latest health.deadline_s after boot: stop it to stay longer

Exit 3 if there is nothing to call off, 5 if the reboot was left to others. A committed update has no way back: install the
older bundle instead. With --json: {called_off: slot, primary: slot, reboot_needed}.
";

fn run(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    use lexopt::prelude::*;
    let mut reason = "called off by hand".to_owned();
    let mut may_reboot = true;
    while let Some(arg) = parser.next().map_err(usage("rollback"))? {
        match arg {
            Long("reason") => {
                reason = parser.value().and_then(|v| v.string()).map_err(usage("rollback"))?;
            }
            Long("no-reboot") => may_reboot = false,
            _ => return Err(usage("rollback")(arg.unexpected())),
        }
    }
    let _turn = turn::take(&context.root)?;
    let mut host = Host::open(context)?;
    match host.machine.condemn(&reason)? {
        Next::Reboot { why } => {
            let booted = host.machine.booted;
            if context.json {
                tell(booted, true);
            }
            if may_reboot {
                return super::resume::reboot(context, &mut host, &why);
            }
            if !context.json {
                sys::out::line(&format!("reboot to go {why}"));
            }
            Ok(crate::Kind::RebootNeeded.exit_code())
        }
        Next::Nothing | Next::CheckHealth { .. } | Next::TryAgain { .. } => {
            let booted = host.machine.booted;
            if context.json {
                tell(!booted, false);
            } else {
                sys::out::line(&format!("called off; slot {booted} stays"));
            }
            Ok(0)
        }
    }
}

fn tell(called_off: Slot, reboot_needed: bool) {
    let line = json!({ "called_off": called_off, "primary": !called_off, "reboot_needed": reboot_needed });
    sys::out::line(&line.to_string());
}
