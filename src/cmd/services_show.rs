//! `twinhull services ps` and `logs`

use std::sync::mpsc::{Sender, channel};

use serde_json::{Value, json};

use crate::cli::Context;
use crate::config::Settings;
use crate::engine::{Engine, Output, Summary};
use crate::services::App;
use crate::services::app::service_of;
use crate::sys::termination::Termination;
use crate::{Error, Result, sys};

/// Shows which container each service has.
pub(super) fn ps(context: &Context, settings: &Settings, app: &App) -> Result<u8> {
    let all = containers(&Engine::connect(&settings.engine, &context.root)?, app)?;
    let name = |c: &Summary| c.names.first().map_or("", |n| n.trim_start_matches('/')).to_owned();
    if context.json {
        let row = |c: &Summary| {
            json!({ "service": service_of(c), "container": name(c), "id": c.id, "image": c.image, "state": c.state,
                "status": c.status })
        };
        sys::out::line(&all.iter().map(row).collect::<Value>().to_string());
        return Ok(0);
    }
    if all.is_empty() {
        sys::out::line(&format!("{}: nothing runs; `twinhull services up -f FILE` starts it", app.name()));
    }
    for c in &all {
        sys::out::line(&format!("{:<20} {:<28} {:<32} {}", service_of(c), name(c), c.image, c.status));
    }
    Ok(0)
}

/// Shows what the services print.
pub(super) fn logs(
    context: &Context,
    settings: &Settings,
    app: &App,
    services: &[String],
    lines: Option<u32>,
    follow: bool,
) -> Result<u8> {
    let termination = Termination::catch()?;
    let engine = Engine::connect(&settings.engine, &context.root)?;
    let mut all = containers(&engine, app)?;
    if let Some(none) = services.iter().find(|s| !all.iter().any(|c| service_of(c) == s.as_str())) {
        let known: Vec<_> = all.iter().map(service_of).collect();
        return Err(Error::failed(format!(
            "no container of service {none:?}; there are: {}",
            known.join(", ")
        )));
    }
    all.retain(|c| services.is_empty() || services.iter().any(|s| s == service_of(c)));
    let alone = all.len() == 1;
    let (sender, lines_of_all) = channel();
    let followers: Vec<_> = all
        .iter()
        .map(|c| {
            let prefix = if alone { String::new() } else { format!("{} | ", service_of(c)) };
            let (engine, id, sender) = (engine.clone(), c.id.clone(), sender.clone());
            let termination = termination.clone();
            std::thread::spawn(move || {
                let mut split = Split { prefix, rest: [Vec::new(), Vec::new()], sender };
                engine.logs(&id, lines, follow, &termination, &mut |output, piece| split.take(output, piece))
            })
        })
        .collect();
    drop(sender);
    for (output, line) in lines_of_all {
        match output {
            Output::Out => sys::out::raw(&line),
            Output::Err => sys::out::raw_error(&line),
        }
    }
    for follower in followers {
        follower.join().map_err(|_| Error::inconsistent("a thread ended early"))??;
    }
    Ok(0)
}

/// Its containers, by service.
fn containers(engine: &Engine, app: &App) -> Result<Vec<Summary>> {
    let mut all = app.containers(engine)?;
    all.sort_by(|a, b| service_of(a).cmp(service_of(b)));
    Ok(all)
}

/// Whole lines, so that those of one service do not run into those of another.
struct Split {
    prefix: String,
    /// What came after the last line of either output.
    rest: [Vec<u8>; 2],
    sender: Sender<(Output, Vec<u8>)>,
}

/// A line without an end is shown in pieces of this size.
const PIECE_BYTES: usize = 64 * 1024;

impl Split {
    fn take(&mut self, output: Output, piece: &[u8]) {
        let [out, err] = &mut self.rest;
        let rest = if output == Output::Out { out } else { err };
        rest.extend_from_slice(piece);
        while let Some(end) =
            rest.iter().position(|b| *b == b'\n').or((rest.len() > PIECE_BYTES).then_some(PIECE_BYTES))
        {
            let mut line = self.prefix.clone().into_bytes();
            line.extend(rest.drain(..=end));
            // Nobody reads any more: the program ends.
            let _ = self.sender.send((output, line));
        }
    }
}

impl Drop for Split {
    fn drop(&mut self) {
        for (output, rest) in [Output::Out, Output::Err].into_iter().zip(&mut self.rest) {
            if !rest.is_empty() {
                let line = [self.prefix.as_bytes(), rest.as_slice(), b"\n".as_slice()].concat();
                let _ = self.sender.send((output, line));
            }
        }
    }
}
