//! A board's disk as it comes from the maker: slot A filled, slot B empty, data still small.
//!
//! No loop device and no mount is needed, so it is also made where there is no vfat.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use crate::Outcome;
use crate::images::run;
use crate::layout::{Layout, Place, Role, label};

/// What is put into the partitions.
pub struct Content<'a> {
    /// Directory with the files of the boot partition.
    pub boot: &'a Path,
    /// Directories with the files of each slot's own boot partition, where there are such.
    pub slot_boots: [&'a Path; 2],
    /// The image of slot A's root.
    pub root: &'a Path,
    /// Directory with the files of the data partition.
    pub data: &'a Path,
}

/// Makes the disk `out`; what is made on the way lies in `work`.
pub fn make(layout: &Layout, content: &Content, work: &Path, out: &Path) -> Outcome {
    let sized = |path: &Path, mib: u64| {
        let made = fs::File::create(path).and_then(|f| f.set_len(mib << 20));
        made.map_err(|e| format!("{}: {e}", path.display()))
    };
    sized(out, layout.disk_mib)?;
    let script = work.join("table.sfdisk");
    fs::write(&script, layout.script()).map_err(|e| format!("{}: {e}", script.display()))?;
    run(Command::new("sh").args(["-c", "sfdisk --quiet \"$1\" <\"$2\"", "sh"]).arg(out).arg(&script))?;

    for place in layout.places() {
        let part = work.join("partition.img");
        match place.role {
            Role::Extended | Role::Root(1..) => continue,
            Role::Root(0) => {
                copy_into(out, content.root, place)?;
                continue;
            }
            Role::Boot => {
                sized(&part, place.len_mib)?;
                make_fat(&part, label(place.role), content.boot)?;
            }
            Role::SlotBoot(slot) => {
                sized(&part, place.len_mib)?;
                make_fat(&part, label(place.role), content.slot_boots[slot.min(1)])?;
            }
            Role::State | Role::Data => {
                sized(&part, place.len_mib)?;
                let empty = work.join("empty");
                fs::create_dir_all(&empty).map_err(|e| format!("{}: {e}", empty.display()))?;
                let files = if place.role == Role::Data { content.data } else { &empty };
                run(Command::new("mke2fs")
                    .args(["-q", "-F", "-t", "ext4", "-m", "0", "-L", label(place.role)])
                    .args(["-E", "root_owner=0:0,lazy_itable_init=0", "-d"])
                    .arg(files)
                    .arg(&part))?;
            }
        }
        copy_into(out, &part, place)?;
        fs::remove_file(&part).map_err(|e| format!("{}: {e}", part.display()))?;
    }
    Ok(())
}

/// Another disk that looks the same, labels and all; only the ids of its partitions are its own.
pub struct SecondDisk {
    /// Its image.
    pub image: PathBuf,
    written: SystemTime,
}

impl SecondDisk {
    /// Makes it after the example of `disk`, which must have a GPT.
    pub fn make(disk: &Path, image: PathBuf, layout: &Layout) -> Outcome<Self> {
        run(Command::new("cp").arg("--sparse=always").arg(disk).arg(&image))?;
        for place in layout.places() {
            let id = format!("6f746865-7200-4c00-8000-0000000000{:02x}", place.number);
            run(Command::new("sfdisk")
                .args(["--quiet", "--part-uuid"])
                .arg(&image)
                .args([place.number.to_string(), id]))?;
        }
        let written = last_written(&image)?;
        Ok(Self { image, written })
    }

    /// Nobody may have written to it.
    pub fn check_untouched(&self) -> Outcome {
        match last_written(&self.image)? == self.written {
            true => Ok(()),
            false => {
                Err("the second disk was written: nothing but the disk of the root is to be used".into())
            }
        }
    }
}

/// QEMU writes through to the file, so its time says whether anything was written or discarded.
fn last_written(file: &Path) -> Outcome<SystemTime> {
    fs::metadata(file).and_then(|meta| meta.modified()).map_err(|e| format!("{}: {e}", file.display()))
}

/// One sector per cluster: even a small partition is FAT32, as firmware wants it.
fn make_fat(image: &Path, name: &str, files: &Path) -> Outcome {
    run(Command::new("mkfs.vfat").args(["-F", "32", "-s", "1", "-n", name]).arg(image))?;
    let mut entries: Vec<PathBuf> = fs::read_dir(files)
        .and_then(|list| list.map(|entry| entry.map(|e| e.path())).collect())
        .map_err(|e| format!("{}: {e}", files.display()))?;
    entries.sort();
    if entries.is_empty() {
        return Ok(());
    }
    run(mtools("mcopy").args(["-s", "-Q", "-i"]).arg(image).args(entries).arg("::")).map(drop)
}

fn copy_into(disk: &Path, image: &Path, place: Place) -> Outcome {
    let word = |key: &str, path: &Path| format!("{key}={}", path.display());
    run(Command::new("dd")
        .args([word("if", image), word("of", disk), format!("seek={}", place.start_mib)])
        .args(["bs=1M", "conv=notrunc,sparse", "status=none"]))
    .map(drop)
}

/// The files in a directory of a FAT partition of a disk, which may be in use: what firmware wrote is there at once.
pub fn list_fat(disk: &Path, place: Place, directory: &str) -> Outcome<Vec<String>> {
    let said = run(mtools("mdir").args(["-b", "-i", &fat_of(disk, place), &format!("::{directory}")]))?;
    Ok(said.lines().filter_map(|line| line.rsplit('/').next()).map(str::to_owned).collect())
}

/// The text of a file of a FAT partition of a disk.
pub fn read_fat(disk: &Path, place: Place, file: &str) -> Outcome<String> {
    run(mtools("mtype").args(["-i", &fat_of(disk, place), &format!("::{file}")]))
}

/// Copies a file of a FAT partition of a disk.
pub fn copy_from_fat(disk: &Path, place: Place, file: &str, to: &Path) -> Outcome {
    run(mtools("mcopy").args(["-n", "-i", &fat_of(disk, place), &format!("::{file}")]).arg(to)).map(drop)
}

/// mtools' name of a partition.
fn fat_of(disk: &Path, place: Place) -> String {
    format!("{}@@{}M", disk.display(), place.start_mib)
}

/// A program of mtools. Its own check of sizes does not know partitions inside of images.
pub fn mtools(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("MTOOLS_SKIP_CHECK", "1");
    command
}
