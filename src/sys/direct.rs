//! Files and devices past the page cache (`O_DIRECT`).
//!
//! What is written once and read back once gains nothing from the cache: every byte would be copied once more, and would push
//! out what running containers have there.

use std::fs::{File, OpenOptions};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What places in memory, offsets and lengths must be multiples of. No disk has larger sectors.
const ALIGN: usize = 4096;

/// Memory that can be read into and written from past the cache.
#[derive(Debug)]
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` zeros.
    pub fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        Self { memory, start, len }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory.get(self.start..self.start + self.len).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.start..self.start + self.len).unwrap_or_default()
    }
}

/// Opens an existing file or device past the cache; `None` where that cannot be had (not every file system has it).
pub fn open(path: &Path, writable: bool) -> Option<File> {
    OpenOptions::new().read(true).write(writable).custom_flags(libc::O_DIRECT).open(path).ok()
}

/// Whether these bytes can go past the cache to or from `offset`.
pub fn fits(offset: u64, bytes: &[u8]) -> bool {
    let align = ALIGN as u64;
    offset.is_multiple_of(align)
        && (bytes.len() as u64).is_multiple_of(align)
        && (bytes.as_ptr().addr() as u64).is_multiple_of(align)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_blocks_of_a_buffer_fit() {
        let mut buffer = Buffer::new(3 * ALIGN);
        assert_eq!(buffer.len(), 3 * ALIGN);
        buffer.fill(7);
        assert!(fits(0, &buffer) && fits(8192, &buffer[4096..8192]) && fits(1 << 40, &buffer[..4096]));
        assert!(!fits(512, &buffer) && !fits(0, &buffer[..512]) && !fits(0, &buffer[512..4608]));
    }
}
