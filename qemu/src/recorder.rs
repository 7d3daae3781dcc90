//! The guest in which writes are recorded, and the boot partitions that it writes to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::block_log::BlockLog;
use crate::disk::mtools;
use crate::images::run;
use crate::jury::{CASE_MIB, make_fat};
use crate::recording::{
    Action, CONFIG_FILE, ENVIRONMENT_BYTES, ENVIRONMENT_FILES, RECORDED, Step, Writer, config_content,
};
use crate::replay::{self, Event};
use crate::rules;

const CACHE: &str = "target/lab";
const RECORDER: &str = "target/debug/lab-recorder";
const SLOT_PROGRAM: &str = "qemu/image/efi/slot.rs";
const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(900);

/// What was recorded.
pub struct Recording {
    /// Each writer's boot partition as it was before.
    pub bases: Vec<(Writer, Vec<u8>)>,
    /// What the whole disk was told.
    pub events: Vec<Event>,
}

impl Recording {
    /// The first sector of a writer's partition, in the order of `bases`; that of the marks is behind the last.
    pub fn first_sector(n: usize) -> u64 {
        (1 + CASE_MIB * n as u64) * MIB / 512
    }
}

/// Records what these writers do.
pub fn record(work: &Path, writers: &[Writer]) -> Outcome<Recording> {
    run(Command::new("qemu/image/base").arg(CACHE))?;
    let problem = |e: std::io::Error| format!("{}: {e}", work.display());
    let (disk, log) = (work.join("recorded.img"), work.join("recorded.log"));
    let mut table = "label: gpt\n".to_owned();
    let mut plan = format!("/dev/nvme0n1p{}\n", writers.len() + 1);
    let mut bases = Vec::new();
    let image = fs::File::create(&disk).map_err(problem)?;
    image.set_len((3 + CASE_MIB * (writers.len() as u64 + 1)) * MIB).map_err(problem)?;
    for (n, writer) in writers.iter().enumerate() {
        use std::os::unix::fs::FileExt;
        table.push_str(&format!("start={}, size={CASE_MIB}MiB, type=L\n", Recording::first_sector(n)));
        plan.push_str(&format!("/dev/nvme0n1p{} {}\n", n + 1, writer.name()));
        let base = boot_partition(work, *writer)?;
        image.write_all_at(&base, Recording::first_sector(n) * 512).map_err(problem)?;
        bases.push((*writer, base));
    }
    table.push_str(&format!("start={}, size=1MiB, type=L\n", Recording::first_sector(writers.len())));
    let script = work.join("recorded.sfdisk");
    fs::write(&script, table).map_err(problem)?;
    run(Command::new("sh").args(["-c", "sfdisk --quiet \"$1\" <\"$2\"", "sh"]).arg(&disk).arg(script))?;
    fs::write(&log, b"").map_err(problem)?;
    let block = [
        format!("driver=file,filename={},node-name=f0", disk.display()),
        "driver=raw,file=f0,node-name=r0".to_owned(),
        format!("driver=file,filename={},node-name=l0", log.display()),
        "driver=blklogwrites,node-name=d0,file=r0,log=l0,log-sector-size=512,log-super-update-interval=1"
            .to_owned(),
    ];
    guest(work, "plan", &plan, &block)?;
    Ok(Recording { bases, events: replay::events(&BlockLog::open(&log)?)? })
}

/// Lets the guest's kernel and twinhull look at boot partitions of a disk, each `(partition, writer)`; what the console says of
/// that. `what` is `recover` or `choose` (`qemu/src/bin/lab-recorder.rs`).
pub fn look(work: &Path, disk: &Path, what: &str, list: &[(usize, Writer)]) -> Outcome<String> {
    let line = |(number, writer): &(usize, Writer)| format!("/dev/nvme0n1p{number} {}\n", writer.name());
    let plan: String = list.iter().map(line).collect();
    let block = [
        format!("driver=file,filename={},node-name=f0", disk.display()),
        "driver=raw,file=f0,node-name=d0".to_owned(),
    ];
    guest(work, what, &plan, &block)
}

/// What the guest said about a partition.
pub fn line_about(console: &str, partition: usize) -> Option<&str> {
    let (_, rest) = console.split_once(&format!("lab: /dev/nvme0n1p{partition} "))?;
    rest.lines().next()
}

/// Runs the guest to its end, with its disk as node `d0`.
fn guest(work: &Path, name: &str, plan: &str, block: &[String]) -> Outcome<String> {
    let problem = |e: std::io::Error| format!("{}: {e}", work.display());
    let (file, initramfs) = (work.join(format!("{name}.txt")), work.join(format!("{name}.initramfs")));
    fs::write(&file, plan).map_err(problem)?;
    run(Command::new("qemu/image/recorder/make")
        .args([CACHE, RECORDER])
        .arg(&file)
        .arg(name)
        .arg(&initramfs))?;
    let console = work.join(format!("{name}.console"));
    let _ = fs::remove_file(&console);
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-machine", "q35", "-accel", "tcg", "-cpu", "Nehalem", "-m", "512", "-kernel"])
        .arg(Path::new(CACHE).join("vmlinuz"))
        .arg("-initrd")
        .arg(&initramfs)
        .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check"])
        .args(["-device", "nvme,drive=d0,serial=s0", "-serial"])
        .arg(format!("file:{}", console.display()));
    for node in block {
        qemu.args(["-blockdev", node]);
    }
    let errors = fs::File::create(work.join("qemu.log")).map_err(problem)?;
    let mut process =
        qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().map_err(problem)?;
    let deadline = Instant::now() + PATIENCE;
    let ended = loop {
        match process.try_wait().map_err(problem)? {
            Some(_) => break true,
            None if Instant::now() > deadline => break false,
            None => std::thread::sleep(Duration::from_millis(200)),
        }
    };
    if !ended {
        let _ = process.kill();
        let _ = process.wait();
    }
    let said = fs::read(&console).unwrap_or_default();
    let said = String::from_utf8_lossy(&said).replace('\r', "");
    if said.contains(RECORDED) {
        return Ok(said);
    }
    let errors = fs::read_to_string(work.join("qemu.log")).unwrap_or_default();
    let lines: Vec<&str> = said.lines().collect();
    let last = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
    Err(format!("the guest did not come to its end; {errors}\n{last}"))
}

/// The boot partition of a device that is settled on slot A, with that writer's bootloader.
pub fn boot_partition(work: &Path, writer: Writer) -> Outcome<Vec<u8>> {
    let directory = work.join(format!("boot-{}", writer.name()));
    let files = Files(&directory);
    files.write(
        "config.json",
        b"{\"deviceType\":\"lab\",\"note\":\"nothing of this may change\"}\n".repeat(40),
    )?;
    match writer {
        Writer::Grub | Writer::GrubEditenv => {
            let variables = ["resin_root_part=2", "upgrade_available=0", "bootcount=0", "os_bc_lim=3"];
            block(&files.place("EFI/BOOT/grubenv")?, &variables)?;
            files.copy("EFI/BOOT/grub.cfg", "boot/grub/grub.cfg")?;
        }
        Writer::Bootenv => {
            block(&files.place("bootenv")?, &["bootcount=0", "resin_root_part=A", "upgrade_available=0"])?;
        }
        Writer::UbootText => {
            boot_script(&files, "boot/uboot/boot.cmd")?;
            // As balenaOS ships it.
            files.write("resinOS_uEnv.txt", b"resin_root_part=2\nupgrade_available=0\n")?;
        }
        Writer::UbootEnv | Writer::FwSetenv => {
            boot_script(&files, "boot/uboot-env/boot.cmd")?;
            files.write(ENVIRONMENT_FILES[0], environment_of(work, SETTLED, ENVIRONMENT_BYTES, false)?)?;
        }
        Writer::UbootEnvRedundant | Writer::FwSetenvRedundant => {
            for file in ENVIRONMENT_FILES {
                files.write(file, environment_of(work, SETTLED, ENVIRONMENT_BYTES, true)?)?;
            }
        }
        Writer::Initramfs => {
            files.write("initramfs.env", environment_of(work, SETTLED, 512, true)?.repeat(2))?;
        }
        Writer::SystemdBoot => {
            files.copy("EFI/BOOT/BOOTX64.EFI", "/usr/lib/systemd/boot/efi/systemd-bootx64.efi")?;
            files.write("loader/loader.conf", "timeout 0\n")?;
            let program = slot_program(work)?;
            for (letter, slot) in [('a', 'A'), ('b', 'B')] {
                files.copy(&format!("slot-{letter}/vmlinuz"), &program.display().to_string())?;
                let entry =
                    format!("title slot {slot}\nlinux /slot-{letter}/vmlinuz\noptions lab-slot={slot}\n");
                files.write(&format!("loader/entries/twinhull.{letter}"), &entry)?;
                if slot == 'A' {
                    let entry = format!("{entry}sort-key 0-twinhull\nversion 1\n");
                    files.write("loader/entries/twinhull-a.conf", &entry)?;
                }
            }
        }
        Writer::Tryboot => files.copy("autoboot.txt", "boot/raspberrypi/autoboot.txt")?,
        Writer::Fatrw => {
            // Somebody's write was interrupted when its journal file was whole. There is room for two more entries of the sixteen
            // in the root's only cluster, which may not grow.
            let [old, new] =
                [Action::Commit, Action::Disarm].map(|action| config_content(Step { action, slot: 'A' }));
            files.write(CONFIG_FILE, old)?;
            files.write(&rules::journal_name(&new), new)?;
            for n in 1..=5 {
                files.write(&format!("FILE{n}"), "x")?;
            }
        }
    }
    let image = work.join(format!("{}.img", writer.name()));
    // What UEFI reads is FAT32 with clusters of a sector here; elsewhere FAT16 with clusters of four, as mkfs.vfat makes it for
    // balenaOS's 40 MB.
    let (kind, sectors) = match writer {
        Writer::Grub | Writer::GrubEditenv | Writer::SystemdBoot | Writer::Bootenv | Writer::Fatrw => {
            ("32", 1)
        }
        _ => ("16", 4),
    };
    make_fat(&image, kind, sectors, CASE_MIB, &directory)?;
    leave_old_text(work, &image)?;
    fs::read(&image).map_err(|e| format!("{}: {e}", image.display()))
}

/// What is free was used before: by text that no bootloader should ever take for its own.
fn leave_old_text(work: &Path, image: &Path) -> Outcome {
    let old = work.join("old.txt");
    let text = b"resin_root_part=7\nupgrade_available=1\nbootcount=0\nboot_partition=7\noptions lab-slot=7\nversion 99\n";
    fs::write(&old, text.repeat(20_000)).map_err(|e| format!("{}: {e}", old.display()))?;
    run(mtools("mcopy").arg("-i").arg(image).arg(&old).arg("::old.txt"))?;
    run(mtools("mdel").arg("-i").arg(image).arg("::old.txt")).map(drop)
}

fn block(path: &Path, variables: &[&str]) -> Outcome {
    run(Command::new("grub-editenv").arg(path).arg("create"))?;
    run(Command::new("grub-editenv").arg(path).arg("set").args(variables)).map(drop)
}

const SETTLED: &str = "bootdelay=0\nresin_root_part=2\nupgrade_available=0\nbootcount=0\nos_bc_lim=3\n";

/// A copy of an environment with these variables, made by U-Boot's own tool.
pub fn environment_of(work: &Path, text: &str, bytes: usize, redundant: bool) -> Outcome<Vec<u8>> {
    let (source, copy) = (work.join("environment.txt"), work.join("environment.copy"));
    fs::write(&source, text).map_err(|e| format!("{}: {e}", source.display()))?;
    let mut make = Command::new("mkenvimage");
    if redundant {
        make.arg("-r");
    }
    run(make.args(["-s", &bytes.to_string(), "-o"]).arg(&copy).arg(&source))?;
    fs::read(&copy).map_err(|e| format!("{}: {e}", copy.display()))
}

fn boot_script(files: &Files, source: &str) -> Outcome {
    run(Command::new("mkimage")
        .args(["-A", "arm64", "-T", "script", "-C", "none", "-d", source])
        .arg(files.place("boot.scr")?))
    .map(drop)
}

/// What systemd-boot starts instead of a kernel.
fn slot_program(work: &Path) -> Outcome<PathBuf> {
    let program = work.join("slot.efi");
    run(Command::new("rustc")
        .args([
            "--edition",
            "2024",
            "--target",
            "x86_64-unknown-uefi",
            "-Copt-level=s",
            "-Cpanic=abort",
            "-o",
        ])
        .arg(&program)
        .arg(SLOT_PROGRAM))?;
    Ok(program)
}

/// The files of one partition, as a directory.
struct Files<'a>(&'a Path);

impl Files<'_> {
    fn place(&self, file: &str) -> Outcome<PathBuf> {
        let path = self.0.join(file);
        let parent = path.parent().unwrap_or(self.0);
        fs::create_dir_all(parent).map_err(|e| format!("{}: {e}", parent.display()))?;
        Ok(path)
    }

    fn write(&self, file: &str, content: impl AsRef<[u8]>) -> Outcome {
        let path = self.place(file)?;
        fs::write(&path, content).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn copy(&self, file: &str, from: &str) -> Outcome {
        fs::copy(from, self.place(file)?).map(drop).map_err(|e| format!("copy {from}: {e}"))
    }
}
