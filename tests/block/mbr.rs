use twinhull::block::{Table, TableEntry};

use crate::tools::{Image, MIB, Scratch, must};

/// balenaOS's layout on a Raspberry Pi: three primary partitions, and two logical ones.
pub fn raspberry(sector_bytes: u64) -> String {
    let mut script = String::from("label: dos\nlabel-id: 0x1a2b3c4d\n");
    let sectors = |mib: u64| mib * MIB / sector_bytes;
    for (number, start, len, kind) in [
        (1, 4, 4, "c"),
        (2, 8, 4, "83"),
        (3, 12, 4, "83"),
        (4, 16, 32, "f"),
        (5, 20, 4, "83"),
        (6, 28, 20, "83"),
    ] {
        script += &format!("{number}: start={}, size={}, type={kind}\n", sectors(start), sectors(len));
    }
    script
}

fn by_sfdisk(scratch: &Scratch, image: &Image) -> Vec<TableEntry> {
    let file = scratch.path("judged");
    image.save(&file);
    let json: serde_json::Value =
        serde_json::from_str(&must("sfdisk", &["-J", file.to_str().unwrap()], "")).unwrap();
    let table = &json["partitiontable"];
    let id = table["id"].as_str().unwrap().trim_start_matches("0x").to_owned();
    let all = table["partitions"].as_array().unwrap().iter();
    all.filter(|p| !["5", "f", "85"].contains(&p["type"].as_str().unwrap()))
        .map(|p| {
            let number: u32 =
                p["node"].as_str().unwrap().trim_start_matches(file.to_str().unwrap()).parse().unwrap();
            TableEntry {
                number,
                start_bytes: p["start"].as_u64().unwrap() * 512,
                len_bytes: p["size"].as_u64().unwrap() * 512,
                partuuid: format!("{id}-{number:02x}"),
                name: String::new(),
            }
        })
        .collect()
}

#[test]
fn reads_what_sfdisk_reads() {
    let scratch = Scratch::new();
    let scripts = [
        raspberry(512),
        "label: dos\nstart=2048, size=2048, type=83\n".into(),
        "label: dos\n2: start=2048, size=2048, type=83\n4: start=8192, size=2048, type=7\n".into(),
        // Only logical ones, twelve of them.
        (0..12).fold("label: dos\n1: start=2048, size=100000, type=5\n".into(), |s, i| {
            s + &format!("{}: start={}, size=2048, type=83\n", 5 + i, 4096 * (i + 1))
        }),
        // An empty container.
        "label: dos\n1: start=2048, size=2048, type=83\n2: start=8192, size=8192, type=85\n".into(),
    ];
    for script in scripts {
        let mut image = scratch.fdisk(64 * MIB, 512, &script);
        let expected = by_sfdisk(&scratch, &image);
        assert_eq!(image.partitions(512), expected, "{script}");
    }
}

#[test]
fn a_partition_deleted_from_the_chain_leaves_the_others() {
    let scratch = Scratch::new();
    let script = (0..4).fold("label: dos\n1: start=2048, size=100000, type=5\n".to_owned(), |s, i| {
        s + &format!("{}: start={}, size=2048, type=83\n", 5 + i, 4096 * (i + 1))
    });
    let image = scratch.fdisk(64 * MIB, 512, &script);
    for deleted in ["5", "6", "8"] {
        let file = scratch.path("deleted");
        image.save(&file);
        must("sfdisk", &["-q", "--delete", file.to_str().unwrap(), deleted], "");
        let mut image = Image::load(&file);
        let expected = by_sfdisk(&scratch, &image);
        assert_eq!(expected.len(), 3);
        assert_eq!(image.partitions(512), expected, "{deleted}");
    }
}

#[test]
fn sectors_of_4096_bytes() {
    let scratch = Scratch::new();
    let mut small = scratch.fdisk(64 * MIB, 512, &raspberry(512));
    let mut large = scratch.fdisk(64 * MIB, 4096, &raspberry(4096));
    assert_eq!(large.partitions(4096), small.partitions(512));
}

#[test]
fn impossible_tables_are_refused() {
    let scratch = Scratch::new();
    let image = scratch.fdisk(64 * MIB, 512, &raspberry(512));
    let second_record = u64::from(u32::from_le_bytes(
        image.sectors[&(16 * 2048)][446 + 16 + 8..446 + 16 + 12].try_into().unwrap(),
    ));
    type Edit<'a> = &'a dyn Fn(&mut Image);
    let edits: [(&str, Edit, &str); 9] = [
        ("boot code instead of a table", &|i| i.sector_mut(0)[446] = 0x33, "not a table"),
        ("overlap", &|i| i.sector_mut(0)[446 + 16 + 8 + 1] = 0x38, "partitions 1 and 2 overlap"),
        ("beyond the end", &|i| i.sector_mut(0)[446 + 16 + 12 + 2] = 0x7f, "beyond the end"),
        ("starts at the table", &|i| i.sector_mut(0)[446 + 8..446 + 12].fill(0), "beyond the end"),
        ("two containers", &|i| i.sector_mut(0)[446 + 4] = 5, "two extended"),
        ("a protective entry elsewhere", &|i| i.sector_mut(0)[446 + 4] = 0xee, "protects a GPT"),
        (
            "no record",
            &|i| i.sector_mut(16 * 2048)[510] = 0,
            "extended boot record at LBA 32768: no signature",
        ),
        ("a loop", &|i| i.sector_mut(16 * 2048)[446 + 16 + 8..446 + 16 + 12].fill(0), "next record"),
        (
            "a logical partition beyond its container",
            &|i| i.sector_mut(16 * 2048 + second_record)[446 + 12 + 2] = 1,
            "beyond the end",
        ),
    ];
    for (what, edit, expected) in edits {
        let mut image = image.clone();
        edit(&mut image);
        let e = image.table(512).map(|t| t.map(|t| t.partitions())).unwrap_err().to_string();
        assert!(e.contains(expected), "{what}: {e}");
    }
}

#[test]
fn flips_and_truncations_end_in_a_table_within_the_disk_or_an_error() {
    let scratch = Scratch::new();
    let mut image = scratch.fdisk(64 * MIB, 512, &raspberry(512));
    let records: Vec<u64> = image.sectors.keys().copied().collect();
    assert_eq!(records.len(), 3, "the MBR and two extended boot records");
    let within = |image: &mut Image| {
        if let Ok(Some(Table::Mbr(table))) = image.table(512) {
            assert!(table.partitions().iter().all(|p| p.start_bytes + p.len_bytes <= image.len));
        }
    };
    for at in records {
        for bit in 0..512 * 8 {
            let flip = |image: &mut Image| image.sector_mut(at)[bit / 8] ^= 1 << (bit % 8);
            flip(&mut image);
            within(&mut image);
            flip(&mut image);
        }
    }
    for len in (0..image.len).step_by(4096 - 512) {
        within(&mut image.with_len(len));
    }
}

/// What is on a stick without a table: its first sector ends in the same two bytes.
#[test]
fn a_fat_without_a_table_is_no_table() {
    let scratch = Scratch::new();
    let file = scratch.path("fat");
    Image { len: 8 * MIB, sectors: Default::default() }.save(&file);
    must("mkfs.vfat", &["-n", "STICK", file.to_str().unwrap()], "");
    // An empty table is fine too: nothing is found in it.
    let table = Image::load(&file).table(512);
    assert!(
        table.is_err() || table.as_ref().is_ok_and(|t| t.as_ref().is_some_and(|t| t.partitions().is_empty()))
    );
}
