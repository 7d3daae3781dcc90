//! `twinhull reset`

use std::path::PathBuf;

use serde_json::json;

use super::host::Host;
use super::turn;
use crate::cli::{Command, Context, usage};
use crate::model::phase::Phase;
use crate::model::reset::is_inside;
use crate::model::{KEPT_OF_DATA, KEPT_OF_STATE, RESET_REQUEST, ResetRequest};
use crate::{Doing, Error, Result, sys};

pub(super) const COMMAND: Command = Command {
    name: "reset",
    summary: "factory reset of the state or the data partition, at the next boot",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull reset: factory reset of the state or the data partition, at the next boot

Usage: twinhull reset state|data|all [--keep PATH]... --yes
       twinhull reset --cancel
       twinhull reset

state   Settings of this device: everything on /mnt/state, such as root-overlay/ (connections, ssh host keys) and the machine id.
data    Everything on /mnt/data: containers, images, volumes, the supervisor's database.
all     Both.

--keep PATH   leave PATH alone; relative to its partition, which is named before it if both are reset:
                twinhull reset data --keep resin-data/myvolume --yes
                twinhull reset all --keep state:root-overlay/etc/ssh --yes
--yes         do ask for it; without it this only says what would be emptied and kept
--cancel      take the request back
(nothing)     say what is requested

The request is one file on the state partition, written whole. PID 1 carries it out at the next boot, before anything uses
the partitions, and removes it last: a power cut in between is taken up by the boot after. Nothing is ever emptied because a
file is missing. config.json is on the boot partition and is not touched: the device stays registered. What an update
needs to be taken up again is kept in any case. Refused (exit 3) while an update is under way, and without --yes.
";

fn run(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let (mut what, mut keep, mut yes, mut cancel) = (None, Vec::new(), false, false);
    while let Some(arg) = parser.next().map_err(usage("reset"))? {
        match arg {
            lexopt::Arg::Long("keep") => {
                keep.push(parser.value().map_err(usage("reset"))?.to_string_lossy().into_owned());
            }
            lexopt::Arg::Long("yes") => yes = true,
            lexopt::Arg::Long("cancel") => cancel = true,
            lexopt::Arg::Value(word) if what.is_none() => what = Some(word.to_string_lossy().into_owned()),
            lexopt::Arg::Long(_) | lexopt::Arg::Short(_) | lexopt::Arg::Value(_) => {
                return Err(usage("reset")(arg.unexpected()));
            }
        }
    }
    let path = context.root.path(RESET_REQUEST);
    match (what, cancel) {
        (Some(_), true) => {
            Err(Error::usage("reset: --cancel takes nothing else; see `twinhull reset --help`"))
        }
        (None, true) => sys::durable::remove(&path).doing(|| "reset").map(|()| 0),
        (None, false) => show(context, pending(context)?.as_ref(), false),
        (Some(what), false) => {
            let request = request(&what, &keep)?;
            if !yes {
                show(context, Some(&request), false)?;
                return Err(Error::refused(
                    "reset: nothing is requested yet; add --yes to empty this at the next boot",
                ));
            }
            let _turn = turn::take(&context.root).doing(|| "reset")?;
            no_update_is_under_way(context)?;
            sys::durable::create_dir(sys::durable::parent(&path)?)?;
            sys::durable::replace(&path, request.to_text().as_bytes(), 0o600).doing(|| "reset")?;
            show(context, Some(&request), true)
        }
    }
}

fn request(what: &str, keep: &[String]) -> Result<ResetRequest> {
    let (state, data) = match what {
        "state" => (true, false),
        "data" => (false, true),
        "all" => (true, true),
        other => {
            return Err(Error::usage(format!(
                "reset: {other:?}: expected state, data or all; see `twinhull reset --help`"
            )));
        }
    };
    let mut request = ResetRequest { state: state.then(Vec::new), data: data.then(Vec::new) };
    for text in keep {
        let (partition, path) = match text.split_once(':') {
            Some((partition @ ("state" | "data"), path)) => (partition, path),
            _ if what == "all" => {
                return Err(Error::usage(format!(
                    "reset: --keep {text}: say which: state:{text} or data:{text}"
                )));
            }
            _ => (what, text.as_str()),
        };
        let path = PathBuf::from(path);
        is_inside(&path).map_err(|e| Error::usage(format!("reset: --keep {e}")))?;
        let list = if partition == "state" { &mut request.state } else { &mut request.data };
        list.as_mut()
            .ok_or_else(|| Error::usage(format!("reset: --keep {text}: {partition} is not reset")))?
            .push(path);
    }
    Ok(request)
}

fn pending(context: &Context) -> Result<Option<ResetRequest>> {
    let path = context.root.path(RESET_REQUEST);
    let Some(bytes) = sys::file::read_if_exists(&path, 64 * 1024)? else { return Ok(None) };
    ResetRequest::parse(&bytes).map(Some).doing(|| path.display().to_string())
}

/// A trial that is emptied could not be told from one that failed; an install would be cut short.
fn no_update_is_under_way(context: &Context) -> Result<()> {
    let host = Host::open(context).doing(|| "reset")?;
    match host.machine.observe()?.2 {
        Phase::Steady | Phase::InstallInterrupted => Ok(()),
        phase => Err(Error::refused(format!(
            "reset: an update is under way ({}); wait until `twinhull status` says steady",
            phase.name()
        ))),
    }
}

fn show(context: &Context, request: Option<&ResetRequest>, requested: bool) -> Result<u8> {
    if context.json {
        let text = json!({"request": request.map(|r| json!({"state": r.state, "data": r.data}))});
        sys::out::line(&text.to_string());
        return Ok(0);
    }
    let Some(request) = request else {
        sys::out::line("no reset is requested");
        return Ok(0);
    };
    let mut lines = Vec::new();
    for (name, keep, always) in [
        ("state", &request.state, KEPT_OF_STATE.as_slice()),
        ("data", &request.data, KEPT_OF_DATA.as_slice()),
    ] {
        let Some(keep) = keep else { continue };
        let kept: Vec<_> = keep
            .iter()
            .map(|k| k.display().to_string())
            .chain(always.iter().map(|k| (*k).to_owned()))
            .collect();
        lines.push(format!("/mnt/{name} is emptied but for {}", kept.join(", ")));
    }
    if requested {
        lines.push("at the next boot; `twinhull reset --cancel` takes it back until then".into());
    }
    sys::out::line(&lines.join("\n"));
    Ok(0)
}
