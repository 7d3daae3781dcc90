//! The archive as a file: the same container as a bundle's, and its content, each chunk compared with its signed digest
//! before anything looks into it.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::manifest::{self, CHUNK_BYTES, Manifest, Segment};
use crate::bundle::{Head, KeyId, Keys, archive};
use crate::model::Digest;
use crate::{Doing, Error, Result, sys};

/// The member that holds everything but the manifest and its signatures.
pub const MEMBER: &str = "data.tar.zst";
/// A window of 8 MiB: what zstd has up to level 19.
pub const WINDOW_LOG_MAX: u32 = 23;

/// A preload archive whose manifest was signed by enough keys.
#[derive(Debug)]
pub struct Archive {
    file: File,
    manifest: Manifest,
    digest: Digest,
    signed_by: Vec<KeyId>,
    /// Where the content begins in the file.
    start: u64,
}

impl Archive {
    /// Opens an archive and checks who made it.
    ///
    /// # Errors
    /// `Failed` if it is no archive, or not whole; `Refused` if too few of `keys` signed it.
    pub fn open(path: &Path, keys: &Keys) -> Result<Self> {
        Self::of(sys::file::open_read(path)?, keys).doing(|| path.display().to_string())
    }

    fn of(file: File, keys: &Keys) -> Result<Self> {
        let len = sys::file::len_bytes(&file)?;
        let mut members = archive::Reader::new(BufReader::new(At { file: &file, at: 0 }));
        let none = || Error::failed("not a preload archive; give what `twinhull preload pack` made");
        let head = Head::read(&mut members, manifest::LIMIT_BYTES)?.ok_or_else(none)?;
        let signed_by = keys.check(&head.text, &head.signatures)?;
        let text = std::str::from_utf8(&head.text).map_err(|_| Error::failed("manifest.toml: not UTF-8"))?;
        let manifest = Manifest::parse(text)?;
        let start = members.position();
        let end = members.end_of_member().saturating_add(archive::END.len() as u64);
        if head.next.is_none_or(|m| m.name != MEMBER || m.size != manifest.size) || len != end {
            return Err(Error::failed(format!("{len} bytes: not whole, or damaged; get it again")));
        }
        let behind = start.saturating_add(manifest.size);
        let mut zeros = vec![0; usize::try_from(end - behind).unwrap_or(0)];
        file.read_exact_at(&mut zeros, behind)?;
        if zeros.iter().any(|b| *b != 0) {
            return Err(Error::failed(format!("damaged behind byte {behind}; get it again")));
        }
        let digest = Digest(Sha256::digest(&head.text).into());
        Ok(Self { file, manifest, digest, signed_by, start })
    }

    /// What it says of itself.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The digest of the manifest: it names this archive.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The keys of ours that signed it.
    pub fn signed_by(&self) -> &[KeyId] {
        &self.signed_by
    }

    /// The tar entries of segment number `n`; `None` behind the last. `read` is told where in the content the reading is.
    ///
    /// # Errors
    /// `Failed` if there can be no decoder. Reading fails if a chunk does not match its digest.
    pub fn segment<'a>(&'a self, n: usize, read: &'a mut dyn FnMut(u64)) -> Result<Option<impl Read + 'a>> {
        let Some(Segment { offset, .. }) = self.manifest.segment.get(n) else { return Ok(None) };
        let end = self.manifest.segment.get(n + 1).map_or(self.manifest.size, |next| next.offset);
        let chunks = Chunks { archive: self, at: *offset, end, chunk: Vec::new(), number: None, read };
        let mut decoder = zstd::stream::read::Decoder::new(chunks)?;
        decoder.window_log_max(WINDOW_LOG_MAX)?;
        Ok(Some(decoder))
    }

    fn chunk(&self, number: u64, chunk: &mut Vec<u8>) -> Result<()> {
        let expected = usize::try_from(number).ok().and_then(|n| self.manifest.chunks.get(n));
        let at = number.saturating_mul(CHUNK_BYTES);
        let len = self.manifest.size.saturating_sub(at).min(CHUNK_BYTES);
        chunk.resize(usize::try_from(len).unwrap_or(0), 0);
        let doing = || format!("{MEMBER} at byte {at}");
        self.file.read_exact_at(chunk, self.start.saturating_add(at)).doing(doing)?;
        if expected != Some(&Digest(Sha256::digest(&*chunk).into())) {
            return Err(Error::failed("does not match its signed digest: damaged; get the archive again")
                .within(doing()));
        }
        Ok(())
    }
}

/// Part of the content; a chunk that does not match its digest gives nothing but an error.
struct Chunks<'a> {
    archive: &'a Archive,
    at: u64,
    end: u64,
    chunk: Vec<u8>,
    number: Option<u64>,
    read: &'a mut dyn FnMut(u64),
}

impl Read for Chunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.end {
            return Ok(0);
        }
        let number = self.at / CHUNK_BYTES;
        if self.number != Some(number) {
            self.number = None;
            self.archive.chunk(number, &mut self.chunk).map_err(io::Error::other)?;
            self.number = Some(number);
        }
        let from = usize::try_from(self.at % CHUNK_BYTES).unwrap_or(usize::MAX);
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let there = self.chunk.get(from..).unwrap_or_default();
        let n = there.len().min(left).min(buffer.len());
        if let (Some(to), Some(bytes)) = (buffer.get_mut(..n), there.get(..n)) {
            to.copy_from_slice(bytes);
        }
        self.at += n as u64;
        (self.read)(self.at);
        Ok(n)
    }
}

/// A file that is read from its start, without its own position.
struct At<'a> {
    file: &'a File,
    at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
