//! Where an archive is unpacked before it counts, and the record of how far that is.
//!
//! `/mnt/data/.twinhull-preload/` holds `tree/`, where everything is made, and `progress.json`, which is written when what
//! it says is on the medium. Nothing but the record makes anything of the tree count: without a whole one that names this very
//! archive, the tree is removed and made anew.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::Digest;
use crate::{Doing, Error, Result, sys};

const DIR: &str = ".twinhull-preload";
/// Which archives were unpacked: their digests.
const DONE: &str = ".twinhull-preloaded.json";
const LIMIT_BYTES: u64 = 64 * 1024;

/// How far unpacking is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// The archive.
    pub archive: Digest,
    /// So many segments are unpacked and on the medium.
    pub segments: usize,
    /// All of them are; what is in the tree is being moved to its place.
    pub whole: bool,
}

/// The place on one data partition.
#[derive(Debug)]
pub struct Stage<'a> {
    data: &'a Path,
    dir: PathBuf,
}

impl<'a> Stage<'a> {
    /// That of the data partition mounted at `data`.
    pub fn new(data: &'a Path) -> Self {
        Self { data, dir: data.join(DIR) }
    }

    /// Where everything is made.
    pub fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    /// What an earlier run has done for this archive. What is left of another archive, or of a run without a record, is
    /// removed.
    ///
    /// # Errors
    /// `Failed`, naming the path.
    pub fn progress(&self, archive: Digest) -> Result<Progress> {
        match self.found()? {
            Some(found) if found.archive == archive && self.tree().is_dir() => Ok(found),
            _ => {
                self.remove()?;
                sys::durable::create_dir(&self.tree())?;
                Ok(Progress { archive, segments: 0, whole: false })
            }
        }
    }

    /// How many segments of this archive an earlier run has unpacked. Looks only.
    ///
    /// # Errors
    /// `Failed`, naming the path.
    pub fn segments(&self, archive: Digest) -> Result<usize> {
        Ok(self.found()?.filter(|found| found.archive == archive).map_or(0, |found| found.segments))
    }

    /// The record, if there is one that makes sense.
    fn found(&self) -> Result<Option<Progress>> {
        let bytes = sys::file::read_if_exists(&self.record(), LIMIT_BYTES)?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Makes everything in the tree durable, and then says so.
    ///
    /// # Errors
    /// `Failed`: then the record is the old one.
    pub fn keep(&self, progress: Progress) -> Result<()> {
        sys::tree::sync(&self.dir)?;
        sys::json_file::replace(&self.record(), &progress)
    }

    /// Moves what is in the tree to the top of the data partition. A directory that is there already and was empty is filled.
    /// What an interrupted run has moved is no longer in the tree.
    ///
    /// # Errors
    /// `Inconsistent` if something came into the way meanwhile: it is not touched.
    pub fn publish(&self, observer: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
        for from in sys::file::list(&self.tree())? {
            let to = self.place_of(&from);
            if is_own_dir(&to) && is_own_dir(&from) {
                for inner in sys::file::list(&from)? {
                    move_to(&inner, &to.join(inner.file_name().unwrap_or_default()), observer)?;
                }
                sys::tree::remove(&from)?;
            } else {
                move_to(&from, &to, observer)?;
            }
        }
        sys::tree::sync(self.data)
    }

    /// The first of these names that is taken at the top of the data partition: there, and no empty directory.
    ///
    /// # Errors
    /// `Failed`, naming the path.
    pub fn taken(&self, names: &[String]) -> Result<Option<PathBuf>> {
        for name in names {
            let path = self.data.join(name);
            let is_free = match is_own_dir(&path) {
                true => sys::file::list(&path)?.is_empty(),
                false => path.symlink_metadata().is_err(),
            };
            if !is_free {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Removes record and tree. The record goes first: a tree without one is nothing, a record without its tree would lie.
    ///
    /// # Errors
    /// `Failed`, naming the path.
    pub fn remove(&self) -> Result<()> {
        sys::durable::remove(&self.record())?;
        sys::tree::remove(&self.dir)
    }

    /// Gives up what is begun, so that it takes no room; what is being moved to its place stays.
    ///
    /// # Errors
    /// `Failed`, naming the path.
    pub fn give_up(&self) -> Result<()> {
        if self.found()?.is_some_and(|found| found.whole) { Ok(()) } else { self.remove() }
    }

    /// Whether this archive was unpacked here.
    ///
    /// # Errors
    /// `Failed` if the list cannot be read: then nobody knows.
    pub fn is_done(&self, archive: Digest) -> Result<bool> {
        Ok(self.done()?.contains(&archive))
    }

    /// Notes that it was.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    pub fn note_done(&self, archive: Digest) -> Result<()> {
        let mut done = self.done()?;
        if !done.contains(&archive) {
            done.push(archive);
        }
        sys::json_file::replace(&self.data.join(DONE), &done)
    }

    fn done(&self) -> Result<Vec<Digest>> {
        let done = sys::json_file::read(&self.data.join(DONE));
        Ok(done.doing(|| "what was preloaded here (remove the file if nothing was)")?.unwrap_or_default())
    }

    fn record(&self) -> PathBuf {
        self.dir.join("progress.json")
    }

    fn place_of(&self, in_tree: &Path) -> PathBuf {
        self.data.join(in_tree.file_name().unwrap_or_default())
    }
}

fn move_to(from: &Path, to: &Path, observer: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
    if to.symlink_metadata().is_ok() {
        return Err(Error::inconsistent(format!(
            "{} was made while the archive was unpacked; move one of the two away: this or {}",
            to.display(),
            from.display()
        )));
    }
    sys::tree::publish(from, to)?;
    observer(to)
}

fn is_own_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|m| m.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(path: &Path, bytes: &[u8]) -> Result<()> {
        sys::durable::replace(path, bytes, 0o600)
    }

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    #[test]
    fn a_tree_counts_only_with_a_record_of_this_archive() {
        let dir = tempfile::tempdir().unwrap();
        let stage = Stage::new(dir.path());
        let progress = Progress { segments: 2, ..stage.progress(digest(1)).unwrap() };
        put(&stage.tree().join("file"), b"x").unwrap();
        stage.keep(progress).unwrap();
        assert_eq!(stage.progress(digest(1)).unwrap(), progress);
        assert!(stage.tree().join("file").exists());
        // Half a record.
        let whole = std::fs::read(stage.record()).unwrap();
        for len in 0..whole.len() - 2 {
            std::fs::create_dir_all(stage.tree()).unwrap();
            put(&stage.tree().join("file"), b"x").unwrap();
            put(&stage.record(), &whole[..len]).unwrap();
            assert_eq!(stage.progress(digest(1)).unwrap().segments, 0, "{len}");
            assert!(!stage.tree().join("file").exists());
        }
        stage.keep(progress).unwrap();
        assert_eq!(stage.progress(digest(2)).unwrap().segments, 0);
    }

    #[test]
    fn what_is_there_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let stage = Stage::new(dir.path());
        stage.progress(digest(1)).unwrap();
        for made in ["docker/image", "new"] {
            std::fs::create_dir_all(stage.tree().join(made)).unwrap();
        }
        std::fs::create_dir_all(dir.path().join("docker")).unwrap();
        let names = ["docker", "new"].map(String::from);
        assert_eq!(stage.taken(&names).unwrap(), None);
        std::fs::create_dir_all(dir.path().join("docker/image/mine")).unwrap();
        assert_eq!(stage.taken(&names).unwrap(), Some(dir.path().join("docker")));
        let e = stage.publish(&|_| Ok(())).unwrap_err();
        assert_eq!(e.kind(), crate::Kind::Inconsistent);
        assert!(dir.path().join("docker/image/mine").exists());
        std::fs::remove_dir_all(dir.path().join("docker/image")).unwrap();
        stage.publish(&|_| Ok(())).unwrap();
        assert!(dir.path().join("docker/image").is_dir() && dir.path().join("new").is_dir());
        assert_eq!(sys::file::list(&stage.tree()).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn an_unreadable_list_of_what_was_done_is_no_reason_to_do_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let stage = Stage::new(dir.path());
        assert!(!stage.is_done(digest(1)).unwrap());
        stage.note_done(digest(1)).unwrap();
        stage.note_done(digest(2)).unwrap();
        assert!(stage.is_done(digest(1)).unwrap() && stage.is_done(digest(2)).unwrap());
        put(&dir.path().join(DONE), b"[").unwrap();
        assert!(stage.is_done(digest(1)).is_err());
    }
}
