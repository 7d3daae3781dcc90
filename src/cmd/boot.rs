//! `twinhull boot`

use super::evidence;
use super::host::Host;
use super::turn;
use crate::cli::{Command, Context, usage};
use crate::{Error, Result, sys};

pub(super) const COMMAND: Command = Command {
    name: "boot",
    summary: "note that this boot begins, or that it ends in order",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull boot: note that this boot begins, or that it ends in order

Usage: twinhull boot begin
       twinhull boot end

Run by twinhull-boot.service, before anything else looks at the update and after all else has stopped.

begin  On a trial, and in the boot after one: what the boot before has left behind is kept as the reason, should the trial
       end in a rollback. That is the kernel's last words in /sys/fs/pstore, the watchdog's status, or else that power was lost.
end    On a trial: this boot was asked to end, so the bootloader gets its try back (at most 9 times, lest a system that
       restarts itself each time stay on trial for ever). Where firmware tries a system only once (tryboot, efi), a reboot is made
       the next try of what is armed.

Without an update under way neither does anything. May be repeated.
";

fn run(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    use lexopt::prelude::*;
    let mut verb = None;
    while let Some(arg) = parser.next().map_err(usage("boot"))? {
        match arg {
            Value(v) if verb.is_none() => verb = Some(v.string().map_err(usage("boot"))?),
            _ => return Err(usage("boot")(arg.unexpected())),
        }
    }
    match verb.as_deref() {
        Some("begin") => {
            let _turn = turn::wait(&context.root)?;
            let mut host = Host::open(context)?;
            host.machine.begin_boot(&evidence::gather(&context.root)?)?;
            evidence::remember(&context.root)?;
        }
        Some("end") => {
            let reboots = sys::power::reboot_is_under_way();
            let _turn = turn::wait(&context.root)?;
            if let Some(argument) = Host::open(context)?.end_boot(reboots)? {
                sys::power::set_reboot_argument(argument)?;
            }
        }
        _ => return Err(Error::usage("boot: begin or end? see `twinhull boot --help`")),
    }
    Ok(0)
}
