//! Image archives: files in `docker save` format, plain or compressed with zstd.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Engine, OnProgress};
use crate::{Doing, Result, sys};

/// zstd windows up to 32 MiB: that of level 19 is 8, only `--ultra` and `--long` ask for more.
const WINDOW_LOG_MAX: u32 = 25;

/// The archives in a directory (`*.tar`, `*.tar.zst`), by name; none if there is no such directory.
///
/// # Errors
/// `Failed`, naming the path.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = sys::file::list(dir)?;
    files.retain(|f| f.extension().is_some_and(|e| e == "tar") || is_zstd(f));
    Ok(files)
}

fn is_zstd(file: &Path) -> bool {
    file.to_string_lossy().ends_with(".tar.zst")
}

/// Loads an archive into the engine. Gives the names of the images that it holds.
///
/// # Errors
/// `Failed`, naming the file; whatever `on_progress` returns.
pub fn load(engine: &Engine, archive: &Path, on_progress: &mut OnProgress<'_>) -> Result<Vec<String>> {
    let doing = || format!("load {}", archive.display());
    let file = sys::file::open_read(archive).doing(doing)?;
    log::info!("{}", doing());
    let bytes: Box<dyn Read> = if is_zstd(archive) {
        let mut decoder = zstd::Decoder::new(file).doing(doing)?;
        decoder.window_log_max(WINDOW_LOG_MAX).doing(doing)?;
        Box::new(decoder)
    } else {
        Box::new(file)
    };
    engine.load(bytes, on_progress).doing(doing)
}
