//! The container: a tar file of which each byte is laid down.
//!
//! A bundle is a plain ustar archive that every tar program can list and unpack. The reader takes only the one
//! way of writing it that [`header`] has, compares headers and padding byte by byte, and reads in order
//! without seeking. So there is nothing that two programs could read differently, and no bit of a bundle can
//! change without being seen. The `tar` crate's reader is for archives from anywhere; of it only the header
//! codec is used here.

use std::io::Read;

use crate::{Error, Result};

/// tar counts in blocks of this many bytes.
const UNIT: u64 = 512;
const UNIT_LEN: usize = 512;
/// What follows the last member: two empty blocks, and nothing after them.
pub const END: [u8; 2 * UNIT_LEN] = [0; 2 * UNIT_LEN];
/// The largest size that ustar's octal field holds; above it, a pax header tells the size.
const USTAR_MAX: u64 = 0o777_7777_7777;
const PIECE: usize = 64 * 1024;

/// A member's name and length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The name; never holds a slash.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
}

/// The bytes that stand before a member's content: one block, or three if its size needs a pax header.
///
/// # Errors
/// `Failed` if the name does not fit.
pub fn header(name: &str, size: u64) -> Result<Vec<u8>> {
    if size <= USTAR_MAX {
        return block(name, size, tar::EntryType::Regular);
    }
    let record = pax_record(size);
    let mut bytes = block(&format!("{name}.pax"), record.len() as u64, tar::EntryType::XHeader)?;
    bytes.extend_from_slice(record.as_bytes());
    bytes.resize(2 * UNIT_LEN, 0);
    bytes.extend(block(name, 0, tar::EntryType::Regular)?);
    Ok(bytes)
}

/// How many zero bytes follow a member's content.
pub const fn padding_len(size: u64) -> u64 {
    (UNIT - size % UNIT) % UNIT
}

fn block(name: &str, size: u64, kind: tar::EntryType) -> Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).map_err(|e| Error::failed(format!("member {name:?}: {e}")))?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(kind);
    header.set_cksum();
    Ok(header.as_bytes().to_vec())
}

/// Reads members in order from a stream that cannot seek.
pub struct Reader<R> {
    from: R,
    /// Bytes taken from the stream.
    position: u64,
    /// Content of the present member that was not read yet.
    left: u64,
    /// Zero bytes that follow it.
    padding: u64,
    /// Name of the present member, for messages.
    name: String,
}

impl<R: Read> Reader<R> {
    /// A reader at the start of a bundle.
    pub fn new(from: R) -> Self {
        Self { from, position: 0, left: 0, padding: 0, name: String::new() }
    }

    /// How many bytes of the bundle were read.
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// The stream itself. Who reads from it takes it out of the hands of this reader.
    pub const fn stream_mut(&mut self) -> &mut R {
        &mut self.from
    }

    /// The stream itself.
    pub const fn stream(&self) -> &R {
        &self.from
    }

    /// The stream itself, wherever it is now.
    pub fn into_stream(self) -> R {
        self.from
    }

    /// Where the present member ends and the next begins, padding counted.
    pub const fn end_of_member(&self) -> u64 {
        self.position.saturating_add(self.left).saturating_add(self.padding)
    }

    /// The next member, or `None` at the end of the archive. The present one must have been read to its end.
    ///
    /// # Errors
    /// `Failed` if what comes is not a member as [`header`] writes it, if padding is not zero, or if the stream
    /// ends too early or too late.
    pub fn advance(&mut self) -> Result<Option<Member>> {
        if self.left != 0 {
            return Err(Error::inconsistent(format!("{}: {} bytes were not read", self.name, self.left)));
        }
        self.skip_padding()?;
        let first = self.block()?;
        if first == [0; UNIT_LEN] {
            // Before the first member it is the end of nothing: not a bundle, whatever follows.
            return if self.name.is_empty() { Ok(None) } else { self.end().map(|()| None) };
        }
        let member = self.member(&first)?;
        self.left = member.size;
        self.padding = padding_len(member.size);
        self.name.clone_from(&member.name);
        Ok(Some(member))
    }

    /// Fills `buffer` from the present member.
    ///
    /// # Errors
    /// `Failed` if the stream or the member ends before.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        let wanted = buffer.len() as u64;
        if wanted > self.left {
            return Err(Error::failed(format!("{}: {wanted} bytes wanted, {} there", self.name, self.left)));
        }
        self.take(buffer)?;
        self.left -= wanted;
        Ok(())
    }

    /// The whole present member. Memory grows with what arrives, not with what the header promises.
    ///
    /// # Errors
    /// `Failed` if it is longer than `limit_bytes`, or the stream ends before.
    pub fn content(&mut self, limit_bytes: u64) -> Result<Vec<u8>> {
        if self.left > limit_bytes {
            return Err(Error::failed(format!("{}: {} bytes, at most {limit_bytes}", self.name, self.left)));
        }
        let mut content = Vec::new();
        while self.left > 0 {
            let piece = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
            let start = content.len();
            content.resize(start + piece, 0);
            if let Some(tail) = content.get_mut(start..) {
                self.fill(tail)?;
            }
        }
        Ok(content)
    }

    fn member(&mut self, first: &[u8; UNIT_LEN]) -> Result<Member> {
        let mut read = first.to_vec();
        let mut last = *first;
        let mut size = tar::Header::from_byte_slice(first).size().ok();
        if tar::Header::from_byte_slice(first).entry_type() == tar::EntryType::XHeader {
            let record = self.block()?;
            last = self.block()?;
            size = size_in_record(&record);
            read.extend_from_slice(&record);
            read.extend_from_slice(&last);
        }
        let path = tar::Header::from_byte_slice(&last).path_bytes().into_owned();
        let member = match (String::from_utf8(path), size) {
            (Ok(name), Some(size)) if !name.is_empty() && !name.contains('/') => Member { name, size },
            _ => return Err(self.damaged()),
        };
        // Exactly what we would have written, or it is not a bundle.
        match header(&member.name, member.size) {
            Ok(expected) if expected == read => Ok(member),
            _ => Err(self.damaged()),
        }
    }

    fn skip_padding(&mut self) -> Result<()> {
        let mut zeros = [0; UNIT_LEN];
        let padding = usize::try_from(self.padding).unwrap_or(0);
        self.padding = 0;
        if let Some(zeros) = zeros.get_mut(..padding) {
            self.take(zeros)?;
            if zeros.iter().any(|b| *b != 0) {
                return Err(self.damaged());
            }
        }
        Ok(())
    }

    /// Checks that after the first empty block comes the second, and then nothing.
    fn end(&mut self) -> Result<()> {
        if self.block()? != [0; UNIT_LEN] {
            return Err(self.damaged());
        }
        match self.some(&mut [0])? {
            0 => Ok(()),
            _ => Err(Error::failed(format!(
                "bytes follow after the end (byte {}): something was appended; get the bundle again",
                self.position - 1
            ))),
        }
    }

    fn block(&mut self) -> Result<[u8; UNIT_LEN]> {
        let mut block = [0; UNIT_LEN];
        self.take(&mut block)?;
        Ok(block)
    }

    fn take(&mut self, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            let n = self.some(buffer)?;
            if n == 0 {
                return Err(self.cut_short());
            }
            buffer = buffer.get_mut(n..).unwrap_or_default();
        }
        Ok(())
    }

    fn some(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match self.from.read(buffer) {
                Ok(n) => {
                    self.position += n as u64;
                    return Ok(n);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn cut_short(&self) -> Error {
        Error::failed(match (self.position, self.name.as_str()) {
            (0, _) => "empty: not a bundle; see that it was written to the end".into(),
            (n, "") => format!("ends after {n} bytes: not a bundle, or cut short; get it again"),
            (n, name) => format!("ends after {n} bytes, in or after {name}: cut short; get it again"),
        })
    }

    fn damaged(&self) -> Error {
        Error::failed(match self.name.as_str() {
            "" => "not a bundle (a tar archive that begins with manifest.toml)".into(),
            name => format!("damaged near byte {}, after {name}; get it again", self.position),
        })
    }
}

fn pax_record(size: u64) -> String {
    // POSIX: "LENGTH key=value\n", where the length counts its own digits: two, for values of 1 to 90 digits.
    let value = size.to_string();
    format!("{} size={value}\n", "00 size=\n".len() + value.len())
}

fn size_in_record(record: &[u8; UNIT_LEN]) -> Option<u64> {
    let text = std::str::from_utf8(record).ok()?;
    text.split_once(" size=")?.1.split_once('\n')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, content) in members {
            bytes.extend(header(name, content.len() as u64).unwrap());
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len() + usize::try_from(padding_len(content.len() as u64)).unwrap(), 0);
        }
        bytes.extend(END);
        bytes
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut reader = Reader::new(bytes);
        let mut found = Vec::new();
        while let Some(member) = reader.advance()? {
            found.push((member.name, reader.content(1 << 20)?));
        }
        Ok(found)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let long = vec![7; 70_000];
        let bytes = archive(&[("manifest.toml", b"x"), ("empty", b""), ("full", &[1; 512]), ("long", &long)]);
        let found = read_all(&bytes).unwrap();
        let names: Vec<_> = found.iter().map(|(n, c)| (n.as_str(), c.len())).collect();
        assert_eq!(names, [("manifest.toml", 1), ("empty", 0), ("full", 512), ("long", 70_000)]);
        assert_eq!(found[3].1, long);
    }

    #[test]
    fn the_tar_crate_reads_the_same() {
        let bytes = archive(&[("manifest.toml", b"hello"), ("root.index", b"")]);
        let mut other = tar::Archive::new(&bytes[..]);
        let found: Vec<_> = other
            .entries()
            .unwrap()
            .map(|e| {
                let mut e = e.unwrap();
                let mut text = String::new();
                e.read_to_string(&mut text).unwrap();
                (e.path().unwrap().display().to_string(), text)
            })
            .collect();
        assert_eq!(
            found,
            [("manifest.toml".into(), "hello".into()), ("root.index".to_string(), String::new())]
        );
    }

    #[test]
    fn sizes_from_8_gib_are_read_back_and_understood_by_the_tar_crate() {
        for size in [USTAR_MAX, USTAR_MAX + 1, 1 << 40, u64::MAX / 2] {
            let bytes = header("root.frames", size).unwrap();
            assert_eq!(bytes.len(), if size == USTAR_MAX { 512 } else { 1536 });
            let member = Reader::new(&bytes[..]).advance().unwrap().unwrap();
            assert_eq!(member, Member { name: "root.frames".into(), size });
            let mut other = tar::Archive::new(&bytes[..]);
            assert_eq!(other.entries().unwrap().next().unwrap().unwrap().size(), size);
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = archive(&[("manifest.toml", b"hello"), ("root.index", &[9; 600])]);
        for len in 0..bytes.len() {
            assert!(read_all(&bytes[..len]).is_err(), "{len}");
        }
        assert!(read_all(&[&bytes[..], b"x"].concat()).is_err());
    }

    #[test]
    fn every_flipped_bit_outside_content_is_an_error() {
        let bytes =
            [header("a", USTAR_MAX + 1).unwrap(), archive(&[("manifest.toml", b"hello"), ("b", b"")])];
        for (bytes, content) in [(&bytes[0], 0..0), (&bytes[1], 512..517)] {
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                let whole = Reader::new(&bytes[..]).advance().unwrap().unwrap();
                let same = if content.is_empty() {
                    Reader::new(&bad[..]).advance().is_ok_and(|m| m == Some(whole))
                } else {
                    read_all(&bad).is_ok()
                };
                // A flip in a name or size with a matching checksum does not exist: one bit changes the sum.
                assert_eq!(same, content.contains(&(bit / 8)), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_promised_length_allocates_nothing() {
        let mut reader_bytes = header("root.index", 1 << 50).unwrap();
        reader_bytes.extend([1; 1000]);
        let mut reader = Reader::new(&reader_bytes[..]);
        assert!(reader.advance().unwrap().is_some());
        let e = reader.content(u64::MAX).unwrap_err().to_string();
        assert!(e.contains("cut short"), "{e}");
    }
}
