//! A reader of FAT, independent of the kernel's, of the bootloaders' and of mtools: what a boot partition holds, from its sectors.
//!
//! It is strict where a bootloader may be lenient: a file whose chain of clusters is too short, goes round or leaves the medium is
//! as good as not there. Source: Microsoft, "FAT: General Overview of On-Disk Format", 1.03; checked against mtools.

use std::collections::BTreeMap;

use crate::Outcome;
use crate::block_log::{SECTOR_BYTES, Sector};

const ENTRY_BYTES: usize = 32;
const DIRECTORY: u8 = 0x10;
const LABEL: u8 = 0x08;
const LONG_NAME: u8 = 0x0f;

/// All files by their paths, without a leading slash.
pub type Tree = BTreeMap<String, Vec<u8>>;

/// Reads all files that can be read whole. `sector` gives the content of a sector of the partition.
///
/// # Errors
/// If it is no FAT, a directory cannot be read, or a name stands twice in it.
pub fn read(sector: &dyn Fn(u64) -> Sector) -> Outcome<Tree> {
    let fat = Fat::open(sector)?;
    let mut tree = Tree::new();
    fat.collect("", &fat.root()?, 0, &mut tree)?;
    Ok(tree)
}

struct Fat<'a> {
    sector: &'a dyn Fn(u64) -> Sector,
    sectors_per_cluster: u64,
    /// The first sector of the first table, of the root directory of FAT16, and of cluster 2.
    table: u64,
    fixed_root: u64,
    fixed_root_sectors: u64,
    data: u64,
    clusters: u64,
    /// FAT32's root; `None` on FAT16.
    root_cluster: Option<u64>,
}

fn le(bytes: &[u8], at: usize, count: usize) -> u64 {
    bytes.iter().skip(at).take(count).rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

impl<'a> Fat<'a> {
    fn open(sector: &'a dyn Fn(u64) -> Sector) -> Outcome<Self> {
        let boot = sector(0);
        if le(&boot, 510, 2) != 0xaa55 || le(&boot, 11, 2) != SECTOR_BYTES as u64 {
            return Err("no FAT with sectors of 512 bytes".into());
        }
        let sectors_per_cluster = le(&boot, 13, 1);
        let either = |short: u64, long: u64| if short == 0 { long } else { short };
        let table_sectors = either(le(&boot, 22, 2), le(&boot, 36, 4));
        let table = le(&boot, 14, 2);
        let fixed_root = table + le(&boot, 16, 1) * table_sectors;
        let fixed_root_sectors = (le(&boot, 17, 2) * ENTRY_BYTES as u64).div_ceil(SECTOR_BYTES as u64);
        let data = fixed_root + fixed_root_sectors;
        let total = either(le(&boot, 19, 2), le(&boot, 32, 4));
        let clusters = total
            .checked_sub(data)
            .and_then(|sectors| sectors.checked_div(sectors_per_cluster))
            .ok_or("a FAT that is larger than itself")?;
        if clusters < 4085 {
            return Err("FAT12, which no board has".into());
        }
        let root_cluster = (clusters >= 65525).then(|| le(&boot, 44, 4));
        Ok(Self {
            sector,
            sectors_per_cluster,
            table,
            fixed_root,
            fixed_root_sectors,
            data,
            clusters,
            root_cluster,
        })
    }

    fn root(&self) -> Outcome<Vec<u8>> {
        match self.root_cluster {
            Some(cluster) => self.chain(cluster),
            None => {
                Ok((0..self.fixed_root_sectors).flat_map(|n| (self.sector)(self.fixed_root + n)).collect())
            }
        }
    }

    /// What stands in the table for a cluster: the next one, or `None` at the end.
    fn next(&self, cluster: u64) -> Outcome<Option<u64>> {
        let width = if self.root_cluster.is_some() { 4 } else { 2 };
        let at = cluster * width;
        let sector = (self.sector)(self.table + at / SECTOR_BYTES as u64);
        let at = usize::try_from(at % SECTOR_BYTES as u64).unwrap_or(0);
        let value = match width {
            4 => le(&sector, at, 4) & 0x0fff_ffff,
            _ => le(&sector, at, 2),
        };
        let end = if width == 4 { 0x0fff_fff8 } else { 0xfff8 };
        match value {
            value if value >= end => Ok(None),
            value if (2..self.clusters + 2).contains(&value) => Ok(Some(value)),
            value => Err(format!("after cluster {cluster} stands {value:#x}")),
        }
    }

    fn chain(&self, first: u64) -> Outcome<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut cluster = Some(first).filter(|c| (2..self.clusters + 2).contains(c));
        if cluster.is_none() {
            return Err(format!("it begins at cluster {first}"));
        }
        let mut count = 0;
        while let Some(here) = cluster {
            let start = self.data + (here - 2) * self.sectors_per_cluster;
            bytes.extend((0..self.sectors_per_cluster).flat_map(|n| (self.sector)(start + n)));
            cluster = self.next(here)?;
            count += 1;
            if count > self.clusters {
                return Err("its clusters go round".into());
            }
        }
        Ok(bytes)
    }

    fn collect(&self, path: &str, directory: &[u8], depth: usize, tree: &mut Tree) -> Outcome {
        let mut long = Vec::new();
        for entry in directory.chunks_exact(ENTRY_BYTES) {
            let attributes = entry[11];
            match entry[0] {
                0 => break,
                0xe5 => {
                    long.clear();
                    continue;
                }
                _ if attributes & 0x3f == LONG_NAME => {
                    long.push(entry.to_vec());
                    continue;
                }
                _ => {}
            }
            let parts = std::mem::take(&mut long);
            if attributes & LABEL != 0 || entry[0] == b'.' {
                continue;
            }
            let name = long_name(&parts, entry).unwrap_or_else(|| short_name(entry));
            let full = if path.is_empty() { name } else { format!("{path}/{name}") };
            let first = le(entry, 20, 2) << 16 | le(entry, 26, 2);
            let length = usize::try_from(le(entry, 28, 4)).unwrap_or(usize::MAX);
            if attributes & DIRECTORY != 0 {
                let inside = self.chain(first).map_err(|e| format!("{full}: {e}"))?;
                if depth > 8 {
                    return Err(format!("{full}: directories go round"));
                }
                self.collect(&full, &inside, depth + 1, tree)?;
                continue;
            }
            let chain = if length == 0 { Ok(Vec::new()) } else { self.chain(first) };
            let Ok(mut content) =
                chain.map_err(drop).and_then(|c| if c.len() < length { Err(()) } else { Ok(c) })
            else {
                continue;
            };
            content.truncate(length);
            if tree.insert(full.clone(), content).is_some() {
                return Err(format!("{full}: stands there twice"));
            }
        }
        Ok(())
    }
}

/// The long name in front of a short one, if it is whole and belongs to it.
fn long_name(parts: &[Vec<u8>], short: &[u8]) -> Option<String> {
    let sum = short[..11].iter().fold(0_u8, |sum, b| sum.rotate_right(1).wrapping_add(*b));
    let mut units = Vec::new();
    for (part, number) in parts.iter().rev().zip(1..) {
        let last = usize::from(number) == parts.len();
        if part[13] != sum || part[0] != (if last { number | 0x40 } else { number }) {
            return None;
        }
        for at in [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30] {
            units.push(u16::from_le_bytes([part[at], part[at + 1]]));
        }
    }
    let end = units.iter().position(|u| *u == 0).unwrap_or(units.len());
    let name = String::from_utf16(&units[..end]).ok()?;
    (!name.is_empty()).then_some(name)
}

/// The name in 8.3, in the case that Windows NT noted for its two parts.
fn short_name(entry: &[u8]) -> String {
    let part = |range: std::ops::Range<usize>, lower: bool| {
        let text = String::from_utf8_lossy(&entry[range]).trim_end().to_owned();
        if lower { text.to_ascii_lowercase() } else { text }
    };
    let (base, extension) = (part(0..8, entry[12] & 0x08 != 0), part(8..11, entry[12] & 0x10 != 0));
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// FAT by mkfs.vfat and mtools, which must be there: tests/run installs them.
    fn image(kind: &str, mib: u64) -> Vec<u8> {
        let dir = std::env::temp_dir().join(format!("twinhull-fat-{}-{kind}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("fat.img");
        std::fs::File::create(&file).unwrap().set_len(mib << 20).unwrap();
        let run = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).env("MTOOLS_SKIP_CHECK", "1").output().unwrap();
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let path = file.display().to_string();
        run("/usr/sbin/mkfs.vfat", &["-F", kind, "-s", "1", "-n", "resin-boot", &path]);
        let content = dir.join("content");
        std::fs::write(&content, CONTENT.repeat(100)).unwrap();
        run("mmd", &["-i", &path, "::loader", "::loader/entries"]);
        let content = content.display().to_string();
        run("mcopy", &["-i", &path, &content, "::loader/entries/twinhull-b+2-1.conf"]);
        run("mcopy", &["-i", &path, &content, "::short.txt"]);
        run("mcopy", &["-i", &path, &content, "::gone-again.conf"]);
        run("mdel", &["-i", &path, "::gone-again.conf"]);
        let raw = std::fs::read(&file).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        raw
    }

    const CONTENT: &[u8] = b"resin_root_part=2\n";

    #[test]
    fn files_that_mtools_wrote_are_read_and_a_broken_chain_is_an_error() {
        for (kind, mib) in [("16", 8), ("32", 34)] {
            let raw = image(kind, mib);
            let sector = |n: u64| raw.as_chunks().0[usize::try_from(n).unwrap()];
            let tree = read(&sector).unwrap();
            let names: Vec<&str> = tree.keys().map(String::as_str).collect();
            assert_eq!(names, ["loader/entries/twinhull-b+2-1.conf", "short.txt"], "FAT{kind}");
            assert!(tree.values().all(|content| *content == CONTENT.repeat(100)));
            // Without its tables, no chain has an end.
            let first = u64::from(u16::from_le_bytes([raw[14], raw[15]]));
            let torn = |n: u64| if n == first { [0; 512] } else { sector(n) };
            assert!(read(&torn).is_err(), "FAT{kind}: a directory");
            // The end of the second file's first cluster leads nowhere.
            let width = if kind == "16" { 2 } else { 4 };
            let entry = (2..128).map(|c| c * width).rfind(|at| {
                let value = &raw[usize::from(raw[14]) * 512 + at..][..width];
                value.iter().any(|b| *b != 0)
            });
            let cut = |n: u64| {
                let mut sector = sector(n);
                if n == first {
                    sector[entry.unwrap()..][..width].fill(0);
                }
                sector
            };
            assert_eq!(read(&cut).unwrap().len(), 1, "FAT{kind}: a file");
        }
    }
}
