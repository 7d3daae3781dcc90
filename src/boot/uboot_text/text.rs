//! The codec of a text environment, as `env import -t` and `env export -t` have it.

use crate::boot::{Entries, Environment};
use crate::{Error, Result};

/// The variables that the boot plan consists of.
const OURS: [&str; 4] = ["resin_root_part", "upgrade_available", "bootcount", "os_bc_lim"];

/// A text environment: its lines as they stand, and what fills the file up behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// The lines, without their ends.
    pub lines: Entries,
    /// `\n`, or NUL as `env export` leaves it.
    padding: u8,
}

impl Default for Text {
    fn default() -> Self {
        Self { lines: Entries::default(), padding: b'\n' }
    }
}

/// Decodes a text environment.
///
/// `raw` is the whole file: lines ended by `\n`, each `name=value`, empty, or anything else that U-Boot passes over;
/// then nothing but padding: empty lines, which U-Boot passes over, or NUL, at which it stops.
///
/// # Errors
/// `Failed` if text follows a NUL, the last line has no end, or one of our variables stands twice.
///
/// Source: U-Boot `lib/hashtable.c`, `himport_r` and `hexport_r`; checked with U-Boot 2023.01 (tests/fixtures/uboot).
pub fn decode(raw: &[u8]) -> Result<Text> {
    let end = raw.iter().position(|b| *b == 0).unwrap_or(raw.len());
    let (text, rest) = raw.split_at_checked(end).unwrap_or((raw, &[]));
    if rest.iter().any(|b| *b != 0) {
        return Err(Error::failed(format!("text after the NUL at byte {end}")));
    }
    let padding = if rest.is_empty() { b'\n' } else { 0 };
    let mut lines: Vec<Vec<u8>> = text.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    // What stands behind the last line end: nothing, if the file is whole.
    if lines.pop().is_some_and(|last| !last.is_empty()) {
        return Err(Error::failed("the last line has no end; the file may have been cut short"));
    }
    while lines.last().is_some_and(Vec::is_empty) {
        lines.pop();
    }
    let lines = Entries(lines);
    match OURS.into_iter().find(|name| lines.count(name) > 1) {
        Some(name) => Err(Error::failed(format!("variable {name} stands twice"))),
        None => Ok(Text { lines, padding }),
    }
}

impl Text {
    /// An empty file that is filled up with NUL, as `env export` does.
    pub fn exported() -> Self {
        Self { lines: Entries::default(), padding: 0 }
    }

    /// The file's bytes: the lines, filled up to `len_bytes` if they are shorter.
    pub fn encode(&self, len_bytes: usize) -> Vec<u8> {
        let mut raw = Vec::new();
        for line in &self.lines.0 {
            raw.extend(line);
            raw.push(b'\n');
        }
        raw.resize(len_bytes.max(raw.len()), self.padding);
        raw
    }

    /// What fills the file up.
    pub const fn padding(&self) -> u8 {
        self.padding
    }
}

impl Environment for Text {
    fn value(&self, name: &str) -> Option<String> {
        self.lines.value(name)
    }

    fn set(&mut self, name: &str, value: &str) {
        self.lines.set(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_people_and_u_boot_write_and_leaves_the_rest_alone() {
        for raw in [
            "resin_root_part=2\nupgrade_available=0\n",
            "# a comment\n\n  resin_root_part=2\nfoo\\\\bar=x=y\nupgrade_available=0\n\n\n",
            "bootcount=4\n\0",
            "bootcount=1f\n",
            "",
        ] {
            let text = decode(raw.as_bytes()).unwrap();
            assert_eq!(text.encode(raw.len()), raw.as_bytes(), "{raw:?}");
        }
        let text = decode(b"  resin_root_part=2\nresin_root_partly=7\nbootcount=\n").unwrap();
        assert_eq!(text.value("resin_root_part").as_deref(), Some("2"));
        assert_eq!(text.value("bootcount").as_deref(), Some(""));
        assert_eq!(text.value("resin_root"), None);
    }

    #[test]
    fn what_u_boot_would_read_otherwise_is_refused() {
        for (raw, expected) in [
            (
                "resin_root_part=2\nupgrade_available=0",
                "the last line has no end; the file may have been cut short",
            ),
            ("a=1\n\0b=2\n", "text after the NUL at byte 4"),
            ("a=1\nresin_root_part=2\n resin_root_part=3\n", "variable resin_root_part stands twice"),
        ] {
            assert_eq!(decode(raw.as_bytes()).unwrap_err().to_string(), expected);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn round_trip(raw in "([ -~]{0,20}\n){0,8}[\n\0]{0,5}") {
            if let Ok(text) = decode(raw.as_bytes()) {
                prop_assert_eq!(text.encode(raw.len()).len(), raw.len());
                prop_assert_eq!(&decode(&text.encode(raw.len())).unwrap(), &text);
            }
        }

        #[test]
        fn any_bytes_decode_without_panic(raw in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode(&raw);
        }
    }
}
