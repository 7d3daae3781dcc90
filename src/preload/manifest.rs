//! What a preload archive says of itself: for which devices it is, the digest of each part, and where unpacking may go on.

use serde::{Deserialize, Serialize};

use crate::model::device::DeviceType;
use crate::model::{Digest, TomlText};
use crate::{Error, Result};

/// The only version of the format.
pub const FORMAT: u32 = 1;
/// The longest manifest, in bytes: enough for 60 GiB of archive.
pub const LIMIT_BYTES: u64 = 1024 * 1024;
/// The archive is compared with its digests in chunks of this many bytes.
pub const CHUNK_BYTES: u64 = 4 * 1024 * 1024;

/// The signed description of a preload archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of the format. A bundle's manifest has another key there, so neither is ever taken for the other.
    preload: u32,
    /// The device types that it is for; at least one.
    pub compatible: Vec<DeviceType>,
    /// balena's name of the architecture.
    pub arch: String,
    /// Length of `data.tar.zst` in bytes.
    pub size: u64,
    /// What it puts at the top of the data partition.
    pub names: Vec<String>,
    /// SHA-256 of each chunk of 4 MiB of `data.tar.zst`, in order; the last may be shorter.
    pub chunks: Vec<Digest>,
    /// Parts that can be unpacked one after the other.
    pub segment: Vec<Segment>,
}

/// One zstd frame, which holds whole tar entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Where it begins in `data.tar.zst`.
    pub offset: u64,
    /// Bytes of disk that it takes when it is unpacked.
    pub bytes: u64,
    /// Files, directories and the like that it makes.
    pub inodes: u64,
}

impl Manifest {
    /// Puts a manifest together.
    #[cfg(feature = "build-host")]
    pub(super) fn new(
        recipe: &super::pack::Recipe,
        size: u64,
        chunks: Vec<Digest>,
        segment: Vec<Segment>,
    ) -> Self {
        Self {
            preload: FORMAT,
            compatible: recipe.compatible.clone(),
            arch: recipe.arch.clone(),
            size,
            names: recipe.trees.iter().map(|(name, _)| name.clone()).collect(),
            chunks,
            segment,
        }
    }

    /// Parses a manifest whose signature was checked.
    ///
    /// # Errors
    /// `Refused` for a newer format; `Failed`, with the line, for anything that is no manifest.
    pub fn parse(text: &str) -> Result<Self> {
        let text = TomlText::parse("manifest.toml", text)?;
        match text.integer("preload") {
            Some(1) => text.read::<Self>()?.check(),
            Some(found) => Err(Error::refused(format!(
                "preload format {found}: this twinhull reads format {FORMAT}; make the archive with this version"
            ))),
            None => Err(Error::failed(
                "manifest.toml: no preload archive (a bundle is installed with `twinhull install`)",
            )),
        }
    }

    fn check(self) -> Result<Self> {
        let wrong = |text: String| Err(Error::failed(format!("manifest.toml: {text}")));
        if self.size == 0 || self.chunks.len() as u64 != self.size.div_ceil(CHUNK_BYTES) {
            return wrong(format!("{} digests for {} bytes", self.chunks.len(), self.size));
        }
        let offsets = || self.segment.iter().map(|s| s.offset);
        let in_order = offsets().next() == Some(0) && offsets().is_sorted_by(|a, b| a < b);
        if !in_order || offsets().any(|offset| offset >= self.size) {
            return wrong("segments out of order".into());
        }
        if self.compatible.is_empty() || self.names.is_empty() {
            return wrong("an empty list".into());
        }
        match self.names.iter().find(|name| !is_name(name)) {
            Some(name) => wrong(format!("{name:?}: not a name for the top of the data partition")),
            None => Ok(self),
        }
    }

    /// Whether it is for this device.
    ///
    /// # Errors
    /// `Refused`, saying for which it is.
    pub fn check_suits(&self, device_type: &str, arch: &str) -> Result<()> {
        if self.compatible.iter().any(|t| t.0 == device_type) && self.arch == arch {
            return Ok(());
        }
        let types: Vec<_> = self.compatible.iter().map(|t| t.0.as_str()).collect();
        Err(Error::refused(format!(
            "the archive is for {} ({}), this device is {device_type} ({arch}); get the one made for it",
            types.join(", "),
            self.arch
        )))
    }

    /// What all segments from number `from` on take: bytes and inodes.
    pub fn needs(&self, from: usize) -> (u64, u64) {
        let left = self.segment.iter().skip(from);
        left.fold((0, 0), |(b, i), s| (s.bytes.saturating_add(b), s.inodes.saturating_add(i)))
    }
}

/// Whether this may stand at the top of the data partition: a plain name, neither hidden nor the file system's own.
pub fn is_name(name: &str) -> bool {
    let plain = !name.is_empty() && !name.contains(['/', '\0']) && !name.chars().any(char::is_control);
    plain && !name.starts_with('.') && name != "lost+found"
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
preload = 1
compatible = ["intel-nuc"]
arch = "amd64"
size = 4194305
names = ["docker", "apps.json"]
chunks = [
    "1111111111111111111111111111111111111111111111111111111111111111",
    "2222222222222222222222222222222222222222222222222222222222222222",
]
[[segment]]
offset = 0
bytes = 4096
inodes = 1
[[segment]]
offset = 700
bytes = 8192
inodes = 2
"#;

    #[test]
    fn only_what_makes_sense_is_a_manifest() {
        let m = Manifest::parse(TEXT).unwrap();
        assert_eq!((m.needs(0), m.needs(1), m.needs(2)), ((12288, 3), (8192, 2), (0, 0)));
        m.check_suits("intel-nuc", "amd64").unwrap();
        assert_eq!(m.check_suits("intel-nuc", "aarch64").unwrap_err().kind(), crate::Kind::Refused);
        assert_eq!(m.check_suits("fincm3", "amd64").unwrap_err().kind(), crate::Kind::Refused);
        for (from, to, expected) in [
            ("preload = 1", "preload = 2", "preload format 2"),
            ("preload = 1", "format = 1", "no preload archive"),
            ("size = 4194305", "size = 4194304", "2 digests for 4194304 bytes"),
            ("size = 4194305", "size = 0", "digests for 0"),
            ("offset = 700", "offset = 0", "out of order"),
            ("offset = 700", "offset = 4194305", "out of order"),
            ("\"apps.json\"", "\"..\"", "not a name"),
            ("\"apps.json\"", "\"a/b\"", "not a name"),
            ("\"apps.json\"", "\"lost+found\"", "not a name"),
            ("\"intel-nuc\"", "", "an empty list"),
            ("arch =", "arc =", "line 4"),
        ] {
            let e = Manifest::parse(&TEXT.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(e.contains(expected), "{to}: {e}");
        }
    }
}
