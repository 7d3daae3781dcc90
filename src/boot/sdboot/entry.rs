//! The codec of entries: the file's name, and the two lines that sort it.

use crate::model::Slot;
use crate::{Error, Result};

/// Sorts before every entry of a distribution: systemd-boot compares sort keys in ascending order.
const SORT_KEY: &str = "0-twinhull";

/// The name of an entry: `twinhull-a.conf`, `twinhull-b+3.conf`, `twinhull-b+2-1.conf`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryName {
    /// Whose entry it is.
    pub slot: Slot,
    /// Tries left and tries done, if boots of it are counted.
    pub counter: Option<(u32, u32)>,
}

impl EntryName {
    /// Reads a file's name; `None` if it is no entry of ours.
    ///
    /// Source: systemd, "Automatic Boot Assessment"; checked with bootctl 252 (tests/boot).
    pub fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("twinhull-")?.strip_suffix(".conf")?;
        let (slot, counter) = match rest.split_once('+') {
            Some((slot, counter)) => (slot, Some(counter)),
            None => (rest, None),
        };
        let slot = Slot::ALL.into_iter().find(|s| letter(*s) == slot)?;
        let counter = match counter {
            None => None,
            Some(text) => {
                let (left, done) = text.split_once('-').unwrap_or((text, "0"));
                Some((number(left)?, number(done)?))
            }
        };
        Some(Self { slot, counter })
    }

    /// The file's name.
    pub fn file(self) -> String {
        let counter = match self.counter {
            None => String::new(),
            Some((left, 0)) => format!("+{left}"),
            Some((left, done)) => format!("+{left}-{done}"),
        };
        format!("twinhull-{}{counter}.conf", letter(self.slot))
    }
}

fn number(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

const fn letter(slot: Slot) -> &'static str {
    match slot {
        Slot::A => "a",
        Slot::B => "b",
    }
}

/// The name of the file that a slot's entries are made from: kernel, initramfs and options, as the image has them.
/// systemd-boot passes it over. It is short, so that all of `loader/entries` fits into 512 bytes.
pub fn template_name(slot: Slot) -> String {
    format!("twinhull.{}", letter(slot))
}

/// The letters of the longest name of an entry: `twinhull-b+2-1.conf`.
pub const LETTERS: usize = 19;

/// An entry of ours as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: EntryName,
    /// Its version: the highest with tries left boots.
    pub version: u32,
}

impl Entry {
    /// Reads an entry's content.
    ///
    /// # Errors
    /// `Failed` if it is not one that was made from a template.
    pub fn parse(name: EntryName, content: &[u8]) -> Result<Self> {
        let text = str::from_utf8(content).map_err(|_| Error::failed("not UTF-8"))?;
        let tail = text.lines().rev().take(2).collect::<Vec<_>>();
        let version = match tail.as_slice() {
            [version, key] if *key == format!("sort-key {SORT_KEY}") && text.ends_with('\n') => {
                version.strip_prefix("version ").and_then(number)
            }
            _ => None,
        };
        let version = version.ok_or_else(|| {
            Error::failed(format!("expected to end with the lines \"sort-key {SORT_KEY}\" and \"version N\""))
        })?;
        Ok(Self { name, version })
    }

    /// The content of an entry, made from the slot's template.
    ///
    /// # Errors
    /// `Failed` if the template is none.
    pub fn content(template: &[u8], version: u32) -> Result<Vec<u8>> {
        let text = str::from_utf8(template).map_err(|_| Error::failed("not UTF-8"))?;
        let key = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
        let keys: Vec<_> = text.lines().map(key).collect();
        if let Some(ours) = keys.iter().find(|k| ["sort-key", "version", "machine-id"].contains(&k.as_str()))
        {
            return Err(Error::failed(format!(
                "a template may not have {ours:?}: it decides which slot boots"
            )));
        }
        if !keys.iter().any(|k| k == "linux" || k == "efi") {
            return Err(Error::failed("no line \"linux PATH\" or \"efi PATH\""));
        }
        Ok(format!("{}\nsort-key {SORT_KEY}\nversion {version}\n", text.trim_end()).into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, slot, counter) in [
            ("twinhull-a.conf", Slot::A, None),
            ("twinhull-b+3.conf", Slot::B, Some((3, 0))),
            ("twinhull-b+2-1.conf", Slot::B, Some((2, 1))),
            ("twinhull-b+0-3.conf", Slot::B, Some((0, 3))),
        ] {
            let parsed = EntryName::parse(name).unwrap();
            assert_eq!(parsed, EntryName { slot, counter });
            assert_eq!(parsed.file(), name);
        }
        for foreign in [
            "twinhull-c.conf",
            "twinhull.a",
            "twinhull-a+.conf",
            "twinhull-a+1-x.conf",
            "debian.conf",
            "twinhull-a+3.conf.new",
        ] {
            assert_eq!(EntryName::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_name_that_lost_a_bit_or_its_end_is_foreign_or_says_what_it_means() {
        let whole = b"twinhull-b+2-1.conf";
        let flips = (0..whole.len() * 8).map(|bit| {
            let mut raw = whole.to_vec();
            raw[bit / 8] ^= 1 << (bit % 8);
            raw
        });
        for raw in flips.chain((0..whole.len()).map(|n| whole[..n].to_vec())) {
            let Ok(name) = String::from_utf8(raw) else { continue };
            assert!(
                EntryName::parse(&name)
                    .is_none_or(|parsed| parsed.file() == name || name.ends_with("-0.conf"))
            );
        }
    }

    #[test]
    fn a_template_that_would_decide_for_itself_is_refused() {
        for (template, expected) in [
            ("title B\nlinux /b\nversion 9\n", "a template may not have \"version\""),
            ("title B\n", "no line \"linux PATH\""),
        ] {
            let e = Entry::content(template.as_bytes(), 1).unwrap_err().to_string();
            assert!(e.starts_with(expected), "{e}");
        }
        let content = Entry::content(b"title B\nlinux /b\n\n", 7).unwrap();
        assert_eq!(content, b"title B\nlinux /b\nsort-key 0-twinhull\nversion 7\n");
    }
}
