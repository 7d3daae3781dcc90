//! More than twenty layouts, grown as a device would: judged by the real tools, under every cut, and on loop devices
//! by the kernel.

use std::path::Path;

use twinhull::block::{Disk, FileDisk, Table, TableEntry, grow};

use crate::grow::{cuts, grow as grow_all, only_the_last_grew, plan};
use crate::mbr::raspberry;
use crate::tools::{Image, MIB, Scratch, device_script, must, run, unmount};

struct Layout {
    what: &'static str,
    image: Image,
    number: u32,
    sector_bytes: u64,
    /// The disk's sizes after it was made, one after the other, in MiB.
    sizes: Vec<u64>,
    /// Whether there is anything to grow into.
    grows: bool,
}

fn layout(what: &'static str, image: Image, number: u32, sector_bytes: u64, sizes: &[u64]) -> Layout {
    Layout { what, image, number, sector_bytes, sizes: sizes.to_vec(), grows: true }
}

fn without_backup(mut image: Image, sector_bytes: u64) -> Image {
    let last = image.len / sector_bytes * sector_bytes - sector_bytes;
    *image.sector_mut(last / 512) = [0; 512];
    image
}

/// Partitions by start, size and type, for any sector size.
fn dos(sector_bytes: u64, rows: &[(u32, u64, u64, &str)]) -> String {
    let sectors = |kib: u64| kib * 1024 / sector_bytes;
    rows.iter().fold("label: dos\nlabel-id: 0x1a2b3c4d\n".to_owned(), |s, (number, start, len, kind)| {
        s + &format!("{number}: start={}, size={}, type={kind}\n", sectors(*start), sectors(*len))
    })
}

fn layouts(scratch: &Scratch) -> Vec<Layout> {
    let device = |s| scratch.fdisk(32 * MIB, s, &device_script(s));
    let pi = |s| scratch.fdisk(64 * MIB, s, &raspberry(s));
    let one = "label: gpt\nstart=2048, size=20480, name=resin-data\n";
    let mbr = |s, rows: &[(u32, u64, u64, &str)]| scratch.fdisk(64 * MIB, s, &dos(s, rows));
    let nine: Vec<_> = (5..14).map(|n| (n, 4096 * u64::from(n - 4), 2048, "83")).collect();
    let many = [&[(1, 2048, 51200, "5")], nine.as_slice()].concat();
    let mut deleted = mbr(512, &many);
    let file = scratch.path("deleted");
    deleted.save(&file);
    must("sfdisk", &["-q", "--delete", file.to_str().unwrap(), "8"], "");
    deleted = Image::load(&file);
    let nothing = Layout {
        grows: false,
        ..layout("GPT, backup missing, no room", without_backup(device(512), 512), 5, 512, &[32])
    };
    vec![
        layout("GPT device, 512", device(512), 5, 512, &[200]),
        layout("GPT device, 4096", device(4096), 5, 4096, &[200]),
        layout("GPT, grew three times, 512", device(512), 5, 512, &[64, 65, 150, 300]),
        layout("GPT, grew twice, 4096", device(4096), 5, 4096, &[64, 300]),
        layout("GPT, one partition", scratch.fdisk(16 * MIB, 512, one), 1, 512, &[64]),
        layout("GPT, space left on the disk", scratch.fdisk(64 * MIB, 512, one), 1, 512, &[64]),
        layout(
            "GPT, 256 entries",
            scratch.sgdisk(16 * MIB, &["-S", "256", "-n", "200:0:+4M"]),
            200,
            512,
            &[64],
        ),
        layout(
            "GPT, last by place, not by number",
            scratch.sgdisk(16 * MIB, &["-n", "2:0:+2M", "-n", "1:0:+2M"]),
            1,
            512,
            &[64],
        ),
        layout(
            "GPT, gap, attributes",
            scratch.sgdisk(16 * MIB, &["-n", "1:0:+1M", "-n", "7:8M:+2M", "-A", "7:set:2"]),
            7,
            512,
            &[64],
        ),
        layout(
            "GPT, end not aligned",
            scratch.sgdisk(16 * MIB, &["-a", "1", "-n", "1:34:5001"]),
            1,
            512,
            &[64],
        ),
        layout("GPT, backup missing, 512", without_backup(device(512), 512), 5, 512, &[200]),
        layout("GPT, backup missing, 4096", without_backup(device(4096), 4096), 5, 4096, &[200]),
        nothing,
        layout("MBR, Raspberry Pi, 512", pi(512), 6, 512, &[200]),
        layout("MBR, Raspberry Pi, 4096", pi(4096), 6, 4096, &[200]),
        layout("MBR, grew three times, 512", pi(512), 6, 512, &[100, 101, 150, 300]),
        layout("MBR, grew twice, 4096", pi(4096), 6, 4096, &[100, 300]),
        layout("MBR, one primary", mbr(512, &[(1, 2048, 8192, "83")]), 1, 512, &[100]),
        layout(
            "MBR, four primary, last by place",
            mbr(
                512,
                &[(1, 2048, 2048, "c"), (2, 16384, 4096, "83"), (3, 4096, 2048, "83"), (4, 8192, 2048, "83")],
            ),
            2,
            512,
            &[100],
        ),
        layout("MBR, one logical", mbr(512, &[(2, 2048, 8192, "f"), (5, 3072, 4096, "83")]), 5, 512, &[100]),
        layout("MBR, nine logical", mbr(512, &many), 13, 512, &[100]),
        layout("MBR, one of nine deleted", deleted, 12, 512, &[100]),
        layout(
            "MBR, Linux container that reaches the end already",
            mbr(
                512,
                &[
                    (1, 2048, 2048, "83"),
                    (4, 4096, 60416, "85"),
                    (5, 5120, 4096, "83"),
                    (6, 10240, 4096, "83"),
                ],
            ),
            6,
            512,
            &[64],
        ),
        layout(
            "MBR, container in front of a primary",
            mbr(512, &[(1, 2048, 8192, "5"), (5, 3072, 4096, "83"), (2, 12288, 4096, "83")]),
            2,
            512,
            &[100],
        ),
    ]
}

/// An ext4 with files in the partition that grows, and a pattern in the others.
fn with_contents(scratch: &Scratch, l: &Layout) -> Image {
    let tree = scratch.path("tree");
    if !tree.exists() {
        std::fs::create_dir_all(tree.join("sub")).unwrap();
        std::fs::write(tree.join("sub/file"), "kept".repeat(50_000)).unwrap();
        std::os::unix::fs::symlink("sub/file", tree.join("link")).unwrap();
    }
    let mut image = l.image.clone();
    for p in image.partitions(l.sector_bytes) {
        if p.number == l.number {
            let fs = scratch.path("fs");
            let _ = std::fs::remove_file(&fs);
            let size = format!("{}k", p.len_bytes / 1024);
            let args = ["-q", "-t", "ext4", "-b", "4096", "-d"];
            must(
                "mke2fs",
                &[&args as &[_], &[tree.to_str().unwrap(), fs.to_str().unwrap(), &size]].concat(),
                "",
            );
            for (at, sector) in Image::load(&fs).sectors {
                image.sectors.insert(p.start_bytes / 512 + at, sector);
            }
        } else {
            for at in [0, p.len_bytes / 512 - 1] {
                *image.sector_mut(p.start_bytes / 512 + at) = [u8::try_from(p.number).unwrap(); 512];
            }
        }
    }
    image
}

/// The bytes of partitions as they were.
fn contents(image: &Image, partitions: &[TableEntry]) -> Vec<(u64, [u8; 512])> {
    let within = |at: u64| {
        partitions.iter().any(|p| (p.start_bytes..p.start_bytes + p.len_bytes).contains(&(at * 512)))
    };
    image.sectors.iter().filter(|(at, _)| within(**at)).map(|(at, s)| (*at, *s)).collect()
}

/// `sfdisk --verify` and, for 512-byte sectors and GPT, `sgdisk -v`. sfdisk takes no sector size for a file: fdisk
/// judges those.
fn judged(scratch: &Scratch, image: &Image, l: &Layout) {
    let file = scratch.path("judged");
    image.save(&file);
    let file = file.to_str().unwrap();
    if l.sector_bytes == 512 {
        let (ok, said) = run("sfdisk", &["--verify", file], "");
        let fine =
            ok && !["overlap", "outside", "mismatch", "corrupt", "bad"].iter().any(|w| said.contains(w));
        assert!(fine, "{}: {said}", l.what);
        if l.what.starts_with("GPT") {
            let said = scratch.judged_by_sgdisk(image);
            assert!(said.starts_with("No problems found"), "{}: {said}", l.what);
        }
    } else {
        let said = must("fdisk", &["-b", &l.sector_bytes.to_string(), file], "v\nq\n");
        let faults = ["mismatch", "not on the end", "corrupt", "overlap", "greater", "bad"];
        assert!(!faults.iter().any(|w| said.contains(w)), "{}: {said}", l.what);
    }
}

#[test]
fn every_layout_grows_to_the_end_with_its_contents_and_satisfies_the_tools() {
    let scratch = Scratch::new();
    let all = layouts(&scratch);
    assert!(all.len() >= 20);
    for l in all {
        let mut image = with_contents(&scratch, &l);
        let first = image.partitions(l.sector_bytes);
        let kept = contents(&image, &first);
        for mib in &l.sizes {
            image = image.with_len(mib * MIB);
            let before = image.partitions(l.sector_bytes);
            grow_all(&mut image, l.sector_bytes, l.number);
            only_the_last_grew(&before, &image.partitions(l.sector_bytes), l.number);
            judged(&scratch, &image, &l);
            assert_eq!(plan(&mut image, l.sector_bytes, l.number), None, "{}: twice is once", l.what);
        }
        let after = image.partitions(l.sector_bytes);
        let end = after.iter().map(|p| p.start_bytes + p.len_bytes).max().unwrap();
        assert_eq!(end + 2 * MIB > image.len, l.grows, "{}: ends at {end} of {}", l.what, image.len);
        assert_eq!(contents(&image, &first), kept, "{}", l.what);

        let data = after.iter().find(|p| p.number == l.number).unwrap();
        let mut file = Image { len: data.len_bytes, sectors: Default::default() };
        let inside = image.sectors.range(data.start_bytes / 512..(data.start_bytes + data.len_bytes) / 512);
        file.sectors = inside.map(|(at, s)| (at - data.start_bytes / 512, *s)).collect();
        let path = scratch.path("fs");
        file.save(&path);
        must("e2fsck", &["-fn", path.to_str().unwrap()], "");
    }
}

/// GPT under every cut is in `grow`; here the chain of an MBR.
#[test]
fn every_cut_leaves_an_mbr_old_or_new_and_the_next_boot_finishes() {
    let scratch = Scratch::new();
    let mut cut_at_all = 0;
    for l in layouts(&scratch).into_iter().filter(|l| l.what.starts_with("MBR")) {
        let mut old = l.image.with_len(l.sizes[0] * MIB);
        let mut new = old.clone();
        grow_all(&mut new, l.sector_bytes, l.number);
        let (before, after) = (old.partitions(l.sector_bytes), new.partitions(l.sector_bytes));
        assert_ne!(before, after, "{}", l.what);
        let growth = plan(&mut old, l.sector_bytes, l.number).unwrap();
        cuts(&old, &growth, &mut |mut cut| {
            let found = cut.partitions(l.sector_bytes);
            assert!(found == before || found == after, "{}: {found:?}", l.what);
            judged(&scratch, &cut, &l);
            grow_all(&mut cut, l.sector_bytes, l.number);
            assert!(cut == new, "{}: the next boot ends elsewhere", l.what);
            cut_at_all += 1;
        });
    }
    assert!(cut_at_all > 40, "{cut_at_all}");
}

#[test]
fn an_mbr_counts_to_two_tebibytes_and_no_further() {
    let scratch = Scratch::new();
    let mut image = scratch.fdisk(64 * MIB, 512, &raspberry(512)).with_len(5 << 40);
    grow_all(&mut image, 512, 6);
    let last = image.partitions(512).pop().unwrap();
    let end = (last.start_bytes + last.len_bytes) / 512;
    assert!(end <= u64::from(u32::MAX) && end > u64::from(u32::MAX) - 4096, "{end}");
    let mut large = scratch.fdisk(64 * MIB, 4096, &raspberry(4096)).with_len(5 << 40);
    grow_all(&mut large, 4096, 6);
    let last = large.partitions(4096).pop().unwrap();
    assert_eq!(last.start_bytes + last.len_bytes, 5 << 40);
}

#[test]
fn mbr_partitions_that_are_not_the_last_are_left_alone() {
    let scratch = Scratch::new();
    let mut image = scratch.fdisk(64 * MIB, 512, &raspberry(512)).with_len(200 * MIB);
    let table = image.table(512).unwrap().unwrap();
    for (number, words) in [
        (5, "partition 5 is not the last on the disk"),
        (3, "partition 3 is not the last on the disk"),
        (4, "partition 4 is not in the partition table"),
    ] {
        assert_eq!(grow::plan(&mut image, &table, number).unwrap_err().to_string(), words);
    }
}

/// Written past the test harness's capture, which would hide it.
fn skipped(needs: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stdout(), format!("SKIPPED: needs {needs}\n").as_bytes());
}

/// A loop device with the kernel's view of its partitions.
struct Loop {
    name: String,
    mounted: Option<std::path::PathBuf>,
}

impl Loop {
    fn new(file: &Path, sector_bytes: u64, number: u32) -> Option<Self> {
        let size = sector_bytes.to_string();
        let (ok, said) = run("losetup", &["-f", "--show", "-b", &size, file.to_str().unwrap()], "");
        let this =
            ok.then(|| Self { name: said.trim().trim_start_matches("/dev/").to_owned(), mounted: None })?;
        // A kernel need not know every kind of table; it is told what partx finds.
        must("partx", &["-a", "--nr", &number.to_string(), &this.device()], "");
        Some(this)
    }

    fn device(&self) -> String {
        format!("/dev/{}", self.name)
    }

    /// The node of a partition, made by hand where nobody else makes it.
    fn partition(&self, number: u32, nodes: &Path) -> Option<std::path::PathBuf> {
        let name = format!("{}p{number}", self.name);
        let id = std::fs::read_to_string(format!("/sys/block/{}/{name}/dev", self.name)).ok()?;
        let (major, minor) = id.trim().split_once(':')?;
        let node = nodes.join(&name);
        let _ = std::fs::remove_file(&node);
        must("mknod", &[node.to_str().unwrap(), "b", major, minor], "");
        Some(node)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Some(at) = &self.mounted {
            run("umount", &[at.to_str().unwrap()], "");
        }
        // They would outlive the device's use.
        run("partx", &["-d", &self.device()], "");
        run("losetup", &["-d", &self.device()], "");
    }
}

/// As PID 1 does it: the table, the kernel's partition, and the mounted ext4, on each layout.
#[test]
fn the_kernel_grows_the_mounted_file_system_of_every_layout() {
    let scratch = Scratch::new();
    let at = scratch.path("mnt");
    std::fs::create_dir(&at).unwrap();
    let mut may_grow = true;
    for l in layouts(&scratch) {
        let mut image = with_contents(&scratch, &l);
        image.len = l.sizes[0].max(image.len / MIB) * MIB;
        let file = scratch.path("disk");
        image.save(&file);
        let Some(mut disk) = Loop::new(&file, l.sector_bytes, l.number) else {
            return skipped("root and loop devices");
        };
        let Some(node) = disk.partition(l.number, &scratch.path("")) else {
            panic!("{}: the kernel sees no partition {}", l.what, l.number)
        };
        must("mount", &["-t", "ext4", node.to_str().unwrap(), at.to_str().unwrap()], "");
        disk.mounted = Some(at.clone());

        let mut medium = FileDisk::open(disk.device().as_ref()).unwrap();
        let table = Table::read(&mut medium, l.sector_bytes).unwrap().unwrap();
        if let Some(growth) = grow::plan(&mut medium, &table, l.number).unwrap() {
            grow::apply(&mut medium, &growth).unwrap();
        }
        let table = Table::read(&mut medium, l.sector_bytes).unwrap().unwrap();
        let grown = table.partitions().into_iter().find(|p| p.number == l.number).unwrap();
        let device = std::fs::File::options().read(true).write(true).open(disk.device()).unwrap();
        twinhull::sys::device::resize_partition(&device, grown.number, grown.start_bytes, grown.len_bytes)
            .unwrap();
        let grew = twinhull::sys::device::grow_ext4(&at, grown.len_bytes / 4096);
        // A container's root may not.
        may_grow &= !grew.as_ref().is_err_and(|e| e.to_string().contains("not permitted"));
        assert!(grew.is_ok() || !may_grow, "{}: {grew:?}", l.what);
        medium.flush().unwrap();

        assert_eq!(std::fs::read_to_string(at.join("link")).unwrap(), "kept".repeat(50_000), "{}", l.what);
        unmount(&at);
        disk.mounted = None;
        must("e2fsck", &["-fn", node.to_str().unwrap()], "");
        if !may_grow {
            must("resize2fs", &["-f", node.to_str().unwrap()], "");
            must("e2fsck", &["-fn", node.to_str().unwrap()], "");
        }
        let said = must("dumpe2fs", &["-h", node.to_str().unwrap()], "");
        let blocks = said.lines().find_map(|l| l.strip_prefix("Block count:")).unwrap().trim().to_owned();
        assert_eq!(blocks.parse::<u64>().unwrap(), grown.len_bytes / 4096, "{}", l.what);
    }
    if !may_grow {
        skipped("CAP_SYS_RESOURCE to grow a mounted ext4; resize2fs did it");
    }
}
