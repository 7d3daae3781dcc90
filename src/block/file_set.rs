//! Files in a directory as one disk: each begins at a block of 4 KiB, in the order in which the bundle lists them. So an
//! install writes, flushes and reads them back as it does a slot.
//!
//! A set belongs to one slot, and is written only while nothing can boot that slot. Beside the files stands a list of
//! them, `twinhull.sums`, in the format of sha256sum(1). It is durable before the first of its files is touched, so
//! whatever a power cut leaves of a set is found and removed by the next install. Files that no list names are left alone.

use std::ops::Range;

use super::Disk;
use super::tree::Tree;
use crate::model::payload::{SUMS, is_safe_path};
use crate::model::{Digest, FileEntry, Slot};
use crate::{Error, Result};

/// A list of more bytes is none.
const SUMS_LIMIT_BYTES: u64 = 128 * 1024;
/// What must stay free: a bootloader's environment, `config.json` and their copies are written there too.
const RESERVE_BYTES: u64 = 512 * 1024;

/// What a list says of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums {
    /// Whose files these are, for people: `2.1.0`.
    pub title: String,
    /// Paths and digests.
    pub files: Vec<(String, Digest)>,
}

impl Sums {
    fn of(title: &str, files: &[FileEntry]) -> Self {
        let files = files.iter().map(|f| (f.path.clone(), f.sha256)).collect();
        Self { title: title.to_owned(), files }
    }

    /// Reads a list; lines that make no sense are passed over, so that what a cut left of it still serves.
    fn parse(text: &str) -> Self {
        let title = text.lines().find_map(|l| l.strip_prefix("# twinhull: ")).unwrap_or_default().to_owned();
        let file = |line: &str| {
            let (digest, path) = line.split_once("  ")?;
            Some((path.to_owned(), digest.parse().ok()?))
        };
        let files = text.lines().filter_map(file).filter(|(path, _)| is_safe_path(path)).collect();
        Self { title, files }
    }

    fn text(&self) -> String {
        let lines = self.files.iter().map(|(path, digest)| format!("{digest}  {path}\n"));
        format!("# twinhull: {}\n", self.title) + &lines.collect::<String>()
    }
}

/// The directory of a slot's boot files on a boot partition that both slots share.
pub const fn slot_dir(slot: Slot) -> &'static str {
    match slot {
        Slot::A => "slot-a",
        Slot::B => "slot-b",
    }
}

/// Where a list may be: in its place, and beside it if a cut came while it was replaced.
fn lists(dir: &str) -> [String; 2] {
    [within(dir, SUMS), within(dir, &format!("{SUMS}.new"))]
}

/// The list in the directory `dir` of a tree, if there is one.
///
/// # Errors
/// `Failed` if it cannot be read.
pub fn sums(tree: &impl Tree, dir: &str) -> Result<Option<Sums>> {
    let [place, beside] = lists(dir);
    Ok(match read_list(tree, &place)? {
        None => read_list(tree, &beside)?,
        found => found,
    })
}

fn read_list(tree: &impl Tree, path: &str) -> Result<Option<Sums>> {
    let Some(len) = tree.len_bytes(path)? else { return Ok(None) };
    let mut raw = vec![0; usize::try_from(len.min(SUMS_LIMIT_BYTES)).unwrap_or(0)];
    tree.read_at(path, 0, &mut raw)?;
    Ok(Some(Sums::parse(&String::from_utf8_lossy(&raw))))
}

fn within(dir: &str, path: &str) -> String {
    if dir.is_empty() { path.to_owned() } else { format!("{dir}/{path}") }
}

/// A set of files as a disk.
#[derive(Debug)]
pub struct FileSet<T> {
    tree: T,
    dir: String,
    title: String,
    files: Vec<FileEntry>,
    /// The list is durable, and what the set before had in excess is gone.
    begun: bool,
}

impl<T: Tree> FileSet<T> {
    /// The set of `files` in the directory `dir` of a tree; `title` says for people whose they are. Nothing is touched
    /// before the first write.
    pub fn new(tree: T, dir: &str, title: &str, files: &[FileEntry]) -> Self {
        Self { tree, dir: dir.to_owned(), title: title.to_owned(), files: files.to_vec(), begun: false }
    }

    /// Refuses if there is no room for the set, all of it counted: what the set before has in excess goes first.
    ///
    /// # Errors
    /// `Refused`, saying how much is missing; `Failed` if it cannot be told.
    pub fn check_room(&self) -> Result<()> {
        let room = self.tree.room()?;
        let taken = |len: u64| len.div_ceil(room.unit_bytes).saturating_mul(room.unit_bytes);
        let there = |path: &str| Ok::<_, Error>(self.tree.len_bytes(&self.path(path))?.map_or(0, taken));
        let mut needed = 0_u64;
        for file in &self.files {
            needed = needed.saturating_add(taken(file.size).saturating_sub(there(&file.path)?));
        }
        // The list, its copy while it is replaced, and directories.
        let dirs = self.files.iter().map(|f| f.path.matches('/').count() as u64).sum::<u64>();
        needed = needed
            .saturating_add(taken(SUMS_LIMIT_BYTES))
            .saturating_add(room.unit_bytes.saturating_mul(dirs + 1));
        let mut free = room.free_bytes;
        for path in self.surplus()? {
            free = free.saturating_add(there(&path)?);
        }
        let wanted = needed.saturating_add(RESERVE_BYTES);
        if wanted > free {
            return Err(Error::refused(format!(
                "{wanted} bytes are needed, {free} are free ({RESERVE_BYTES} must stay so); remove what does not belong \
                 there, or make the bundle with fewer files"
            )));
        }
        Ok(())
    }

    fn path(&self, path: &str) -> String {
        within(&self.dir, path)
    }

    /// Files of the set before that this one does not have.
    fn surplus(&self) -> Result<Vec<String>> {
        let mut before = Vec::new();
        for list in lists(&self.dir) {
            let found = read_list(&self.tree, &list)?.map_or_else(Vec::new, |s| s.files);
            before.extend(found.into_iter().map(|(path, _)| path));
        }
        before.sort_unstable();
        before.dedup();
        before.retain(|path| !self.files.iter().any(|f| f.path.eq_ignore_ascii_case(path)));
        Ok(before)
    }

    /// What must be done before the first file is touched; the order matters, see the top of this file.
    fn begin(&mut self) -> Result<()> {
        if self.begun {
            return Ok(());
        }
        for path in self.surplus()? {
            self.tree.remove(&self.path(&path))?;
        }
        let [list, beside] = lists(&self.dir);
        if self.files.is_empty() {
            self.tree.remove(&beside)?;
            self.tree.remove(&list)?;
        } else {
            self.tree.replace(&list, Sums::of(&self.title, &self.files).text().as_bytes())?;
        }
        // What becomes shorter makes room for what becomes longer.
        self.fit(|len, right| len.is_some_and(|len| len > right))?;
        self.begun = true;
        Ok(())
    }

    /// Gives each file its right length where `which(length, right length)`.
    fn fit(&mut self, which: impl Fn(Option<u64>, u64) -> bool) -> Result<()> {
        for file in &self.files {
            let path = within(&self.dir, &file.path);
            if which(self.tree.len_bytes(&path)?, file.size) {
                self.tree.set_len(&path, file.size)?;
            }
        }
        Ok(())
    }

    /// The pieces of files that some stretch of the disk covers.
    fn pieces(&self, offset: u64, len: usize) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut start = 0;
        for file in &self.files {
            let (from, to) = (offset.max(start), (offset + len as u64).min(start + file.size));
            let ends = usize::try_from(from.saturating_sub(offset))
                .ok()
                .zip(usize::try_from(to.saturating_sub(offset)).ok());
            if let Some((a, b)) = ends.filter(|(a, b)| a < b) {
                pieces.push(Piece { path: self.path(&file.path), at: from - start, of_stretch: a..b });
            }
            start += file.padded();
        }
        pieces
    }
}

/// A piece of a file.
struct Piece {
    path: String,
    /// Where in the file it begins.
    at: u64,
    /// Which part of the stretch that was asked for it is.
    of_stretch: Range<usize>,
}

impl<T: Tree> Disk for FileSet<T> {
    fn len_bytes(&self) -> u64 {
        self.files.iter().map(FileEntry::padded).sum()
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        buffer.fill(0);
        for Piece { path, at, of_stretch } in self.pieces(offset, buffer.len()) {
            self.tree.read_at(&path, at, buffer.get_mut(of_stretch).unwrap_or_default())?;
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.begin()?;
        for Piece { path, at, of_stretch } in self.pieces(offset, bytes.len()) {
            self.tree.write_at(&path, at, bytes.get(of_stretch).unwrap_or_default())?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.begin()?;
        self.fit(|len, right| len != Some(right))?;
        let mut paths: Vec<String> = self.files.iter().map(|f| self.path(&f.path)).collect();
        paths.extend((!self.files.is_empty()).then(|| self.path(SUMS)));
        self.tree.flush(&paths)
    }
}

/// Whether every file that a list names is there.
///
/// # Errors
/// `Failed` if one cannot be looked at.
pub fn missing(tree: &impl Tree, dir: &str, sums: &Sums) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for (path, _) in &sums.files {
        if tree.len_bytes(&within(dir, path))?.is_none() {
            missing.push(path.clone());
        }
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::RealTree;
    use crate::sys;

    fn entry(path: &str, size: u64) -> FileEntry {
        FileEntry { path: path.into(), size, sha256: Digest([7; 32]), deadline_s: None }
    }

    fn tree() -> (tempfile::TempDir, RealTree) {
        let dir = tempfile::tempdir().unwrap();
        let tree = RealTree(dir.path().to_owned());
        (dir, tree)
    }

    fn put(tree: &RealTree, path: &str, content: &[u8]) {
        tree.clone().replace(path, content).unwrap();
    }

    fn content(tree: &RealTree, path: &str) -> Option<Vec<u8>> {
        sys::file::read_if_exists(&tree.0.join(path), 1 << 20).unwrap()
    }

    #[test]
    fn one_write_over_several_files_puts_each_in_its_place() {
        let (_dir, tree) = tree();
        let files = [entry("a", 5000), entry("sub/b", 3), entry("empty", 0), entry("c", 4096)];
        let mut set = FileSet::new(tree.clone(), "slot-b", "version 2.0.0", &files);
        assert_eq!(set.len_bytes(), 4 * 4096);
        let image: Vec<u8> = (0..4 * 4096_u32).map(|i| (i / 61).to_le_bytes()[0] | 1).collect();
        // In uneven pieces, as frames are not.
        for (i, piece) in image.chunks(3001).enumerate() {
            set.write_at(3001 * i as u64, piece).unwrap();
        }
        set.flush().unwrap();
        assert_eq!(content(&tree, "slot-b/a").unwrap(), &image[..5000]);
        assert_eq!(content(&tree, "slot-b/sub/b").unwrap(), &image[8192..8195]);
        assert_eq!(content(&tree, "slot-b/empty").unwrap(), b"");
        assert_eq!(content(&tree, "slot-b/c").unwrap(), &image[3 * 4096..]);
        let mut read = vec![1; 4 * 4096];
        set.read_at(0, &mut read).unwrap();
        assert_eq!(read[..5000], image[..5000]);
        assert!(read[5000..8192].iter().chain(&read[8195..3 * 4096]).all(|b| *b == 0), "behind the ends");
    }

    #[test]
    fn what_the_set_before_had_in_excess_goes_and_what_no_list_names_stays() {
        let (_dir, tree) = tree();
        for (path, bytes) in
            [("slot-b/old", 10), ("slot-b/kept", 9000), ("slot-b/cmdline.txt", 5), ("slot-a/old", 7)]
        {
            put(&tree, path, &vec![1; bytes]);
        }
        let digest = Digest([1; 32]);
        let list = format!(
            "# twinhull: version 1.0.0\n{digest}  old\n{digest}  kept\n{digest}  ../slot-a/old\nhalf a li"
        );
        put(&tree, "slot-b/twinhull.sums", list.as_bytes());
        let files = [entry("kept", 4096), entry("new", 100)];
        let mut set = FileSet::new(tree.clone(), "slot-b", "version 2.0.0", &files);
        set.flush().unwrap();
        assert_eq!(content(&tree, "slot-b/old"), None);
        assert_eq!(content(&tree, "slot-b/kept").unwrap().len(), 4096);
        assert_eq!(content(&tree, "slot-b/new").unwrap(), [0; 100]);
        assert_eq!(content(&tree, "slot-b/cmdline.txt").unwrap(), [1; 5]);
        assert_eq!(
            content(&tree, "slot-a/old").unwrap(),
            [1; 7],
            "a path in a list led out of its directory"
        );
        let found = sums(&tree, "slot-b").unwrap().unwrap();
        assert_eq!(found.title, "version 2.0.0");
        assert_eq!(found.files, [("kept".into(), Digest([7; 32])), ("new".into(), Digest([7; 32]))]);
        assert_eq!(missing(&tree, "slot-b", &found).unwrap(), [""; 0]);
        // No files at all: everything of ours goes, the list last.
        FileSet::new(tree.clone(), "slot-b", "", &[]).flush().unwrap();
        assert_eq!(sys::file::list(&tree.0.join("slot-b")).unwrap(), [tree.0.join("slot-b/cmdline.txt")]);
    }

    #[test]
    fn nothing_is_touched_before_the_first_write() {
        let (_dir, tree) = tree();
        let mut set = FileSet::new(tree.clone(), "slot-b", "", &[entry("a", 5)]);
        set.check_room().unwrap();
        set.read_at(0, &mut [0; 4096]).unwrap();
        assert!(sys::file::list(&tree.0).unwrap().is_empty());
    }

    #[test]
    fn a_set_that_does_not_fit_is_refused_with_what_is_missing() {
        let (_dir, tree) = tree();
        let room = tree.room().unwrap();
        let set = FileSet::new(tree.clone(), "slot-b", "", &[entry("a", room.free_bytes + (64 << 20))]);
        let e = set.check_room().unwrap_err();
        assert_eq!(e.kind(), crate::Kind::Refused);
        assert!(e.to_string().contains("are free"), "{e}");
        assert!(sys::file::list(&tree.0).unwrap().is_empty());
    }
}
