//! Reading single frames of a bundle, from a source of which parts can be left out.

use std::io::Read;
use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::archive;
use super::fetch::Meter;
use super::frames::{self, Decoder, Recall, Stretch};
use super::index::Index;
use super::merge::merge;
use super::reader::{Bundle, read_index, start_frames};
use super::source::Source;
use crate::model::{Digest, Payload};
use crate::{Error, Result};

impl Bundle<Source> {
    /// Reads the index, or takes `kept`, its bytes from an earlier attempt, if they are right; and goes to the frames,
    /// of which single ones can then be read.
    ///
    /// # Errors
    /// `Failed` if the bundle is damaged or cannot be read on.
    pub fn into_frames(mut self, kept: Option<Vec<u8>>) -> Result<Frames> {
        let root = self.manifest.root.clone();
        let start = self.members.position();
        let after =
            start.saturating_add(root.index_size).saturating_add(archive::padding_len(root.index_size));
        let header = archive::header(&format!("{}.frames", root.name), root.frames_size)?.len() as u64;
        let frames_at = after.saturating_add(header);
        let right = |bytes: &Vec<u8>| Digest(Sha256::digest(bytes).into()) == root.index_sha256;
        let (index, fresh) = match kept.filter(right) {
            Some(bytes) => (Index::parse(bytes, &root)?, false),
            None => {
                self.members.stream_mut().plan(std::iter::once(start..frames_at));
                let index = self.read_index(&root)?;
                self.start_frames(&root)?;
                (index, true)
            }
        };
        let Self { members, manifest, .. } = self;
        let end = frames_at.saturating_add(root.frames_size);
        Ok(Frames {
            source: members.into_stream(),
            image_len: manifest.root.size,
            index,
            fresh,
            frames_at,
            end,
            compressed: Vec::new(),
        })
    }
}

/// The frames of a bundle whose index was read, each to be had by itself.
pub struct Frames {
    source: Source,
    /// Length of the image in bytes.
    pub image_len: u64,
    /// The index, as it was signed.
    pub index: Index,
    /// Whether the index was read from the source just now.
    pub fresh: bool,
    frames_at: u64,
    /// Where the frames member ends, without its padding.
    end: u64,
    /// Memory for frames as they come.
    compressed: Vec<u8>,
}

impl Frames {
    /// Leaves these frames and goes to those of the payload that follows.
    ///
    /// # Errors
    /// `Failed` if the bundle is damaged or cannot be read on.
    pub fn next_payload(self, payload: &Payload) -> Result<Self> {
        let mut source = self.source;
        let start = self.end.saturating_add(archive::padding_len(self.end - self.frames_at));
        let header = |member: &str, size| archive::header(&format!("{}.{member}", payload.name), size);
        let index_at = start.saturating_add(header("index", payload.index_size)?.len() as u64);
        let after = index_at
            .saturating_add(payload.index_size)
            .saturating_add(archive::padding_len(payload.index_size));
        let frames_at = after.saturating_add(header("frames", payload.frames_size)?.len() as u64);
        source.plan(std::iter::once(start..frames_at));
        source.skip_to(start..frames_at)?;
        let mut members = archive::Reader::new(source);
        let found = members.advance()?;
        let index = read_index(&mut members, found, payload)?;
        start_frames(&mut members, payload)?;
        let end = frames_at.saturating_add(payload.frames_size);
        Ok(Self {
            source: members.into_stream(),
            image_len: payload.size,
            index,
            fresh: true,
            frames_at,
            end,
            compressed: Vec::new(),
        })
    }

    /// Says of which carried blocks the frames will be read, in ascending order, and how many bytes will be fetched for them.
    ///
    /// # Errors
    /// `Inconsistent` if there are no such blocks.
    pub fn plan(&mut self, carried: &[Range<u64>]) -> Result<u64> {
        let wanted = carried.iter().map(|c| self.place(c)).collect::<Result<Vec<_>>>()?;
        let total = self.source.len_bytes().unwrap_or(u64::MAX);
        let ranges = merge(&wanted, self.source.meter().bytes_per_request(), total);
        let bytes = ranges.iter().map(|r| r.end - r.start).sum();
        self.source.plan(ranges);
        Ok(bytes)
    }

    /// Fetches and decodes the frames of some carried blocks, and gives the blocks, each compared with its hash; see
    /// [`Decoder::decode`].
    ///
    /// # Errors
    /// `Failed` if they cannot be read or are not what was signed.
    pub fn decode<'a>(
        &'a mut self,
        decoder: &'a mut Decoder,
        carried: Range<u64>,
        recall: &mut Recall,
    ) -> Result<Vec<Stretch<'a>>> {
        let place = self.place(&carried)?;
        let len = usize::try_from(place.end - place.start).map_err(|e| Error::failed(e.to_string()))?;
        self.compressed.resize(len, 0);
        self.source.skip_to(place)?;
        self.source.read_exact(&mut self.compressed).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::failed("ends too early: cut short; get it again"),
            _ => e.into(),
        })?;
        let plain = decoder.decode(&self.index, carried.clone(), &self.compressed, recall)?;
        frames::check(&self.index, carried.clone(), plain)?;
        Ok(frames::stretches(&self.index, carried, plain))
    }

    /// What was fetched so far.
    pub fn meter(&self) -> Meter {
        self.source.meter()
    }

    fn place(&self, carried: &Range<u64>) -> Result<Range<u64>> {
        let frames = self.index.frames(carried).ok_or_else(|| {
            Error::inconsistent(format!("there are no blocks {} to {}", carried.start, carried.end))
        })?;
        Ok(self.frames_at.saturating_add(frames.start)..self.frames_at.saturating_add(frames.end))
    }
}
