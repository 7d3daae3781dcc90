//! Who may sign: minisign public keys in a directory, those of them that were revoked, and how many must have signed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::{Doing, Error, Result, sys};

/// The longest signature and key file, in bytes. minisign's own limit for a comment is 8 KiB.
pub const SIGNATURE_LIMIT_BYTES: u64 = 16 * 1024;
/// The most signatures of one bundle.
pub const SIGNATURES_MAX: usize = 16;
/// The first line of every signature in a bundle: nothing signs this line, so it may not vary.
pub const COMMENT: &str = "untrusted comment: signature from minisign secret key";

/// minisign's number of a key: 8 random bytes made with it. It finds a key; it proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(u64);

impl KeyId {
    /// From the bytes in a key or signature file, which are little-endian.
    pub const fn from_le_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_le_bytes(bytes))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}

impl FromStr for KeyId {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let id =
            u64::from_str_radix(s, 16).map(Self).map_err(|_| Error::failed(format!("key number {s:?}")))?;
        // Upper case and all 16 digits: one key, one name.
        if id.to_string() == s { Ok(id) } else { Err(Error::failed(format!("key number {s:?}"))) }
    }
}

/// One public key.
#[derive(Debug, Clone)]
struct Key {
    id: KeyId,
    /// What makes it this key: two files with these bytes are one key.
    point: [u8; 32],
    key: minisign_verify::PublicKey,
}

/// The keys that a bundle may be signed with, and how many different ones must have signed it.
#[derive(Debug, Clone)]
pub struct Keys {
    keys: Vec<Key>,
    /// Their signatures count for nothing, also if the same key is among the others.
    revoked: Vec<Key>,
    required: usize,
    dir: PathBuf,
}

/// A minisign signature file, in the one form that a bundle holds.
#[derive(Clone)]
pub struct Signature {
    id: KeyId,
    text: String,
    signature: minisign_verify::Signature,
}

impl Keys {
    /// All public keys (`*.pub`, as `minisign -G` makes them) of a directory, without those that are there as
    /// `*.revoked` too, under whatever name.
    ///
    /// # Errors
    /// `Failed`, naming the file, for one that is no minisign public key; naming the directory, if it holds fewer
    /// than `required` different ones.
    pub fn load(dir: &Path, required: usize) -> Result<Self> {
        let required = required.max(1);
        let revoked = different_keys(dir, "revoked")?;
        let mut keys = different_keys(dir, "pub")?;
        keys.retain(|k| !revoked.iter().any(|r| r.point == k.point));
        if keys.len() < required {
            return Err(Error::failed(format!(
                "keys in {}: {} found{}, {required} needed; put the minisign public keys of whoever signs your \
                 bundles there, as *.pub files",
                dir.display(),
                keys.len(),
                if revoked.is_empty() { String::new() } else { format!(" ({} revoked)", revoked.len()) }
            )));
        }
        Ok(Self { keys, revoked, required, dir: dir.to_owned() })
    }

    /// The one key in a file.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    #[cfg(feature = "build-host")]
    pub fn load_file(path: &Path) -> Result<Self> {
        Ok(Self { keys: vec![Key::load(path)?], revoked: Vec::new(), required: 1, dir: path.to_owned() })
    }

    /// Checks that enough different keys signed `message`, and tells which.
    ///
    /// Signatures by keys that are not ours are passed over, and so are those of revoked ones: a bundle may be signed for
    /// others as well.
    ///
    /// # Errors
    /// `Failed` if a signature by a key of ours does not fit: the bundle was changed or damaged. `Refused` if all
    /// fit and there are too few.
    pub fn check(&self, message: &[u8], signatures: &[Signature]) -> Result<Vec<KeyId>> {
        let mut signed: Vec<&Key> = Vec::new();
        for signature in signatures {
            for key in self.keys.iter().filter(|k| k.id == signature.id) {
                signature.check_fits(&key.key, message)?;
                if !signed.iter().any(|k| k.point == key.point) {
                    signed.push(key);
                }
            }
        }
        if signed.len() < self.required {
            let by: Vec<String> = signatures.iter().map(|s| self.name(s.id)).collect();
            let by = if by.is_empty() { "nobody".into() } else { by.join(", ") };
            return Err(Error::refused(format!(
                "signed by {by}: {} of the keys in {}, {} needed; get a bundle signed for this device, \
                 or sign it with one of those keys",
                signed.len(),
                self.dir.display(),
                self.required
            )));
        }
        Ok(signed.iter().map(|k| k.id).collect())
    }

    /// A key's number, for messages.
    fn name(&self, id: KeyId) -> String {
        let is_revoked = self.revoked.iter().any(|k| k.id == id) && !self.keys.iter().any(|k| k.id == id);
        if is_revoked { format!("{id} (revoked)") } else { id.to_string() }
    }
}

/// The keys in the files of a directory with this ending; two files with the same point are one key.
fn different_keys(dir: &Path, extension: &str) -> Result<Vec<Key>> {
    let mut keys: Vec<Key> = Vec::new();
    for path in sys::file::fragments(dir, extension)? {
        let key = Key::load(&path)?;
        if !keys.iter().any(|k| k.point == key.point) {
            keys.push(key);
        }
    }
    Ok(keys)
}

fn misfit(id: KeyId, e: &minisign_verify::Error) -> Error {
    if matches!(e, minisign_verify::Error::UnexpectedAlgorithm) {
        return Error::failed(format!(
            "signature of key {id} is of minisign's old kind; sign again without -l"
        ));
    }
    Error::failed(format!(
        "signature of key {id} does not fit the manifest: damaged or changed; get the bundle again"
    ))
}

impl Key {
    fn load(path: &Path) -> Result<Self> {
        let bytes = sys::file::read(path, SIGNATURE_LIMIT_BYTES)?;
        Self::parse(&String::from_utf8_lossy(&bytes)).doing(|| format!("key {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Error::failed(
                "not a minisign public key (two lines: comment, base64); copy the file again that `minisign -G` made",
            )
        };
        let line = text.lines().nth(1).ok_or_else(wrong)?;
        let key = minisign_verify::PublicKey::decode(text).map_err(|_| wrong())?;
        let bytes = STANDARD.decode(line).map_err(|_| wrong())?;
        // 2 bytes algorithm, 8 key number, 32 point.
        let (head, point) = bytes.split_last_chunk::<32>().ok_or_else(wrong)?;
        let id = head.get(2..).and_then(|id| id.try_into().ok()).ok_or_else(wrong)?;
        Ok(Self { id: KeyId::from_le_bytes(id), point: *point, key })
    }
}

impl Signature {
    /// A signature as minisign writes it. The comment that nothing signs is set to `COMMENT`.
    ///
    /// # Errors
    /// `Failed` if it is no prehashed minisign signature.
    #[cfg(feature = "build-host")]
    pub fn import(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        lines.next();
        let rest: Vec<&str> = lines.collect();
        Self::parse(&format!("{COMMENT}\n{}\n", rest.join("\n")))
    }

    /// A signature in the form that a bundle holds: four lines, the first `COMMENT`.
    ///
    /// # Errors
    /// `Failed` for any other form.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || Error::failed("not a minisign signature of four lines");
        let mut lines = text.split('\n');
        let (comment, bytes) = (lines.next(), lines.next().ok_or_else(wrong)?);
        let (trusted, global) = (lines.next().ok_or_else(wrong)?, lines.next().ok_or_else(wrong)?);
        let ended = lines.next() == Some("") && lines.next().is_none();
        if comment != Some(COMMENT) || !ended || trusted.chars().any(|c| c != '\t' && c.is_control()) {
            return Err(wrong());
        }
        // Strict base64 first: minisign's decoder need not mind bits that carry nothing.
        let bytes = STANDARD.decode(bytes).map_err(|_| wrong())?;
        STANDARD.decode(global).map_err(|_| wrong())?;
        let signature = minisign_verify::Signature::decode(text).map_err(|_| wrong())?;
        let id = bytes.get(2..10).and_then(|id| id.try_into().ok()).ok_or_else(wrong)?;
        Ok(Self { id: KeyId::from_le_bytes(id), text: text.to_owned(), signature })
    }

    /// Checks that `key` made it, over `message`.
    ///
    /// # Errors
    /// `Failed` if not.
    pub fn check_fits(&self, key: &minisign_verify::PublicKey, message: &[u8]) -> Result<()> {
        key.verify(message, &self.signature, false).map_err(|e| misfit(self.id, &e))
    }

    /// The key that is said to have made it.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// The file.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What the signer says, signed as well.
    pub fn trusted_comment(&self) -> &str {
        self.signature.trusted_comment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    // Made with minisign 0.11 (Debian 12): `minisign -GW`, `minisign -Sm message`; the message is "twinhull\n".
    const PUBLIC: &str = "untrusted comment: minisign public key 1CA8E3C75D0408B6\n\
        RWS2CARdx+OoHLxp6DhbOTXky02xpGULpo3OuHR0y5JQB8Z9YL/OWEzU\n";
    const SIGNATURE: &str = "untrusted comment: signature from minisign secret key\n\
        RUS2CARdx+OoHAflJBVuNAqr6prArd0z1HA1Ur8DoA58FqgFiLY+s6ABJg6v9tVIPr1Hdj9rJB4DD7MQcVYb6I436cN1ukGQkAA=\n\
        trusted comment: timestamp:1795206324\tfile:message\thashed\n\
        07tQxDAr1+beWwICNQO6CafBwB6kxf5W50mawV863aaaRYI6SgOVuNvnTdcgQd0Ckgxr5HOpoqJssni4ZDmfBg==\n";

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            sys::durable::replace(&dir.path().join(name), text.as_bytes(), 0o644).unwrap();
        }
        dir
    }

    #[test]
    fn a_signature_of_the_real_minisign_is_accepted() {
        let dir = dir(&[("a.pub", PUBLIC), ("notes.txt", "x")]);
        let keys = Keys::load(dir.path(), 1).unwrap();
        let signature = Signature::parse(SIGNATURE).unwrap();
        assert_eq!(signature.id().to_string(), "1CA8E3C75D0408B6");
        assert_eq!(keys.check(b"twinhull\n", &[signature]).unwrap().len(), 1);
    }

    #[test]
    fn one_key_twice_is_one_key() {
        let other_comment = PUBLIC.replace("minisign public key", "another comment");
        let dir = dir(&[("a.pub", PUBLIC), ("b.pub", &other_comment)]);
        let e = Keys::load(dir.path(), 2).unwrap_err().to_string();
        assert!(e.contains("1 found, 2 needed") && e.contains(dir.path().to_str().unwrap()), "{e}");
    }

    #[test]
    fn a_revoked_key_counts_for_nothing() {
        let other_comment = PUBLIC.replace("minisign public key", "stolen in March");
        let dir = dir(&[("a.pub", PUBLIC), ("gone.revoked", &other_comment)]);
        let e = Keys::load(dir.path(), 1).unwrap_err().to_string();
        assert!(e.contains("0 found (1 revoked), 1 needed"), "{e}");
        // Beside another key, its signature is passed over, and named.
        let point = STANDARD.encode([b"Ed".as_slice(), &[1; 8], &[9; 32]].concat());
        sys::durable::replace(&dir.path().join("b.pub"), format!("x\n{point}\n").as_bytes(), 0o644).unwrap();
        let e = Keys::load(dir.path(), 1)
            .unwrap()
            .check(b"twinhull\n", &[Signature::parse(SIGNATURE).unwrap()])
            .unwrap_err();
        assert_eq!(e.kind(), Kind::Refused);
        assert!(e.to_string().starts_with("signed by 1CA8E3C75D0408B6 (revoked): 0 of the keys"), "{e}");
        // Which keys are revoked must be certain.
        sys::durable::replace(&dir.path().join("c.revoked"), b"x\n", 0o644).unwrap();
        assert!(Keys::load(dir.path(), 1).unwrap_err().to_string().contains("c.revoked: not a minisign"));
    }

    #[test]
    fn a_missing_directory_and_a_bad_key_are_named() {
        let e = Keys::load(Path::new("/nonexistent/keys.d"), 1).unwrap_err().to_string();
        assert!(e.contains("/nonexistent/keys.d: 0 found"), "{e}");
        let dir = dir(&[("a.pub", PUBLIC), (".hidden.pub", "x\ny\n")]);
        assert_eq!(Keys::load(dir.path(), 1).unwrap().keys.len(), 1);
        let bad = dir.path().join("bad.pub");
        for wrong in [b"x\ny\n" as &[u8], b"", b"\xff\n\xff\n"] {
            sys::durable::replace(&bad, wrong, 0o644).unwrap();
            let e = Keys::load(dir.path(), 1).unwrap_err().to_string();
            assert!(e.contains("bad.pub: not a minisign") && e.contains("; copy the file again"), "{e}");
        }
        sys::durable::remove(&bad).unwrap();
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, &bad, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let e = Keys::load(dir.path(), 1).unwrap_err().to_string();
        assert!(e.ends_with("bad.pub: not a file; take it away from there"), "{e}");
    }

    #[test]
    fn another_message_is_damage_and_no_signature_is_a_refusal() {
        let dir = dir(&[("a.pub", PUBLIC)]);
        let keys = Keys::load(dir.path(), 1).unwrap();
        let signature = Signature::parse(SIGNATURE).unwrap();
        assert_eq!(keys.check(b"twinhulk\n", &[signature]).unwrap_err().kind(), Kind::Failed);
        assert_eq!(keys.check(b"twinhull\n", &[]).unwrap_err().kind(), Kind::Refused);
    }

    #[test]
    fn no_bit_of_a_signature_may_change() {
        let dir = dir(&[("a.pub", PUBLIC)]);
        let keys = Keys::load(dir.path(), 1).unwrap();
        let whole = Signature::parse(SIGNATURE).unwrap();
        for bit in 0..SIGNATURE.len() * 8 {
            let mut bad = SIGNATURE.as_bytes().to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let Ok(text) = String::from_utf8(bad) else { continue };
            let accepted = Signature::parse(&text)
                .is_ok_and(|s| s.id() == whole.id() && keys.check(b"twinhull\n", &[s]).is_ok());
            assert!(!accepted, "bit {bit}");
        }
    }
}
