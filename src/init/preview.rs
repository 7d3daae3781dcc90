//! What PID 1 would find and do on this host, without doing it.

use std::path::PathBuf;

use super::boot::next_init;
use super::data;
use crate::block::{BootedDisk, FileDisk, grow};
use crate::config::Settings;
use crate::model::Cmdline;
use crate::{Result, Root, sys};

/// What a boot of this host would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// The disk of the root, with its partitions.
    pub disk: BootedDisk,
    /// How the data partition would grow: sizes in bytes before and after; or why the table is left alone.
    pub growth: std::result::Result<Option<(u64, u64)>, String>,
    /// Paths that are kept on the state partition.
    pub persist: Vec<PathBuf>,
    /// The program that would take over.
    pub next: PathBuf,
}

/// Looks at the host under `root` as PID 1 would; `settings` are the host's.
///
/// # Errors
/// As [`BootedDisk::find`].
pub fn preview(root: &Root, settings: &Settings) -> Result<Preview> {
    let disk = BootedDisk::find(root)?;
    let cmdline = Cmdline::parse(&sys::file::read_text(&root.path("/proc/cmdline"), 64 * 1024)?);
    let growth = growth(&disk).map_err(|e| e.to_string());
    let next = next_init(&cmdline, settings);
    Ok(Preview { disk, growth, persist: settings.init.persist.clone(), next })
}

fn growth(disk: &BootedDisk) -> Result<Option<(u64, u64)>> {
    let data = data::find(disk)?;
    let mut medium = FileDisk::open_read_only(&disk.device)?;
    let plan = grow::plan(&mut medium, &disk.table, data.number)?;
    Ok(plan.map(|p| (p.from_bytes, p.to_bytes)))
}
