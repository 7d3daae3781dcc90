//! Which image runs: the one that `supervisor.conf` names, from the engine or from an archive.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::conf::Conf;
use crate::config;
use crate::engine::{Engine, Image, OnProgress};
use crate::{Doing, Error, Result, Root, sys};

/// zstd windows up to 32 MiB: that of level 19 is 8, only `--ultra` and `--long` ask for more.
const WINDOW_LOG_MAX: u32 = 25;

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
        for archive in archives(&root.path(&settings.archives))? {
            let names = load(engine, &archive, on_progress)?;
            held.push(format!("{} holds {}", archive.display(), names.join(", ")));
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

fn archives(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = sys::file::list(dir)?;
    files.retain(|f| f.extension().is_some_and(|e| e == "tar") || is_zstd(f));
    Ok(files)
}

fn is_zstd(file: &Path) -> bool {
    file.to_string_lossy().ends_with(".tar.zst")
}

fn load(engine: &Engine, archive: &Path, on_progress: &mut OnProgress<'_>) -> Result<Vec<String>> {
    let doing = || format!("load {}", archive.display());
    log::info!("supervisor: {}", doing());
    let file = sys::file::open_read(archive)?;
    let bytes: Box<dyn Read> =
        if is_zstd(archive) { Box::new(decoder(file).doing(doing)?) } else { Box::new(file) };
    engine.load(bytes, on_progress).doing(doing)
}

fn decoder(file: impl Read) -> io::Result<impl Read> {
    let mut decoder = zstd::Decoder::new(file)?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    Ok(decoder)
}
