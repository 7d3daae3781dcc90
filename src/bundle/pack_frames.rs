//! Compressing blocks, each into a frame of its own.

use super::frames::as_prefix;
use super::index::BLOCK_LEN;
use crate::Result;
use crate::sys::zstd_parse::{Match, Zstd};

/// The frames of the blocks in `bytes` from `start` on, each with the `prefix_len` bytes before it as prefix.
///
/// # Errors
/// `Failed` if zstd cannot.
pub fn compress(bytes: &[u8], start: usize, prefix_len: usize, level: i32) -> Result<Vec<Vec<u8>>> {
    let mut zstd = Zstd::new()?;
    let first = start.saturating_sub(prefix_len);
    let reach = prefix_len.max(BLOCK_LEN).next_power_of_two().ilog2();
    let found = zstd.matches(bytes.get(first..).unwrap_or_default(), level, reach)?;
    let mut found = found.as_slice();
    let mut frames = Vec::new();
    for at in (start..bytes.len()).step_by(BLOCK_LEN) {
        let end = at + BLOCK_LEN;
        let prefix = as_prefix(bytes.get(at.saturating_sub(prefix_len)..at).unwrap_or_default());
        while let Some((_, later)) = found.split_first().filter(|(m, _)| first + m.at.end <= at) {
            found = later;
        }
        let inside = found.iter().take_while(|m| first + m.at.start < end).filter_map(|m| {
            // What goes over a border is cut there; what goes back further than the prefix is left out.
            let part = (first + m.at.start).max(at) - at..(first + m.at.end).min(end) - at;
            (m.offset <= part.start + prefix.len()).then_some(Match { at: part, offset: m.offset })
        });
        let inside: Vec<Match> = inside.collect();
        frames.push(zstd.block(bytes.get(at..end).unwrap_or_default(), &inside, level)?);
    }
    Ok(frames)
}
