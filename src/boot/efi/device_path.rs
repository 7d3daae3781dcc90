//! Device paths: how UEFI names a file on a partition.

use crate::{Error, Result};

/// Type and subtype of the nodes that are used here, and the node that ends a path.
const HARD_DRIVE: [u8; 2] = [4, 1];
const FILE_PATH: [u8; 2] = [4, 4];
const END: [u8; 4] = [0x7f, 0xff, 4, 0];

/// A partition as firmware knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its number in the table, from 1.
    pub number: u32,
    /// Its first sector.
    pub start_lba: u64,
    /// Its size in sectors.
    pub sectors: u64,
    /// Its id in the table, as Linux writes it: a GUID, or `DISKID-NN` on MBR.
    pub partuuid: String,
}

impl Volume {
    /// The node `HD(…)` of this partition, 42 bytes. A path may begin with it: the firmware finds the disk by the id.
    ///
    /// # Errors
    /// `Failed` if the id is none.
    ///
    /// Source: UEFI specification 2.10, section 10.3.5.1; checked with efibootmgr 17 (tests/boot).
    fn node(&self) -> Result<Vec<u8>> {
        const GPT: [u8; 2] = [2, 2];
        const MBR: [u8; 2] = [1, 1];
        let digits: Vec<u8> = self.partuuid.bytes().filter(|b| *b != b'-').collect();
        let byte = |pair: &[u8]| match pair {
            [high, low] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()
            }
            _ => None,
        };
        let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
        let (signature, kind) = match bytes.as_deref() {
            Some(&[a, b, c, d, e, f, g, h, ref rest @ ..]) if rest.len() == 8 => {
                ([&[d, c, b, a, f, e, h, g], rest].concat(), GPT)
            }
            Some(&[a, b, c, d, _number]) => ([&[d, c, b, a][..], &[0; 12]].concat(), MBR),
            _ => return Err(Error::failed(format!("partition id {:?}: not a GUID", self.partuuid))),
        };
        let numbers =
            [&self.number.to_le_bytes()[..], &self.start_lba.to_le_bytes(), &self.sectors.to_le_bytes()];
        Ok([&HARD_DRIVE[..], &42_u16.to_le_bytes(), &numbers.concat(), &signature, &kind].concat())
    }

    /// The path of a file on this partition. `/` and `\` both separate.
    ///
    /// # Errors
    /// `Failed` if the path is too long, or the partition has no id.
    pub fn file(&self, path: &str) -> Result<Vec<u8>> {
        let text = utf16(&path.replace('/', "\\"), true);
        let len =
            u16::try_from(text.len() + 4).map_err(|_| Error::failed(format!("path {path}: too long")))?;
        Ok([self.node()?, FILE_PATH.to_vec(), len.to_le_bytes().to_vec(), text, END.to_vec()].concat())
    }
}

/// The id of the partition that a device path leads to, as its node has it; `None` if it leads to none.
pub(super) fn partition_id(device_path: &[u8]) -> Option<&[u8]> {
    nodes(device_path).find(|node| node.starts_with(&HARD_DRIVE)).and_then(|node| node.get(24..))
}

/// The nodes of a device path, each with its header; ends early where one makes no sense.
fn nodes(mut path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = path.get(2..4).map(|l| usize::from(l[0]) | usize::from(l[1]) << 8)?;
        let (node, rest) = path.split_at_checked(len).filter(|(node, _)| node.len() >= 4)?;
        path = rest;
        Some(node)
    })
}

/// Text as UEFI has it: UTF-16, little-endian, with or without a final NUL.
pub(super) fn utf16(text: &str, ended: bool) -> Vec<u8> {
    text.encode_utf16().chain(ended.then_some(0)).flat_map(u16::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_is_found_behind_the_way_to_its_disk_and_not_in_half_a_node() {
        let volume = Volume {
            number: 2,
            start_lba: 18432,
            sectors: 16384,
            partuuid: "a069de34-f845-4932-aa5f-0d0e532db4e9".into(),
        };
        let path = volume.file("/boot/vmlinuz").unwrap();
        // Some firmware puts the way to the disk in front: here a PCI node.
        let long = [&[1, 1, 6, 0, 0, 31], path.as_slice()].concat();
        assert_eq!(partition_id(&long), Some(&path[24..42]));
        for cut in 0..42 {
            assert_eq!(partition_id(&path[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn an_mbr_has_its_disk_s_id_and_anything_else_is_refused() {
        let with = |id: &str| Volume { number: 2, start_lba: 1, sectors: 2, partuuid: id.into() }.node();
        let node = with("4fdb0a91-02").unwrap();
        assert_eq!(node[24..], [0x91, 0x0a, 0xdb, 0x4f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        for id in ["", "xy", "a069de34-f845-4932-aa5f-0d0e532db4e", "ä069de34"] {
            with(id).unwrap_err();
        }
    }
}
