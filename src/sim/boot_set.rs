//! The boot files that belong to each image of the simulated world, and the law about them: **the set that boots belongs
//! whole to the slot that boots**.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::power::Power;
use super::tree::{MemoryTree, TreeMedia};
use crate::block::{Disk, FileSet, slot_dir};
use crate::model::{Digest, FileEntry, Slot};
use crate::update::Image;
use crate::{Kind, Result};

/// The boot files of one image: a kernel that grows, and a file that only this version has; none for every third version,
/// whose bundle brings no boot files.
pub fn of_version(version: u8) -> BTreeMap<String, Vec<u8>> {
    if version.is_multiple_of(3) {
        return BTreeMap::new();
    }
    let kernel = vec![version; 2 + usize::from(version)];
    BTreeMap::from([("kernel".into(), kernel), (format!("only-{version}"), vec![version; 3])])
}

/// The boot partition of a new device: version 1 in slot A, as its own install would leave it.
pub fn seed() -> TreeMedia {
    let media = Rc::new(RefCell::new(TreeMedia::default()));
    let tree = MemoryTree { media: media.clone(), power: Power::default() };
    write(&mut set(tree, Slot::A, 1), 1).unwrap();
    let written = media.borrow().files().clone();
    TreeMedia::with(written)
}

/// The set of one version in the directory of one slot.
pub fn set(tree: MemoryTree, slot: Slot, version: u8) -> FileSet<MemoryTree> {
    FileSet::new(tree, slot_dir(slot), &version.to_string(), &entries(version))
}

fn entries(version: u8) -> Vec<FileEntry> {
    let entry = |(path, content): (String, Vec<u8>)| FileEntry {
        path,
        size: content.len() as u64,
        sha256: Digest(Sha256::digest(&content).into()),
        deadline_s: None,
    };
    of_version(version).into_iter().map(entry).collect()
}

/// What an install must find when it reads the set back.
pub fn image(version: u8) -> Image {
    let image = image_bytes(version);
    Image { len_bytes: image.len() as u64, digest: Digest(Sha256::digest(&image).into()) }
}

fn image_bytes(version: u8) -> Vec<u8> {
    let padded = |content: Vec<u8>| {
        let mut padded = content;
        padded.resize(padded.len().next_multiple_of(4096), 0);
        padded
    };
    of_version(version).into_values().flat_map(padded).collect()
}

/// What an install writes: the image in pieces that do not end where files do.
pub fn feed(disk: &mut dyn Disk, version: u8) -> Result<()> {
    let image = image_bytes(version);
    image.chunks(4099).enumerate().try_for_each(|(i, piece)| disk.write_at(4099 * i as u64, piece))
}

fn write(disk: &mut dyn Disk, version: u8) -> Result<()> {
    feed(disk, version)?;
    disk.flush()
}

/// The law, for a slot that boots and the version of the image in it.
pub fn check(media: &TreeMedia, slot: Slot, version: u8) -> std::result::Result<(), String> {
    let dir = format!("{}/", slot_dir(slot));
    let found: BTreeMap<String, Vec<u8>> = media
        .files()
        .iter()
        .filter_map(|(path, content)| Some((path.strip_prefix(&dir)?.to_owned(), content.clone())))
        .filter(|(path, _)| !path.starts_with("twinhull.sums"))
        .collect();
    if found == of_version(version) {
        return Ok(());
    }
    let names: Vec<_> = found.keys().collect();
    Err(format!("slot {slot} boots version {version}, its boot files are not those: {names:?}"))
}

#[test]
fn wherever_the_writing_of_a_set_is_cut_the_next_one_comes_out_whole_and_the_other_slot_s_is_untouched() {
    let mut cuts = 0;
    for (first, second, third) in [(2, 4, 5), (2, 4, 2), (2, 4, 3), (2, 3, 4), (4, 2, 5), (3, 2, 3)] {
        // Which of the cached writes land: none, all, every other.
        for pattern in [0, !0, 0x5555_5555_u32] {
            for after_steps in 0.. {
                let media = Rc::new(RefCell::new(seed()));
                let power = Power::default();
                let tree = MemoryTree { media: media.clone(), power: power.clone() };
                write(&mut set(tree.clone(), Slot::B, first), first).unwrap();
                power.set(Some(after_steps));
                let result = write(&mut set(tree.clone(), Slot::B, second), second);
                power.set(None);
                media.borrow_mut().land(|i| pattern >> (i % 32) & 1 == 1);
                let story = format!("{first}, then {second} cut after {after_steps}, {pattern:x}");
                check(&media.borrow(), Slot::A, 1).unwrap_or_else(|e| panic!("{story}: {e}"));
                if result.is_ok() {
                    check(&media.borrow(), Slot::B, second).unwrap_or_else(|e| panic!("{story}: {e}"));
                }
                write(&mut set(tree, Slot::B, third), third).unwrap();
                check(&media.borrow(), Slot::B, third)
                    .unwrap_or_else(|e| panic!("{story}, then {third}: {e}"));
                if let Err(cut) = result {
                    assert_eq!(cut.kind(), Kind::PowerCut, "{story}");
                    cuts += 1;
                } else {
                    break;
                }
            }
        }
    }
    assert!(cuts > 60, "{cuts}");
}
