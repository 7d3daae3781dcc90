//! `twinhull rollback`

use super::host::Host;
use super::turn;
use crate::cli::{Command, Context, usage};
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

Usage: twinhull rollback [--reason TEXT] [--no-reboot]

On a trial: the reason is recorded, the old system is made the next to boot, and the device reboots into it (unless
--no-reboot). Before the reboot into a new system: it is disarmed, nothing else happens.
Exit 3 if there is nothing to call off. A committed update has no way back: install the older bundle instead.
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
        Next::Reboot { why } if may_reboot => super::resume::reboot(context, &mut host, &why),
        Next::Reboot { why } => {
            sys::out::line(&format!("reboot to go {why}"));
            Ok(crate::Kind::RebootNeeded.exit_code())
        }
        Next::Nothing | Next::CheckHealth { .. } => {
            sys::out::line(&format!("called off; slot {} stays", host.machine.booted));
            Ok(0)
        }
    }
}
