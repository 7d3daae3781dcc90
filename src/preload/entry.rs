//! One entry of the archive: a ustar header, and before it a pax header for what that cannot hold.
//!
//! This is what every tar program reads. The `tar` crate's reader takes a newline in an attribute's value for the end of its
//! record, so of it only the header codec is used; and so a file system's content comes back as it was.

use std::ffi::OsStr;
use std::io::Read;
#[cfg(feature = "build-host")]
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
#[cfg(feature = "build-host")]
use std::path::Path;
use std::path::PathBuf;

use tar::{EntryType, Header};

use crate::bundle::archive;
use crate::sys::beneath::Facts;
use crate::{Error, Result};

const UNIT: usize = 512;
/// The longest pax header: attributes of 64 KiB, several of them.
const PAX_LIMIT: u64 = 1024 * 1024;
/// ustar's fields for names have so many bytes.
#[cfg(feature = "build-host")]
const NAME_LEN: usize = 100;
/// What ustar's fields for device numbers hold; Linux has no larger ones.
const DEVICE_MAX: u32 = 0o777_7777;
const XATTR: &[u8] = b"SCHILY.xattr.";

/// A file, directory or the like in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it goes, below the top of the data partition.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Owner, mode, attributes and time; a hard link has those of its file.
    pub facts: Facts,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory. It comes twice: first to be filled, at the end with its time and attributes.
    Dir,
    /// A file of so many bytes, which follow.
    File(u64),
    /// A symbolic link to anything.
    Link(PathBuf),
    /// Another name of a file that came before.
    HardLink(PathBuf),
    /// A character device, major and minor number. 0, 0 is overlay2's mark for a removed file.
    Char(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// How many zero bytes follow a file's content.
fn padding_len(size: u64) -> usize {
    usize::try_from(archive::padding_len(size)).unwrap_or(0)
}

impl Entry {
    /// Reads the next header; `None` where the archive, or a part of it, ends.
    ///
    /// # Errors
    /// `Failed` if it is nothing that [`Entry::write`] writes.
    pub fn read(from: &mut impl Read) -> Result<Option<Self>> {
        let mut pax = Vec::new();
        loop {
            let mut block = [0; UNIT];
            if !fill_or_end(from, &mut block)? || block == [0; UNIT] {
                return if pax.is_empty() { Ok(None) } else { Err(damaged()) };
            }
            let header = Header::from_byte_slice(&block);
            if header.entry_type() != EntryType::XHeader {
                return Self::of(header, &pax).map(Some);
            }
            let size = header.size().ok().filter(|n| (1..=PAX_LIMIT).contains(n)).ok_or_else(damaged)?;
            let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
            from.read_exact(&mut bytes)?;
            skip_padding(from, size)?;
            pax = records(&bytes)?;
        }
    }

    fn of(header: &Header, pax: &[(Vec<u8>, Vec<u8>)]) -> Result<Self> {
        let text = |key: &[u8]| pax.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_slice());
        let number = |key: &[u8], field: std::io::Result<u64>| match text(key) {
            Some(value) => std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()).ok_or_else(damaged),
            None => field.map_err(|_| damaged()),
        };
        let name = |key: &[u8], field: &[u8]| PathBuf::from(OsStr::from_bytes(text(key).unwrap_or(field)));
        let device = || {
            let found = (header.device_major()?, header.device_minor()?);
            Ok::<_, std::io::Error>(found.0.zip(found.1))
        };
        let fits = |(major, minor): &(u32, u32)| *major <= DEVICE_MAX && *minor <= DEVICE_MAX;
        let numbers = || device().ok().flatten().filter(fits).ok_or_else(damaged);
        let link = || {
            let field = header.link_name_bytes().unwrap_or_default();
            name(b"linkpath", &field)
        };
        let kind = match header.entry_type() {
            EntryType::Directory => Kind::Dir,
            EntryType::Regular => Kind::File(number(b"size", header.size())?),
            EntryType::Symlink => Kind::Link(link()),
            EntryType::Link => Kind::HardLink(link()),
            EntryType::Char => numbers().map(|(major, minor)| Kind::Char(major, minor))?,
            EntryType::Block => numbers().map(|(major, minor)| Kind::Block(major, minor))?,
            EntryType::Fifo => Kind::Fifo,
            other => {
                return Err(Error::failed(format!("an entry of unknown type {:?}", other.as_byte() as char)));
            }
        };
        let id = |key: &[u8], field| u32::try_from(number(key, field)?).map_err(|_| damaged());
        let own = |(key, value): &(Vec<u8>, Vec<u8>)| {
            key.strip_prefix(XATTR).map(|name| (name.to_vec(), value.clone()))
        };
        let facts = Facts {
            mode: header.mode().map_err(|_| damaged())? & 0o7777,
            uid: id(b"uid", header.uid())?,
            gid: id(b"gid", header.gid())?,
            mtime_s: i64::try_from(number(b"mtime", header.mtime())?).map_err(|_| damaged())?,
            xattrs: pax.iter().filter_map(own).collect(),
        };
        let path = name(b"path", &header.path_bytes());
        let names = [Some(&path), target(&kind)];
        if names.into_iter().flatten().any(|name| name.as_os_str().as_bytes().contains(&0)) {
            return Err(damaged());
        }
        Ok(Self { path, kind, facts })
    }

    /// Writes the header; a file's content is to follow.
    ///
    /// # Errors
    /// As writing.
    #[cfg(feature = "build-host")]
    pub fn write(&self, to: &mut impl Write) -> Result<()> {
        let (entry_type, size, (major, minor)) = match self.kind {
            Kind::Dir => (EntryType::Directory, 0, (0, 0)),
            Kind::File(size) => (EntryType::Regular, size, (0, 0)),
            Kind::Link(_) => (EntryType::Symlink, 0, (0, 0)),
            Kind::HardLink(_) => (EntryType::Link, 0, (0, 0)),
            Kind::Char(major, minor) => (EntryType::Char, 0, (major, minor)),
            Kind::Block(major, minor) => (EntryType::Block, 0, (major, minor)),
            Kind::Fifo => (EntryType::Fifo, 0, (0, 0)),
        };
        let mut pax = Vec::new();
        let mut header = Header::new_ustar();
        if let Some(ustar) = header.as_ustar_mut() {
            name(&mut ustar.name, &self.path, b"path", &mut pax);
            if let Some(link) = target(&self.kind) {
                name(&mut ustar.linkname, link, b"linkpath", &mut pax);
            }
        }
        let mut number = |key: &[u8], value: u64, max: u64| {
            if value <= max {
                return value;
            }
            record(&mut pax, key, value.to_string().as_bytes());
            0
        };
        header.set_size(number(b"size", size, 0o777_7777_7777));
        header.set_uid(number(b"uid", self.facts.uid.into(), 0o777_7777));
        header.set_gid(number(b"gid", self.facts.gid.into(), 0o777_7777));
        // Before 1970 is a clock that was wrong.
        header.set_mtime(number(b"mtime", u64::try_from(self.facts.mtime_s).unwrap_or(0), 0o777_7777_7777));
        header.set_mode(self.facts.mode & 0o7777);
        header.set_entry_type(entry_type);
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
        header.set_cksum();
        for (key, value) in &self.facts.xattrs {
            record(&mut pax, &[XATTR, key].concat(), value);
        }
        if !pax.is_empty() {
            let mut before = Header::new_ustar();
            before.set_path("pax")?;
            before.set_size(pax.len() as u64);
            before.set_mode(0o644);
            before.set_entry_type(EntryType::XHeader);
            before.set_cksum();
            to.write_all(before.as_bytes())?;
            to.write_all(&pax)?;
            pad(to, pax.len() as u64)?;
        }
        Ok(to.write_all(header.as_bytes())?)
    }
}

/// What a link leads to.
const fn target(kind: &Kind) -> Option<&PathBuf> {
    match kind {
        Kind::Link(target) | Kind::HardLink(target) => Some(target),
        Kind::Dir | Kind::File(_) | Kind::Char(..) | Kind::Block(..) | Kind::Fifo => None,
    }
}

/// Writes the zeros that follow a content of `size` bytes.
///
/// # Errors
/// As writing.
#[cfg(feature = "build-host")]
pub fn pad(to: &mut impl Write, size: u64) -> Result<()> {
    Ok(to.write_all([0; UNIT].get(..padding_len(size)).unwrap_or_default())?)
}

/// Reads the zeros that follow a content of `size` bytes.
///
/// # Errors
/// `Failed` if they are not there.
pub fn skip_padding(from: &mut impl Read, size: u64) -> Result<()> {
    let mut zeros = [0; UNIT];
    Ok(from.read_exact(zeros.get_mut(..padding_len(size)).unwrap_or_default())?)
}

/// Fills `block`; `false` if nothing at all comes any more.
fn fill_or_end(from: &mut impl Read, block: &mut [u8; UNIT]) -> Result<bool> {
    let mut first = [0];
    if from.read(&mut first)? == 0 {
        return Ok(false);
    }
    let (head, tail) = block.split_at_mut(1);
    head.copy_from_slice(&first);
    from.read_exact(tail)?;
    Ok(true)
}

#[cfg(feature = "build-host")]
fn name(field: &mut [u8; NAME_LEN], path: &Path, key: &[u8], pax: &mut Vec<u8>) {
    let bytes = path.as_os_str().as_bytes();
    let n = bytes.len().min(NAME_LEN);
    if let (Some(place), Some(part)) = (field.get_mut(..n), bytes.get(..n)) {
        place.copy_from_slice(part);
    }
    if bytes.len() > NAME_LEN {
        record(pax, key, bytes);
    }
}

/// POSIX: "LENGTH key=value\n", where the length counts its own digits.
#[cfg(feature = "build-host")]
fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + " =\n".len();
    let mut len = rest;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    pax.extend([format!("{len} ").as_bytes(), key, b"=", value, b"\n"].concat());
}

fn records(mut bytes: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let digits = bytes.iter().take_while(|b| b.is_ascii_digit()).count();
        let len = bytes.get(..digits).and_then(|d| std::str::from_utf8(d).ok()?.parse::<usize>().ok());
        let len = len.filter(|n| (digits + 1..=bytes.len()).contains(n)).ok_or_else(damaged)?;
        let (one, rest) = bytes.split_at(len);
        let text = one.get(digits..).and_then(|t| t.strip_prefix(b" ")).and_then(|t| t.strip_suffix(b"\n"));
        let text = text.ok_or_else(damaged)?;
        let equals = text.iter().position(|b| *b == b'=').ok_or_else(damaged)?;
        let (key, value) = text.split_at(equals);
        found.push((key.to_vec(), value.get(1..).unwrap_or_default().to_vec()));
        bytes = rest;
    }
    Ok(found)
}

fn damaged() -> Error {
    Error::failed("an entry that makes no sense; the archive was made wrongly")
}

#[cfg(all(test, feature = "build-host"))]
#[allow(clippy::unwrap_used)] // Clippy does not take this for a test.
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind() -> impl Strategy<Value = Kind> {
        let path = || "[a-z/é\n]{1,300}".prop_map(PathBuf::from);
        prop_oneof![
            Just(Kind::Dir),
            (0..=u64::MAX / 2).prop_map(Kind::File),
            path().prop_map(Kind::Link),
            path().prop_map(Kind::HardLink),
            (0..4096_u32, 0..65536_u32).prop_map(|(a, b)| Kind::Char(a, b)),
            (0..4096_u32, 0..65536_u32).prop_map(|(a, b)| Kind::Block(a, b)),
            Just(Kind::Fifo),
        ]
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let xattr = ("[a-z]{1,9}\\.[a-z]{1,200}", prop::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(name, value)| (name.into_bytes(), value));
        let facts =
            (0..0o7777_u32, any::<u32>(), any::<u32>(), 0..i64::MAX / 2, prop::collection::vec(xattr, 0..3))
                .prop_map(|(mode, uid, gid, mtime_s, xattrs)| Facts { mode, uid, gid, mtime_s, xattrs });
        ("[a-z0-9./ é\n]{1,400}", kind(), facts).prop_map(|(p, kind, facts)| Entry {
            path: p.into(),
            kind,
            facts,
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(entry in entry()) {
            let mut bytes = Vec::new();
            entry.write(&mut bytes).unwrap();
            prop_assert_eq!(bytes.len() % UNIT, 0);
            let found = Entry::read(&mut &bytes[..]).unwrap();
            prop_assert_eq!(found.as_ref(), Some(&entry));
            for len in (1..bytes.len()).step_by(97) {
                prop_assert!(Entry::read(&mut &bytes[..len]).is_err());
            }
        }

        #[test]
        fn nothing_breaks_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
            let _ = Entry::read(&mut &bytes[..]);
            let _ = records(&bytes);
        }
    }
}
