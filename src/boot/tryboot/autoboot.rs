//! The codec of `autoboot.txt`.

use crate::{Error, Result};

/// The firmware reads no more than this.
pub const LIMIT_BYTES: usize = 512;

/// A comment for the firmware: the boots that the trial may still use.
const TRIES: &[u8] = b"# twinhull: tries_left=";

/// The sections that decide. Others are left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// `[all]`, and what stands before any section.
    All,
    /// `[tryboot]`: instead of it when the one-shot flag is set.
    Tryboot,
}

/// The file's lines, as they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Autoboot(Vec<Vec<u8>>);

/// Decodes `autoboot.txt`: lines `key=value` in sections, `#` starts a comment; empty lines at the end are padding.
///
/// # Errors
/// `Failed` if it is longer than the firmware reads, its last line has no end, or a key stands twice in a section.
///
/// Source: Raspberry Pi documentation, "autoboot.txt".
pub fn decode(raw: &[u8]) -> Result<Autoboot> {
    if raw.len() > LIMIT_BYTES {
        return Err(Error::failed(format!("{} bytes, the firmware reads at most {LIMIT_BYTES}", raw.len())));
    }
    let mut lines: Vec<Vec<u8>> = raw.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    if lines.pop().is_some_and(|last| !last.is_empty()) {
        return Err(Error::failed("the last line has no end; the file may have been cut short"));
    }
    while lines.last().is_some_and(Vec::is_empty) {
        lines.pop();
    }
    let autoboot = Autoboot(lines);
    for section in [Section::All, Section::Tryboot] {
        for key in ["boot_partition", "tryboot_a_b"] {
            if autoboot.places(section, key).count() > 1 {
                return Err(Error::failed(format!("{key} stands twice in {}", section.name())));
            }
        }
    }
    if autoboot.0.iter().filter(|l| l.starts_with(TRIES)).count() > 1 {
        return Err(Error::failed("tries_left stands twice"));
    }
    Ok(autoboot)
}

impl Section {
    /// Its name in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "[all]",
            Self::Tryboot => "[tryboot]",
        }
    }
}

impl Autoboot {
    /// The lines of a section that set `key`.
    fn places<'a>(&'a self, section: Section, key: &'a str) -> impl Iterator<Item = usize> + 'a {
        let mut here = Section::All.name().as_bytes().to_vec();
        self.0.iter().enumerate().filter_map(move |(i, line)| {
            let line = line.trim_ascii();
            if line.starts_with(b"[") {
                here = line.to_vec();
                return None;
            }
            let sets = line.strip_prefix(key.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'='));
            (sets && here == section.name().as_bytes()).then_some(i)
        })
    }

    /// The value of a key.
    pub fn value(&self, section: Section, key: &str) -> Option<String> {
        let line = self.0.get(self.places(section, key).next()?)?;
        let value = line.trim_ascii().get(key.len() + 1..).unwrap_or_default();
        Some(String::from_utf8_lossy(value).into_owned())
    }

    /// Changes a key where it stands.
    ///
    /// # Errors
    /// `Failed` if it does not.
    pub fn set(&mut self, section: Section, key: &str, value: &str) -> Result<()> {
        let place = self.places(section, key).next();
        let line = place.and_then(|i| self.0.get_mut(i));
        let line = line.ok_or_else(|| Error::failed(format!("{key} is missing in {}", section.name())))?;
        *line = format!("{key}={value}").into_bytes();
        Ok(())
    }

    /// The boots that the trial may still use, one digit.
    ///
    /// # Errors
    /// `Failed` if it is missing or something else.
    pub fn tries_left(&self) -> Result<u8> {
        let text = self.0.iter().find_map(|l| l.strip_prefix(TRIES));
        match text {
            Some([digit @ b'0'..=b'9']) => Ok(digit - b'0'),
            Some(other) => Err(Error::failed(format!(
                "tries_left is {:?}, expected one digit",
                String::from_utf8_lossy(other)
            ))),
            None => Err(Error::failed("tries_left is missing during a trial")),
        }
    }

    /// Sets the boots that the trial may still use.
    pub fn set_tries_left(&mut self, tries: u8) {
        let line = [TRIES, tries.to_string().as_bytes()].concat();
        match self.0.iter_mut().find(|l| l.starts_with(TRIES)) {
            Some(old) => *old = line,
            None => self.0.push(line),
        }
    }

    /// The file's bytes, filled up to `len_bytes` with empty lines.
    pub fn encode(&self, len_bytes: usize) -> Vec<u8> {
        let mut raw = self.0.join(&b'\n');
        raw.push(b'\n');
        raw.resize(len_bytes.max(raw.len()), b'\n');
        raw
    }
}
