//! Which bootloader this device has: as set, or found by the files that it needs.

use std::path::{Path, PathBuf};

use super::host::AnyChooser;
use crate::block::{BootedDisk, label};
use crate::boot::Directory;
use crate::boot::efi::{
    EfiBoot, Efivarfs, LoadOption, Template, Volume, Where, template_name as efi_template_name,
};
use crate::boot::grub::Grub;
use crate::boot::initramfs;
use crate::boot::resin::{Notation, Partitions};
use crate::boot::sdboot::{SystemdBoot, template_name};
use crate::boot::tryboot::{self, Tryboot};
use crate::boot::uboot_env::{Place, Places, UbootEnv, parse_config};
use crate::boot::uboot_text::{PLAN_FILE, UbootText};
use crate::config::{Boot, Chooser};
use crate::model::Slot;
use crate::{Doing, Error, Result, Root, sys};

const BOOT: &str = "/mnt/boot";
const EFI_TEMPLATES: &str = "/mnt/boot/EFI/twinhull";
const EFI_VARIABLES: &str = "/sys/firmware/efi/efivars";
const ENTRIES: &str = "/mnt/boot/loader/entries";
const LIMIT_BYTES: u64 = 64 * 1024;

/// Opens the device's boot chooser.
///
/// # Errors
/// `Failed` if none or several are found, saying what was looked for or found, and if the disk lacks a slot.
pub fn open(root: &Root, settings: &Boot, disk: &BootedDisk) -> Result<(AnyChooser, Chooser)> {
    let chooser = match settings.chooser {
        Some(chooser) => chooser,
        None => find(root, settings)?,
    };
    let [a, b] = Slot::ALL.map(|s| disk.slot_partition(s).map(|p| p.number));
    let partitions = Partitions { a: a?, b: b? };
    let file = root.path(evidence(settings, chooser));
    let opened: AnyChooser = match chooser {
        Chooser::Grub | Chooser::BalenaBootloader => {
            let notation = match chooser {
                Chooser::BalenaBootloader => Notation::Letters,
                _ => Notation::Decimal(partitions),
            };
            let (store, name) = Directory::of_file(&file)?;
            Box::new(Grub::new(store, name, notation))
        }
        Chooser::UbootText => Box::new(UbootText::new(Directory::new(root.path(BOOT)), partitions)),
        Chooser::SystemdBoot => Box::new(SystemdBoot::new(Directory::new(root.path(ENTRIES)))),
        Chooser::Initramfs => Box::new(initramfs::open(&root.path(BOOT), partitions)),
        Chooser::Tryboot => {
            let [a, b] = settings.tryboot_partitions;
            let store = Directory::new(root.path(BOOT));
            Box::new(Tryboot::new(store, Partitions { a, b }, eeprom_built(root)?))
        }
        Chooser::Efi => {
            let [a, b] = Slot::ALL.map(|slot| efi_entry(root, disk, slot));
            Box::new(EfiBoot::new(Efivarfs::new(root.path(EFI_VARIABLES)), [a?, b?]))
        }
        Chooser::UbootEnv => {
            let text = sys::file::read_text(&file, LIMIT_BYTES)?;
            let places = parse_config(&text).doing(|| file.display().to_string())?;
            let under_root = |p: Place| Place { device: root.path(&p.device), ..p };
            Box::new(UbootEnv::new(Places(places.into_iter().map(under_root).collect()), partitions))
        }
    };
    Ok((opened, chooser))
}

/// The firmware's entry of a slot, as its template says it should be.
fn efi_entry(root: &Root, disk: &BootedDisk, slot: Slot) -> Result<LoadOption> {
    let file = root.path(EFI_TEMPLATES).join(efi_template_name(slot));
    let text = sys::file::read_text(&file, LIMIT_BYTES)?;
    let template = Template::parse(&text).doing(|| file.display().to_string())?;
    let partition = match template.partition {
        Where::Slot => disk.slot_partition(slot)?,
        Where::Boot => disk.required(label::BOOT)?,
    };
    let volume = Volume {
        number: partition.number,
        start_lba: partition.start_bytes / disk.sector_bytes,
        sectors: partition.len_bytes / disk.sector_bytes,
        partuuid: partition.partuuid.clone(),
    };
    template.entry(slot, &volume).doing(|| partition.device.display().to_string())
}

/// When the bootloader EEPROM was built, in seconds since 1970; `None` on boards without one.
fn eeprom_built(root: &Root) -> Result<Option<u32>> {
    let node = root.path("/proc/device-tree/chosen/bootloader/build-timestamp");
    let raw = sys::file::read_if_exists(&node, LIMIT_BYTES)?;
    raw.map(|raw| {
        let bytes = raw.as_slice().try_into();
        bytes
            .map(u32::from_be_bytes)
            .map_err(|_| Error::failed(format!("{}: {} bytes, expected 4", node.display(), raw.len())))
    })
    .transpose()
}

/// The file that shows that a bootloader is there.
fn evidence(settings: &Boot, chooser: Chooser) -> PathBuf {
    match chooser {
        Chooser::Grub => settings.grub_env.clone(),
        Chooser::BalenaBootloader => Path::new(BOOT).join("bootenv"),
        Chooser::UbootText => Path::new(BOOT).join(PLAN_FILE),
        Chooser::UbootEnv => "/etc/fw_env.config".into(),
        Chooser::Initramfs => Path::new(BOOT).join(initramfs::FILE),
        Chooser::Tryboot => Path::new(BOOT).join(tryboot::FILE),
        // Every system that was started by UEFI has the variables, with any bootloader: only these files ask for it.
        Chooser::Efi => Path::new(EFI_TEMPLATES).join(efi_template_name(Slot::A)),
        Chooser::SystemdBoot => Path::new(ENTRIES).join(template_name(Slot::A)),
    }
}

fn find(root: &Root, settings: &Boot) -> Result<Chooser> {
    let places = Chooser::ALL.map(|chooser| (chooser, evidence(settings, chooser)));
    let is_there = |(_, file): &&(Chooser, PathBuf)| root.path(file).exists();
    let list = |found: &[&(Chooser, PathBuf)]| {
        let each: Vec<_> =
            found.iter().map(|(c, file)| format!("{} ({c})", root.path(file).display())).collect();
        each.join(", ")
    };
    match places.iter().filter(is_there).collect::<Vec<_>>().as_slice() {
        [(chooser, _)] => Ok(*chooser),
        [] => Err(Error::failed(format!(
            "no bootloader's environment found, looked for {}; is the boot partition mounted, or should boot.chooser be \
             set in /etc/twinhull/*.toml?",
            list(&places.iter().collect::<Vec<_>>())
        ))),
        several => Err(Error::failed(format!(
            "more than one bootloader's environment found: {}; set boot.chooser in /etc/twinhull/*.toml to the one that \
             boots this device",
            list(several)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find_among(files: &[&str]) -> Result<Chooser> {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        for file in files {
            let path = root.path(file);
            sys::durable::create_dir(path.parent().unwrap()).unwrap();
            sys::durable::replace(&path, b"", 0o644).unwrap();
        }
        find(&root, &Boot::default())
    }

    #[test]
    fn one_bootloader_s_file_tells_which_it_is() {
        for (file, expected) in [
            ("/mnt/boot/EFI/BOOT/grubenv", Chooser::Grub),
            ("/mnt/boot/bootenv", Chooser::BalenaBootloader),
            ("/mnt/boot/resinOS_uEnv.txt", Chooser::UbootText),
            ("/etc/fw_env.config", Chooser::UbootEnv),
            ("/mnt/boot/loader/entries/twinhull.a", Chooser::SystemdBoot),
            ("/mnt/boot/autoboot.txt", Chooser::Tryboot),
            ("/mnt/boot/EFI/twinhull/a.entry", Chooser::Efi),
            ("/mnt/boot/initramfs.env", Chooser::Initramfs),
        ] {
            let firmware = "/sys/firmware/efi/efivars/BootOrder-8be4df61-93ca-11d2-aa0d-00e098032b8c";
            assert_eq!(find_among(&[file, firmware, "/mnt/boot/config.json"]).unwrap(), expected);
        }
    }

    #[test]
    fn the_eeprom_s_age_is_read_from_the_device_tree() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        assert_eq!(eeprom_built(&root).unwrap(), None);
        let node = root.path("/proc/device-tree/chosen/bootloader/build-timestamp");
        sys::durable::create_dir(node.parent().unwrap()).unwrap();
        // 2023-01-11, as the firmware writes it: the most significant byte first.
        sys::durable::replace(&node, &[0x63, 0xbd, 0xfc, 0x80], 0o644).unwrap();
        assert_eq!(eeprom_built(&root).unwrap(), Some(1_673_395_328));
        sys::durable::replace(&node, b"\0\0\0", 0o644).unwrap();
        let e = eeprom_built(&root).unwrap_err().to_string();
        assert!(e.ends_with("build-timestamp: 3 bytes, expected 4"), "{e}");
    }

    #[test]
    fn none_and_several_are_errors_that_name_the_files() {
        let e = find_among(&["/mnt/boot/config.json"]).unwrap_err().to_string();
        assert!(e.starts_with("no bootloader's environment found, looked for "), "{e}");
        assert!(e.contains("/mnt/boot/EFI/BOOT/grubenv (grub), "), "{e}");
        let e = find_among(&["/mnt/boot/bootenv", "/mnt/boot/resinOS_uEnv.txt"]).unwrap_err().to_string();
        assert!(e.contains("/mnt/boot/bootenv (balena-bootloader)"), "{e}");
        assert!(e.contains("/mnt/boot/resinOS_uEnv.txt (uboot-text); set boot.chooser"), "{e}");
    }
}
