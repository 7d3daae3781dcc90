//! Pieces: stretches of data that end where their content says so. Wherever the same bytes have moved to, nearly all of
//! their pieces are the same; so they are found in images that shift by bytes, as compressed ones do.

use std::array;

use sha2::{Digest as _, Sha256};

/// No piece is shorter, but for the last of a stretch.
const LEN_MIN: usize = 512;
/// No piece is longer.
pub const LEN_MAX: usize = 16 * 1024;
/// The rolling hash depends on so many bytes: each is shifted out of it after 64 others.
const REACH: usize = 64;
/// A piece ends where these bits of the hash are zero: after 2 KiB more than the shortest, on average.
const MASK: u64 = !0 << (64 - 11);

/// What is looked for instead of a piece: two pieces that differ have nearly always different ones. Nothing is believed
/// for it; blocks that are made from pieces are compared with their hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Print {
    /// CRC-32 (of zlib and many others).
    pub crc: u32,
    /// Length in bytes.
    pub len: u16,
}

impl Print {
    /// The print of a piece.
    pub fn of(piece: &[u8]) -> Self {
        Self { crc: crc32fast::hash(piece), len: u16::try_from(piece.len()).unwrap_or(u16::MAX) }
    }
}

/// Cuts data into pieces.
pub struct Cutter {
    gear: [u64; 256],
}

impl Default for Cutter {
    /// The one way to cut.
    fn default() -> Self {
        Self { gear: gear() }
    }
}

impl Cutter {
    /// The length of the piece that `bytes` begins with, up to all of it. Only its content says where it ends, and
    /// [`LEN_MAX`] bytes are always enough.
    pub fn cut(&self, bytes: &[u8]) -> usize {
        let Some(bytes) = bytes.get(..bytes.len().min(LEN_MAX)).filter(|b| b.len() > LEN_MIN) else {
            return bytes.len();
        };
        let (warm_up, rest) = bytes.split_at(LEN_MIN);
        let mut hash = warm_up.iter().skip(LEN_MIN - REACH).fold(0, |hash, byte| self.roll(hash, *byte));
        for (more, byte) in rest.iter().enumerate() {
            if hash & MASK == 0 {
                return LEN_MIN + more;
            }
            hash = self.roll(hash, *byte);
        }
        bytes.len()
    }

    #[inline]
    fn roll(&self, hash: u64, byte: u8) -> u64 {
        // An array of 256 has a place for each byte; the compiler sees that too.
        #[allow(clippy::indexing_slicing)]
        (hash << 1).wrapping_add(self.gear[usize::from(byte)])
    }
}

/// A number for each byte value, without pattern: the first 8 bytes of the SHA-256 of that byte, little-endian.
pub fn gear() -> [u64; 256] {
    let mut byte = 0_u8;
    array::from_fn(|_| {
        let digest: [u8; 32] = Sha256::digest([byte]).into();
        byte = byte.wrapping_add(1);
        digest.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        };
        (0..len).map(next).collect()
    }

    fn pieces(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let cutter = Cutter::default();
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(cutter.cut(bytes));
            found.push(piece.to_vec());
            bytes = rest;
        }
        found
    }

    #[test]
    fn pieces_are_whole_bounded_and_of_the_length_that_was_meant() {
        let bytes = noise(1 << 20);
        let found = pieces(&bytes);
        assert_eq!(found.concat(), bytes);
        assert!(found.iter().rev().skip(1).all(|p| (LEN_MIN..=LEN_MAX).contains(&p.len())));
        assert!((300..600).contains(&found.len()), "{}", found.len());
        assert_eq!(pieces(&[0; 3 * LEN_MAX]).len(), 3);
        for len in [0, 1, LEN_MIN, LEN_MIN + 1] {
            assert_eq!(Cutter::default().cut(&vec![7; len]), len);
        }
    }

    #[test]
    fn what_is_inserted_changes_only_the_pieces_around_it() {
        let before = noise(1 << 20);
        let mut after = before.clone();
        after.splice(500_000..500_000, *b"seven..");
        after.splice(0..0, *b"x");
        let known = pieces(&before);
        let new: Vec<_> = pieces(&after).into_iter().filter(|p| !known.contains(p)).collect();
        assert!((1..8).contains(&new.len()), "{}", new.len());
    }

    #[test]
    fn where_a_piece_ends_is_as_the_format_says() {
        // Written anew from FORMAT.md: the hash of the last 64 bytes, looked at after each byte.
        let bytes = noise(100_000);
        let (gear, len) = (gear(), Cutter::default().cut(&bytes));
        let ends = |n: usize| {
            let last = &bytes[n - 64..n];
            last.iter().fold(0_u64, |h, b| (h << 1).wrapping_add(gear[usize::from(*b)])) >> 53 == 0
        };
        assert_eq!((512..16384).find(|n| ends(*n)), Some(len));
        assert_eq!(gear[0], 0x987a_b3ff_9c0b_346e);
    }
}
