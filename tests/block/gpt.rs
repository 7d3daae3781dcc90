use twinhull::block::Table;

use crate::tools::{Image, MIB, Scratch, device_script};

const SECTOR_SIZES: [u64; 2] = [512, 4096];

fn device(scratch: &Scratch, sector_bytes: u64) -> Image {
    scratch.fdisk(32 * MIB, sector_bytes, &device_script(sector_bytes))
}

#[test]
fn reads_what_fdisk_reads() {
    let scratch = Scratch::new();
    for sector_bytes in SECTOR_SIZES {
        let mut image = device(&scratch, sector_bytes);
        let (_, expected) = scratch.judged_by_fdisk(&image, sector_bytes);
        assert_eq!(expected.len(), 5);
        assert_eq!(image.partitions(sector_bytes), expected);
    }
}

#[test]
fn reads_what_sgdisk_makes_with_gaps_and_large_tables() {
    let scratch = Scratch::new();
    let args = ["-S", "256", "-n", "2:0:+1M", "-c", "2:ä b", "-n", "200:0:+2M", "-c", "200:last"];
    let mut image = scratch.sgdisk(16 * MIB, &args);
    let (_, expected) = scratch.judged_by_fdisk(&image, 512);
    assert_eq!(expected.iter().map(|e| e.number).collect::<Vec<_>>(), [2, 200]);
    let mut found = image.partitions(512);
    // fdisk in the C locale writes what is not ASCII in its own way.
    assert_eq!(found[0].name, "ä b");
    found[0].name = expected[0].name.clone();
    assert_eq!(found, expected);
}

#[test]
fn a_disk_without_a_table_has_none() {
    for len in [0, 512, 4096, 16 * MIB] {
        let mut image = Image { len, sectors: Default::default() };
        for sector_bytes in SECTOR_SIZES {
            assert_eq!(image.table(sector_bytes).unwrap(), None, "{len}");
        }
    }
    assert!(Image { len: MIB, sectors: Default::default() }.table(1000).is_err());
}

#[test]
fn a_damaged_primary_is_replaced_by_the_backup_and_the_other_way_round() {
    let scratch = Scratch::new();
    for sector_bytes in SECTOR_SIZES {
        let image = device(&scratch, sector_bytes);
        let expected = image.clone().partitions(sector_bytes);
        let (primary, last) = (sector_bytes / 512, image.len / 512 - sector_bytes / 512);
        for at in [primary, primary + sector_bytes / 512, last] {
            let mut damaged = image.clone();
            damaged.sector_mut(at)[60] ^= 1;
            assert_eq!(damaged.partitions(sector_bytes), expected, "sector {at}");
        }
        let mut damaged = image.clone();
        damaged.sector_mut(primary)[60] ^= 1;
        damaged.sector_mut(last)[60] ^= 1;
        let e = damaged.table(sector_bytes).unwrap_err().to_string();
        assert!(e.starts_with("GPT: both copies are damaged: header at LBA 1: CRC of the header is "), "{e}");
    }
}

/// Linux reads the backup only when asked to; so a primary that is whole must be believed whatever the backup is.
#[test]
fn every_bit_flip_gives_the_same_table_or_an_error() {
    let scratch = Scratch::new();
    let mut image = scratch.fdisk(
        2 * MIB,
        512,
        "label: gpt\nfirst-lba: 34\nstart=64, size=64, name=a\nstart=128, size=64, name=b\n",
    );
    let expected = image.partitions(512);
    let sectors = image.len / 512;
    // Headers, and the first entry sectors of each copy. Sector 0 has no checksum.
    for at in [1, 2, 3, sectors - 33, sectors - 32, sectors - 1] {
        for bit in 0..512 * 8 {
            let flip = |image: &mut Image| image.sector_mut(at)[bit / 8] ^= 1 << (bit % 8);
            flip(&mut image);
            let found = image.table(512).unwrap().unwrap();
            assert_eq!(found.partitions(), expected, "sector {at}, bit {bit}");
            flip(&mut image);
        }
    }
    // The same with nothing to fall back to.
    *image.sector_mut(sectors - 1) = [0; 512];
    for at in [1, 2] {
        for bit in 0..512 * 8 {
            let flip = |image: &mut Image| image.sector_mut(at)[bit / 8] ^= 1 << (bit % 8);
            flip(&mut image);
            match image.table(512) {
                // Behind the header's 92 bytes nothing is checked, and nothing is read.
                Ok(Some(table)) => {
                    assert!(at == 1 && bit >= 92 * 8 && table.partitions() == expected, "{at} {bit}")
                }
                Ok(None) => panic!("sector {at}, bit {bit}: no table"),
                Err(_) => {}
            }
            flip(&mut image);
        }
    }
}

#[test]
fn flips_in_the_first_sector_never_give_another_gpt() {
    let scratch = Scratch::new();
    let mut image = device(&scratch, 512);
    let expected = image.partitions(512);
    for bit in 0..512 * 8 {
        let flip = |image: &mut Image| image.sector_mut(0)[bit / 8] ^= 1 << (bit % 8);
        flip(&mut image);
        match image.table(512) {
            Ok(Some(Table::Gpt(table))) => assert_eq!(table.partitions(), expected),
            // What Linux makes of it: without the protective entry there is no GPT.
            Ok(Some(Table::Mbr(_)) | None) | Err(_) => {
                assert!(bit >= 446 * 8, "bit {bit} is in the boot code")
            }
        }
        flip(&mut image);
    }
}

#[test]
fn every_truncation_gives_the_same_table_or_an_error() {
    let scratch = Scratch::new();
    let mut image = scratch.fdisk(2 * MIB, 512, "label: gpt\nfirst-lba: 34\nstart=64, size=3900, name=a\n");
    let expected = image.partitions(512);
    for len in (0..image.len).step_by(512).chain([1, 511, 513, 1023, 17 * 1024 + 1]) {
        match image.with_len(len).table(512) {
            // Only the backup is gone; everything that may be used is still there.
            Ok(Some(table)) => {
                assert!(table.partitions() == expected && len >= image.len - 33 * 512, "{len}")
            }
            Ok(None) => assert!(len < 512, "{len}"),
            Err(_) => {}
        }
    }
}

/// A header whose checksums are right can still say what cannot be true.
#[test]
fn impossible_headers_are_refused() {
    let scratch = Scratch::new();
    let image = scratch.fdisk(
        2 * MIB,
        512,
        "label: gpt\nfirst-lba: 34\nstart=64, size=64, name=a\nstart=128, size=64, name=b\n",
    );
    let sectors = image.len / 512;
    type Edit = fn(&mut [u8; 512], &mut [u8; 512]);
    let edits: [(&str, Edit, &str); 12] = [
        ("revision", |h, _| h[8] = 1, "revision 00010001"),
        ("too short", |h, _| h[12] = 91, "header of 91 bytes"),
        ("too long", |h, _| h[13] = 3, "header of 860 bytes"),
        ("place", |h, _| h[24] = 2, "belongs at LBA 2"),
        ("no entries", |h, _| h[80] = 0, "0 entries"),
        ("many entries", |h, _| h[83] = 0x7f, "not a size that tools make"),
        ("entry size 0", |h, _| h[84] = 0, "entries of 0 bytes"),
        ("entry size 384", |h, _| (h[84], h[85]) = (0x80, 1), "entries of 384 bytes"),
        ("usable beyond the end", |h, _| h[50] = 1, "do not fit a disk"),
        ("entries among partitions", |h, _| h[72] = 100, "lie where partitions are"),
        ("partition outside", |_, e| e[32] = 3, "outside the usable"),
        ("overlap", |_, e| e[128 + 32] = 100, "partitions 1 and 2 overlap"),
    ];
    for (what, edit, expected) in edits {
        let mut image = image.clone();
        let (mut header, mut entries) = (*image.sector_mut(1), *image.sector_mut(2));
        edit(&mut header, &mut entries);
        *image.sector_mut(2) = entries;
        let count = u32::from_le_bytes(header[80..84].try_into().unwrap());
        if count == 128 {
            let mut all = entries.to_vec();
            all.resize(128 * 128, 0);
            header[88..92].copy_from_slice(&crc32fast::hash(&all).to_le_bytes());
        }
        let size = u32::from_le_bytes(header[12..16].try_into().unwrap()) as usize;
        header[16..20].fill(0);
        let crc = crc32fast::hash(&header[..size.min(512)]);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        *image.sector_mut(1) = header;
        *image.sector_mut(sectors - 1) = [0; 512];
        let e = image.table(512).map(|t| t.map(|t| t.partitions())).unwrap_err().to_string();
        assert!(e.contains(expected), "{what}: {e}");
    }
}
