//! The codec of one copy of a U-Boot environment.

use crate::boot::Entries;
use crate::{Error, Result};

const CRC_BYTES: usize = 4;

/// One copy: its entries, and all of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvCopy {
    /// The entries, in order.
    pub entries: Entries,
    /// The serial number of a redundant copy, counted round from 255 to 0.
    pub flag: u8,
    raw: Vec<u8>,
    redundant: bool,
}

/// Decodes one copy of a U-Boot environment.
///
/// `raw` is the whole copy: CRC-32 of the data (4 bytes, little-endian), a flag byte if `redundant`, then the data:
/// NUL-separated `name=value`, ended by an empty entry. What stands behind that is covered by the CRC and otherwise
/// without meaning.
///
/// # Errors
/// `Failed` if it is too short, the CRC does not match, or the entries have no end.
///
/// Source: U-Boot `include/env_internal.h`, `env/common.c`; checked with fw_printenv 0.3.2 (tests/boot).
pub fn decode(raw: &[u8], redundant: bool) -> Result<EnvCopy> {
    let data_at = CRC_BYTES + usize::from(redundant);
    let (Some(stored), Some(data)) = (raw.first_chunk::<CRC_BYTES>(), raw.get(data_at..)) else {
        return Err(Error::failed(format!("{} bytes are too short for an environment", raw.len())));
    };
    let (stored, found) = (u32::from_le_bytes(*stored), crc32fast::hash(data));
    if stored != found {
        return Err(Error::failed(format!("its CRC-32 is {found:08x}, but {stored:08x} is stored with it")));
    }
    let end = if data.first() == Some(&0) {
        0
    } else {
        data.windows(2).position(|w| w == [0, 0]).ok_or_else(|| Error::failed("its entries have no end"))?
    };
    let text = data.get(..end).unwrap_or_default();
    let entries =
        if text.is_empty() { Vec::new() } else { text.split(|b| *b == 0).map(<[u8]>::to_vec).collect() };
    let flag = if redundant { raw.get(CRC_BYTES).copied().unwrap_or(0) } else { 0 };
    Ok(EnvCopy { entries: Entries(entries), flag, raw: raw.to_vec(), redundant })
}

impl EnvCopy {
    /// The copy with other entries and another flag. Behind the last entry everything stays as it was.
    ///
    /// # Errors
    /// `Failed` if they do not fit.
    pub fn encode(&self, entries: &Entries, flag: u8) -> Result<Vec<u8>> {
        let data_at = CRC_BYTES + usize::from(self.redundant);
        let mut data = Vec::new();
        for entry in &entries.0 {
            data.extend(entry);
            data.push(0);
        }
        data.push(0);
        let mut raw = self.raw.clone();
        let (len, room) = (data.len(), raw.len() - data_at);
        let place = raw
            .get_mut(data_at..data_at + len)
            .ok_or_else(|| Error::failed(format!("the environment needs {len} bytes, only {room} fit")))?;
        place.copy_from_slice(&data);
        let crc = crc32fast::hash(raw.get(data_at..).unwrap_or_default()).to_le_bytes();
        raw.splice(..CRC_BYTES, crc);
        if self.redundant {
            raw.splice(CRC_BYTES..data_at, [flag]);
        }
        Ok(raw)
    }
}

/// Whether the flag of the second copy says that it is newer than the first: U-Boot's rule for media that need no
/// erasing. Equal flags: the first.
pub const fn newer(first: u8, second: u8) -> bool {
    match (first, second) {
        (255, 0) => true,
        (0, 255) => false,
        _ => second > first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_go_round() {
        for (first, second, expected) in
            [(1, 2, true), (2, 1, false), (1, 1, false), (255, 0, true), (0, 255, false), (254, 255, true)]
        {
            assert_eq!(newer(first, second), expected, "{first} {second}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut raw = vec![0; 32];
        raw.splice(..4, crc32fast::hash(&[0; 28]).to_le_bytes());
        let copy = decode(&raw, false).unwrap();
        assert_eq!(copy.entries, Entries::default());
        let e = copy.encode(&Entries(vec![vec![b'x'; 27]]), 0).unwrap_err().to_string();
        assert_eq!(e, "the environment needs 29 bytes, only 28 fit");
        assert!(copy.encode(&Entries(vec![vec![b'x'; 26]]), 0).is_ok());
    }
}
