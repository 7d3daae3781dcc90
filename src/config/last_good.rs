//! What `config.json` was when it was last good, and what it was when it was not.
//!
//! The last good copy is on the state partition, whose file system has a journal and on which nobody else writes it:
//! `/mnt/state/twinhull/config.json.last-good`. Like `config.json` it holds keys, so only root may read it. It is
//! written after the file itself, so a cut leaves it one version behind at most.
//!
//! A damaged text stays on the boot partition, where a person with a card reader finds it, as
//! `damaged-config-HASH.json`. The name does not begin as fatrw's journal files of `config.json` do: a reader that
//! takes `.config.json.*.md5sum` for them must never put this in its place.

use std::path::{Path, PathBuf};

use md5::{Digest, Md5};

use crate::sys::fatrw::Observer;
use crate::{Doing, Kind, Result, Root, sys};

const STATE: &str = "/mnt/state";
const COPY: &str = "/mnt/state/twinhull/config.json.last-good";
const ASIDE: &str = "damaged-config-";
const LIMIT_BYTES: u64 = 1024 * 1024;

/// The last good copy. One that cannot be read is told in the log and counts as none.
pub(super) fn read(root: &Root) -> Option<Vec<u8>> {
    sys::file::read_if_exists(&root.path(COPY), LIMIT_BYTES)
        .unwrap_or_else(|e| {
            log::warn!("last good copy of config.json: {e}");
            None
        })
        .filter(|_| is_there(root))
}

/// Makes `bytes` the last good copy. That it cannot be kept is told in the log and is no reason to stop.
pub(super) fn keep(root: &Root, bytes: &[u8]) {
    if !is_there(root) || read(root).as_deref() == Some(bytes) {
        return;
    }
    let path = root.path(COPY);
    let kept = sys::durable::parent(&path)
        .and_then(sys::durable::create_dir)
        .and_then(|()| sys::durable::replace(&path, bytes, 0o600));
    if let Err(e) = kept {
        log::warn!("keep a good copy of config.json: {e}");
    }
}

/// Whether the state partition is there: a copy on the root would be another's after an update.
fn is_there(root: &Root) -> bool {
    let state = root.path(STATE);
    state.is_dir() && (!root.is_host() || sys::file::is_mount_point(&state).unwrap_or(false))
}

/// Keeps a damaged text beside `file`. The same text again is the same file.
pub(super) fn set_aside(file: &Path, damaged: &[u8], observer: &Observer) -> Result<()> {
    let hash: String = Md5::digest(damaged).iter().take(4).map(|b| format!("{b:02x}")).collect();
    let aside = file.with_file_name(format!("{ASIDE}{hash}.json"));
    let doing = || format!("keep what {} holds", file.display());
    if sys::fatrw::read_observed(&aside, LIMIT_BYTES, observer).doing(doing)?.as_deref() == Some(damaged) {
        return Ok(());
    }
    match sys::fatrw::write_observed(&aside, damaged, observer).doing(doing) {
        // The device must go on.
        Err(e) if e.kind() == Kind::Refused => log::warn!("{e}"),
        kept => kept?,
    }
    Ok(())
}

/// The damaged texts beside `path`, by name.
///
/// # Errors
/// `Failed` if the directory cannot be read.
pub fn damaged_texts(root: &Root, path: &Path) -> Result<Vec<PathBuf>> {
    let file = root.path(path);
    let mut found = sys::file::list(sys::durable::parent(&file)?)?;
    let is_aside = |p: &PathBuf| {
        p.file_name().is_some_and(|n| {
            let name = n.to_string_lossy();
            name.starts_with(ASIDE) && name.ends_with(".json")
        })
    };
    found.retain(is_aside);
    Ok(found)
}
