use twinhull::block::grow::{self, Growth, Step};
use twinhull::block::{Disk, TableEntry};

use crate::tools::{Image, MIB, Scratch, device_script};

pub fn plan(image: &mut Image, sector_bytes: u64, number: u32) -> Option<Growth> {
    let table = image.table(sector_bytes).unwrap().unwrap();
    grow::plan(image, &table, number).unwrap()
}

/// Grows as PID 1 does: until there is nothing left to do.
pub fn grow(image: &mut Image, sector_bytes: u64, number: u32) -> u32 {
    for rounds in 0..4 {
        let Some(growth) = plan(image, sector_bytes, number) else { return rounds };
        grow::apply(image, &growth).unwrap();
    }
    panic!("growing never ends");
}

pub fn only_the_last_grew(before: &[TableEntry], after: &[TableEntry], number: u32) {
    assert_eq!(before.len(), after.len());
    for (b, a) in before.iter().zip(after) {
        let grew = TableEntry { len_bytes: a.len_bytes, ..b.clone() };
        assert_eq!(a, if b.number == number { &grew } else { b });
    }
}

/// Layouts with the number of the last partition, the sector size and the new size of the disk in MiB.
fn layouts(scratch: &Scratch) -> Vec<(&'static str, Image, u32, u64, u64)> {
    let device = |s| scratch.fdisk(32 * MIB, s, &device_script(s));
    let one = "label: gpt\nstart=2048, size=20480, name=resin-data\n";
    vec![
        ("device, 512", device(512), 5, 512, 200),
        ("device, 4096", device(4096), 5, 4096, 200),
        ("enlarged by an odd size", device(512), 5, 512, 101),
        ("one partition", scratch.fdisk(16 * MIB, 512, one), 1, 512, 64),
        ("space left on the same disk", scratch.fdisk(64 * MIB, 512, one), 1, 512, 64),
        ("256 entries", scratch.sgdisk(16 * MIB, &["-S", "256", "-n", "200:0:+4M"]), 200, 512, 64),
        (
            "last by place, not by number",
            scratch.sgdisk(16 * MIB, &["-n", "2:0:+1M", "-n", "1:0:+1M"]),
            1,
            512,
            64,
        ),
        (
            "gap before",
            scratch.sgdisk(16 * MIB, &["-n", "1:0:+1M", "-n", "7:8M:+1M", "-A", "7:set:2"]),
            7,
            512,
            64,
        ),
        ("end not aligned", scratch.sgdisk(16 * MIB, &["-a", "1", "-n", "1:34:5001"]), 1, 512, 64),
    ]
}

#[test]
fn grown_tables_satisfy_sgdisk_and_fdisk() {
    let scratch = Scratch::new();
    for (what, image, number, sector_bytes, mib) in layouts(&scratch) {
        let mut image = image.with_len(mib * MIB + if what.contains("odd") { 13 * 512 } else { 0 });
        let before = image.partitions(sector_bytes);
        assert_eq!(grow(&mut image, sector_bytes, number), 1, "{what}");
        let after = image.partitions(sector_bytes);
        only_the_last_grew(&before, &after, number);
        let last = after.iter().find(|p| p.number == number).unwrap();
        let end = last.start_bytes + last.len_bytes;
        assert!(end % MIB == 0 && end + 2 * MIB > image.len, "{what}: ends at {end} of {}", image.len);

        let (complaints, seen) = scratch.judged_by_fdisk(&image, sector_bytes);
        assert_eq!((complaints.as_str(), seen), ("", after), "{what}");
        if sector_bytes == 512 {
            let verdict = scratch.judged_by_sgdisk(&image);
            assert!(verdict.starts_with("No problems found"), "{what}: {verdict}");
        }
        assert_eq!(plan(&mut image, sector_bytes, number), None, "{what}: twice is once");
        // A disk that becomes larger once more.
        let mut larger = image.with_len(image.len + 50 * MIB);
        assert_eq!(grow(&mut larger, sector_bytes, number), 1, "{what}");
        assert_eq!(scratch.judged_by_fdisk(&larger, sector_bytes).0, "", "{what}");
    }
}

#[test]
fn sizes_are_told_and_the_protective_mbr_keeps_its_boot_code() {
    let scratch = Scratch::new();
    let mut image = scratch.fdisk(32 * MIB, 512, &device_script(512)).with_len(200 * MIB);
    image.sector_mut(0)[..446].fill(0x5a);
    let growth = plan(&mut image, 512, 5).unwrap();
    assert_eq!((growth.from_bytes, growth.to_bytes), (8 * MIB, 181 * MIB));
    grow::apply(&mut image, &growth).unwrap();
    let first = image.sector_mut(0);
    assert!(first[..446].iter().all(|b| *b == 0x5a));
    assert_eq!(u32::from_le_bytes(first[458..462].try_into().unwrap()), 200 * 2048 - 1);
}

/// The writes between two flushes, sector by sector.
pub fn groups(growth: &Growth) -> Vec<Vec<(u64, Vec<u8>)>> {
    let mut groups = vec![Vec::new()];
    for step in &growth.steps {
        match step {
            Step::Write { offset, bytes } => {
                let sectors = bytes.chunks(512).zip((*offset..).step_by(512));
                groups.last_mut().unwrap().extend(sectors.map(|(s, at)| (at, s.to_vec())));
            }
            Step::Flush => groups.push(Vec::new()),
        }
    }
    assert_eq!(groups.pop().unwrap(), Vec::new(), "the last step is a flush");
    groups
}

/// Every state that a cut may leave: the groups before are whole; of the group under way any sectors may have
/// landed, in any order. All subsets would be too many: each prefix, each suffix, each sector alone, each alone
/// missing.
pub fn cuts(image: &Image, growth: &Growth, see: &mut impl FnMut(Image)) {
    let mut image = image.clone();
    for group in groups(growth) {
        let n = group.len();
        let mut try_subset = |landed: &dyn Fn(usize) -> bool| {
            let mut cut = image.clone();
            for (i, (at, sector)) in group.iter().enumerate() {
                if landed(i) {
                    cut.write_at(*at, sector).unwrap();
                }
            }
            see(cut);
        };
        for k in 0..n {
            try_subset(&|i| i < k);
            try_subset(&|i| i >= k);
            try_subset(&|i| i == k);
            try_subset(&|i| i != k);
        }
        for (at, sector) in &group {
            image.write_at(*at, sector).unwrap();
        }
    }
    see(image);
}

/// The primary table alone: all that Linux and GRUB look at.
fn primary(image: &Image, sector_bytes: u64) -> Vec<TableEntry> {
    let mut image = image.clone();
    let last = image.len / sector_bytes * sector_bytes - sector_bytes;
    *image.sector_mut(last / 512) = [0; 512];
    image.partitions(sector_bytes)
}

#[test]
fn every_cut_leaves_the_primary_table_old_or_new_and_the_next_boot_finishes() {
    let scratch = Scratch::new();
    for (what, image, number, sector_bytes, mib) in layouts(&scratch) {
        let mut old = image.with_len(mib * MIB);
        let mut new = old.clone();
        grow(&mut new, sector_bytes, number);
        let (before, after) = (old.partitions(sector_bytes), new.partitions(sector_bytes));
        let growth = plan(&mut old, sector_bytes, number).unwrap();
        let mut seen = [0, 0];
        cuts(&old, &growth, &mut |mut cut| {
            let found = primary(&cut, sector_bytes);
            assert!(found == before || found == after, "{what}: {found:?}");
            seen[usize::from(found == after)] += 1;
            assert_eq!(cut.partitions(sector_bytes), found, "{what}");
            grow(&mut cut, sector_bytes, number);
            assert!(cut == new, "{what}: the next boot ends elsewhere");
        });
        assert!(seen[0] > 100 && seen[1] > 100, "{what}: {seen:?}");
    }
}

#[test]
fn other_tools_can_read_every_stage() {
    let scratch = Scratch::new();
    let mut old = scratch.fdisk(32 * MIB, 512, &device_script(512)).with_len(100 * MIB);
    let mut new = old.clone();
    grow(&mut new, 512, 5);
    let (before, after) = (old.partitions(512), new.partitions(512));
    let growth = plan(&mut old, 512, 5).unwrap();
    let mut image = old.clone();
    for (stage, group) in groups(&growth).iter().enumerate() {
        for (at, sector) in group {
            image.write_at(*at, sector).unwrap();
        }
        let (_, seen) = scratch.judged_by_fdisk(&image, 512);
        assert_eq!(seen, if stage == 0 { before.clone() } else { after.clone() }, "stage {stage}");
        let file = scratch.path("repaired");
        image.save(&file);
        crate::tools::must("sfdisk", &["--verify", file.to_str().unwrap()], "");
        // sgdisk moves the backup, if it must, and is then content; but as long as the primary borrows the
        // backup's entries it says so.
        crate::tools::must("sgdisk", &["-e", file.to_str().unwrap()], "");
        let verdict = scratch.judged_by_sgdisk(&Image::load(&file));
        let expected = match stage {
            1 | 2 => "Problem: Main partition table extends past the first usable LBA",
            _ => "No problems found",
        };
        assert!(verdict.starts_with(expected), "stage {stage}: {verdict}");
    }
}

/// A cut behind the switch, and then a disk that became larger by less than a table.
#[test]
fn an_interrupted_growth_on_a_disk_that_grew_again_is_finished_first() {
    let scratch = Scratch::new();
    for more in [512, 16 * 512, 33 * 512, 64 * MIB] {
        let mut old = scratch.fdisk(32 * MIB, 512, &device_script(512)).with_len(100 * MIB);
        let growth = plan(&mut old, 512, 5).unwrap();
        let switched = groups(&growth).into_iter().take(2).flatten();
        for (at, sector) in switched {
            old.write_at(at, &sector).unwrap();
        }
        let mut larger = old.with_len(old.len + more);
        let next = plan(&mut larger, 512, 5).unwrap();
        assert_eq!(next.from_bytes, next.to_bytes);
        let expected = larger.partitions(512);
        cuts(&larger.clone(), &next, &mut |cut| assert_eq!(primary(&cut, 512), expected));
        grow(&mut larger, 512, 5);
        assert_eq!(plan(&mut larger, 512, 5), None);
        if more > 10 * MIB {
            assert_eq!(scratch.judged_by_fdisk(&larger, 512).0, "");
        }
    }
}

#[test]
fn nothing_worthwhile_is_left_alone() {
    let scratch = Scratch::new();
    let mut image = scratch.fdisk(32 * MIB, 512, &device_script(512));
    assert_eq!(plan(&mut image, 512, 5), None, "6 MiB");
    let one = "label: gpt\nstart=2048, size=20480, name=resin-data\n";
    // Ten whole MiB behind the partition, which ends at 11 MiB, and less than one for the backup table.
    assert_eq!(plan(&mut scratch.fdisk(22 * MIB - 512, 512, one), 512, 1), None);
    assert!(plan(&mut scratch.fdisk(24 * MIB, 512, one), 512, 1).is_some());
}

/// A disk that became larger by less than what is worthwhile: tools want the backup at its end all the same.
#[test]
fn the_backup_follows_the_end_of_the_disk() {
    let scratch = Scratch::new();
    let old = scratch.fdisk(32 * MIB, 512, &device_script(512));
    for more in [512, 40 * 512, MIB, 5 * MIB + 512] {
        let mut image = old.with_len(32 * MIB + more);
        grow(&mut image, 512, 5);
        assert!(scratch.judged_by_sgdisk(&image).starts_with("No problems found"), "{more}");
        assert_eq!(plan(&mut image, 512, 5), None, "{more}");
    }
}

#[test]
fn tables_that_are_not_understood_are_left_alone() {
    let scratch = Scratch::new();
    let refused = |image: &mut Image, number: u32| {
        let table = image.table(512).unwrap().unwrap();
        grow::plan(image, &table, number).unwrap_err().to_string()
    };
    let device = scratch.fdisk(32 * MIB, 512, &device_script(512)).with_len(100 * MIB);

    assert_eq!(refused(&mut device.clone(), 4), "partition 4 is not the last on the disk");
    assert_eq!(refused(&mut device.clone(), 9), "partition 9 is not in the partition table");

    let mut damaged = scratch.fdisk(32 * MIB, 512, &device_script(512));
    *damaged.sector_mut(1) = [0; 512];
    assert!(refused(&mut damaged, 5).starts_with("the primary GPT is damaged"));

    let mut moved = scratch.sgdisk(32 * MIB, &["-j", "64", "-n", "1:0:+1M"]).with_len(100 * MIB);
    assert!(refused(&mut moved, 1).starts_with("the primary GPT's entries are at LBA 64, not 2"));
}

#[test]
fn a_hybrid_mbr_is_not_touched() {
    let scratch = Scratch::new();
    let mut image =
        scratch.sgdisk(32 * MIB, &["-n", "1:0:+4M", "-n", "2:0:+4M", "-h", "1"]).with_len(100 * MIB);
    let first = *image.sector_mut(0);
    grow(&mut image, 512, 2);
    assert!(*image.sector_mut(0) == first);
}
