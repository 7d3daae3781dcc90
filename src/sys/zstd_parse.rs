//! Compressing with zstd in two steps, which its safe interface lacks: what repeats what in a long stretch of bytes is
//! looked for once; then each small piece of it is written as a block of its own.
//!
//! By itself zstd takes in all that comes before a piece anew for each piece: hours for an image in pieces of 4 KiB.

use std::ffi::CStr;
use std::ops::Range;
use std::ptr::NonNull;

use zstd::zstd_safe::zstd_sys::{
    ZSTD_CCtx, ZSTD_CCtx_reset, ZSTD_CCtx_setParameter, ZSTD_ResetDirective, ZSTD_Sequence, ZSTD_cParameter,
    ZSTD_compressSequences, ZSTD_createCCtx, ZSTD_freeCCtx, ZSTD_generateSequences, ZSTD_getErrorName,
    ZSTD_isError, ZSTD_sequenceBound,
};

use crate::{Error, Result};

/// The shortest repetition that zstd can write.
const MATCH_MIN: usize = 3;
/// What stands before the block in a frame without content size, checksum and dictionary: magic number, descriptor, window.
const FRAME_HEADER_LEN: usize = 6;
const BLOCK_HEADER_LEN: usize = 3;

/// Bytes that stood before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// Where they stand, from the beginning of what was searched.
    pub at: Range<usize>,
    /// How far back the same bytes are found, in bytes.
    pub offset: usize,
}

/// A compressor.
pub struct Zstd(NonNull<ZSTD_CCtx>);

impl Drop for Zstd {
    fn drop(&mut self) {
        // SAFETY: it came from ZSTD_createCCtx, and nobody else has it.
        unsafe { ZSTD_freeCCtx(self.0.as_ptr()) };
    }
}

impl Zstd {
    /// A compressor with the default settings.
    ///
    /// # Errors
    /// `Failed` if there is no memory for it.
    pub fn new() -> Result<Self> {
        // SAFETY: no preconditions; null is checked.
        let context = NonNull::new(unsafe { ZSTD_createCCtx() });
        context.map(Self).ok_or_else(|| Error::failed("compress: no memory"))
    }

    /// What repeats earlier bytes in `bytes`, in order, looked for as thoroughly as zstd's `level` does, up to
    /// 2^`window_log` bytes back.
    ///
    /// # Errors
    /// `Failed` if zstd cannot.
    pub fn matches(&mut self, bytes: &[u8], level: i32, window_log: u32) -> Result<Vec<Match>> {
        let log = i32::try_from(window_log).unwrap_or(i32::MAX);
        self.reset(&[
            (ZSTD_cParameter::ZSTD_c_compressionLevel, level),
            (ZSTD_cParameter::ZSTD_c_windowLog, log),
            (ZSTD_cParameter::ZSTD_c_hashLog, log),
            (ZSTD_cParameter::ZSTD_c_chainLog, log.saturating_add(1)),
        ])?;
        // SAFETY: no preconditions.
        let most = unsafe { ZSTD_sequenceBound(bytes.len()) };
        let mut sequences: Vec<ZSTD_Sequence> = Vec::with_capacity(most);
        // SAFETY: zstd writes at most `most` sequences, for which there is room, reads `bytes`, and says how many
        // it wrote.
        unsafe {
            let written = ZSTD_generateSequences(
                self.0.as_ptr(),
                sequences.as_mut_ptr(),
                most,
                bytes.as_ptr().cast(),
                bytes.len(),
            );
            sequences.set_len(checked(written)?);
        }
        let mut at = 0;
        let mut matches = Vec::new();
        for sequence in sequences {
            at += sequence.litLength as usize;
            let end = at + sequence.matchLength as usize;
            if sequence.matchLength > 0 {
                matches.push(Match { at: at..end, offset: sequence.offset as usize });
            }
            at = end;
        }
        Ok(matches)
    }

    /// The content of one zstd block that decodes to `plain`, at most 128 KiB, written with `matches`, whose places are
    /// from the beginning of `plain` and do not overlap. It is as long as `plain` if that does not compress, and one byte
    /// if all bytes are the same.
    ///
    /// # Errors
    /// `Failed` if zstd cannot.
    pub fn block(&mut self, plain: &[u8], matches: &[Match], level: i32) -> Result<Vec<u8>> {
        let mut sequences = Vec::with_capacity(matches.len() + 1);
        let mut done = 0;
        let short = |n: usize| u32::try_from(n).map_err(|_| Error::inconsistent("a block too long"));
        for Match { at, offset } in matches.iter().filter(|m| m.at.len() >= MATCH_MIN) {
            if at.start < done || at.end > plain.len() || *offset == 0 {
                return Err(Error::inconsistent("repetitions that overlap"));
            }
            sequences.push(ZSTD_Sequence {
                offset: short(*offset)?,
                litLength: short(at.start - done)?,
                matchLength: short(at.len())?,
                rep: 0,
            });
            done = at.end;
        }
        let rest = short(plain.len() - done)?;
        sequences.push(ZSTD_Sequence { offset: 0, litLength: rest, matchLength: 0, rep: 0 });
        self.reset(&[
            (ZSTD_cParameter::ZSTD_c_compressionLevel, level),
            (ZSTD_cParameter::ZSTD_c_minMatch, 3),
            (ZSTD_cParameter::ZSTD_c_contentSizeFlag, 0),
            // ZSTD_c_blockDelimiters: the sequences say where a block ends.
            (ZSTD_cParameter::ZSTD_c_experimentalParam11, 1),
        ])?;
        let mut frame: Vec<u8> = Vec::with_capacity(plain.len() * 2 + 1024);
        // SAFETY: zstd writes at most the capacity of `frame`, reads `sequences` and `plain`, and says how much it wrote.
        // The sequences cover `plain` exactly and do not overlap, as was just seen.
        unsafe {
            let written = ZSTD_compressSequences(
                self.0.as_ptr(),
                frame.as_mut_ptr().cast(),
                frame.capacity(),
                sequences.as_ptr(),
                sequences.len(),
                plain.as_ptr().cast(),
                plain.len(),
            );
            frame.set_len(checked(written)?);
        }
        Ok(frame.split_off(FRAME_HEADER_LEN + BLOCK_HEADER_LEN))
    }

    fn reset(&mut self, parameters: &[(ZSTD_cParameter, i32)]) -> Result<()> {
        // SAFETY: the context is valid; zstd checks parameters and values.
        unsafe {
            let all = ZSTD_ResetDirective::ZSTD_reset_session_and_parameters;
            checked(ZSTD_CCtx_reset(self.0.as_ptr(), all))?;
            for (parameter, value) in parameters {
                checked(ZSTD_CCtx_setParameter(self.0.as_ptr(), *parameter, *value))?;
            }
        }
        Ok(())
    }
}

fn checked(code: usize) -> Result<usize> {
    // SAFETY: both take any number; the name is a static string.
    unsafe {
        match ZSTD_isError(code) {
            0 => Ok(code),
            _ => {
                let name = CStr::from_ptr(ZSTD_getErrorName(code));
                Err(Error::failed(format!("compress: {}", name.to_string_lossy())))
            }
        }
    }
}
