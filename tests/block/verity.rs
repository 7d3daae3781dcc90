//! Hash trees made by veritysetup: read as it reads them, checked as it checks them.

use std::path::{Path, PathBuf};

use twinhull::block::{FileDisk, HashTree};
use twinhull::model::{Digest, Verity};

use crate::tools::{Image, Scratch, must, run};

/// An image of data and its tree, as `bundle create` gets it.
struct Made {
    scratch: Scratch,
    image: PathBuf,
    verity: Verity,
}

/// `veritysetup format` of `blocks` blocks of data, with `options`.
fn made(blocks: u64, block_bytes: u64, options: &[&str]) -> Made {
    let scratch = Scratch::new();
    let image = scratch.path("image");
    let data: Vec<u8> = (0..blocks * block_bytes).map(|i| (i % 251 + i / block_bytes) as u8).collect();
    std::fs::write(&image, data).unwrap();
    let hash_offset = (blocks * block_bytes).next_multiple_of(4096);
    let (name, offset) = (image.to_str().unwrap(), hash_offset.to_string());
    let count = blocks.to_string();
    let args = ["format", "--hash-offset", &offset, "--data-blocks", &count];
    let said = must("veritysetup", &[&args, options, &[name, name]].concat(), "");
    let root = said.lines().find_map(|l| l.strip_prefix("Root hash:")).unwrap().trim();
    Made { verity: Verity { root_hash: root.parse().unwrap(), hash_offset }, scratch, image }
}

fn open(image: &Path, verity: &Verity) -> twinhull::Result<(HashTree, FileDisk)> {
    let mut disk = FileDisk::open_read_only(image)?;
    Ok((HashTree::read(&mut disk, verity)?, disk))
}

fn check(image: &Path, verity: &Verity) -> twinhull::Result<()> {
    let (tree, mut disk) = open(image, verity)?;
    tree.check(&mut disk)
}

/// One block, less and more than fit into one block of hashes, three levels.
const SHAPES: [(u64, u64, &[&str]); 8] = [
    (1, 4096, &[]),
    (2, 4096, &[]),
    (128, 4096, &[]),
    (129, 4096, &["--salt", "-"]),
    (20_000, 4096, &[]),
    (300, 512, &["--data-block-size", "512", "--hash-block-size", "512"]),
    (300, 1024, &["--data-block-size", "1024", "--salt", "00ff"]),
    (77, 4096, &["--hash-block-size", "1024"]),
];

#[test]
fn every_shape_of_veritysetup_is_checked_as_it_does() {
    for (blocks, block_bytes, options) in SHAPES {
        let made = made(blocks, block_bytes, options);
        check(&made.image, &made.verity).unwrap_or_else(|e| panic!("{blocks} {options:?}: {e}"));
    }
}

/// What `veritysetup open` gives the kernel cannot be asked here; `dump` tells each number that it is made of.
#[test]
fn the_table_has_the_numbers_of_veritysetup() {
    for (blocks, block_bytes, options) in SHAPES {
        let made = made(blocks, block_bytes, options);
        let (tree, _) = open(&made.image, &made.verity).unwrap();
        let table = tree.table(Path::new("/dev/x2"));
        let offset = made.verity.hash_offset.to_string();
        let dump = must("veritysetup", &["dump", "--hash-offset", &offset, made.image.to_str().unwrap()], "");
        let field = |name: &str| {
            let line =
                dump.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {dump}"));
            line.trim().trim_end_matches(" [bytes]").to_owned()
        };
        let words: Vec<&str> = table.parameters.split(' ').collect();
        assert_eq!(words[..3], [field("Hash type:").as_str(), "/dev/x2", "/dev/x2"]);
        assert_eq!(words[3], field("Data block size:"));
        assert_eq!(words[4], field("Hash block size:"));
        assert_eq!(words[5], field("Data blocks:"));
        // Behind the superblock, in the next block of hashes.
        let hash_block: u64 = words[4].parse().unwrap();
        assert_eq!(words[6], (made.verity.hash_offset / hash_block + 1).to_string());
        assert_eq!(words[7], field("Hash algorithm:"));
        assert_eq!(
            (words[8].to_owned(), words[9]),
            (made.verity.root_hash.to_string(), field("Salt:").as_str())
        );
        assert_eq!((words.len(), table.sectors), (10, blocks * block_bytes / 512));
    }
}

/// One bit anywhere: in the data, in the tree, in the superblock where it counts. The kernel's way is to verify; veritysetup
/// does the same in user space.
#[test]
fn one_flipped_bit_is_found_wherever_veritysetup_finds_it() {
    let made = made(300, 4096, &[]);
    let whole = Image::load(&made.image);
    let (name, offset) = (made.image.to_str().unwrap(), made.verity.hash_offset.to_string());
    let root = made.verity.root_hash.to_string();
    let tree_at = made.verity.hash_offset;
    let mut found = 0;
    for at in
        [0, 4096 * 150 + 77, 4096 * 300 - 1, tree_at + 4096, tree_at + 2 * 4096 + 31, tree_at + 4 * 4096]
            .into_iter()
            // Signature, version, type, algorithm, sizes, blocks, salt.
            .chain([0, 8, 12, 32, 64, 68, 72, 80, 88].map(|n| tree_at + n))
    {
        let mut image = whole.clone();
        image.sector_mut(at / 512)[(at % 512) as usize] ^= 1;
        image.save(&made.image);
        let args = ["verify", "--hash-offset", &offset, name, name, &root];
        let (good, said) = run("veritysetup", &args, "");
        let ours = check(&made.image, &made.verity);
        assert_eq!(ours.is_ok(), good, "byte {at}: {ours:?}, veritysetup: {said}");
        found += usize::from(!good);
    }
    assert!(found >= 14, "{found}");
    drop(made.scratch);
}

#[test]
fn another_root_hash_or_place_and_a_tree_over_the_data_are_refused() {
    let made = made(300, 4096, &[]);
    for wrong in [
        Verity { root_hash: Digest([0; 32]), ..made.verity },
        Verity { hash_offset: made.verity.hash_offset - 4096, ..made.verity },
        Verity { hash_offset: u64::MAX, ..made.verity },
        Verity { hash_offset: 0, ..made.verity },
    ] {
        check(&made.image, &wrong).unwrap_err();
    }
    // The superblock copied to the start of the image: it would say that the tree lies where the data is.
    let mut image = Image::load(&made.image);
    let superblock = image.sectors[&(made.verity.hash_offset / 512)];
    *image.sector_mut(8) = superblock;
    image.save(&made.image);
    let e = check(&made.image, &Verity { hash_offset: 4096, ..made.verity }).unwrap_err();
    assert!(e.to_string().contains("does not lie behind the data"), "{e}");
    let sha3 = self::made(4, 4096, &["--hash", "sha3-256"]);
    let e = check(&sha3.image, &sha3.verity).unwrap_err();
    assert!(e.to_string().contains("another algorithm"), "{e}");
}
