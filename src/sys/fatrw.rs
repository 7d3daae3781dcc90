//! Replacing a file on FAT so that a power cut leaves the old or the new one, compatible with balena's fatrw.
//!
//! FAT's rename is not atomic, so the new content is first made durable beside the file, under a name that
//! carries its MD5: `.NAME.RANDOM.MD5.md5sum`. From then on the write has happened: whoever reads next finds the
//! whole journal file and puts it in place. balenaOS's scripts, os-config and the supervisor do the same with the
//! same names, so either side finishes what the other began.
//!
//! Order of a write, each durable before the next: the journal file | a copy of it (`….tmp`) | the copy renamed over the target | the
//! journal file removed. balena's own leaves more to chance: a cut may leave names of it whose clusters are free, or two names
//! with the same clusters, and to remove such a file is an error or frees those of the target. Here no cut does
//! (`durable`, what ends in `_on_fat`), so what was left may be removed.
//!
//! Source: balena-os/fatrw `src/write.rs`, `src/fs.rs`, `src/checksum.rs`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use md5::{Digest, Md5};

use super::{durable, file};
use crate::{Doing, Error, Result};

/// FAT has no modes, but a test or another file system does: these files hold keys.
const MODE: u32 = 0o600;

/// What was just done to the disk; in a test, the power may go after each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// The journal file is durable: the write has happened.
    JournalWritten,
    /// The copy of it is durable.
    Copied,
    /// The copy has the target's name, durably.
    Placed,
    /// The journal file is gone, durably.
    Finished,
    /// A stale file of an earlier write was removed.
    StaleRemoved,
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

/// Replaces the file at `path` by `bytes`.
///
/// # Errors
/// `Failed`, naming the path; the old content is then still there.
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
    let journal = path.with_file_name(format!(
        ".{}.{}.{}.md5sum",
        name_of(path)?,
        super::random::hex(4)?,
        md5_hex(bytes)
    ));
    if let Err(e) = put_journal(&journal, bytes) {
        // Nothing was promised; what there is of it only takes room.
        let _ = durable::remove(&journal);
        return Err(e.within(doing()));
    }
    observer(Op::JournalWritten)?;
    if let Err(e) = copy(&journal, bytes) {
        // The caller is told that nothing was written, so nothing may be put in place later.
        durable::remove(&journal).doing(doing)?;
        return Err(e.within(doing()));
    }
    observer(Op::Copied)?;
    place(&journal, path, observer).doing(doing)
}

fn put_journal(journal: &Path, bytes: &[u8]) -> Result<()> {
    durable::create_on_fat(journal, bytes, MODE)?;
    let written = File::open(journal)?;
    file::drop_cache(&written)?;
    if fs::read(journal)? != bytes {
        return Err(Error::failed("reads back other than written; the medium may be failing"));
    }
    Ok(())
}

/// Copies a durable journal file to where it can be renamed from. May be repeated.
fn copy(journal: &Path, bytes: &[u8]) -> Result<()> {
    let copy = journal.with_extension("tmp");
    durable::create_on_fat(&copy, bytes, MODE).inspect_err(|_| {
        // No room for both: what there is of it only takes room. The journal file is the caller's.
        let _ = durable::remove(&copy);
    })
}

/// From the copy to the target.
fn place(journal: &Path, path: &Path, observer: &Observer) -> Result<()> {
    durable::rename_on_fat(&journal.with_extension("tmp"), path)?;
    observer(Op::Placed)?;
    durable::remove(journal)?;
    observer(Op::Finished)
}

/// Finishes an interrupted write, if there is one whole, and removes what is left of others.
fn recover(path: &Path, limit_bytes: u64, observer: &Observer) -> Result<()> {
    let leftovers = Leftovers::find(path, limit_bytes)?;
    if !leftovers.stale.is_empty() {
        for stale in &leftovers.stale {
            durable::remove(stale)?;
            observer(Op::StaleRemoved)?;
        }
    }
    match leftovers.whole {
        Some((journal, bytes)) => {
            // Without room it stays an error, and the journal file stays too: it may be the only whole copy.
            copy(&journal, &bytes)?;
            observer(Op::Copied)?;
            place(&journal, path, observer)
        }
        None => Ok(()),
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
    use crate::Kind;

    const OLD: &[u8] = b"{\"old\":1}";
    const NEW: &[u8] = b"{\"new\":\"a longer text than before\"}";
    const LIMIT: u64 = 1 << 20;
    const ORDER: [Op; 4] = [Op::JournalWritten, Op::Copied, Op::Placed, Op::Finished];

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

    /// The journal file or copy in the directory, if any.
    fn beside(path: &Path, kind: &str) -> Option<PathBuf> {
        let mut list = file::list(directory(path)).unwrap();
        list.retain(|p| p.extension().is_some_and(|e| e == kind));
        list.pop()
    }

    type Harm = Box<dyn Fn(&Path)>;

    /// What else the disk may hold after a cut within the last operation, or another program's, which flushes less.
    fn torn(path: &Path, last: Op) -> Vec<Harm> {
        let mut worlds: Vec<Harm> = vec![Box::new(|_| {})];
        let shorten = |kind: &'static str, worlds: &mut Vec<Harm>| {
            let len = fs::metadata(beside(path, kind).unwrap()).unwrap().len();
            for n in 0..len {
                worlds.push(Box::new(move |path| {
                    let f = File::options().write(true).open(beside(path, kind).unwrap()).unwrap();
                    f.set_len(n).unwrap();
                }));
                // Blocks that were allocated but not written.
                worlds.push(Box::new(move |path| {
                    let f = File::options().write(true).open(beside(path, kind).unwrap()).unwrap();
                    f.set_len(n).unwrap();
                    f.set_len(len).unwrap();
                }));
            }
            worlds.push(Box::new(move |path| fs::remove_file(beside(path, kind).unwrap()).unwrap()));
        };
        match last {
            Op::JournalWritten => shorten("md5sum", &mut worlds),
            Op::Copied => shorten("tmp", &mut worlds),
            // FAT writes the two entries one after the other, and their blocks in any order.
            Op::Placed => {
                worlds.push(Box::new(|path| fs::remove_file(path).unwrap()));
                worlds.push(Box::new(|path| fs::write(path, b"").unwrap()));
                worlds.push(Box::new(|path| fs::write(path, OLD).unwrap()));
                worlds.push(Box::new(|path| {
                    let copy = beside(path, "md5sum").unwrap().with_extension("tmp");
                    fs::copy(path, copy).unwrap();
                }));
            }
            Op::Finished => worlds.push(Box::new(|path| {
                let name = format!(".config.json.0badcafe.{}.md5sum", md5_hex(NEW));
                fs::write(path.with_file_name(name), NEW).unwrap();
            })),
            Op::StaleRemoved => {}
        }
        worlds
    }

    #[test]
    fn a_write_leaves_only_the_new_file() {
        let (_dir, path) = host();
        let ops = RefCell::new(Vec::new());
        write_observed(&path, NEW, &|op| {
            ops.borrow_mut().push(op);
            Ok(())
        })
        .unwrap();
        assert_eq!(ops.into_inner(), ORDER);
        assert_eq!(files(&path), ["config.json"]);
        assert_eq!(fs::read(&path).unwrap(), NEW);
    }

    #[test]
    fn after_any_cut_of_a_write_the_reader_sees_old_or_new_whole() {
        let mut cuts = 0;
        for at in 0.. {
            let (_dir, path) = host();
            let Err(e) = write_observed(&path, NEW, &cut_after(at)) else { break };
            let text = e.to_string();
            let op = ORDER.into_iter().find(|op| text.ends_with(&format!("{op:?}"))).unwrap();
            let worlds = torn(&path, op).len();
            for world in 0..worlds {
                let (_dir, path) = host();
                write_observed(&path, NEW, &cut_after(at)).unwrap_err();
                torn(&path, op)[world](&path);
                let looked = peek(&path, LIMIT).unwrap();
                let read = read(&path, LIMIT).unwrap().unwrap();
                assert!(read == OLD || read == NEW, "{op:?} {world}: {:?}", String::from_utf8_lossy(&read));
                assert_eq!(looked.as_deref(), Some(read.as_slice()), "{op:?} {world}");
                assert!(op == Op::JournalWritten || read == NEW, "{op:?} {world}: a durable write was lost");
                assert_eq!(files(&path), ["config.json"], "{op:?} {world}");
                cuts += 1;
            }
        }
        assert!(cuts > 100, "{cuts}");
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
        assert_eq!(cuts, 4); // a stale file removed, then Copied to Finished
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
