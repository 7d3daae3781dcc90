//! `twinhull init`

use crate::cli::{Command, Context};
use crate::{Error, Result};

pub(super) const COMMAND: Command = Command { name: "init", summary: "", help: HELP, run };

const HELP: &str = "twinhull init\n";

fn run(_parser: lexopt::Parser, _context: &Context) -> Result<u8> {
    Err(Error::failed("not built yet"))
}

/// The kernel's first program.
pub fn as_pid1() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
