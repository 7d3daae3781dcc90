//! Making a preload archive from trees of the build host. The same trees give the same bytes.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::archive::MEMBER;
use super::entry::{self, Entry, Kind};
use super::manifest::{self, CHUNK_BYTES, Manifest, Segment, is_name};
use crate::bundle::sign::Signer;
use crate::bundle::{archive, pack};
use crate::model::Digest;
use crate::model::device::DeviceType;
use crate::sys::beneath::Facts;
use crate::{Doing, Error, Result, sys};

/// A disk is filled in units of this many bytes.
const DISK_UNIT: u64 = 4096;
/// An engine makes itself a name that is its own; it must not be the same on every device.
const ENGINE_ID: &str = "engine-id";

/// What an archive is made of.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The device types that it is for.
    pub compatible: Vec<DeviceType>,
    /// balena's name of the architecture.
    pub arch: String,
    /// Names at the top of the data partition, and the file or tree that goes there.
    pub trees: Vec<(String, PathBuf)>,
    /// zstd's level, 1 to 19.
    pub level: i32,
    /// About how many bytes are unpacked between two points at which unpacking can go on.
    pub segment_bytes: u64,
}

/// What was made.
#[derive(Debug, Clone)]
pub struct Made {
    /// The manifest.
    pub manifest: Manifest,
    /// Length of the archive.
    pub len_bytes: u64,
    /// What was left out: sockets, and the engine's own name.
    pub left_out: Vec<PathBuf>,
}

/// Makes an archive at `out`, signed by `signers`. `progress` is told how many bytes of files were read.
///
/// # Errors
/// `Failed`, naming the path, if something cannot be read, changes meanwhile, or is mounted inside of a tree; or if the
/// archive cannot be written: an old one is then still there.
pub fn create(
    recipe: &Recipe,
    signers: &[Signer],
    out: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Made> {
    check(recipe)?;
    let scratch = sys::durable::scratch(sys::durable::parent(out)?)?;
    let mut packer = Packer::new(scratch, recipe, progress)?;
    for (name, path) in &recipe.trees {
        let facts = path.symlink_metadata().doing(|| path.display().to_string())?;
        packer.tree(Path::new(name), path, &facts, facts.dev())?;
    }
    let (mut content, manifest, left_out) = packer.finish()?;
    let text = toml::to_string(&manifest).map_err(|e| Error::failed(format!("manifest.toml: {e}")))?;
    if text.len() as u64 > manifest::LIMIT_BYTES {
        return Err(Error::failed("too large: its list of digests has more than 1 MiB"));
    }
    // What a device would refuse is refused here.
    Manifest::parse(&text)?;
    let comment = "file:manifest.toml\tpreload\thashed";
    let signed: Vec<_> =
        signers.iter().map(|s| s.sign_text(text.as_bytes(), comment)).collect::<Result<_>>()?;
    let mut len_bytes = 0;
    sys::durable::replace_with(out, 0o644, |file| {
        pack::head(file, text.as_bytes(), &signed)?;
        content.seek(SeekFrom::Start(0))?;
        pack::member(file, MEMBER, &mut content, manifest.size)?;
        file.write_all(&archive::END)?;
        len_bytes = file.stream_position()?;
        Ok(())
    })?;
    Ok(Made { manifest, len_bytes, left_out })
}

fn check(recipe: &Recipe) -> Result<()> {
    let wrong = |text: String| Err(Error::usage(text));
    if !(1..=19).contains(&recipe.level) || recipe.segment_bytes == 0 {
        return wrong(format!("level {}: expected 1 to 19", recipe.level));
    }
    for (i, (name, _)) in recipe.trees.iter().enumerate() {
        if !is_name(name) || recipe.trees.iter().skip(i + 1).any(|(other, _)| other == name) {
            return wrong(format!("{name:?}: expected one plain name for each tree, all different"));
        }
    }
    Ok(())
}

/// Directories that were packed, for their second entry.
type Dirs = Vec<(PathBuf, PathBuf, Metadata)>;

struct Packer<'a> {
    recipe: &'a Recipe,
    to: Option<zstd::Encoder<'static, Content>>,
    segments: Vec<Segment>,
    /// Bytes of tar in the present segment.
    written: u64,
    /// Files with several names: the first of them, by device and inode.
    names: HashMap<(u64, u64), PathBuf>,
    dirs: Dirs,
    left_out: Vec<PathBuf>,
    read: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl<'a> Packer<'a> {
    fn new(scratch: File, recipe: &'a Recipe, progress: &'a mut dyn FnMut(u64)) -> Result<Self> {
        let mut packer = Self {
            recipe,
            to: None,
            segments: Vec::new(),
            written: 0,
            names: HashMap::new(),
            dirs: Vec::new(),
            left_out: Vec::new(),
            read: 0,
            progress,
        };
        packer.begin(Content::new(scratch))?;
        Ok(packer)
    }

    /// Begins a segment.
    fn begin(&mut self, content: Content) -> Result<()> {
        self.segments.push(Segment { offset: content.written, ..Segment::default() });
        self.written = 0;
        let mut encoder = zstd::Encoder::new(content, self.recipe.level)?;
        encoder.include_checksum(true)?;
        self.to = Some(encoder);
        Ok(())
    }

    fn end(&mut self) -> Result<Content> {
        let encoder = self.to.take().ok_or_else(|| Error::inconsistent("no segment"))?;
        Ok(encoder.finish()?)
    }

    fn tree(&mut self, name: &Path, path: &Path, facts: &Metadata, device: u64) -> Result<()> {
        let doing = || format!("pack {}", path.display());
        if facts.dev() != device {
            return Err(
                Error::failed("something is mounted there; stop the engine, and unmount it").within(doing())
            );
        }
        if facts.is_file() && facts.nlink() > 1 {
            if let Some(first) = self.names.get(&(facts.dev(), facts.ino())) {
                let kind = Kind::HardLink(first.clone());
                return self.entry(name, path, kind, facts, 0).doing(doing);
            }
            self.names.insert((facts.dev(), facts.ino()), name.to_owned());
        }
        if facts.is_dir() {
            return self.dir(name, path, facts, device);
        }
        let kind = facts.file_type();
        let kind = if facts.is_file() {
            Kind::File(facts.len())
        } else if kind.is_symlink() {
            Kind::Link(sys::file::link_target(path)?)
        } else if kind.is_char_device() || kind.is_block_device() {
            let (major, minor) = sys::file::device_numbers(facts.rdev());
            if kind.is_char_device() { Kind::Char(major, minor) } else { Kind::Block(major, minor) }
        } else if kind.is_fifo() {
            Kind::Fifo
        } else {
            self.left_out.push(path.to_owned());
            return Ok(());
        };
        self.entry(name, path, kind, facts, 1).doing(doing)
    }

    fn dir(&mut self, name: &Path, path: &Path, facts: &Metadata, device: u64) -> Result<()> {
        // First to be filled, without a default access list that what is made in it would inherit.
        let plain = Entry { path: name.to_owned(), kind: Kind::Dir, facts: own_facts(facts, Vec::new()) };
        self.write(&plain, DISK_UNIT, 1)?;
        let is_engine_root = name.components().count() == 1 && path.join("image").is_dir();
        for inner in sys::file::list(path)? {
            let inner_name = inner.file_name().unwrap_or_default();
            if is_engine_root && inner_name == ENGINE_ID {
                self.left_out.push(inner);
                continue;
            }
            let facts = inner.symlink_metadata().doing(|| inner.display().to_string())?;
            self.tree(&name.join(inner_name), &inner, &facts, device)?;
        }
        self.dirs.push((name.to_owned(), path.to_owned(), facts.clone()));
        Ok(())
    }

    fn entry(&mut self, name: &Path, path: &Path, kind: Kind, facts: &Metadata, inodes: u64) -> Result<()> {
        let size = match kind {
            Kind::File(size) => Some(size),
            _ => None,
        };
        let xattrs = if inodes == 0 { Vec::new() } else { sys::tree::xattrs(path)? };
        let on_disk = size.map_or(0, |size| (facts.blocks().saturating_mul(512)).min(size));
        let entry = Entry { path: name.to_owned(), kind, facts: own_facts(facts, xattrs) };
        self.write(&entry, on_disk.next_multiple_of(DISK_UNIT), inodes)?;
        if let Some(size) = size {
            self.content(path, size)?;
        }
        if self.written >= self.recipe.segment_bytes {
            let content = self.end()?;
            self.begin(content)?;
        }
        Ok(())
    }

    fn write(&mut self, entry: &Entry, bytes: u64, inodes: u64) -> Result<()> {
        entry.write(self.out()?)?;
        if let Some(segment) = self.segments.last_mut() {
            segment.bytes += bytes;
            segment.inodes += inodes;
        }
        Ok(())
    }

    fn content(&mut self, path: &Path, size: u64) -> Result<()> {
        let file = sys::file::open_read(path)?;
        let copied = io::copy(&mut file.take(size), self.out()?)?;
        if copied != size {
            return Err(Error::failed("it became shorter meanwhile; stop the engine first"));
        }
        entry::pad(self.out()?, size)?;
        self.written += size;
        self.read += size;
        (self.progress)(self.read);
        Ok(())
    }

    fn out(&mut self) -> Result<&mut zstd::Encoder<'static, Content>> {
        self.to.as_mut().ok_or_else(|| Error::inconsistent("no segment"))
    }

    /// The last segment: directories once more, the inner ones first, so that making files in them no longer changes their
    /// time; and the end of the tar archive.
    fn finish(mut self) -> Result<(File, Manifest, Vec<PathBuf>)> {
        let content = self.end()?;
        self.begin(content)?;
        for (name, path, facts) in std::mem::take(&mut self.dirs) {
            let xattrs = sys::tree::xattrs(&path)?;
            self.write(&Entry { path: name, kind: Kind::Dir, facts: own_facts(&facts, xattrs) }, 0, 0)?;
        }
        self.out()?.write_all(&archive::END)?;
        let content = self.end()?;
        let (file, size, chunks) = content.finish();
        Ok((file, Manifest::new(self.recipe, size, chunks, self.segments), self.left_out))
    }
}

fn own_facts(facts: &Metadata, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Facts {
    Facts { mode: facts.mode() & 0o7777, uid: facts.uid(), gid: facts.gid(), mtime_s: facts.mtime(), xattrs }
}

/// The compressed content, with a digest of each chunk.
struct Content {
    file: File,
    written: u64,
    chunk: Sha256,
    chunks: Vec<Digest>,
}

impl Content {
    fn new(file: File) -> Self {
        Self { file, written: 0, chunk: Sha256::new(), chunks: Vec::new() }
    }

    fn finish(mut self) -> (File, u64, Vec<Digest>) {
        if !self.written.is_multiple_of(CHUNK_BYTES) {
            self.chunks.push(Digest(self.chunk.finalize().into()));
        }
        (self.file, self.written, self.chunks)
    }
}

impl Write for Content {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = usize::try_from(CHUNK_BYTES - self.written % CHUNK_BYTES).unwrap_or(usize::MAX);
        let n = self.file.write(bytes.get(..bytes.len().min(room)).unwrap_or_default())?;
        self.chunk.update(bytes.get(..n).unwrap_or_default());
        self.written += n as u64;
        if n > 0 && self.written.is_multiple_of(CHUNK_BYTES) {
            self.chunks.push(Digest(self.chunk.finalize_reset().into()));
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
