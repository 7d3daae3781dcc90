//! What the maker of a disk image puts on the boot partition: one function per bootloader; `boot/README.md` lists the files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::Outcome;
use crate::boards::{Board, Bootloader, Machine};
use crate::images::run;
use crate::layout::Role;

const SLOT_LETTERS: [char; 2] = ['a', 'b'];

/// The boot partition of a new device. `boot_files` are the kernel and the initramfs of slot A's system; `config` is
/// `config.json`.
pub fn fill(board: &Board, dir: &Path, boot_files: &Path, config: &str) -> Outcome {
    let files = Files(dir);
    files.write("config.json", config)?;
    let device_type = json!({ "slug": board.device_type, "name": board.title, "arch": board.arch() });
    files.write("device-type.json", &format!("{device_type}\n"))?;
    match board.bootloader {
        Bootloader::Grub => grub(board, &files),
        Bootloader::SystemdBoot => systemd_boot(board, &files, boot_files),
        Bootloader::UbootText => uboot(board, &files),
        Bootloader::Efi => efi(board, &files, boot_files),
        Bootloader::Tryboot => files.copy("autoboot.txt", Path::new("boot/raspberrypi/autoboot.txt")),
    }
}

/// A slot's own boot partition, where there are such. What no bundle brings is there from the beginning.
pub fn fill_slot(board: &Board, slot: usize, dir: &Path, boot_files: &Path) -> Outcome {
    let files = Files(dir);
    files.write("cmdline.txt", &format!("{}\n", options(board, slot)))?;
    if slot == 0 { files.copy_all(".", boot_files) } else { Ok(()) }
}

fn grub(board: &Board, files: &Files) -> Outcome {
    const MODULES: &str = "part_gpt part_msdos fat ext2 normal linux echo test regexp loadenv probe sleep reboot serial \
                           terminal";
    let environment = |file: &str, variables: &[&str]| {
        let path = files.place(file)?;
        run(Command::new("grub-editenv").arg(&path).arg("create"))?;
        run(Command::new("grub-editenv").arg(&path).arg("set").args(variables)).map(drop)
    };
    let early = files.write(
        "early.cfg",
        "serial --unit=0 --speed=115200\nterminal_output serial\nterminal_input serial\n",
    )?;
    run(Command::new("grub-mkimage")
        .args(["-O", "x86_64-efi", "-p", "/EFI/BOOT", "-c"])
        .arg(&early)
        .arg("-o")
        .arg(files.place("EFI/BOOT/BOOTX64.EFI")?)
        .args(MODULES.split_whitespace()))?;
    fs::remove_file(&early).map_err(|e| format!("{}: {e}", early.display()))?;
    files.copy("EFI/BOOT/grub.cfg", Path::new("boot/grub/grub.cfg"))?;
    environment(
        "EFI/BOOT/grubenv",
        &["resin_root_part=2", "upgrade_available=0", "bootcount=0", "os_bc_lim=3"],
    )?;
    environment("EFI/BOOT/grub_extraenv", &[&format!("extra_os_cmdline={}", board.command_line)])
}

fn systemd_boot(board: &Board, files: &Files, boot_files: &Path) -> Outcome {
    files.copy("EFI/BOOT/BOOTX64.EFI", Path::new("/usr/lib/systemd/boot/efi/systemd-bootx64.efi"))?;
    files.write("loader/loader.conf", "timeout 0\nconsole-mode keep\n")?;
    for (slot, letter) in SLOT_LETTERS.into_iter().enumerate() {
        let entry = format!(
            "title twinhull, slot {}\nlinux /slot-{letter}/vmlinuz\ninitrd /slot-{letter}/initramfs\noptions {}\n",
            letter.to_ascii_uppercase(),
            options(board, slot),
        );
        files.write(&format!("loader/entries/twinhull.{letter}"), &entry)?;
        if slot == 0 {
            files.write(
                "loader/entries/twinhull-a.conf",
                &format!("{entry}sort-key 0-twinhull\nversion 1\n"),
            )?;
        }
    }
    files.copy_all("slot-a", boot_files)
}

fn uboot(board: &Board, files: &Files) -> Outcome {
    run(Command::new("mkimage")
        .args(["-A", "arm64", "-T", "script", "-C", "none", "-d", "boot/uboot/boot.cmd"])
        .arg(files.place("boot.scr")?))?;
    files.write("resinOS_uEnv.txt", "resin_root_part=2\nupgrade_available=0\n")?;
    let mut extra = format!("extra_os_cmdline={}\n", board.command_line);
    if let Machine::Raspberry { device_tree } = board.machine {
        extra.push_str(&format!("custom_fdt_file={device_tree}\n"));
    }
    files.write("extra_uEnv.txt", &extra).map(drop)
}

/// The firmware's variables are empty at first: its shell starts slot A, and twinhull makes the entries.
fn efi(board: &Board, files: &Files, boot_files: &Path) -> Outcome {
    for (slot, letter) in SLOT_LETTERS.into_iter().enumerate() {
        let options = format!("{} initrd=\\slot-{letter}\\initramfs", options(board, slot));
        let template = format!("partition boot\nefi /slot-{letter}/Image\noptions {options}\n");
        files.write(&format!("EFI/twinhull/{letter}.entry"), &template)?;
        if slot == 0 {
            files.write("startup.nsh", &format!("fs0:\\slot-a\\Image {options}\r\n"))?;
        }
    }
    files.copy_all("slot-a", boot_files)
}

/// The kernel's command line for a slot.
fn options(board: &Board, slot: usize) -> String {
    let root = board.layout.partuuid(Role::Root(slot));
    format!("root=PARTUUID={root} ro panic=5 {}", board.command_line)
}

/// The files of one partition, as a directory.
struct Files<'a>(&'a Path);

impl Files<'_> {
    /// A file's path, with its directory made.
    fn place(&self, file: &str) -> Outcome<PathBuf> {
        let path = self.0.join(file);
        let parent = path.parent().unwrap_or(self.0);
        fs::create_dir_all(parent).map_err(|e| format!("{}: {e}", parent.display()))?;
        Ok(path)
    }

    fn write(&self, file: &str, text: &str) -> Outcome<PathBuf> {
        let path = self.place(file)?;
        fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path)
    }

    fn copy(&self, file: &str, from: &Path) -> Outcome {
        let path = self.place(file)?;
        fs::copy(from, &path).map(drop).map_err(|e| format!("copy {}: {e}", from.display()))
    }

    fn copy_all(&self, directory: &str, from: &Path) -> Outcome {
        run(Command::new("cp").arg("-rT").arg(from).arg(self.place(directory)?)).map(drop)
    }
}
