//! Unpacking: segment by segment into the stage, then all of it into its place.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use super::archive::Archive;
use super::entry::{self, Entry, Kind};
use super::manifest::Manifest;
use super::stage::{Progress, Stage};
use crate::sys::beneath::{Beneath, NodeKind};
use crate::{Doing, Error, Result, sys};

/// Content is copied in pieces of this many bytes.
const PIECE_LEN: usize = 256 * 1024;
/// Zeros of this many bytes become a hole.
const HOLE_LEN: usize = 4096;
/// What must stay free beside the content: the journal of the file system, extents, directories.
const SPARE_BYTES: u64 = 16 * 1024 * 1024;

/// What was just done; in a test, the power may go after each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// An entry was made in the tree.
    Made(PathBuf),
    /// So many segments are on the medium.
    Kept(usize),
    /// All are, and the record says so.
    Whole,
    /// Something was moved to its place.
    Moved(PathBuf),
    /// It is noted that this archive was unpacked.
    Noted,
    /// The stage was removed.
    Cleared,
}

/// Told of each step; an error ends everything there, as a power cut would.
pub type Observer<'a> = dyn Fn(&Step) -> Result<()> + 'a;

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Everything is in its place.
    Unpacked,
    /// It was, before.
    Before,
    /// Something is in its place already, which is not touched.
    Taken(PathBuf),
}

/// Where an archive stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It was unpacked here.
    Unpacked,
    /// It is passed over: something is in its place.
    Taken(PathBuf),
    /// It is still to be unpacked, so many of its segments are.
    Waiting {
        /// Those that are on the medium.
        segments: usize,
        /// All of them.
        of: usize,
    },
}

/// Unpacks `archive` into the data partition mounted at `data`, going on where an earlier run was cut. `progress` is told
/// how many bytes of the archive's content were read.
///
/// # Errors
/// `Refused` if there is not enough room, before anything is written; `Failed` if the archive is damaged or a write fails:
/// what counts is then as it was.
pub fn unpack(
    archive: &Archive,
    data: &Path,
    observer: &Observer,
    progress: &mut dyn FnMut(u64),
) -> Result<End> {
    let stage = Stage::new(data);
    if stage.is_done(archive.digest())? {
        // A cut may have come right after the note.
        stage.remove()?;
        return Ok(End::Before);
    }
    let mut so_far = stage.progress(archive.digest())?;
    let manifest = archive.manifest();
    if !so_far.whole {
        if let Some(path) = stage.taken(&manifest.names)? {
            stage.remove()?;
            return Ok(End::Taken(path));
        }
        has_room(manifest, data, so_far.segments)?;
        let tree = Tree { top: Beneath::open(&stage.tree())?, manifest, observer };
        while let Some(mut segment) = archive.segment(so_far.segments, progress)? {
            tree.fill(&mut segment)?;
            drop(segment);
            so_far.segments += 1;
            stage.keep(so_far)?;
            observer(&Step::Kept(so_far.segments))?;
        }
        so_far = Progress { whole: true, ..so_far };
        stage.keep(so_far)?;
        observer(&Step::Whole)?;
    }
    stage.publish(&|path| observer(&Step::Moved(path.to_owned())))?;
    stage.note_done(archive.digest())?;
    observer(&Step::Noted)?;
    stage.remove()?;
    observer(&Step::Cleared)?;
    Ok(End::Unpacked)
}

/// Where an archive stands on the data partition mounted at `data`. Looks only.
///
/// # Errors
/// `Failed` if it cannot be told; `Refused` if there is no room for what is left to unpack.
pub fn look(archive: &Archive, data: &Path) -> Result<State> {
    let stage = Stage::new(data);
    if stage.is_done(archive.digest())? {
        return Ok(State::Unpacked);
    }
    let segments = stage.segments(archive.digest())?;
    if segments == 0
        && let Some(path) = stage.taken(&archive.manifest().names)?
    {
        return Ok(State::Taken(path));
    }
    has_room(archive.manifest(), data, segments)?;
    Ok(State::Waiting { segments, of: archive.manifest().segment.len() })
}

/// After an error that trying again will not mend: what was unpacked so far takes no room any more.
///
/// # Errors
/// `Failed`, naming the path.
pub fn give_up(data: &Path) -> Result<()> {
    Stage::new(data).give_up()
}

/// Reads all of `archive`: that each chunk matches its digest, and each entry makes sense. Gives how many there are.
///
/// # Errors
/// `Failed`, saying what is wrong.
pub fn verify(archive: &Archive, progress: &mut dyn FnMut(u64)) -> Result<u64> {
    let (mut n, mut entries) = (0, 0);
    while let Some(mut segment) = archive.segment(n, progress)? {
        while let Some(entry) = Entry::read(&mut segment)? {
            check_name(&entry, archive.manifest())?;
            if let Kind::File(size) = entry.kind {
                let copied = std::io::copy(&mut (&mut segment).take(size), &mut std::io::sink())?;
                if copied != size {
                    return Err(Error::failed(format!("{}: ends too early", entry.path.display())));
                }
                entry::skip_padding(&mut segment, size)?;
            }
            entries += 1;
        }
        n += 1;
    }
    Ok(entries)
}

fn has_room(manifest: &Manifest, data: &Path, done: usize) -> Result<()> {
    // Of the segment that an earlier run was cut in, nobody knows how much is there already.
    let (bytes, inodes) = manifest.needs(if done == 0 { 0 } else { done + 1 });
    let room = sys::file::room(data)?;
    let needed = bytes.saturating_add(bytes / 64).saturating_add(SPARE_BYTES);
    if needed > room.bytes {
        return Err(Error::refused(format!(
            "the archive needs {} MiB on {}, {} MiB are free; nothing was unpacked; make the archive smaller, or the \
             partition larger",
            needed.div_ceil(1 << 20),
            data.display(),
            room.bytes >> 20
        )));
    }
    match room.inodes {
        Some(free) if inodes > free => Err(Error::refused(format!(
            "the archive has {inodes} files, {} has room for {free}; nothing was unpacked; make the file system with \
             more inodes (mkfs.ext4 -i)",
            data.display()
        ))),
        _ => Ok(()),
    }
}

/// An entry belongs below one of the names that the manifest has; a hard link's file does too.
fn check_name(entry: &Entry, manifest: &Manifest) -> Result<()> {
    let is_below = |path: &Path| match path.components().next() {
        Some(Component::Normal(first)) => manifest.names.iter().any(|name| first == OsStr::new(name)),
        _ => false,
    };
    let wrong = match &entry.kind {
        Kind::HardLink(target) if !is_below(target) => Some(target),
        _ => None,
    };
    match wrong.or((!is_below(&entry.path)).then_some(&entry.path)) {
        None => Ok(()),
        Some(path) => Err(Error::failed(format!(
            "{}: not below a name that the manifest lists; the archive was made wrongly",
            path.display()
        ))),
    }
}

struct Tree<'a> {
    top: Beneath,
    manifest: &'a Manifest,
    observer: &'a Observer<'a>,
}

impl Tree<'_> {
    /// Makes every entry of a segment.
    fn fill(&self, segment: &mut impl Read) -> Result<()> {
        while let Some(entry) = Entry::read(segment)? {
            check_name(&entry, self.manifest)?;
            self.make(&entry, segment).doing(|| "unpack")?;
            (self.observer)(&Step::Made(entry.path))?;
        }
        Ok(())
    }

    fn make(&self, Entry { path, kind, facts }: &Entry, content: &mut impl Read) -> Result<()> {
        match kind {
            Kind::Dir => self.top.make_dir(path)?,
            Kind::File(size) => {
                let file = self.top.make_file(path)?;
                copy(content, &file, *size).doing(|| path.display().to_string())?;
            }
            Kind::Link(target) => {
                self.top.make_link(path, OsStr::from_bytes(target.as_os_str().as_bytes()))?;
            }
            // Owner, mode and the like are the file's, which has them.
            Kind::HardLink(existing) => return self.top.make_hard_link(path, existing),
            Kind::Char(major, minor) => self.top.make_node(path, NodeKind::Char, (*major, *minor))?,
            Kind::Block(major, minor) => self.top.make_node(path, NodeKind::Block, (*major, *minor))?,
            Kind::Fifo => self.top.make_node(path, NodeKind::Fifo, (0, 0))?,
        }
        self.top.set_facts(path, facts, matches!(kind, Kind::Link(_)))
    }
}

/// Copies a file's content. Zeros are left out, so that a sparse file is one again.
fn copy(from: &mut impl Read, to: &std::fs::File, size: u64) -> Result<()> {
    let mut piece = vec![0; PIECE_LEN];
    let mut at = 0;
    while at < size {
        let n = usize::try_from(size - at).unwrap_or(PIECE_LEN).min(PIECE_LEN);
        let bytes = piece.get_mut(..n).unwrap_or_default();
        from.read_exact(bytes)?;
        for block in bytes.chunks(HOLE_LEN) {
            if block.iter().any(|b| *b != 0) {
                to.write_all_at(block, at)?;
            }
            at += block.len() as u64;
        }
    }
    to.set_len(size)?;
    entry::skip_padding(from, size)
}

#[cfg(all(test, feature = "build-host"))]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)] // Clippy does not take this for a test.
mod tests {
    use super::*;
    use crate::sys::beneath::Facts;

    /// What comes of entries of a signer who means harm, below a directory with a file beside it.
    fn made(entries: &[(&str, Kind)]) -> (tempfile::TempDir, Result<()>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("tree")).unwrap();
        std::fs::write(dir.path().join("secret"), "kept").unwrap();
        let mut bytes = Vec::new();
        for (path, kind) in entries {
            let facts = Facts { mode: 0o644, uid: 0, gid: 0, mtime_s: 0, xattrs: Vec::new() };
            Entry { path: path.into(), kind: kind.clone(), facts }.write(&mut bytes).unwrap();
        }
        let digest = "1".repeat(64);
        let manifest = Manifest::parse(&format!(
            "preload = 1\ncompatible = [\"a\"]\narch = \"a\"\nsize = 1\nnames = [\"docker\"]\nchunks = [\"{digest}\"]\n\
             [[segment]]\noffset = 0\nbytes = 0\ninodes = 0\n"
        ))
        .unwrap();
        let top = Beneath::open(&dir.path().join("tree")).unwrap();
        let result = Tree { top, manifest: &manifest, observer: &|_| Ok(()) }.fill(&mut bytes.as_slice());
        assert_eq!(std::fs::read(dir.path().join("secret")).unwrap(), b"kept");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        (dir, result)
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let link = |to: &str| ("docker", Kind::Link(to.into()));
        for entries in [
            vec![("../secret", Kind::File(0))],
            vec![("/secret", Kind::File(0))],
            vec![("docker/../../secret", Kind::File(0))],
            vec![("other", Kind::File(0))],
            vec![("", Kind::Dir)],
            vec![link(".."), ("docker/secret", Kind::File(0))],
            vec![link(".."), ("docker", Kind::Dir)],
            vec![("docker", Kind::HardLink("../secret".into()))],
            vec![link(".."), ("docker/x", Kind::HardLink("docker/secret".into()))],
        ] {
            let (_dir, result) = made(&entries);
            let e = result.unwrap_err().to_string();
            assert!(
                e.contains("lead") || e.contains("below a name") || e.contains("directory"),
                "{entries:?}: {e}"
            );
        }
    }

    #[test]
    fn a_link_anywhere_is_only_a_link() {
        let (dir, result) =
            made(&[("docker", Kind::Dir), ("docker/link", Kind::Link("../../secret".into()))]);
        result.unwrap();
        assert!(dir.path().join("tree/docker/link").is_symlink());
    }

    #[test]
    fn a_disk_that_is_too_small_is_told_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = |bytes: u64, inodes: u64| {
            Manifest::parse(&format!(
                "preload = 1\ncompatible = [\"a\"]\narch = \"a\"\nsize = 9\nnames = [\"d\"]\nchunks = [\"{}\"]\n\
                 [[segment]]\noffset = 0\nbytes = {bytes}\ninodes = {inodes}\n[[segment]]\noffset = 1\nbytes = 4096\ninodes = 1\n",
                "1".repeat(64)
            ))
            .unwrap()
        };
        has_room(&manifest(4096, 1), dir.path(), 0).unwrap();
        let large = manifest(1 << 60, 1);
        let e = has_room(&large, dir.path(), 0).unwrap_err();
        assert!(e.kind() == crate::Kind::Refused && e.to_string().contains("nothing was unpacked"), "{e}");
        // What is unpacked already needs no room.
        has_room(&large, dir.path(), 1).unwrap();
    }
}
