//! Reading a bundle: signatures first, then blocks, each checked before it is handed on.

use std::io::Read;

use sha2::{Digest as _, Sha256};

use super::archive::{self, Member};
use super::file_sums::FileSums;
use super::head::Head;
use super::in_order;
use super::index::Index;
use super::keys::{KeyId, Keys, Signature};
use crate::model::manifest::{self, Manifest};
use crate::model::{Digest, Payload};
use crate::{Error, Result};

/// How far a bundle was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the image that were handed to the writer, zeros included.
    pub done_bytes: u64,
    /// Length of the image.
    pub total_bytes: u64,
    /// Bytes of the bundle that were read.
    pub read_bytes: u64,
    /// Bytes of the image that were on the device already.
    pub reused_bytes: u64,
}

/// A bundle whose manifest was checked and whose payload is still to be read.
pub struct Bundle<R> {
    pub(super) members: archive::Reader<R>,
    pub(super) manifest: Manifest,
    text: Vec<u8>,
    signatures: Vec<Signature>,
    signed_by: Vec<KeyId>,
    /// The member that comes next, whose header was read already.
    next: Option<Member>,
    payload_start: u64,
    /// How many payloads were handed out, or begun.
    handed_out: usize,
}

impl<R: Read + Send> Bundle<R> {
    /// Reads the manifest and its signatures from a stream, and checks that enough of `keys` signed it.
    ///
    /// # Errors
    /// `Failed` if it is no bundle, or a damaged one; `Refused` if too few of the keys signed it or the format is
    /// newer.
    pub fn open(stream: R, keys: &Keys) -> Result<Self> {
        Self::start(stream, |message, signatures| keys.check(message, signatures))
    }

    /// Reads a bundle without asking who made it: to show it, to sign it. Never to install it.
    pub(super) fn open_unchecked(stream: R) -> Result<Self> {
        Self::start(stream, |_, _| Ok(Vec::new()))
    }

    fn start(stream: R, check: impl FnOnce(&[u8], &[Signature]) -> Result<Vec<KeyId>>) -> Result<Self> {
        let mut members = archive::Reader::new(stream);
        let none = || {
            Error::failed(
                "not a bundle: it does not begin with manifest.toml; give what `twinhull bundle create` made",
            )
        };
        let Head { text, signatures, payload_start, next } =
            Head::read(&mut members, manifest::LIMIT_BYTES)?.ok_or_else(none)?;
        let signed_by = check(&text, &signatures)?;
        let manifest = std::str::from_utf8(&text)
            .map_err(|_| Error::failed("manifest.toml: not UTF-8"))
            .and_then(Manifest::parse)?;
        Ok(Self { members, manifest, text, signatures, signed_by, next, payload_start, handed_out: 0 })
    }

    /// The stream that it is read from.
    pub const fn stream(&self) -> &R {
        self.members.stream()
    }

    /// What the bundle is.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest's bytes, as they were signed.
    pub fn manifest_text(&self) -> &[u8] {
        &self.text
    }

    /// The digest of the manifest's bytes: it names this bundle, however it was fetched.
    pub fn manifest_digest(&self) -> Digest {
        Digest(Sha256::digest(&self.text).into())
    }

    /// Where the payload begins, as bytes from the start of the bundle: after the manifest and its signatures.
    pub const fn payload_start(&self) -> u64 {
        self.payload_start
    }

    /// The keys of ours that signed it.
    pub fn signed_by(&self) -> &[KeyId] {
        &self.signed_by
    }

    /// Every signature in it, by anybody.
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Hands out the root image: `write(offset, bytes)` is called in ascending order and covers it without gaps
    /// and exactly, zeros included. Every block was compared with its signed hash before.
    ///
    /// # Errors
    /// `Failed` if the bundle is damaged or ends early (what was written until then is right, and not whole), and
    /// whatever `write` fails with. `Inconsistent` when called a second time.
    pub fn write_root(
        &mut self,
        write: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        self.write_payload(0, write, progress)
    }

    /// Hands out the image of a payload of files, as [`Bundle::write_root`] does: number `number` of the manifest's,
    /// after the root image and in order.
    ///
    /// # Errors
    /// As [`Bundle::write_root`]; `Inconsistent` out of order.
    pub fn write_files(
        &mut self,
        number: usize,
        write: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.write_payload(number + 1, write, &mut |_| ())
    }

    fn write_payload(
        &mut self,
        number: usize,
        write: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        let payload = self.manifest.payloads().nth(number).cloned();
        let payload = payload.filter(|_| number == self.handed_out).ok_or_else(|| {
            Error::inconsistent(format!("payload {number} of the bundle is not there, or was read before"))
        })?;
        self.handed_out += 1;
        let index = self.read_index(&payload)?;
        let name = self.start_frames(&payload)?;
        let size = payload.size;
        let mut write = |offset, bytes: &[u8], read_bytes| {
            write(offset, bytes)?;
            let done_bytes = offset + bytes.len() as u64;
            progress(Progress { done_bytes, total_bytes: size, read_bytes, reused_bytes: 0 });
            Ok(())
        };
        let sum = in_order::hand_out(&mut self.members, &name, &index, size, &mut write)?;
        // The blocks are right in any case. But zstd has several ways to write the same, and a bundle that was touched on its
        // way is no bundle to trust.
        if sum != payload.frames_sha256 {
            return Err(Error::failed(format!(
                "{name}: does not match its signed digest; the bundle is damaged, get it again"
            )));
        }
        self.next = self.members.advance()?;
        if let Some(extra) = self.next.as_ref().filter(|_| self.handed_out > self.manifest.files.len()) {
            return Err(Error::failed(format!("unexpected member {:?} after {name}", extra.name)));
        }
        let read_bytes = self.members.position();
        progress(Progress { done_bytes: size, total_bytes: size, read_bytes, reused_bytes: 0 });
        Ok(())
    }

    /// Reads the whole bundle and compares every block, every image and file, and the end.
    ///
    /// # Errors
    /// As [`Bundle::write_root`], and `Failed` if the blocks are right and a digest in the manifest is not.
    pub fn check_all(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let payloads: Vec<Payload> = self.manifest.payloads().cloned().collect();
        for (number, payload) in payloads.iter().enumerate() {
            let mut image = Sha256::new();
            let mut files = FileSums::new(payload);
            let mut sum = |_: u64, bytes: &[u8]| {
                image.update(bytes);
                files.update(bytes)
            };
            self.write_payload(number, &mut sum, progress)?;
            let found = Digest(image.finalize().into());
            if found != payload.sha256 {
                return Err(Error::failed(format!(
                    "image has digest {found}, the manifest says {}; the bundle was made wrongly",
                    payload.sha256
                ))
                .within(payload.name.clone()));
            }
        }
        Ok(())
    }

    pub(super) fn read_index(&mut self, payload: &Payload) -> Result<Index> {
        let next = self.next.take();
        read_index(&mut self.members, next, payload)
    }

    /// The index, of a bundle that is made use of on a build host.
    #[cfg(feature = "build-host")]
    pub(super) fn index_alone(&mut self) -> Result<Index> {
        let root = self.manifest.root.clone();
        self.read_index(&root)
    }

    /// Goes to the first frame. Gives the member's name.
    pub(super) fn start_frames(&mut self, payload: &Payload) -> Result<String> {
        start_frames(&mut self.members, payload)
    }
}

/// Reads a payload's index, whose header was read already.
pub(super) fn read_index<R: Read>(
    members: &mut archive::Reader<R>,
    found: Option<Member>,
    payload: &Payload,
) -> Result<Index> {
    let name = format!("{}.index", payload.name);
    expect(found, &name, payload.index_size)?;
    let bytes = members.content(payload.index_size)?;
    if Digest(Sha256::digest(&bytes).into()) != payload.index_sha256 {
        return Err(Error::failed(format!(
            "{name}: does not match its signed digest; the bundle is damaged, get it again"
        )));
    }
    Index::parse(bytes, payload)
}

/// Goes from a payload's index to its first frame. Gives the member's name.
pub(super) fn start_frames<R: Read>(members: &mut archive::Reader<R>, payload: &Payload) -> Result<String> {
    let name = format!("{}.frames", payload.name);
    let found = members.advance()?;
    expect(found, &name, payload.frames_size)?;
    Ok(name)
}

fn expect(found: Option<Member>, name: &str, size: u64) -> Result<()> {
    match found {
        Some(m) if m.name == name && m.size == size => Ok(()),
        Some(m) => Err(Error::failed(format!(
            "found {:?} of {} bytes where {name} of {size} bytes belongs; the bundle is damaged, get it again",
            m.name, m.size
        ))),
        None => Err(Error::failed(format!("{name} is missing; the bundle is damaged, get it again"))),
    }
}

/// What a bundle says of itself, unchecked.
pub struct Description {
    /// The manifest.
    pub manifest: Manifest,
    /// The digest of its bytes.
    pub manifest_digest: Digest,
    /// The signatures, which nobody compared with a key.
    pub signatures: Vec<Signature>,
}

/// Reads what a bundle says of itself, for people to look at. Nothing of it is checked against a key.
///
/// # Errors
/// As [`Bundle::open`], but for the signatures.
pub fn describe(stream: impl Read + Send) -> Result<Description> {
    let bundle = Bundle::open_unchecked(stream)?;
    let manifest_digest = bundle.manifest_digest();
    Ok(Description { manifest: bundle.manifest, manifest_digest, signatures: bundle.signatures })
}
