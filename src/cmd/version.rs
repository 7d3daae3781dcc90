//! `twinhull version`

use crate::cli::{Command, Context};
use crate::{Result, sys};

pub(super) const COMMAND: Command =
    Command { name: "version", summary: "say which twinhull this is (also -V)", help: HELP, run };

const HELP: &str = "\
twinhull version: say which twinhull this is

Usage: twinhull version [--json]
";

fn run(_parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let version = env!("CARGO_PKG_VERSION");
    sys::out::line(&if context.json {
        serde_json::json!({ "version": version, "arch": crate::model::device::arch() }).to_string()
    } else {
        format!("twinhull {version}")
    });
    Ok(0)
}
