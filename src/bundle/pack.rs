//! Making a bundle from an image, and from files that go with it. The same input gives the same bytes.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::archive;
use super::index::{self, BLOCK_LEN};
use super::index_builder::Builder;
use super::keys::Signature;
use super::pack_files::{self, NamedFile};
use super::pack_frames;
use super::pieces::{self, Cutter, Print};
use crate::model::device::DeviceType;
use crate::model::manifest::Provides;
use crate::model::payload::{BLOCK_BYTES, IMAGE_MAX_BYTES, IMAGE_MIN_BYTES};
use crate::model::{Digest, Manifest, Payload, PayloadKind, Verity, Version};
use crate::{Doing, Error, Result, sys};

/// The image is read, and holes are looked for, in pieces of this many bytes.
const PIECE_LEN: usize = 1024 * 1024;
/// How much one processor compresses at a time.
const SEGMENT_LEN: usize = 32 * 1024 * 1024;

/// What the maker says of an image.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// What the image is of: a root slot or a whole disk.
    pub kind: PayloadKind,
    /// The device types that it is for.
    pub compatible: Vec<DeviceType>,
    /// balena's name of the architecture.
    pub arch: String,
    /// The version of the host OS in it.
    pub version: Version,
    /// The release counter.
    pub release: u64,
    /// The oldest version that may be updated to it.
    pub min_version: Option<Version>,
    /// What it provides.
    pub provides: Provides,
    /// The root hash of the tree in the image, and where that lies.
    pub verity: Option<Verity>,
    /// zstd's level, 1 to 22.
    pub level: i32,
    /// Blocks before a frame that it is compressed with, 0 to `index::PREFIX_BLOCKS_MAX`.
    pub prefix_blocks: u32,
    /// Files for the boot partition.
    pub boot_files: Vec<NamedFile>,
    /// Programs that the new system runs before it is committed.
    pub hooks: Vec<NamedFile>,
}

/// Gives the signatures for a manifest, whose text is the second argument.
pub type SignWith<'a> = dyn Fn(&Manifest, &[u8]) -> Result<Vec<Signature>> + 'a;

/// What was made.
#[derive(Debug, Clone)]
pub struct Made {
    /// The manifest.
    pub manifest: Manifest,
    /// Length of the bundle in bytes.
    pub len_bytes: u64,
}

/// Makes a bundle of the image file `image` at `out`, signed by what `sign` gives for the manifest's text.
/// `progress` is told how many bytes of the image were read, of how many.
///
/// # Errors
/// `Failed`, naming the file, if the image cannot be read, has a size that no bundle may have, or changes
/// meanwhile; or if the bundle cannot be written. A bundle that was at `out` before is then still there.
pub fn create(
    image: &Path,
    out: &Path,
    recipe: &Recipe,
    sign: &SignWith,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Made> {
    let file = sys::file::open_read(image)?;
    let doing = || format!("image {}", image.display());
    if file.metadata().doing(doing)?.is_dir() {
        return Err(Error::failed("is a directory; give the image file").within(doing()));
    }
    let len = sys::file::len_bytes(&file).doing(doing)?;
    if !(IMAGE_MIN_BYTES..=IMAGE_MAX_BYTES).contains(&len) {
        let text = format!("{len} bytes, expected {IMAGE_MIN_BYTES} to {IMAGE_MAX_BYTES}");
        return Err(Error::failed(text).within(doing()));
    }
    let dir = sys::durable::parent(out)?;
    let mut root = Part::pack(&file, len, recipe.kind, dir, recipe, progress).doing(doing)?;
    root.payload.verity = recipe.verity;
    let mut parts = vec![root];
    for (kind, files) in [(PayloadKind::BootFiles, &recipe.boot_files), (PayloadKind::Hooks, &recipe.hooks)] {
        if files.is_empty() {
            continue;
        }
        let image = sys::durable::scratch(dir)?;
        let (entries, len) = pack_files::lay_out(files, &image)?;
        let mut part = Part::pack(&image, len, kind, dir, recipe, &mut |_, _| ())?;
        part.payload.files = entries;
        parts.push(part);
    }
    let manifest = describe(recipe, &parts)?;
    let text = manifest.to_text()?.into_bytes();
    let signatures = sign(&manifest, &text)?;
    let mut len_bytes = 0;
    sys::durable::replace_with(out, 0o644, |file| {
        head(file, &text, &signatures)?;
        for Part { payload, index, frames } in &mut parts {
            member(file, &format!("{}.index", payload.name), &mut &index[..], index.len() as u64)?;
            frames.seek(SeekFrom::Start(0))?;
            member(file, &format!("{}.frames", payload.name), frames, payload.frames_size)?;
        }
        file.write_all(&archive::END)?;
        len_bytes = file.stream_position()?;
        Ok(())
    })?;
    Ok(Made { manifest, len_bytes })
}

fn describe(recipe: &Recipe, parts: &[Part]) -> Result<Manifest> {
    let mut payloads = parts.iter().map(|p| p.payload.clone());
    let root = payloads.next().ok_or_else(|| Error::inconsistent("a bundle without an image"))?;
    Ok(Manifest {
        compatible: recipe.compatible.clone(),
        arch: recipe.arch.clone(),
        version: recipe.version.clone(),
        release: recipe.release,
        min_version: recipe.min_version.clone(),
        provides: recipe.provides.clone(),
        root,
        files: payloads.collect(),
    })
}

/// A payload that was packed: its description, index, and frames in a file without a name.
struct Part {
    payload: Payload,
    index: Vec<u8>,
    frames: File,
}

impl Part {
    fn pack(
        image: &File,
        len: u64,
        kind: PayloadKind,
        scratch: &Path,
        recipe: &Recipe,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let mut packer = Packer::new(sys::durable::scratch(scratch)?, recipe)?;
        packer.image(image, len, progress)?;
        packer.finish(kind, len)
    }
}

/// Writes what stands before the payload: the manifest and its signatures, in the order of their keys.
///
/// # Errors
/// As writing.
pub fn head(to: &mut File, text: &[u8], signatures: &[Signature]) -> Result<()> {
    member(to, "manifest.toml", &mut &text[..], text.len() as u64)?;
    let mut sorted: Vec<&Signature> = signatures.iter().collect();
    sorted.sort_by_key(|s| s.id());
    for s in sorted {
        let bytes = s.text().as_bytes();
        member(to, &format!("manifest.toml.{}.minisig", s.id()), &mut &bytes[..], bytes.len() as u64)?;
    }
    Ok(())
}

/// Writes a member of `size` bytes.
///
/// # Errors
/// As reading and writing; `Inconsistent` if the content has another length.
pub fn member(to: &mut File, name: &str, content: &mut dyn io::Read, size: u64) -> Result<()> {
    to.write_all(&archive::header(name, size)?)?;
    let copied = io::copy(content, to)?;
    if copied != size {
        return Err(Error::inconsistent(format!("{name}: {copied} bytes, expected {size}")));
    }
    let padding = usize::try_from(archive::padding_len(size)).unwrap_or(0);
    Ok(to.write_all(archive::END.get(..padding).unwrap_or_default())?)
}

/// An image on its way into index and frames. What repeats what is looked for in long segments, on all processors; their
/// borders depend on the image only.
struct Packer {
    index: Builder,
    image: Sha256,
    frames: File,
    frames_sum: Sha256,
    cutter: Cutter,
    /// Blocks of the present stretch of data that were not cut into pieces yet.
    stretch: Vec<u8>,
    /// Blocks that are not zero: at first those that were compressed already and are prefix to the others.
    plain: Vec<u8>,
    /// How many bytes of `plain` were compressed.
    done: usize,
    block: u64,
    prefix_len: usize,
    level: i32,
    threads: usize,
}

impl Packer {
    fn new(frames: File, recipe: &Recipe) -> Result<Self> {
        if recipe.prefix_blocks > index::PREFIX_BLOCKS_MAX || !(1..=22).contains(&recipe.level) {
            return Err(Error::usage(format!(
                "{} blocks before a frame, at level {}: expected 0 to {}, level 1 to 22",
                recipe.prefix_blocks,
                recipe.level,
                index::PREFIX_BLOCKS_MAX,
            )));
        }
        Ok(Self {
            index: Builder::new(recipe.prefix_blocks),
            image: Sha256::new(),
            frames,
            frames_sum: Sha256::new(),
            cutter: Cutter::default(),
            stretch: Vec::new(),
            plain: Vec::new(),
            done: 0,
            block: 0,
            prefix_len: usize::try_from(recipe.prefix_blocks).unwrap_or(0) * BLOCK_LEN,
            level: recipe.level,
            threads: std::thread::available_parallelism().map_or(1, NonZero::get),
        })
    }

    fn image(&mut self, file: &File, len: u64, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let mut piece = vec![0; PIECE_LEN];
        let mut data = Some((0, 0));
        let mut at = 0;
        while at < len {
            let n = usize::try_from(len - at).unwrap_or(PIECE_LEN).min(PIECE_LEN);
            let bytes = piece.get_mut(..n).unwrap_or_default();
            if data.is_some_and(|(_, end)| end <= at) {
                data = sys::file::next_data(file, at)?;
            }
            if data.is_some_and(|(start, _)| start < at + n as u64) {
                file.read_exact_at(bytes, at)?;
            } else {
                bytes.fill(0);
            }
            self.part(bytes)?;
            at += n as u64;
            progress(at, len);
        }
        self.cut(0);
        self.compress()
    }

    fn part(&mut self, bytes: &[u8]) -> Result<()> {
        self.image.update(bytes);
        let mut padded = [0; BLOCK_LEN];
        for block in bytes.chunks(BLOCK_LEN) {
            let (head, tail) = padded.split_at_mut(block.len());
            head.copy_from_slice(block);
            tail.fill(0);
            self.one_block(&padded)?;
        }
        Ok(())
    }

    fn one_block(&mut self, bytes: &[u8; BLOCK_LEN]) -> Result<()> {
        let number = self.block;
        self.block += 1;
        if *bytes == [0; BLOCK_LEN] {
            self.cut(0);
            return Ok(());
        }
        self.index.block(number, index::hash(bytes));
        self.stretch.extend(bytes);
        if self.stretch.len() >= 16 * pieces::LEN_MAX {
            self.cut(pieces::LEN_MAX);
        }
        self.plain.extend(bytes);
        let batch = SEGMENT_LEN * self.threads;
        if self.plain.len() - self.done >= batch { self.compress() } else { Ok(()) }
    }

    /// Cuts the stretch into pieces while more than `keep` bytes are left.
    fn cut(&mut self, keep: usize) {
        let mut rest = self.stretch.as_slice();
        while rest.len() > keep {
            let (piece, after) = rest.split_at(self.cutter.cut(rest));
            self.index.piece(Print::of(piece));
            rest = after;
        }
        self.stretch.drain(..self.stretch.len() - rest.len());
    }

    /// Compresses what waits, in whole segments but for the last of the image, and writes it in order.
    fn compress(&mut self) -> Result<()> {
        let (plain, done) = (&self.plain, self.done);
        let (prefix_len, level) = (self.prefix_len, self.level);
        let starts = (done..plain.len()).step_by(SEGMENT_LEN);
        let compressed: Vec<Result<Vec<Vec<u8>>>> = std::thread::scope(|scope| {
            let started: Vec<_> = starts
                .map(|start| {
                    let until = plain.get(..plain.len().min(start + SEGMENT_LEN)).unwrap_or_default();
                    scope.spawn(move || pack_frames::compress(until, start, prefix_len, level))
                })
                .collect();
            let broke = |_| Err(Error::inconsistent("a compressing thread broke down"));
            started.into_iter().map(|t| t.join().unwrap_or_else(broke)).collect()
        });
        for data in compressed.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten() {
            let len = u16::try_from(data.len()).map_err(|_| Error::inconsistent("a frame too long"))?;
            self.index.frame(len);
            self.frames_sum.update(&data);
            self.frames.write_all(&data).doing(|| "write frames")?;
        }
        self.plain.drain(..self.plain.len().saturating_sub(self.prefix_len));
        self.done = self.plain.len();
        Ok(())
    }

    fn finish(self, kind: PayloadKind, len: u64) -> Result<Part> {
        if self.block != len.div_ceil(BLOCK_BYTES) {
            return Err(Error::inconsistent(format!("{} blocks in {len} bytes", self.block)));
        }
        let (index, frames_size) = self.index.finish(len);
        let payload = Payload {
            name: kind.name().into(),
            kind,
            size: len,
            sha256: Digest(self.image.finalize().into()),
            index_sha256: Digest(Sha256::digest(&index).into()),
            index_size: index.len() as u64,
            frames_size,
            frames_sha256: Digest(self.frames_sum.finalize().into()),
            files: Vec::new(),
            verity: None,
        };
        Ok(Part { payload, index, frames: self.frames })
    }
}
