//! `twinhull supervisor update`, `rollback` and `logs`

use std::path::{Path, PathBuf};

use serde_json::json;

use super::fetching::Fetching;
use crate::cli::Context;
use crate::config::Settings;
use crate::engine::supervisor::{self, Named, Outcome, Update};
use crate::engine::{Engine, Output, Sources};
use crate::sys::termination::Termination;
use crate::{Error, Result, sys};

/// What was typed after `supervisor update`.
#[derive(Default)]
pub(super) struct Wanted {
    /// The image; left out: the archive's, or that of the OS image.
    pub image: Option<String>,
    /// `SUPERVISOR_VERSION`; left out: the image's tag, if it looks like one.
    pub version: Option<String>,
    /// An archive that holds it.
    pub from: Option<PathBuf>,
}

/// Fetches a supervisor and has it tried.
pub(super) fn update(context: &Context, wanted: Wanted) -> Result<u8> {
    let settings = context.settings()?;
    let begun = Update::begin(&settings, &context.root)?;
    let now = begun.present()?;
    let mut sources = sources(context, &settings, wanted.from.as_ref());
    let named = match (&wanted.image, &wanted.from) {
        (Some(image), _) => Named { image: image.clone(), version: String::new() },
        (None, Some(archive)) => {
            let image = only_image(context, begun.engine(), archive)?;
            sources.archives.clear();
            sources.loaded.push(image.clone());
            Named { image, version: String::new() }
        }
        (None, None) => supervisor::of_os_image(&settings, &context.root)?,
    };
    let version = wanted.version.or(Some(named.version).filter(|v| !v.is_empty()));
    let version = version.unwrap_or_else(|| version_of(&named.image));
    let named = Named { image: named.image, version };
    if named.image == now.image {
        return Ok(unchanged(context, &now.image));
    }
    fetch(context, &begun, &named.image, &mut sources)?;
    try_out(context, &begun, named)
}

/// Goes back to the supervisor from before the last update.
pub(super) fn rollback(context: &Context) -> Result<u8> {
    let settings = context.settings()?;
    let begun = Update::begin(&settings, &context.root)?;
    let named = supervisor::previous(&settings, &context.root)?;
    let mut sources = sources(context, &settings, None);
    fetch(context, &begun, &named.image, &mut sources)?;
    try_out(context, &begun, named)
}

/// Shows what the container prints.
pub(super) fn logs(context: &Context, lines: Option<u32>, follow: bool) -> Result<u8> {
    let termination = Termination::catch()?;
    let settings = context.settings()?;
    let engine = Engine::connect(&settings.engine, &context.root)?;
    engine.logs(supervisor::NAME, lines, follow, &termination, &mut |output, piece| match output {
        Output::Out => sys::out::raw(piece),
        Output::Err => sys::out::raw_error(piece),
    })?;
    Ok(0)
}

fn sources<'a>(context: &'a Context, settings: &'a Settings, archive: Option<&PathBuf>) -> Sources<'a> {
    let archives = archive.cloned().into_iter().collect();
    let mut sources = Sources::new(settings, &context.root, archives);
    // Whoever names an archive means what is in it.
    (sources.may_pull, sources.anew) = (archive.is_none(), archive.is_some());
    sources
}

/// Loads an archive that is to hold one image; gives that one's name.
fn only_image(context: &Context, engine: &Engine, archive: &Path) -> Result<String> {
    let mut fetching = Fetching::new(context.json, &archive.display().to_string());
    let names = crate::engine::archive::load(engine, archive, &mut |progress| {
        fetching.show(progress);
        Ok(())
    })?;
    match names.as_slice() {
        [name] if !name.starts_with("sha256:") => Ok(name.clone()),
        _ => Err(Error::usage(format!(
            "supervisor update: {} holds {:?}; name one: `supervisor update IMAGE --from FILE`",
            archive.display(),
            names
        ))),
    }
}

fn fetch(context: &Context, update: &Update<'_>, image: &str, sources: &mut Sources<'_>) -> Result<()> {
    let mut fetching = Fetching::new(context.json, image);
    update.fetch(image, sources, &mut |progress| {
        fetching.show(progress);
        Ok(())
    })
}

/// The tag, if it is a version.
fn version_of(image: &str) -> String {
    let tag = image.rsplit('/').next().and_then(|last| last.split_once(':')).map_or("", |(_, tag)| tag);
    let is_version = tag.strip_prefix('v').unwrap_or(tag).starts_with(|c: char| c.is_ascii_digit());
    if is_version && tag.contains('.') { tag.to_owned() } else { String::new() }
}

fn unchanged(context: &Context, image: &str) -> u8 {
    if context.json {
        sys::out::line(&json!({ "event": "end", "outcome": "unchanged", "image": image }).to_string());
    } else {
        sys::out::line(&format!("{image} is this device's supervisor already"));
    }
    0
}

fn try_out(context: &Context, update: &Update<'_>, named: Named) -> Result<u8> {
    if !context.json {
        log::info!("{} is there; the watcher tries it", named.image);
    }
    let outcome = update.try_out(named, &mut |health| {
        if context.json {
            sys::out::line(&json!({ "event": "trial", "health": health }).to_string());
        } else {
            log::info!("{health}");
        }
    })?;
    Ok(show(context, &outcome))
}

fn show(context: &Context, outcome: &Outcome) -> u8 {
    let (tried, before) = (&outcome.tried.image, &outcome.before.image);
    if context.json {
        let word = if outcome.went_back.is_some() { "went-back" } else { "kept" };
        let line = json!({ "event": "end", "outcome": word, "image": tried, "before": before, "why": outcome.went_back });
        sys::out::line(&line.to_string());
    } else {
        sys::out::line(&match &outcome.went_back {
            None => format!("{tried} is kept; `twinhull supervisor rollback` returns to {before}"),
            Some(why) => format!("{before} runs again; {tried} failed: {why}"),
        });
    }
    u8::from(outcome.went_back.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_that_is_a_version_is_the_version() {
        for (image, expected) in [
            ("lab/supervisor:2.0.0", "2.0.0"),
            ("balena/amd64-supervisor:v18.2.2", "v18.2.2"),
            ("lab/supervisor:latest", ""),
            ("lab/supervisor:2", ""),
            ("10.0.0.1:5000/supervisor", ""),
            ("registry2.balena-cloud.com/v2/abc@sha256:0123", ""),
        ] {
            assert_eq!(version_of(image), expected, "{image}");
        }
    }
}
