//! The hooks of the bundle that is on trial, run once its health checks have passed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::file_sets::HOOKS;
use crate::cli::Context;
use crate::model::Digest;
use crate::model::payload::HOOK_MAX_BYTES;
use crate::model::record::Hook;
use crate::sys::command::Outcome;
use crate::{Doing, Error, Result, sys};

/// They are run from here, out of reach of a state partition that is mounted without leave to run programs.
const RUN_FROM: &str = "/run/twinhull/hooks";

/// Runs each hook in turn, with its deadline, until one fails. A hook may run more than once: in each boot of the trial.
///
/// # Errors
/// `Failed`, naming the hook, with how it ended and its output; also for one that is not what was signed.
pub fn run(context: &Context, hooks: &[Hook]) -> Result<()> {
    for hook in hooks {
        log::info!("hook {}: running, at most {} s", hook.name, hook.deadline_s);
        sys::notify::status(&format!("running hook {}", hook.name));
        run_one(context, hook).doing(|| format!("hook {}", hook.name))?;
    }
    Ok(())
}

fn run_one(context: &Context, hook: &Hook) -> Result<()> {
    let program = prepare(context, hook)?;
    let outcome = run_program(context, &program, Duration::from_secs(hook.deadline_s))?;
    if outcome.success {
        return Ok(());
    }
    Err(Error::failed(format!("{}: {}", outcome.ending, outcome.output.trim().replace('\n', " | "))))
}

/// Runs a program of the maker: not in the sandbox of twinhull-resume.service, as it may have to do anything.
pub(super) fn run_program(context: &Context, program: &Path, deadline: Duration) -> Result<Outcome> {
    match context.root.is_host() {
        true => sys::command::run_outside(program, deadline),
        false => sys::command::run(program, &[], deadline),
    }
}

/// Copies the program to where it is run from, if it is the one that the journal means.
fn prepare(context: &Context, hook: &Hook) -> Result<PathBuf> {
    let stored = context.root.path("/mnt/state").join(HOOKS).join(&hook.name);
    let content = sys::file::read(&stored, HOOK_MAX_BYTES)?;
    if Digest(Sha256::digest(&content).into()) != hook.sha256 {
        return Err(Error::failed(format!("{} is not what came with the bundle", stored.display())));
    }
    let program = context.root.path(RUN_FROM).join(&hook.name);
    sys::durable::create_dir(sys::durable::parent(&program)?)?;
    sys::durable::replace(&program, &content, 0o700)?;
    Ok(program)
}
