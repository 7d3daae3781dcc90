//! Disk images in memory, and the real tools that make and judge them.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use twinhull::block::{Disk, Table, TableEntry};
use twinhull::{Error, Result};

pub const MIB: u64 = 1024 * 1024;
const SECTOR: u64 = 512;

/// A disk that holds only its sectors that are not zero, so that a copy costs little.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    pub len: u64,
    pub sectors: BTreeMap<u64, [u8; 512]>,
}

impl Image {
    pub fn load(path: &Path) -> Self {
        let file = std::fs::File::open(path).unwrap();
        let len = file.metadata().unwrap().len();
        let mut sectors = BTreeMap::new();
        let mut chunk = vec![0; MIB as usize];
        for at in (0..len).step_by(MIB as usize) {
            let n = (len - at).min(MIB) as usize;
            file.read_exact_at(&mut chunk[..n], at).unwrap();
            for (i, sector) in chunk[..n].chunks_exact(512).enumerate() {
                if sector.iter().any(|b| *b != 0) {
                    sectors.insert(at / SECTOR + i as u64, sector.try_into().unwrap());
                }
            }
        }
        Self { len, sectors }
    }

    pub fn save(&self, path: &Path) {
        let file = std::fs::File::create(path).unwrap();
        file.set_len(self.len).unwrap();
        for (at, sector) in &self.sectors {
            file.write_all_at(sector, at * SECTOR).unwrap();
        }
    }

    pub fn sector_mut(&mut self, at: u64) -> &mut [u8; 512] {
        self.sectors.entry(at).or_insert([0; 512])
    }

    /// The disk cut off or made larger.
    pub fn with_len(&self, len: u64) -> Self {
        let mut image = self.clone();
        image.len = len;
        image.sectors.retain(|at, _| (at + 1) * SECTOR <= len);
        image
    }

    pub fn table(&mut self, sector_bytes: u64) -> Result<Option<Table>> {
        Table::read(self, sector_bytes)
    }

    pub fn partitions(&mut self, sector_bytes: u64) -> Vec<TableEntry> {
        self.table(sector_bytes).unwrap().unwrap().partitions()
    }
}

impl Disk for Image {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if offset + buffer.len() as u64 > self.len {
            return Err(Error::failed(format!("read at byte {offset}: beyond the end")));
        }
        buffer.fill(0);
        let end = offset + buffer.len() as u64;
        for (at, sector) in self.sectors.range(offset / SECTOR..end.div_ceil(SECTOR)) {
            let (from, to) = ((at * SECTOR).max(offset), ((at + 1) * SECTOR).min(end));
            let within = |start: u64| (from - start) as usize..(to - start) as usize;
            buffer[within(offset)].copy_from_slice(&sector[within(at * SECTOR)]);
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        assert_eq!((offset % SECTOR, bytes.len() as u64 % SECTOR), (0, 0), "whole sectors");
        assert!(offset + bytes.len() as u64 <= self.len, "write beyond the end");
        for (i, sector) in bytes.chunks_exact(512).enumerate() {
            let at = offset / SECTOR + i as u64;
            if sector.iter().all(|b| *b == 0) {
                self.sectors.remove(&at);
            } else {
                self.sectors.insert(at, sector.try_into().unwrap());
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Runs a tool with `input` on its standard input; its output and error output.
pub fn run(program: &str, args: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new(program)
        .args(args)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// As [`run`]; the tool must succeed.
pub fn must(program: &str, args: &[&str], input: &str) -> String {
    let (ok, text) = run(program, args, input);
    assert!(ok, "{program} {args:?}: {text}");
    text
}

/// Unmounts. A child that another test has just forked holds every descriptor of this process until it starts its
/// program, so a busy mount is tried again for ten seconds.
pub fn unmount(at: &Path) {
    for _ in 0..100 {
        if run("umount", &[at.to_str().unwrap()], "").0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    must("umount", &[at.to_str().unwrap()], "");
}

/// Scratch files of one test.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A disk of `len` bytes with the partitions of an sfdisk script, made by fdisk.
    pub fn fdisk(&self, len: u64, sector_bytes: u64, script: &str) -> Image {
        let (disk, file) = (self.path("disk"), self.path("script"));
        Image { len, sectors: BTreeMap::new() }.save(&disk);
        std::fs::write(&file, script).unwrap();
        let commands = format!("I\n{}\nw\n", file.display());
        let args = ["-w", "never", "-b", &sector_bytes.to_string(), disk.to_str().unwrap()];
        must("fdisk", &args, &commands);
        Image::load(&disk)
    }

    /// A disk made by sgdisk with these arguments.
    pub fn sgdisk(&self, len: u64, args: &[&str]) -> Image {
        let disk = self.path("disk");
        Image { len, sectors: BTreeMap::new() }.save(&disk);
        must("sgdisk", &[args, &[disk.to_str().unwrap()]].concat(), "");
        Image::load(&disk)
    }

    /// What fdisk says of an image: its complaints, and `start,size,partuuid,name` of each partition.
    pub fn judged_by_fdisk(&self, image: &Image, sector_bytes: u64) -> (String, Vec<TableEntry>) {
        let disk = self.path("judged");
        image.save(&disk);
        let (disk, size) = (disk.to_str().unwrap(), sector_bytes.to_string());
        let verdict = must("fdisk", &["-b", &size, disk], "v\nq\n");
        let complaints = verdict
            .lines()
            .filter(|l| {
                ["mismatch", "not on the end", "corrupt", "overlap", "error"].iter().any(|w| l.contains(w))
            })
            .filter(|l| !l.contains("No errors detected"))
            .collect::<Vec<_>>()
            .join("\n");
        let list = must("fdisk", &["-l", "-b", &size, "-o", "Device,Start,Sectors,UUID,Name", disk], "");
        let rows = list.lines().filter_map(|l| l.strip_prefix(disk));
        let entries = rows
            .map(|row| {
                let words: Vec<&str> = row.split_whitespace().collect();
                TableEntry {
                    number: words[0].parse().unwrap(),
                    start_bytes: words[1].parse::<u64>().unwrap() * sector_bytes,
                    len_bytes: words[2].parse::<u64>().unwrap() * sector_bytes,
                    partuuid: words[3].to_ascii_lowercase(),
                    name: words.get(4..).unwrap_or_default().join(" "),
                }
            })
            .collect();
        (complaints, entries)
    }

    /// The last line of `sgdisk -v` on an image with sectors of 512 bytes.
    pub fn judged_by_sgdisk(&self, image: &Image) -> String {
        let disk = self.path("judged");
        image.save(&disk);
        let (_, verdict) = run("sgdisk", &["-v", disk.to_str().unwrap()], "");
        verdict.lines().find(|l| l.contains("problems") || l.contains("Problem")).unwrap_or("").to_owned()
    }
}

/// The layout of a device, for sectors of any size: boot, rootA, rootB, state, data; `extra` goes before them.
pub fn device_script(sector_bytes: u64) -> String {
    let mut script = String::from("label: gpt\n");
    let sectors = |mib: u64| mib * MIB / sector_bytes;
    for (start, len, name) in [
        (4, 4, "resin-boot"),
        (8, 4, "resin-rootA"),
        (12, 4, "resin-rootB"),
        (16, 2, "resin-state"),
        (18, 8, "resin-data"),
    ] {
        script += &format!("start={}, size={}, name={name}\n", sectors(start), sectors(len));
    }
    script
}
