//! `twinhull commit`

use super::host::Host;
use super::turn;
use crate::cli::{Command, Context};
use crate::{Result, sys};

pub(super) const COMMAND: Command = Command {
    name: "commit",
    summary: "make the running trial permanent, whatever its health",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull commit: make the running trial permanent, whatever its health

Usage: twinhull commit [--json]

`twinhull resume` commits by itself when the health checks pass; this is for those who know better, or who switched the
checks off. Hooks that came with the bundle are not run. Exit 3 if the running slot is not on trial. With --json: {committed: slot}.
";

fn run(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    if let Some(arg) = parser.next().map_err(crate::cli::usage("commit"))? {
        return Err(crate::cli::usage("commit")(arg.unexpected()));
    }
    let _turn = turn::take(&context.root)?;
    let mut host = Host::open(context)?;
    host.machine.commit("committed by hand")?;
    let slot = host.machine.booted;
    sys::out::line(&if context.json {
        serde_json::json!({ "committed": slot }).to_string()
    } else {
        format!("slot {slot} is committed")
    });
    Ok(0)
}
