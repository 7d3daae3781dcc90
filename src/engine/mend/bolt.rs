//! Whether the engine can open one of its Bolt databases, which it ends at once (or panics) without.
//!
//! A file of pages. Pages 0 and 1 each hold a meta record, of which the newer valid one counts; from it a tree of branch
//! and leaf pages is reached, and a leaf may hold the root of another tree. Every page begins with its own number, so a
//! block that a power cut left as zeros shows. An empty file is a new database. Numbers are little-endian, as on every
//! machine that we run on.
//!
//! Source: go.etcd.io/bbolt 1.3, page.go and db.go; checked with the files and the refusals of dockerd 20.10.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::{Result, sys};

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// Of a page: its number (8 bytes), flags (2), count of elements (2), pages that follow and belong to it (4).
const HEADER: usize = 16;
const ELEMENT: usize = 16;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const FREELIST: u16 = 0x10;
/// A database without a list of free pages.
const NO_FREELIST: u64 = u64::MAX;
/// Page sizes of the kernels that there are.
const PAGE_SIZES: [u64; 4] = [4096, 8192, 16384, 65536];
/// No engine of a device has a larger database; a larger one is left alone.
const LIMIT_PAGES: u64 = 1 << 18;

/// The newer meta record.
struct Meta {
    page_bytes: u64,
    root: u64,
    freelist: u64,
    /// Pages in use: the file has at least as many.
    pages: u64,
    txid: u64,
}

/// What is wrong with the database, if anything is.
///
/// # Errors
/// `Failed` if it cannot be read.
pub(super) fn damage(file: &File) -> Result<Option<String>> {
    let len = sys::file::len_bytes(file)?;
    if len == 0 {
        return Ok(None);
    }
    let mut metas = Vec::new();
    for offset in [0].into_iter().chain(PAGE_SIZES) {
        let mut bytes = [0; HEADER + 64];
        if offset + bytes.len() as u64 <= len {
            file.read_exact_at(&mut bytes, offset)?;
            metas.extend(Meta::parse(&bytes).filter(|m| offset == 0 || offset == m.page_bytes));
        }
    }
    let Some(meta) = metas.into_iter().max_by_key(|m| m.txid) else {
        return Ok(Some("no valid head".into()));
    };
    if len < meta.page_bytes.saturating_mul(meta.pages.max(2)) {
        return Ok(Some(format!("{len} bytes, expected {} pages of {}", meta.pages, meta.page_bytes)));
    }
    if meta.pages > LIMIT_PAGES {
        return Ok(None);
    }
    walk(file, &meta)
}

/// Visits every page that belongs to the database.
fn walk(file: &File, meta: &Meta) -> Result<Option<String>> {
    let mut waiting = vec![(meta.root, BRANCH | LEAF)];
    if meta.freelist != NO_FREELIST {
        waiting.push((meta.freelist, FREELIST));
    }
    let mut visited = 0;
    while let Some((number, kinds)) = waiting.pop() {
        visited += 1;
        let Some(page) = read(file, meta, number)? else {
            return Ok(Some(format!("page {number} is not there")));
        };
        let flags = u16_at(&page, 8);
        let is_sound = u64_at(&page, 0) == Some(number) && flags.is_some_and(|f| f & kinds != 0);
        if !is_sound || visited > meta.pages {
            return Ok(Some(format!("page {number} is none of its pages")));
        }
        for n in 0..usize::from(u16_at(&page, 10).unwrap_or(0)) {
            let at = HEADER + n * ELEMENT;
            let next = match flags {
                Some(BRANCH) => u64_at(&page, at + 8),
                Some(LEAF) => bucket(&page, at),
                _ => None,
            };
            waiting.extend(next.map(|number| (number, BRANCH | LEAF)));
        }
    }
    Ok(None)
}

/// The root of the tree that the leaf's element at `at` holds, if it holds one that is not within the leaf itself.
fn bucket(page: &[u8], at: usize) -> Option<u64> {
    let [flags, position, key] = [0, 4, 8].map(|o| u32_at(page, at + o));
    let value = at.checked_add(position? as usize)?.checked_add(key? as usize)?;
    (flags? & 1 != 0).then(|| u64_at(page, value)).flatten().filter(|root| *root != 0)
}

/// A page and those that belong to it; `None` if it lies outside.
fn read(file: &File, meta: &Meta, number: u64) -> Result<Option<Vec<u8>>> {
    if !(2..meta.pages).contains(&number) {
        return Ok(None);
    }
    let mut page = vec![0; usize::try_from(meta.page_bytes).unwrap_or(0)];
    file.read_exact_at(&mut page, number * meta.page_bytes)?;
    let more = u64::from(u32_at(&page, 12).unwrap_or(0));
    if more >= meta.pages - number {
        return Ok(None);
    }
    page.resize(usize::try_from((more + 1) * meta.page_bytes).unwrap_or(0), 0);
    file.read_exact_at(&mut page, number * meta.page_bytes)?;
    Ok(Some(page))
}

impl Meta {
    /// `page` begins with a page's header; then magic, version, page size, flags (4 bytes each), root and its sequence,
    /// list of free pages, pages in use, transaction, FNV-1a of all that (8 bytes each).
    fn parse(page: &[u8]) -> Option<Self> {
        let meta = page.get(HEADER..)?;
        let sum = meta.get(..56)?.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let page_bytes = u64::from(u32_at(meta, 8)?);
        let valid = u32_at(meta, 0)? == MAGIC
            && u32_at(meta, 4)? == VERSION
            && PAGE_SIZES.contains(&page_bytes)
            && u64_at(meta, 56)? == sum;
        let [root, freelist, pages, txid] = [16, 32, 40, 48].map(|at| u64_at(meta, at));
        valid.then_some(Self { page_bytes, root: root?, freelist: freelist?, pages: pages?, txid: txid? })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Made by dockerd 20.10.24: volumes/metadata.db with one volume, network/files/local-kv.db with its networks.
    const REAL: [&[u8]; 2] = [
        include_bytes!("../../../tests/fixtures/bolt/volumes-metadata.db"),
        include_bytes!("../../../tests/fixtures/bolt/local-kv.db"),
    ];

    fn of(bytes: &[u8]) -> Option<String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        damage(&file).unwrap()
    }

    #[test]
    fn real_databases_and_an_empty_file_are_sound() {
        assert_eq!(REAL.map(of), [None, None]);
        assert_eq!(of(b""), None);
    }

    #[test]
    fn what_dockerd_refuses_is_damaged() {
        for real in REAL {
            assert_eq!(of(&vec![0; real.len()]).unwrap(), "no valid head");
            assert_eq!(
                of(&real[..100]).unwrap(),
                "100 bytes, expected 8 pages of 4096".replace('8', &pages(real))
            );
            for cut in [4096, real.len() / 2] {
                assert!(of(&real[..cut]).unwrap().contains("expected"), "{cut}");
            }
            // One head of the two is enough.
            let mut one = real.to_vec();
            one[..4096].fill(0);
            assert_eq!(of(&one), None);
        }
    }

    /// Pages in use, as the newer head says.
    fn pages(real: &[u8]) -> String {
        let heads = [0, 4096].map(|at| Meta::parse(&real[at..]).unwrap());
        heads.into_iter().max_by_key(|m| m.txid).unwrap().pages.to_string()
    }

    #[test]
    fn a_page_of_zeros_shows_if_it_is_in_use() {
        for real in REAL {
            let shown = (2..real.len() / 4096).filter(|page| {
                let mut bytes = real.to_vec();
                bytes[page * 4096..][..4096].fill(0);
                of(&bytes).is_some()
            });
            // The root, the list of free pages, and at least one tree below.
            assert!(shown.count() >= 2);
        }
    }

    #[test]
    fn no_bit_makes_it_panic() {
        for real in REAL {
            for at in (0..real.len()).step_by(7) {
                let mut bytes = real.to_vec();
                bytes[at] ^= 1 << (at % 8);
                let _ = of(&bytes);
            }
        }
    }
}
