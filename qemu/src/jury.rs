//! Real bootloaders over many boot partitions: a disk with a partition for each case, and a driver that goes through them in
//! one boot of a machine.
//!
//! The driver is the bootloader's own scripting (or GRUB, which starts systemd-boot), and says on the console which slot it would
//! boot. What the bootloader has written is on the disk afterwards.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::block_log::{SECTOR_BYTES, Sector};
use crate::boards::Board;
use crate::disk::mtools;
use crate::fat::{self, Tree};
use crate::hardware::Setup;
use crate::images::run;
use crate::machine::{Disk, Machine};

/// The most cases on one disk: a GPT has 128 partitions, and the driver has one.
pub const MOST: usize = 120;
/// The size of each case's partition, in MiB: FAT32 with clusters of one sector needs as much.
pub const CASE_MIB: u64 = 34;
/// That of the first partition, where the driver is.
pub const DRIVER_MIB: u64 = 64;
const MIB: u64 = 1 << 20;
const POLL: Duration = Duration::from_millis(300);
/// What the driver says when it is through.
const DONE: &str = "lab: all cases done";
/// How long the console may be silent on a busy machine.
const SILENCE: Duration = Duration::from_secs(300);

/// A boot partition: its sectors, and those that are different.
pub struct Case<'a> {
    /// The whole partition.
    pub base: &'a [u8],
    /// Sectors instead of those, by number.
    pub over: Vec<(u64, Sector)>,
}

/// The disk.
pub struct CaseDisk {
    /// The raw image.
    pub file: PathBuf,
}

impl CaseDisk {
    /// Makes it. `driver` has the files of the first partition.
    pub fn make(file: PathBuf, driver: &Path, cases: &[Case]) -> Outcome<Self> {
        let disk = Self { file };
        let problem = |e: std::io::Error| format!("{}: {e}", disk.file.display());
        let _ = std::fs::remove_file(&disk.file);
        let image = File::create(&disk.file).map_err(problem)?;
        image.set_len(disk.start(cases.len()) + 2 * MIB).map_err(problem)?;
        let mut script = format!("label: gpt\nstart=1MiB, size={DRIVER_MIB}MiB, type=U\n");
        for n in 0..cases.len() {
            script.push_str(&format!("start={}MiB, size={CASE_MIB}MiB, type=L\n", disk.start(n) / MIB));
        }
        let table = disk.file.with_extension("sfdisk");
        std::fs::write(&table, script).map_err(problem)?;
        run(Command::new("sh")
            .args(["-c", "sfdisk --quiet \"$1\" <\"$2\"", "sh"])
            .arg(&disk.file)
            .arg(table))?;
        let part = disk.file.with_extension("driver");
        make_fat(&part, "32", 1, DRIVER_MIB, driver)?;
        let raw = std::fs::read(&part).map_err(problem)?;
        write_sparse(&image, &raw, MIB).map_err(problem)?;
        for (n, case) in cases.iter().enumerate() {
            write_sparse(&image, case.base, disk.start(n)).map_err(problem)?;
            for (sector, content) in &case.over {
                let at = disk.start(n) + sector * SECTOR_BYTES as u64;
                image.write_all_at(content, at).map_err(problem)?;
            }
        }
        Ok(disk)
    }

    /// The first byte of a case's partition.
    fn start(&self, case: usize) -> u64 {
        (1 + DRIVER_MIB + CASE_MIB * case as u64) * MIB
    }

    /// The number of a case's partition.
    pub const fn partition(case: usize) -> usize {
        case + 2
    }

    /// The files of a case, as they are on the disk now.
    pub fn tree(&self, case: usize) -> Outcome<Tree> {
        let image = File::open(&self.file).map_err(|e| format!("{}: {e}", self.file.display()))?;
        let start = self.start(case);
        fat::read(&|sector| {
            let mut content = [0; SECTOR_BYTES];
            // What cannot be read is no FAT.
            let _ = image.read_exact_at(&mut content, start + sector * SECTOR_BYTES as u64);
            content
        })
    }

    /// A file of a case, as mtools reads it.
    pub fn mtools_read(&self, case: usize, path: &str) -> Outcome<Vec<u8>> {
        let output =
            mtools("mcopy").args(["-i", &self.mtools_name(case), &format!("::{path}"), "-"]).output();
        let output = output.map_err(|e| format!("mcopy: {e}"))?;
        if output.status.success() { Ok(output.stdout) } else { Err(format!("mtools cannot read {path}")) }
    }

    /// Writes a file of a case.
    pub fn put(&self, case: usize, path: &str, content: &[u8]) -> Outcome {
        let file = self.file.with_extension("put");
        std::fs::write(&file, content).map_err(|e| format!("{}: {e}", file.display()))?;
        run(mtools("mcopy").args(["-o", "-i", &self.mtools_name(case)]).arg(file).arg(format!("::{path}")))
            .map(drop)
    }

    /// Removes a file of a case.
    pub fn remove(&self, case: usize, path: &str) -> Outcome {
        run(mtools("mdel").args(["-i", &self.mtools_name(case), &format!("::{path}")])).map(drop)
    }

    fn mtools_name(&self, case: usize) -> String {
        format!("{}@@{}", self.file.display(), self.start(case))
    }

    /// Boots a board from the disk until its driver is through; what the console says.
    pub fn judge(&self, board: &Board, work: &Path) -> Outcome<String> {
        let mut machine =
            Machine::start(board, &Disk { file: &self.file, format: "raw" }, work, &Setup::default())?;
        let (mut heard, mut deadline) = (0, Instant::now() + SILENCE);
        loop {
            let console = read_console(&machine.console)?;
            if console.len() > heard {
                (heard, deadline) = (console.len(), Instant::now() + SILENCE);
            }
            if console.contains(DONE) {
                machine.cut()?;
                return Ok(console);
            }
            if !machine.runs() || Instant::now() > deadline {
                let lines: Vec<&str> = console.lines().collect();
                let last = lines.get(lines.len().saturating_sub(10)..).unwrap_or_default().join("\n");
                return Err(format!(
                    "the bootloader did not come through its cases; the console ends with:\n{last}"
                ));
            }
            std::thread::sleep(POLL);
        }
    }
}

fn read_console(console: &Path) -> Outcome<String> {
    match std::fs::read(console) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).replace('\r', "")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(format!("{}: {e}", console.display())),
    }
}

/// Only what is not zero; the rest stays a hole.
fn write_sparse(image: &File, raw: &[u8], start: u64) -> std::io::Result<()> {
    for (chunk, at) in raw.chunks(4096).zip((start..).step_by(4096)) {
        if chunk.iter().any(|b| *b != 0) {
            image.write_all_at(chunk, at)?;
        }
    }
    Ok(())
}

/// A FAT with the files of a directory.
pub fn make_fat(image: &Path, kind: &str, sectors_per_cluster: u64, mib: u64, files: &Path) -> Outcome {
    let problem = |e: std::io::Error| format!("{}: {e}", image.display());
    File::create(image).and_then(|f| f.set_len(mib * MIB)).map_err(problem)?;
    run(Command::new("mkfs.vfat")
        .args(["-F", kind, "-s", &sectors_per_cluster.to_string(), "-n", "resin-boot"])
        .arg(image))?;
    let mut entries: Vec<PathBuf> = std::fs::read_dir(files)
        .and_then(|list| list.map(|entry| entry.map(|e| e.path())).collect())
        .map_err(|e| format!("{}: {e}", files.display()))?;
    entries.sort();
    if entries.is_empty() {
        return Ok(());
    }
    run(mtools("mcopy").args(["-s", "-Q", "-i"]).arg(image).args(entries).arg("::")).map(drop)
}

/// What the driver says of a case.
pub fn line_of(case: usize) -> String {
    format!("lab: case {case} ")
}

/// What it said of a case: the word behind `key` in its line.
pub fn said<'a>(console: &'a str, case: usize, key: &str) -> Option<&'a str> {
    let line = console.split_once(&line_of(case))?.1.lines().next()?;
    let word = line.split_once(&format!("{key}="))?.1;
    word.split_once('.').map(|(word, _)| word)
}

/// U-Boot's driver for a case with `boot/uboot/boot.cmd`, run for its decision alone.
pub fn uboot_text_case(case: usize) -> String {
    format!(
        "setenv devtype virtio; setenv devnum 0; setenv distro_bootpart ${{case}}; setenv part none\n\
         setenv twinhull_decide_only 1; setenv envaddr ${{ramdisk_addr_r}}\n\
         fatload virtio 0:${{case}} ${{kernel_addr_r}} boot.scr && source ${{kernel_addr_r}}\n\
         echo \"{}part=${{part}}.\"\n",
        line_of(case)
    )
}

/// GRUB's driver for a case with systemd-boot, which gives up when what it starts has ended.
pub fn systemd_boot_case(case: usize) -> String {
    // GRUB tells what it starts that it came from `root`, wherever the file was.
    format!(
        "echo \"{}begins.\"\nset root=\"${{case}}\"\nchainloader /EFI/BOOT/BOOTX64.EFI\nboot\n",
        line_of(case)
    )
}

/// The slot that systemd-boot has started in a case: what it started says with which options.
pub fn started_slot(console: &str, case: usize) -> Option<char> {
    let (_, rest) = console.split_once(&line_of(case))?;
    rest.split("lab: ").next()?.split_once("lab-slot=")?.1.chars().next()
}

/// GRUB on the driver's partition; `each` is the script for a case, whose partition is `$case`.
pub fn grub_driver(directory: &Path, cases: &[usize], each: impl Fn(usize) -> String) -> Outcome {
    const MODULES: &str = "part_gpt part_msdos fat ext2 normal linux echo test regexp loadenv probe sleep reboot serial \
                           terminal configfile chain boot";
    const EARLY: &str = "serial --unit=0 --speed=115200\nterminal_output serial\nterminal_input serial\n";
    let boot = directory.join("EFI/BOOT");
    let problem = |e: std::io::Error| format!("{}: {e}", boot.display());
    std::fs::create_dir_all(&boot).map_err(problem)?;
    let early = directory.with_extension("early.cfg");
    std::fs::write(&early, EARLY).map_err(problem)?;
    run(Command::new("grub-mkimage")
        .args(["-O", "x86_64-efi", "-p", "/EFI/BOOT", "-c"])
        .arg(early)
        .arg("-o")
        .arg(boot.join("BOOTX64.EFI"))
        .args(MODULES.split_whitespace()))?;
    let mut script = String::from("set timeout=0\nregexp --set=1:disk '^\\(?([^,]+),' \"${root}\"\n");
    for &case in cases {
        script.push_str(&format!("set case=\"(${{disk}},gpt{})\"\n", CaseDisk::partition(case)));
        script.push_str(&each(case));
    }
    script.push_str(&format!("echo \"{DONE}\"\nsleep 600\n"));
    std::fs::write(boot.join("grub.cfg"), script).map_err(problem)
}

/// U-Boot's script on the driver's partition; `each` is the script for a case, whose partition is `${case}`.
pub fn uboot_driver(directory: &Path, cases: &[usize], each: impl Fn(usize) -> String) -> Outcome {
    std::fs::create_dir_all(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    let mut script = String::new();
    for &case in cases {
        script.push_str(&format!("setenv case {:x}\n{}", CaseDisk::partition(case), each(case)));
    }
    script.push_str(&format!("echo \"{DONE}\"\nsleep 600\n"));
    let source = directory.with_extension("cmd");
    std::fs::write(&source, script).map_err(|e| format!("{}: {e}", source.display()))?;
    run(Command::new("mkimage")
        .args(["-A", "arm64", "-T", "script", "-C", "none", "-d"])
        .arg(source)
        .arg(directory.join("boot.scr")))
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_driver_said_of_a_case_is_found() {
        let console = "noise\nlab: case 1 part=3.\nlab: case 11 part=2. saved=1.\n";
        assert_eq!(said(console, 1, "part"), Some("3"));
        assert_eq!(said(console, 11, "part"), Some("2"));
        assert_eq!(said(console, 11, "saved"), Some("1"));
        assert_eq!(said(console, 2, "part"), None);
        assert_eq!(said("lab: case 1 part=3", 1, "part"), None, "the word is not complete yet");
    }
}
