//! `twinhull engine`

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::cli::{Command, Context, usage};
use crate::config::Settings;
use crate::engine::mend::{self, Mended};
use crate::engine::reserve;
use crate::engine::supervisor::RESTART_REQUEST;
use crate::sys::clock::{BootClock, Clock};
use crate::{Doing, Error, Result, sys};

pub(super) const COMMAND: Command = Command {
    name: "engine",
    summary: "mend the container engine's files, start it again if it hangs",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull engine: mend the container engine's files, start it again if it hangs

Usage: twinhull engine mend [--json]
       twinhull engine restart

mend     Before the engine starts: looks at the files in engine.storage without which it does not start, and sets aside
         those that are damaged (no JSON, no UUID, no valid database), as NAME.damaged-1 beside them. The engine makes them
         anew. Only what is shown to be damaged is touched, nothing is deleted, and no image, container or volume is among
         them: repositories.json (the names of images; those of images that have containers are put together again),
         volumes/metadata.db, network/files/local-kv.db (networks other than the engine's own are gone with it),
         buildkit/*.db, key.json, and containerd's meta.db and uuid. On a full data partition no engine starts: 8 MiB, which
         `supervisor run` keeps in /mnt/data/twinhull/reserve while there is room, are given up. Exit 1 if a file could not
         be set aside.

restart  What twinhull-engine-restart.path runs when `supervisor run` asks for it: the engine has not answered, or not done
         what it was asked to do, for engine.silent_s; up to four times that while it starts, or the machine has more to do
         than it can; and each time twice as long, up to an hour. Mends, and has systemd start those of engine.units again
         that run or have failed: asked to end first, and killed only by systemd after the unit's own time. One that somebody
         has stopped stays so.
";

fn run(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let mut words = Vec::new();
    while let Some(arg) = parser.next().map_err(usage("engine"))? {
        match arg {
            lexopt::Arg::Value(word) => words.push(word.to_string_lossy().into_owned()),
            lexopt::Arg::Long(_) | lexopt::Arg::Short(_) => return Err(usage("engine")(arg.unexpected())),
        }
    }
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["mend"] => mend(context),
        ["restart"] => restart(context),
        _ => Err(Error::usage("engine: mend or restart? See `twinhull engine --help`")),
    }
}

fn mend(context: &Context) -> Result<u8> {
    let settings = context.settings()?;
    let mut failed = Vec::new();
    let mut mended = Vec::new();
    let given_up = reserve::give_up(&context.root).unwrap_or_else(|e| {
        failed.push(e.to_string());
        false
    });
    for outcome in mend::mend(&settings.engine.storage, &context.root) {
        match outcome {
            Ok(one) => {
                log::warn!("engine: {}", told(&one));
                mended.push(one);
            }
            Err(e) => failed.push(e.to_string()),
        }
    }
    failed.iter().for_each(|e| log::error!("engine: {e}"));
    let code = u8::from(!failed.is_empty());
    if context.json {
        sys::out::line(&json!({ "mended": mended, "gave_up_room": given_up, "failed": failed }).to_string());
    }
    Ok(code)
}

fn told(one: &Mended) -> String {
    let Mended { file, damage, kept, names } = one;
    let names = names.map_or(String::new(), |n| format!("; {n} names of images put together again"));
    format!("{} was damaged ({damage}); kept as {}{names}", file.display(), kept.display())
}

fn restart(context: &Context) -> Result<u8> {
    // First, so that what is asked for from now on counts as well, and a failure is not started again and again.
    sys::durable::remove(&context.root.path(RESTART_REQUEST))?;
    let settings = context.settings()?;
    let mut units = Vec::new();
    for unit in &settings.engine.units {
        let shown = systemctl(&["show", "--property=ActiveState,StateChangeTimestampMonotonic", unit])?;
        let value = |key: &str| shown.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        match value("ActiveState").unwrap_or_default() {
            "activating" if starts_since(value("StateChangeTimestampMonotonic")) < patience(&settings) => {
                log::info!("engine: {unit} still starts");
                return Ok(0);
            }
            "active" | "activating" | "reloading" | "failed" => units.push(unit.as_str()),
            _ => {}
        }
    }
    let code = mend(context)?;
    if units.is_empty() {
        log::info!(
            "engine: no unit of {} runs or has failed; none is started",
            settings.engine.units.join(", ")
        );
        return Ok(code);
    }
    log::warn!("engine: no answer; {} started again", units.join(" and "));
    // A unit that was started too often is not started again without it.
    systemctl(&[["reset-failed"].as_slice(), &units].concat())?;
    systemctl(&[["restart", "--no-block"].as_slice(), &units].concat())?;
    Ok(code)
}

/// How long a unit has been starting, by systemd's stamp in microseconds.
fn starts_since(stamp: Option<&str>) -> Duration {
    let since = stamp.and_then(|s| s.parse().ok()).map_or(Duration::ZERO, Duration::from_micros);
    BootClock.since_boot().saturating_sub(since)
}

/// On a slow medium a start takes minutes.
fn patience(settings: &Settings) -> Duration {
    Duration::from_secs(settings.engine.silent_s).saturating_mul(4)
}

fn systemctl(args: &[&str]) -> Result<String> {
    let outcome = sys::command::run(Path::new("systemctl"), args, Duration::from_secs(60))?;
    if outcome.success {
        return Ok(outcome.output);
    }
    Err(Error::failed(format!("{}: {}", outcome.ending, outcome.output.trim_end())))
        .doing(|| format!("systemctl {}", args.join(" ")))
}
