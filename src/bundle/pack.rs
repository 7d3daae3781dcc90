//! Making a bundle from an image, and from files that go with it. The same input gives the same bytes.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use zstd::zstd_safe::{self, CCtx, CParameter};

use super::archive;
use super::frames::as_prefix;
use super::index::{self, BLOCK_LEN, Builder};
use super::keys::Signature;
use super::pack_files::{self, NamedFile};
use crate::model::device::DeviceType;
use crate::model::manifest::Provides;
use crate::model::payload::{BLOCK_BYTES, IMAGE_MAX_BYTES, IMAGE_MIN_BYTES};
use crate::model::{Digest, Manifest, Payload, PayloadKind, Version};
use crate::{Doing, Error, Result, sys};

/// The image is read, and holes are looked for, in pieces of this many bytes.
const PIECE_LEN: usize = 1024 * 1024;
/// How many frames wait for each processor before they are compressed together.
const FRAMES_PER_THREAD: usize = 16;

/// What the maker says of an image.
#[derive(Debug, Clone)]
pub struct Recipe {
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
    /// zstd's level, 1 to 22.
    pub level: i32,
    /// Blocks in a frame, 1 to `index::FRAME_BLOCKS_MAX`.
    pub frame_blocks: u32,
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
    let mut parts = vec![Part::pack(&file, len, PayloadKind::RootSlot, dir, recipe, progress).doing(doing)?];
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
pub(super) fn head(to: &mut File, text: &[u8], signatures: &[Signature]) -> Result<()> {
    member(to, "manifest.toml", &mut &text[..], text.len() as u64)?;
    let mut sorted: Vec<&Signature> = signatures.iter().collect();
    sorted.sort_by_key(|s| s.id());
    for s in sorted {
        let bytes = s.text().as_bytes();
        member(to, &format!("manifest.toml.{}.minisig", s.id()), &mut &bytes[..], bytes.len() as u64)?;
    }
    Ok(())
}

fn member(to: &mut File, name: &str, content: &mut dyn io::Read, size: u64) -> Result<()> {
    to.write_all(&archive::header(name, size)?)?;
    let copied = io::copy(content, to)?;
    if copied != size {
        return Err(Error::inconsistent(format!("{name}: {copied} bytes, expected {size}")));
    }
    let padding = usize::try_from(archive::padding_len(size)).unwrap_or(0);
    Ok(to.write_all(archive::END.get(..padding).unwrap_or_default())?)
}

/// An image on its way into index and frames. A frame needs only plain blocks before it, so frames are compressed on
/// all processors and written in order.
struct Packer {
    index: Builder,
    image: Sha256,
    frames: File,
    /// Blocks that are not zero: at first those that were compressed already and are prefix to the others.
    plain: Vec<u8>,
    /// How many bytes of `plain` were compressed.
    done: usize,
    block: u64,
    frame_len: usize,
    prefix_len: usize,
    level: i32,
    threads: usize,
}

impl Packer {
    fn new(frames: File, recipe: &Recipe) -> Result<Self> {
        let (frame, prefix) = (recipe.frame_blocks, recipe.prefix_blocks);
        if !(1..=index::FRAME_BLOCKS_MAX).contains(&frame)
            || prefix > index::PREFIX_BLOCKS_MAX
            || !(1..=22).contains(&recipe.level)
        {
            return Err(Error::usage(format!(
                "frames of {frame} blocks with {prefix} before them at level {}: expected 1 to {} blocks, 0 to {}, level 1 to 22",
                recipe.level,
                index::FRAME_BLOCKS_MAX,
                index::PREFIX_BLOCKS_MAX,
            )));
        }
        let len = |blocks| usize::try_from(blocks).unwrap_or(0) * BLOCK_LEN;
        Ok(Self {
            index: Builder::new(frame, prefix),
            image: Sha256::new(),
            frames,
            plain: Vec::new(),
            done: 0,
            block: 0,
            frame_len: len(frame),
            prefix_len: len(prefix),
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
            self.piece(bytes)?;
            at += n as u64;
            progress(at, len);
        }
        self.compress()
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
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
            return Ok(());
        }
        self.index.block(number, index::hash(bytes));
        self.plain.extend(bytes);
        let batch = self.frame_len * self.threads * FRAMES_PER_THREAD;
        if self.plain.len() - self.done >= batch { self.compress() } else { Ok(()) }
    }

    /// Compresses what waits, in whole frames but for the last of the image, and writes it in order.
    fn compress(&mut self) -> Result<()> {
        let (plain, done) = (&self.plain, self.done);
        let starts: Vec<usize> = (done..plain.len()).step_by(self.frame_len).collect();
        let share = starts.len().div_ceil(self.threads).max(1);
        let one = |start: &usize| {
            let end = (start + self.frame_len).min(plain.len());
            let prefix = plain.get(start.saturating_sub(self.prefix_len)..*start).unwrap_or_default();
            compress(as_prefix(prefix), plain.get(*start..end).unwrap_or_default(), self.level)
        };
        let compressed: Vec<Result<Vec<Vec<u8>>>> = std::thread::scope(|scope| {
            let started: Vec<_> = starts
                .chunks(share)
                .map(|starts| scope.spawn(move || starts.iter().map(one).collect()))
                .collect();
            let broke = |_| Err(Error::inconsistent("a compressing thread broke down"));
            started.into_iter().map(|t| t.join().unwrap_or_else(broke)).collect()
        });
        for data in compressed.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten() {
            let data_len = u32::try_from(data.len()).map_err(|_| Error::inconsistent("a frame too long"))?;
            self.index.frame(data_len, index::hash(&data));
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
            files: Vec::new(),
        };
        Ok(Part { payload, index, frames: self.frames })
    }
}

/// One zstd frame of `plain`, to be decompressed with `prefix` at hand.
pub(super) fn compress(prefix: &[u8], plain: &[u8], level: i32) -> Result<Vec<u8>> {
    let failed = |code| Error::failed(format!("compress: {}", zstd_safe::get_error_name(code)));
    let mut zstd = CCtx::try_create().ok_or_else(|| Error::failed("compress: no memory"))?;
    zstd.set_parameter(CParameter::CompressionLevel(level)).map_err(failed)?;
    // Window and tables that reach over prefix and frame; by itself zstd would only look at the size of the frame.
    let log = (prefix.len() + plain.len()).next_power_of_two().ilog2().clamp(10, 27);
    for parameter in [CParameter::WindowLog(log), CParameter::ChainLog(log), CParameter::HashLog(log)] {
        zstd.set_parameter(parameter).map_err(failed)?;
    }
    zstd.ref_prefix(prefix).map_err(failed)?;
    let mut data = Vec::with_capacity(zstd_safe::compress_bound(plain.len()));
    zstd.compress2(&mut data, plain).map_err(failed)?;
    Ok(data)
}
