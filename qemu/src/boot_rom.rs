//! A boot ROM that stands in for the Raspberry Pi's firmware, which QEMU does not run: from the partition table to the kernel.
//!
//! The rules that it follows, as the Raspberry Pi documentation has them ("autoboot.txt", "config.txt", "The boot folder"):
//!
//! 1. `autoboot.txt` of the first partition says with `boot_partition` where to go on. No more than its first 512 bytes are read.
//!    Its sections are `[all]`, `[none]` and `[tryboot]`; what stands before any of them counts, and what comes later wins.
//! 2. `[tryboot]` counts in the boot after a restart with `0 tryboot`, and in that one only: the flag goes before anything is
//!    read, and a loss of power loses it.
//! 3. In such a boot `tryboot.txt` is read instead of `config.txt`, unless `tryboot_a_b=1` stands in `autoboot.txt`.
//! 4. `config.txt` names kernel, initramfs, device tree and command line; the firmware hands them on, and tells in the device
//!    tree when it was built, from which partition it started, and whether it was a try (`/chosen/bootloader`).
//!
//! It cannot show how Linux gives the flag to the firmware: what it goes by is the argument that the kernel says it restarts with.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;
use crate::disk::{copy_from_fat, read_fat};
use crate::images::run;
use crate::layout::Layout;

/// What the firmware reads of `autoboot.txt`, in bytes.
const AUTOBOOT_BYTES: usize = 512;
/// When the firmware was built, in seconds since 1970: 2025-05-08.
const BUILT: u32 = 1_746_713_597;

/// The firmware of one board.
#[derive(Debug)]
pub struct BootRom {
    disk: PathBuf,
    layout: &'static Layout,
    work: PathBuf,
}

/// What it starts.
#[derive(Debug)]
pub struct Start {
    /// What it says of that.
    pub said: String,
    /// QEMU's arguments.
    pub kernel: Vec<String>,
}

impl BootRom {
    /// The firmware of a board with that disk; what it loads is copied to `work`.
    pub fn new(disk: &Path, layout: &'static Layout, work: &Path) -> Self {
        Self { disk: disk.to_owned(), layout, work: work.to_owned() }
    }

    /// Whether the kernel has last said that it restarts with the argument that sets the flag.
    pub fn is_asked_to_try(console: &str) -> bool {
        console.lines().rev().find(|l| l.contains("Restarting system")).is_some_and(|l| {
            // Boots that ended otherwise since then say so after it.
            let after = console.rsplit_once(l).map_or("", |(_, after)| after);
            l.trim_end().ends_with("with command '0 tryboot'") && !after.contains(SAYS)
        })
    }

    /// Starts the machine; with the flag if it is set.
    pub fn power_on(&self, tryboot: bool) -> Outcome<Start> {
        let autoboot = Autoboot::parse(&self.read(1, "autoboot.txt")?, tryboot);
        let number = autoboot.partition.ok_or("autoboot.txt names no boot_partition")?;
        let file = if tryboot && !autoboot.a_b { "tryboot.txt" } else { "config.txt" };
        let config = Config::parse(&self.read(number, file)?);
        let copied = |name: &str| {
            let to = self.work.join(format!("firmware-{}", name.replace('/', "-")));
            copy_from_fat(&self.disk, self.place(number)?, name, &to).map(|()| to)
        };
        let device_tree = copied(&config.device_tree)?;
        tell(&device_tree, number, tryboot)?;
        let command_line = self.read(number, &config.command_line)?;
        let said = format!(
            "{SAYS}{}partition {number}, {file}, {}",
            if tryboot { "a try of " } else { "" },
            config.kernel
        );
        let path = |p: PathBuf| p.display().to_string();
        let kernel = [
            ["-kernel".to_owned(), path(copied(&config.kernel)?)],
            ["-initrd".to_owned(), path(copied(&config.initramfs)?)],
            ["-dtb".to_owned(), path(device_tree)],
            ["-append".to_owned(), command_line.trim().to_owned()],
        ];
        Ok(Start { said, kernel: kernel.into_iter().flatten().collect() })
    }

    fn place(&self, number: usize) -> Outcome<crate::layout::Place> {
        let place = self.layout.places().into_iter().find(|p| p.number == number);
        place.ok_or_else(|| format!("the disk has no partition {number}"))
    }

    fn read(&self, number: usize, file: &str) -> Outcome<String> {
        read_fat(&self.disk, self.place(number)?, file)
    }
}

/// The partition that an `autoboot.txt` leads to, in a boot with the flag or without.
pub fn partition(autoboot: &str, tryboot: bool) -> Option<usize> {
    Autoboot::parse(autoboot, tryboot).partition
}

/// How its lines on the console begin.
const SAYS: &str = "boot ROM: ";

/// What `autoboot.txt` says for one boot.
#[derive(Debug, Default, PartialEq, Eq)]
struct Autoboot {
    partition: Option<usize>,
    a_b: bool,
}

impl Autoboot {
    fn parse(text: &str, tryboot: bool) -> Self {
        let mut found = Self::default();
        let mut counts = true;
        let text = String::from_utf8_lossy(text.as_bytes().get(..AUTOBOOT_BYTES).unwrap_or(text.as_bytes()));
        for line in text.lines().map(str::trim) {
            match (line.split_once('='), line) {
                (None, "[all]") => counts = true,
                (None, "[tryboot]") => counts = tryboot,
                // `[none]`, and what the firmware does not know.
                (None, other) if other.starts_with('[') => counts = false,
                (Some(("boot_partition", number)), _) if counts => found.partition = number.parse().ok(),
                (Some(("tryboot_a_b", value)), _) if counts => found.a_b = value == "1",
                _ => {}
            }
        }
        found
    }
}

/// What `config.txt` names.
#[derive(Debug, PartialEq, Eq)]
struct Config {
    kernel: String,
    initramfs: String,
    device_tree: String,
    command_line: String,
}

impl Config {
    fn parse(text: &str) -> Self {
        let value = |key: &str, otherwise: &str| {
            let line = text.lines().rev().find_map(|l| l.trim().strip_prefix(key));
            line.map_or(otherwise, |rest| rest.trim_start_matches('=').trim()).to_owned()
        };
        // `initramfs FILE followkernel`: no equals sign, and where it goes is QEMU's business.
        let initramfs = value("initramfs ", "initramfs8");
        Self {
            kernel: value("kernel=", "kernel8.img"),
            initramfs: initramfs.split_whitespace().next().unwrap_or("").to_owned(),
            device_tree: value("device_tree=", "bcm2710-rpi-3-b.dtb"),
            command_line: value("cmdline=", "cmdline.txt"),
        }
    }
}

/// Puts into the device tree what the firmware tells of itself.
fn tell(device_tree: &Path, partition: usize, tryboot: bool) -> Outcome {
    let node = "/chosen/bootloader";
    run(Command::new("fdtput").args(["-p", "-t", "u"]).arg(device_tree).args([
        node,
        "build-timestamp",
        &BUILT.to_string(),
    ]))?;
    for (name, value) in [("partition", partition), ("tryboot", usize::from(tryboot))] {
        run(Command::new("fdtput").args(["-t", "u"]).arg(device_tree).args([
            node,
            name,
            &value.to_string(),
        ]))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARMED: &str =
        "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n# twinhull: tries_left=3\n";

    #[test]
    fn the_flag_decides_about_a_section() {
        assert_eq!(Autoboot::parse(ARMED, false), Autoboot { partition: Some(2), a_b: true });
        assert_eq!(Autoboot::parse(ARMED, true), Autoboot { partition: Some(3), a_b: true });
        let never = "boot_partition=1\n[none]\nboot_partition=4\n[pi5]\nboot_partition=5\n";
        assert_eq!(Autoboot::parse(never, true), Autoboot { partition: Some(1), a_b: false });
        // Nothing behind the first 512 bytes is read.
        let long = format!("boot_partition=2\n{}\nboot_partition=3\n", "#".repeat(500));
        assert_eq!(Autoboot::parse(&long, false).partition, Some(2));
    }

    #[test]
    fn the_kernels_last_words_set_the_flag_once() {
        let asked = "boot ROM: partition 2\n[ 9.1] reboot: Restarting system with command '0 tryboot'\n";
        assert!(BootRom::is_asked_to_try(asked));
        assert!(!BootRom::is_asked_to_try("[ 9.1] reboot: Restarting system\n"));
        assert!(!BootRom::is_asked_to_try(&format!("{asked}boot ROM: a try of partition 3\nKernel panic\n")));
        assert!(!BootRom::is_asked_to_try(""));
    }

    #[test]
    fn config_names_the_files() {
        let config =
            Config::parse("# slot\nkernel=Image\ninitramfs initramfs followkernel\ndevice_tree=pi.dtb\n");
        assert_eq!([config.kernel, config.initramfs, config.device_tree], ["Image", "initramfs", "pi.dtb"]);
        assert_eq!(config.command_line, "cmdline.txt");
    }
}
