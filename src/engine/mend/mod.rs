//! What a power cut left of the engine's own files: those that it would not start with are set aside.
//!
//! Laws:
//!
//! - only a file that is shown to be damaged is touched, and only one that the engine makes anew by itself: no image, no
//!   container and no volume is among them;
//! - nothing is deleted: what the file held is kept beside it, as `NAME.damaged-1` and so on;
//! - a database that an engine has open is left alone.
//!
//! That dockerd ends at once with each of them was seen with 20.10: `Couldn't create reference store repository: EOF`,
//! `error while opening volume store metadata database: invalid database`, `file size too small`, and the like.

mod bolt;
mod names;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::{Doing, Result, Root, sys};

/// No such file is longer.
const LIMIT_BYTES: u64 = 64 * 1024 * 1024;

/// What a file is, and so how its damage shows.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A database.
    Bolt,
    /// A JSON object.
    Json,
    /// A JSON object with the names of images.
    Names,
    /// 32 hexadecimal digits, and signs between them.
    Uuid,
}

/// The files, below a directory of `engine.storage`; `*` stands for any beginning of a name.
const KNOWN: [(&str, Kind); 9] = [
    ("image/*/repositories.json", Kind::Names),
    ("volumes/metadata.db", Kind::Bolt),
    ("network/files/local-kv.db", Kind::Bolt),
    ("buildkit/*.db", Kind::Bolt),
    ("key.json", Kind::Json),
    // Of the containerd that the engine starts, and of one that runs by itself.
    ("containerd/daemon/io.containerd.metadata.v1.bolt/meta.db", Kind::Bolt),
    ("containerd/daemon/io.containerd.grpc.v1.introspection/uuid", Kind::Uuid),
    ("io.containerd.metadata.v1.bolt/meta.db", Kind::Bolt),
    ("io.containerd.grpc.v1.introspection/uuid", Kind::Uuid),
];

/// A file that was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mended {
    /// Where it was.
    pub file: PathBuf,
    /// What was wrong with it.
    pub damage: String,
    /// Where what it held is now.
    pub kept: PathBuf,
    /// The names of images that were put together again from the containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub names: Option<usize>,
}

/// Sets aside what is damaged in the directories of `engine.storage`. One file that cannot be looked at, or not be set aside,
/// keeps none of the others from it.
pub fn mend(storage: &[PathBuf], root: &Root) -> Vec<Result<Mended>> {
    let mut outcomes = Vec::new();
    for data in storage.iter().map(|dir| root.path(dir)) {
        for (pattern, kind) in KNOWN {
            let found = match matching(&data, pattern) {
                Ok(found) => found,
                Err(e) => {
                    outcomes.push(Err(e));
                    continue;
                }
            };
            for file in found {
                let outcome = damage(&file, kind).and_then(|damage| {
                    damage.map(|damage| set_aside(&data, file.clone(), kind, damage)).transpose()
                });
                outcomes.extend(outcome.doing(|| file.display().to_string()).transpose());
            }
        }
    }
    outcomes
}

/// What was set aside once and is still there.
///
/// # Errors
/// `Failed`, naming the directory, if one cannot be listed.
pub fn kept(storage: &[PathBuf], root: &Root) -> Result<Vec<PathBuf>> {
    let mut kept = Vec::new();
    for data in storage.iter().map(|dir| root.path(dir)) {
        for (pattern, _) in KNOWN {
            let (dir, name) = pattern.rsplit_once('/').unwrap_or((".", pattern));
            let name = name.trim_start_matches('*');
            for dir in matching(&data, dir)? {
                let names = |path: &PathBuf| path.file_name().map(|n| n.to_string_lossy().into_owned());
                kept.extend(
                    sys::file::list(&dir)?
                        .into_iter()
                        .filter(|path| names(path).is_some_and(|n| n.contains(&format!("{name}.damaged-")))),
                );
            }
        }
    }
    Ok(kept)
}

/// What is there of `pattern` below `dir`.
fn matching(dir: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let mut found = vec![dir.to_owned()];
    for part in pattern.split('/') {
        let mut next = Vec::new();
        for dir in found {
            match part.strip_prefix('*') {
                None => next.push(dir.join(part)),
                Some(end) if dir.is_dir() => next.extend(
                    sys::file::list(&dir)?
                        .into_iter()
                        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().ends_with(end))),
                ),
                Some(_) => {}
            }
        }
        found = next;
    }
    found.retain(|path| path.exists());
    Ok(found)
}

/// What is wrong with a file, if it is shown to be.
fn damage(file: &Path, kind: Kind) -> Result<Option<String>> {
    match kind {
        Kind::Bolt => {
            let opened = sys::file::open_read(file)?;
            // The engine holds this lock for as long as it has the database open.
            if !sys::lock::try_lock_file(&opened)? {
                return Ok(None);
            }
            bolt::damage(&opened)
        }
        Kind::Uuid => {
            let bytes = sys::file::read(file, LIMIT_BYTES)?;
            let digits = bytes.iter().filter(|b| b.is_ascii_hexdigit()).count();
            Ok((digits != 32).then(|| format!("no UUID: {} bytes", bytes.len())))
        }
        Kind::Json | Kind::Names => {
            let bytes = sys::file::read(file, LIMIT_BYTES)?;
            // As the engine reads it: what follows the first value does not matter.
            Ok(match serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>().next() {
                Some(Ok(Value::Object(_))) => None,
                Some(Ok(_)) => Some("no JSON object".into()),
                Some(Err(e)) => Some(format!("{} bytes, no JSON: {e}", bytes.len())),
                None => Some(format!("{} bytes, no JSON", bytes.len())),
            })
        }
    }
}

fn set_aside(data: &Path, file: PathBuf, kind: Kind, damage: String) -> Result<Mended> {
    let kept = free_name(&file);
    if let Kind::Names = kind {
        // On a full disk, a start without names is better than none.
        match replace_names(data, &file, &kept) {
            Ok(names) => return Ok(Mended { file, damage, kept, names: Some(names) }),
            Err(e) => log::warn!("engine: the names of images are not put together again: {e}"),
        }
    }
    sys::durable::rename(&file, &kept)?;
    Ok(Mended { file, damage, kept, names: None })
}

/// First the copy, then the new file in one step: between them is a damaged file, which the next start finds again.
fn replace_names(data: &Path, file: &Path, kept: &Path) -> Result<usize> {
    let (all, count) = names::of_containers(data, sys::durable::parent(file)?)?;
    let old = sys::file::read(file, LIMIT_BYTES)?;
    sys::durable::replace(kept, &old, 0o600)?;
    sys::durable::replace(file, all.to_string().as_bytes(), 0o600)?;
    Ok(count)
}

/// A name beside `file` that nothing has.
fn free_name(file: &Path) -> PathBuf {
    let name = |n: u32| {
        let mut name = file.as_os_str().to_owned();
        name.push(format!(".damaged-{n}"));
        PathBuf::from(name)
    };
    (1..u32::MAX).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(0))
}
