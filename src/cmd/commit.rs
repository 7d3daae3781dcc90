//! `twinhull commit`

use crate::cli::{Command, Context};
use crate::{Error, Result};

pub(super) const COMMAND: Command = Command { name: "commit", summary: "", help: HELP, run };

const HELP: &str = "twinhull commit\n";

fn run(_parser: lexopt::Parser, _context: &Context) -> Result<u8> {
    Err(Error::failed("not built yet"))
}
