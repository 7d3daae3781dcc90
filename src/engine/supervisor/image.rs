//! Which image runs: the one that `supervisor.conf` names, from the engine or from an archive.

use std::path::Path;

use super::conf::Conf;
use crate::config;
use crate::engine::{Engine, Image, OnProgress, archive};
use crate::{Doing, Error, Result, Root};

/// The image that runs, and the configuration that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// What names it.
    pub conf: Conf,
    /// It, as the engine has it.
    pub image: Image,
    /// What is wrong all the same: a damaged file, another image than the one named. For the log.
    pub notes: Vec<String>,
}

/// Finds the supervisor's image: that of the device's `supervisor.conf`, else that of the OS image's own.
///
/// One that the engine lacks is loaded from the archives of `settings.archives`; with `loaded_before` only if no
/// image can run without that, so that a name that is in no archive does not load them all for each start.
///
/// # Errors
/// `Failed`, naming image and directory, if neither engine nor archives have it; whatever `on_progress` returns.
pub fn choose(
    engine: &Engine,
    settings: &config::Supervisor,
    root: &Root,
    loaded_before: bool,
    on_progress: &mut OnProgress<'_>,
) -> Result<Chosen> {
    let (confs, wrong) = Conf::load(settings, root)?;
    let mut notes: Vec<_> = wrong.iter().map(|e| format!("{e}; the other supervisor.conf is used")).collect();
    let look = |conf: &Conf| -> Result<Option<(Conf, Image)>> {
        let image = engine.image(&conf.image).doing(|| format!("look for image {}", conf.image))?;
        Ok(image.map(|image| (conf.clone(), image)))
    };
    let Some((first, others)) = confs.split_first() else {
        return Err(Error::inconsistent("no supervisor.conf"));
    };
    if let Some((conf, image)) = look(first)? {
        return Ok(Chosen { conf, image, notes });
    }
    let fallback = others.iter().find_map(|conf| look(conf).transpose()).transpose()?;
    let mut held = Vec::new();
    if fallback.is_none() || !loaded_before {
        for file in archive::list(&root.path(&settings.archives))? {
            let names = archive::load(engine, &file, on_progress)?;
            held.push(format!("{} holds {}", file.display(), names.join(", ")));
            if let Some((conf, image)) = look(first)? {
                return Ok(Chosen { conf, image, notes });
            }
        }
    }
    let fallback = match fallback {
        Some(both) => Some(both),
        None => others.iter().find_map(|conf| look(conf).transpose()).transpose()?,
    };
    let Some((conf, image)) = fallback else {
        return Err(nowhere(&first.image, &root.path(&settings.archives), &held));
    };
    notes.push(format!("there is no image {}; {} runs instead", first.image, conf.image));
    Ok(Chosen { conf, image, notes })
}

fn nowhere(image: &str, dir: &Path, held: &[String]) -> Error {
    let dir = dir.display();
    let found = if held.is_empty() { format!("no archive is in {dir}") } else { held.join("; ") };
    Error::failed(format!(
        "supervisor image {image} is not in the engine, and {found}; put a `docker save` archive of it (*.tar, \
         *.tar.zst) into {dir}"
    ))
}
