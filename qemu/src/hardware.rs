//! What QEMU is told for each machine: processor, firmware, disk, network, and where the lab's own channels go.
//!
//! `machine` adds what all have: the character devices `serial` (the console) and `agent`.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::Outcome;
use crate::boards::{Board, Bootloader, Machine};
use crate::machine::Disk;

/// What differs from the board as it stands on the table; all but the second disk and the network of the NUC only.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// There is no network card.
    pub without_network: bool,
    /// A second disk, raw, behind the first.
    pub second_disk: Option<PathBuf>,
    /// Where every write to the disk is noted, in the order in which the drive got them (`block_log`). The disk must be raw.
    pub write_log: Option<PathBuf>,
    /// What is written to the disk is forgotten when the machine is switched off.
    pub forgetful: bool,
    /// What QEMU starts in place of firmware and bootloader.
    pub kernel: Option<Kernel>,
}

/// A kernel that is started directly.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Directory with `vmlinuz` and `initramfs`.
    pub files: PathBuf,
    /// Whether it gets the initramfs.
    pub with_initramfs: bool,
    /// Its command line.
    pub command_line: String,
}

/// The program and its arguments. `work` is where firmware keeps its memory.
pub fn arguments(board: &Board, disk: &Disk, work: &Path, setup: &Setup) -> Outcome<Vec<String>> {
    let mut arguments = match board.machine {
        Machine::Nuc => nuc(disk, work, setup),
        Machine::VirtUboot => virt_uboot(disk, work, setup),
        Machine::VirtUefi => virt_uefi(disk, work),
        Machine::Raspberry { device_tree } => Ok(raspberry(disk, board, device_tree)),
    }?;
    if let Some(second) = &setup.second_disk {
        let device = match board.machine {
            Machine::Nuc => "nvme,drive=d1,serial=internal",
            _ => "virtio-blk-device,drive=d1",
        };
        let drive = format!("-drive if=none,id=d1,format=raw,file={} -device {device}", second.display());
        arguments.extend(words(&drive));
    }
    Ok(arguments)
}

/// A PC with UEFI and an NVMe disk. Its processor has the SHA extensions, as those of most newer NUCs: emulated, they are much
/// quicker than the instructions that do without.
fn nuc(disk: &Disk, work: &Path, setup: &Setup) -> Outcome<Vec<String>> {
    let mut arguments = words(&format!(
        "qemu-system-x86_64 -machine q35 -accel tcg,thread=multi,tb-size=512 -cpu Nehalem,+sha-ni -smp 2 -m 1024 \
         {} -device nvme,drive=d0,serial=s0,bootindex=1 -device virtio-rng-pci \
         -device virtio-serial-pci -device virtconsole,chardev=agent -device i6300esb -serial chardev:serial",
        nuc_disk(disk, setup),
    ));
    if !setup.without_network {
        arguments.extend(words("-netdev user,id=n0 -device virtio-net-pci,netdev=n0,romfile="));
    }
    match &setup.kernel {
        Some(kernel) => {
            let file = |name: &str| kernel.files.join(name).display().to_string();
            arguments.extend(["-kernel".into(), file("vmlinuz")]);
            if kernel.with_initramfs {
                arguments.extend(["-initrd".into(), file("initramfs")]);
            }
            // With blanks in it.
            arguments.extend(["-append".into(), kernel.command_line.clone()]);
        }
        None => {
            let variables = firmware_variables("/usr/share/OVMF/OVMF_VARS_4M.fd", work)?;
            arguments.extend(words(&format!(
                "-drive if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd \
                 -drive if=pflash,format=raw,unit=1,file={variables}"
            )));
        }
    }
    Ok(arguments)
}

/// The disk `d0`. Its log is in the format of dm-log-writes.
fn nuc_disk(disk: &Disk, setup: &Setup) -> String {
    let (format, file) = (disk.format, disk.file.display());
    match &setup.write_log {
        None => {
            let snapshot = if setup.forgetful { ",snapshot=on" } else { "" };
            format!("-drive if=none,id=d0,format={format},file={file}{snapshot}")
        }
        Some(log) => format!(
            "-blockdev driver=file,filename={file},node-name=f0,discard=unmap \
             -blockdev driver=raw,file=f0,node-name=r0 -blockdev driver=file,filename={},node-name=l0 \
             -blockdev driver=blklogwrites,node-name=d0,file=r0,log=l0,log-sector-size=512,log-super-update-interval=1",
            log.display()
        ),
    }
}

/// A machine with U-Boot in its first flash, which keeps its environment in the second, and a virtio disk.
fn virt_uboot(disk: &Disk, work: &Path, setup: &Setup) -> Outcome<Vec<String>> {
    let flash = |name: &str, from: Option<&str>| {
        let path = work.join(name);
        let made = match from {
            Some(from) => std::fs::copy(from, &path).map(drop),
            None if path.exists() => Ok(()),
            None => File::create(&path).map(drop),
        };
        let sized = made.and_then(|()| File::options().write(true).open(&path)?.set_len(64 << 20));
        sized.map(|()| path.display().to_string()).map_err(|e| format!("{name}: {e}"))
    };
    let program = flash("flash0.img", Some("/usr/lib/u-boot/qemu_arm64/u-boot.bin"))?;
    let environment = flash("flash1.img", None)?;
    let network = match setup.without_network {
        true => "",
        false => "-netdev user,id=n0 -device virtio-net-device,netdev=n0",
    };
    Ok(words(&format!(
        "{VIRT} {network} \
         -drive if=pflash,format=raw,unit=0,readonly=on,file={program} \
         -drive if=pflash,format=raw,unit=1,file={environment} \
         -drive if=none,id=d0,format={},file={} -device virtio-blk-device,drive=d0",
        disk.format,
        disk.file.display(),
    )))
}

/// A machine with UEFI and a virtio disk. Its network card is one that the firmware does not know: it would try for minutes to
/// start from there before it starts its shell.
fn virt_uefi(disk: &Disk, work: &Path) -> Outcome<Vec<String>> {
    let variables = firmware_variables("/usr/share/AAVMF/AAVMF_VARS.fd", work)?;
    Ok(words(&format!(
        "{VIRT} -netdev user,id=n0 -device e1000e,netdev=n0,romfile= \
         -drive if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/AAVMF/AAVMF_CODE.fd \
         -drive if=pflash,format=raw,unit=1,file={variables} \
         -drive if=none,id=d0,format={},file={} -device virtio-blk-device,drive=d0",
        disk.format,
        disk.file.display(),
    )))
}

/// A Raspberry Pi 3, with U-Boot where the firmware would have loaded it, or with nothing: a boot ROM then says what to load.
/// Its first serial port is the agent's.
fn raspberry(disk: &Disk, board: &Board, device_tree: &str) -> Vec<String> {
    let loaded = match board.bootloader {
        // Each restart goes through the boot ROM.
        Bootloader::Tryboot => "-no-reboot".to_owned(),
        _ => format!("-kernel {ARM_CACHE}/rpi_3.bin -dtb {ARM_CACHE}/dtbs/{device_tree}"),
    };
    words(&format!(
        "qemu-system-aarch64 -machine raspi3b -accel tcg,thread=multi,tb-size=512 -m 1024 {loaded} \
         -drive if=sd,format={},file={} -serial chardev:agent -serial chardev:serial",
        disk.format,
        disk.file.display(),
    ))
}

/// What `qemu/image/arm/base` has fetched.
const ARM_CACHE: &str = "target/lab/arm";

/// An ARM machine without disk, network and firmware. Its watchdog is on PCI, the rest where U-Boot looks first.
const VIRT: &str = "qemu-system-aarch64 -machine virt -accel tcg,thread=multi,tb-size=512 -cpu cortex-a53 -smp 2 -m 1024 \
                    -device virtio-rng-device -device virtio-serial-device \
                    -device virtconsole,chardev=agent -device i6300esb -serial chardev:serial";

/// The board's own copy of the firmware's variables, which outlives its power.
fn firmware_variables(template: &str, work: &Path) -> Outcome<String> {
    let variables = work.join("firmware-variables.fd");
    if !variables.exists() {
        std::fs::copy(template, &variables).map_err(|e| format!("{template}: {e}"))?;
    }
    Ok(variables.display().to_string())
}

/// A command line without quoting: none of the paths here has a blank.
pub fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}
