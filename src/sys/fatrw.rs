//! Replacing a file on FAT that other programs replace with balena's fatrw: a power cut leaves the old or the new one.
//!
//! fatrw first makes the new content durable beside the file, under a name that carries its MD5: `.NAME.RANDOM.MD5.md5sum`.
//! Whoever reads next finds it whole and puts it in place; `….tmp` is a copy on its way there. balenaOS's scripts, os-config and the
//! supervisor write so, and what a cut leaves of that is finished here.
//!
//! A write of our own needs none of it: `durable` can give a file of FAT a new content in one step. It takes a single entry in
//! the directory, where two of fatrw's names take twelve, and FAT32's root would have to grow for them: firmware that finds a
//! broken chain of clusters there after a cut sees no file at all.
//!
//! Source: balena-os/fatrw `src/write.rs`, `src/fs.rs`, `src/checksum.rs`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use md5::{Digest, Md5};

use super::{durable, fat_room, file};
use crate::{Doing, Error, Kind, Result};

/// FAT has no modes, but a test or another file system does: these files hold keys.
const MODE: u32 = 0o600;

/// What was just done to the disk; in a test, the power may go after each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// The file has the new content, durably.
    Placed,
    /// A file of an earlier write is gone, durably.
    Removed,
}

/// Told of each operation; an error ends the procedure there, as a power cut would.
pub type Observer<'a> = dyn Fn(Op) -> Result<()> + 'a;

/// Reads `path` after finishing a write that a power cut interrupted. `None`: there is no such file.
///
/// # Errors
/// `Failed`, naming the path, if it cannot be read, is longer than `limit_bytes`, or if an interrupted write
/// cannot be finished (a read-only file system, for example).
pub fn read(path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>> {
    read_observed(path, limit_bytes, &|_| Ok(()))
}

/// What [`read`] would give, without writing: for those who only look.
///
/// # Errors
/// As [`read`].
pub fn peek(path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>> {
    let leftovers = Leftovers::find(path, limit_bytes)?;
    match leftovers.whole {
        Some((_, content)) => Ok(Some(content)),
        None => file::read_if_exists(path, limit_bytes),
    }
}

/// Replaces the file at `path` by `bytes`. If there was none, a cut may leave an empty one.
///
/// # Errors
/// `Failed`, naming the path; the old content is then still there. `Refused` if the directory would have to grow.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_observed(path, bytes, &|_| Ok(()))
}

/// [`read`], telling `observer` of each operation.
///
/// # Errors
/// As [`read`], and those of `observer`.
pub fn read_observed(path: &Path, limit_bytes: u64, observer: &Observer) -> Result<Option<Vec<u8>>> {
    recover(path, limit_bytes, observer)
        .doing(|| format!("finish the interrupted write of {}", path.display()))?;
    file::read_if_exists(path, limit_bytes)
}

/// [`write()`], telling `observer` of each operation.
///
/// # Errors
/// As [`write()`], and those of `observer`.
pub fn write_observed(path: &Path, bytes: &[u8], observer: &Observer) -> Result<()> {
    let doing = || format!("write {}", path.display());
    // Two journal files would leave the choice between them to their names.
    recover(path, u64::MAX, observer).doing(doing)?;
    place(path, bytes, observer).doing(doing)
}

/// Gives the file its new content. May be repeated.
fn place(path: &Path, bytes: &[u8], observer: &Observer) -> Result<()> {
    let is_new = fs::metadata(path).map_or(0, |old| old.len()) == 0;
    let made = if is_new { path.to_owned() } else { temporary(path)? };
    // An upper-case name of 8.3 takes one entry.
    let letters = if is_new { name_of(path)?.len() } else { 0 };
    if !is_new {
        durable::remove(&made)?;
    }
    if !made.exists() {
        fat_room::check(directory(path), 1, letters)?;
    }
    // What there is of it only takes room. A file of that name that is not empty is another program's.
    let clear = |_: &Error| {
        if !is_new || fs::metadata(&made).is_ok_and(|left| left.len() == 0) {
            let _ = durable::remove(&made);
        }
    };
    durable::create_on_fat(&made, bytes, MODE).inspect_err(clear)?;
    check(&made, bytes).inspect_err(|_| {
        let _ = durable::remove(&made);
    })?;
    if !is_new {
        durable::rename_on_fat(&made, path)?;
    }
    observer(Op::Placed)
}

fn check(made: &Path, bytes: &[u8]) -> Result<()> {
    file::drop_cache(&File::open(made)?)?;
    if fs::read(made)? != bytes {
        return Err(Error::failed("reads back other than written; the medium may be failing"));
    }
    Ok(())
}

/// `CONFIG.NEW` for `config.json`.
fn temporary(path: &Path) -> Result<PathBuf> {
    let letters = name_of(path)?.bytes().take_while(|b| *b != b'.').filter(u8::is_ascii_alphanumeric);
    let stem: String = letters.take(8).map(|b| char::from(b.to_ascii_uppercase())).collect();
    Ok(path.with_file_name(format!("{stem}.NEW")))
}

/// Finishes an interrupted write, if there is one whole, and removes what is left of others.
fn recover(path: &Path, limit_bytes: u64, observer: &Observer) -> Result<()> {
    let leftovers = Leftovers::find(path, limit_bytes)?;
    for stale in &leftovers.stale {
        durable::remove(stale)?;
        observer(Op::Removed)?;
    }
    let Some((journal, bytes)) = leftovers.whole else { return Ok(()) };
    // Without room it stays an error, and the journal file stays too: it may be the only whole copy.
    match place(path, &bytes, observer) {
        Err(e) if e.kind() == Kind::Refused => {
            // The directory is full, of the journal file too: so that becomes the file.
            File::open(&journal)?.sync_all()?;
            durable::rename_on_fat(&journal, path)?;
            observer(Op::Placed)
        }
        placed => {
            placed?;
            durable::remove(&journal)?;
            observer(Op::Removed)
        }
    }
}

/// What interrupted writes left beside a file.
struct Leftovers {
    /// The journal file that counts, the first by name, and its content.
    whole: Option<(PathBuf, Vec<u8>)>,
    /// Torn or surplus journal files, and copies.
    stale: Vec<PathBuf>,
}

impl Leftovers {
    fn find(path: &Path, limit_bytes: u64) -> Result<Self> {
        let mut found = Self { whole: None, stale: Vec::new() };
        let name = name_of(path)?;
        for entry in file::list(directory(path))? {
            let Some((md5, kind)) = entry.file_name().and_then(OsStr::to_str).and_then(|e| parts(e, name))
            else {
                continue;
            };
            if kind == "md5sum" && found.whole.is_none() {
                // Gone since it was listed: another writer has just finished.
                let Some(content) = file::read_if_exists(&entry, limit_bytes)? else { continue };
                if md5_hex(&content) == md5 {
                    found.whole = Some((entry, content));
                    continue;
                }
            }
            found.stale.push(entry);
        }
        Ok(found)
    }
}

/// The MD5 and the ending of `.NAME.RANDOM.MD5.md5sum` or `….tmp`; `None` for every other file.
fn parts<'a>(entry: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let rest = entry.strip_prefix('.')?.strip_prefix(name)?.strip_prefix('.')?;
    let mut fields = rest.split('.');
    let (random, md5, kind) = (fields.next()?, fields.next()?, fields.next()?);
    let hex = md5.len() == 32 && md5.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let ours = fields.next().is_none() && !random.is_empty() && hex && matches!(kind, "md5sum" | "tmp");
    ours.then_some((md5, kind))
}

fn md5_hex(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn name_of(path: &Path) -> Result<&str> {
    path.file_name()
        .and_then(OsStr::to_str)
        .ok_or_else(|| Error::failed(format!("{}: not the name of a file", path.display())))
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    const OLD: &[u8] = b"{\"old\":1}";
    const NEW: &[u8] = b"{\"new\":\"a longer text than before\"}";
    const LIMIT: u64 = 1 << 20;

    fn host() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, OLD).unwrap();
        (dir, path)
    }

    fn files(path: &Path) -> Vec<String> {
        let list = file::list(directory(path)).unwrap();
        list.iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    /// Ends the procedure after the operation number `at`, from 0.
    fn cut_after(at: usize) -> impl Fn(Op) -> Result<()> {
        let done = Cell::new(0);
        move |op| {
            let n = done.replace(done.get() + 1);
            if n == at { Err(Error::new(Kind::PowerCut, format!("{op:?}"))) } else { Ok(()) }
        }
    }

    #[test]
    fn a_write_leaves_only_the_new_file() {
        for old in [Some(OLD), Some(b"".as_slice()), None] {
            let (_dir, path) = host();
            fs::remove_file(&path).unwrap();
            old.into_iter().for_each(|old| fs::write(&path, old).unwrap());
            let ops = RefCell::new(Vec::new());
            write_observed(&path, NEW, &|op| {
                ops.borrow_mut().push(op);
                Ok(())
            })
            .unwrap();
            assert_eq!(ops.into_inner(), [Op::Placed]);
            assert_eq!(files(&path), ["config.json"]);
            assert_eq!(fs::read(&path).unwrap(), NEW);
        }
    }

    #[test]
    fn whatever_a_cut_leaves_of_a_write_the_reader_sees_the_old_file_and_the_next_write_succeeds() {
        for len in 0..=NEW.len() {
            let (_dir, path) = host();
            fs::write(path.with_file_name("CONFIG.NEW"), &NEW[..len]).unwrap();
            assert_eq!(read(&path, LIMIT).unwrap().as_deref(), Some(OLD));
            write(&path, NEW).unwrap();
            assert_eq!(fs::read(&path).unwrap(), NEW);
            assert_eq!(files(&path), ["config.json"]);
        }
    }

    #[test]
    fn a_torn_journal_file_is_cleared_away_and_the_old_file_counts() {
        let journal = format!(".config.json.1234abcd.{}.md5sum", md5_hex(NEW));
        for len in 0..NEW.len() {
            // Short, or with blocks that were allocated but not written.
            for torn in [NEW[..len].to_vec(), [&NEW[..len], &vec![0; NEW.len() - len]].concat()] {
                let (_dir, path) = host();
                fs::write(path.with_file_name(&journal), torn).unwrap();
                fs::write(path.with_file_name(journal.replace("md5sum", "tmp")), b"").unwrap();
                assert_eq!(peek(&path, LIMIT).unwrap().as_deref(), Some(OLD));
                assert_eq!(read(&path, LIMIT).unwrap().as_deref(), Some(OLD));
                assert_eq!(files(&path), ["config.json"]);
            }
        }
    }

    #[test]
    fn a_whole_journal_file_counts_whatever_the_target_is() {
        for target in [Some(OLD), Some(b"".as_slice()), Some(NEW), None] {
            let (_dir, path) = host();
            fs::remove_file(&path).unwrap();
            target.into_iter().for_each(|old| fs::write(&path, old).unwrap());
            let journal = format!(".config.json.1234abcd.{}.md5sum", md5_hex(NEW));
            fs::write(path.with_file_name(journal), NEW).unwrap();
            assert_eq!(peek(&path, LIMIT).unwrap().as_deref(), Some(NEW));
            assert_eq!(read(&path, LIMIT).unwrap().as_deref(), Some(NEW));
            assert_eq!(files(&path), ["config.json"]);
        }
    }

    #[test]
    fn recovery_may_be_cut_at_every_operation_too() {
        let mut cuts = 0;
        for at in 0.. {
            let (_dir, path) = host();
            let stale = path.with_file_name(format!(".config.json.zzzzzzzz.{}.md5sum", md5_hex(b"other")));
            fs::write(&stale, b"oth").unwrap();
            fs::write(path.with_file_name(format!(".config.json.1234abcd.{}.md5sum", md5_hex(NEW))), NEW)
                .unwrap();
            let Err(_) = read_observed(&path, LIMIT, &cut_after(at)) else { break };
            assert_eq!(read(&path, LIMIT).unwrap().as_deref(), Some(NEW));
            assert_eq!(files(&path), ["config.json"]);
            cuts += 1;
        }
        assert_eq!(cuts, 3); // a stale file removed, the new one placed, the journal file removed
    }

    /// As balena-os/fatrw, tests/integration.rs: `read_target_only`, `read_md5sum`, `read_multiple_md5sums`.
    #[test]
    fn files_of_balenas_fatrw_are_finished_and_cleared_away() {
        let content = b"test md5sum content";
        // md5sum(1) of that text.
        let md5 = "9f23af04538fb741279a832294c91560";
        let (_dir, path) = host();
        for name in [
            format!(".config.json.1234abcd.{md5}.md5sum"),
            format!(".config.json.1234abcd.{md5}.tmp"),
            format!(".config.json.22222222.{md5}.md5sum"),
        ] {
            fs::write(path.with_file_name(name), content).unwrap();
        }
        assert_eq!(read(&path, LIMIT).unwrap().as_deref(), Some(content.as_slice()));
        assert_eq!(fs::read(&path).unwrap(), content);
        assert_eq!(files(&path), ["config.json"]);
    }

    #[test]
    fn files_of_others_stay() {
        let (_dir, path) = host();
        let others = [
            ".config.json.bak.1234abcd.4b8cabb0b4b9bcd8a5ae0b3a5d8f8c17.md5sum",
            ".config.json.1234abcd.4b8c.md5sum",
            ".config.json.swp",
            ".other.json.1234abcd.4b8cabb0b4b9bcd8a5ae0b3a5d8f8c17.md5sum",
        ];
        for name in others {
            fs::write(path.with_file_name(name), "x").unwrap();
        }
        assert_eq!(read(&path, LIMIT).unwrap().as_deref(), Some(OLD));
        assert_eq!(files(&path).len(), 1 + others.len());
    }

    #[test]
    fn nothing_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(&dir.path().join("a"), LIMIT).unwrap(), None);
        assert_eq!(read(&dir.path().join("no/a"), LIMIT).unwrap(), None);
    }
}
