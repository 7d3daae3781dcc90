//! `EFI_LOAD_OPTION`: what stands in a variable `Boot####`.

use super::device_path::{Volume, partition_id, utf16};
use crate::{Error, Result};

/// `LOAD_OPTION_ACTIVE`: entries of `BootOrder` without it are passed over.
const ACTIVE: u32 = 1;

/// One entry of the firmware's boot menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOption {
    attributes: u32,
    description: String,
    device_path: Vec<u8>,
    /// For Linux its command line.
    optional_data: Vec<u8>,
}

impl LoadOption {
    /// An entry that starts the program `path` on `volume`, with `options` as its command line.
    ///
    /// # Errors
    /// As [`Volume::file`].
    pub fn new(description: &str, volume: &Volume, path: &str, options: &str) -> Result<Self> {
        Ok(Self {
            attributes: ACTIVE,
            description: description.to_owned(),
            device_path: volume.file(path)?,
            optional_data: utf16(options, false),
        })
    }

    /// Decodes the content of a variable: attributes (u32), bytes of the device path (u16), description (UTF-16, NUL),
    /// device path, optional data; all little-endian.
    ///
    /// # Errors
    /// `Failed` if it is too short, or the description is no text.
    ///
    /// Source: UEFI specification 2.10, section 3.1.3; checked with efibootmgr 17 (tests/boot).
    pub fn decode(raw: &[u8]) -> Result<Self> {
        let short = || Error::failed(format!("{} bytes are too few for a boot entry", raw.len()));
        let (head, rest) = raw.split_first_chunk::<6>().ok_or_else(short)?;
        let [a, b, c, d, low, high] = *head;
        let mut units = rest.chunks_exact(2).map(|u| u16::from(u[0]) | u16::from(u[1]) << 8);
        let text: Vec<u16> = units.by_ref().take_while(|u| *u != 0).collect();
        let description =
            String::from_utf16(&text).map_err(|_| Error::failed("the description is no text"))?;
        let (device_path, optional_data) = rest
            .get(2 * (text.len() + 1)..)
            .and_then(|rest| rest.split_at_checked(usize::from(low) | usize::from(high) << 8))
            .ok_or_else(short)?;
        Ok(Self {
            attributes: u32::from_le_bytes([a, b, c, d]),
            description,
            device_path: device_path.into(),
            optional_data: optional_data.into(),
        })
    }

    /// The content of the variable.
    ///
    /// # Errors
    /// `Failed` if the device path is too long.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let len =
            u16::try_from(self.device_path.len()).map_err(|_| Error::failed("device path: too long"))?;
        let head = [&self.attributes.to_le_bytes()[..], &len.to_le_bytes(), &utf16(&self.description, true)];
        Ok([&head.concat()[..], &self.device_path, &self.optional_data].concat())
    }

    /// Whether this is an entry of the same name for the same partition: `wanted`, or what it once was.
    pub fn is_for(&self, wanted: &Self) -> bool {
        let id = partition_id(&self.device_path);
        self.description == wanted.description && id.is_some() && id == partition_id(&wanted.device_path)
    }

    /// Whether this starts what `wanted` starts. Some firmware puts the way to the disk in front of the partition.
    pub fn is_as(&self, wanted: &Self) -> bool {
        self.attributes & ACTIVE != 0
            && self.device_path.ends_with(&wanted.device_path)
            && self.optional_data == wanted.optional_data
    }
}
