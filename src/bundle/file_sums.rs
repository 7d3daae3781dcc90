//! The files in an image of files, each against its own digest.

use sha2::{Digest as _, Sha256};

use crate::model::{Digest, FileEntry, Payload};
use crate::{Error, Result};

/// Compares each file of a payload with its digest as the image goes by.
pub struct FileSums<'a> {
    left: std::slice::Iter<'a, FileEntry>,
    file: Option<&'a FileEntry>,
    sum: Sha256,
    /// Bytes of the present file's place in the image that went by.
    at: u64,
}

impl<'a> FileSums<'a> {
    /// Before the first byte of the payload's image.
    pub fn new(payload: &'a Payload) -> Self {
        let mut left = payload.files.iter();
        Self { file: left.next(), left, sum: Sha256::new(), at: 0 }
    }

    /// The next bytes of the image.
    ///
    /// # Errors
    /// `Failed`, naming the file, if one that ended is not what the manifest says.
    pub fn update(&mut self, mut bytes: &[u8]) -> Result<()> {
        while let Some(file) = self.file {
            let here = usize::try_from(file.padded() - self.at).unwrap_or(usize::MAX).min(bytes.len());
            let (piece, rest) = bytes.split_at(here);
            let content = usize::try_from(file.size.saturating_sub(self.at)).unwrap_or(usize::MAX);
            self.sum.update(piece.get(..content.min(here)).unwrap_or_default());
            if piece.iter().skip(content).any(|b| *b != 0) {
                return Err(Error::failed(format!(
                    "{}: bytes behind its end; the bundle was made wrongly",
                    file.path
                )));
            }
            self.at += here as u64;
            if self.at < file.padded() {
                return Ok(());
            }
            let found = Digest(std::mem::take(&mut self.sum).finalize().into());
            if found != file.sha256 {
                return Err(Error::failed(format!(
                    "{}: has digest {found}, the manifest says {}; the bundle was made wrongly",
                    file.path, file.sha256
                )));
            }
            (self.file, self.at, bytes) = (self.left.next(), 0, rest);
        }
        Ok(())
    }
}
