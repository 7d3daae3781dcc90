//! The bootloaders of the simulated devices: each is its real chooser, and a model of what runs before twinhull.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::files::MemoryStore;
use super::power::Power;
use super::{efi_model, grub_script, sdboot_model, uboot_script};
use crate::boot::efi::EfiBoot;
use crate::boot::grub::{Block, Grub, encode};
use crate::boot::initramfs;
use crate::boot::resin::{self, Notation, Partitions};
use crate::boot::sdboot::{Entry, SystemdBoot, template_name};
use crate::boot::tryboot::{self, Section, Tryboot};
use crate::boot::uboot_env::{UbootEnv, decode, newer};
use crate::boot::uboot_text::{COUNT_FILE, PLAN_FILE, UbootText};
use crate::boot::{BootChooser, Environment};
use crate::model::Slot;

const PARTITIONS: Partitions = Partitions { a: 2, b: 3 };
const GRUB_FILE: &str = "grubenv";

/// What a bootloader decides: the slot, and what it has to save before it boots it, if it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The slot to boot if the file could be saved, or need not be.
    pub slot: Slot,
    /// The file with the counted boot, and its content.
    pub save: Option<(String, Vec<u8>)>,
    /// The file that goes with it, in the same write: the old name, if it counts by renaming (the directory of the entries is
    /// one sector); the variable that asks for the one try.
    pub removed: Option<String>,
}

impl Choice {
    /// The choice of a script that counts in a file of always the same name.
    fn counting(file: &str, (slot, save): (Slot, Option<Vec<u8>>)) -> Self {
        Self { slot, save: save.map(|raw| (file.to_owned(), raw)), removed: None }
    }

    /// Whether the bootloader writes before it boots, which is when it boots a trial.
    pub const fn writes(&self) -> bool {
        self.save.is_some() || self.removed.is_some()
    }

    /// Writes that. Whether there was anything.
    pub fn save_into(&self, files: &mut BTreeMap<String, Vec<u8>>) -> bool {
        if let Some(old) = &self.removed {
            files.remove(old);
        }
        if let Some((file, counted)) = self.save.clone() {
            files.insert(file, counted);
        }
        self.writes()
    }
}

/// Which bootloader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loader {
    /// `boot/grub/grub.cfg`.
    Grub,
    /// balena-bootloader's own script.
    Bootenv,
    /// `boot/uboot/boot.cmd`.
    UbootText,
    /// `boot/uboot-env/boot.cmd` with a redundant environment.
    UbootEnv,
    /// The same with a single one.
    UbootEnvSingle,
    /// The counter kept by PID 1.
    Initramfs,
    /// systemd-boot.
    SystemdBoot,
    /// Raspberry Pi's firmware with `autoboot.txt`.
    Tryboot,
    /// UEFI with its own variables.
    Efi,
}

impl Loader {
    pub const ALL: [Self; 9] = [
        Self::Grub,
        Self::Bootenv,
        Self::UbootText,
        Self::UbootEnv,
        Self::UbootEnvSingle,
        Self::Initramfs,
        Self::SystemdBoot,
        Self::Tryboot,
        Self::Efi,
    ];

    /// The boot partition of a new device, settled on slot A.
    pub fn seed(self) -> BTreeMap<String, Vec<u8>> {
        let text = |name: &str, content: &str| (name.to_owned(), content.as_bytes().to_vec());
        match self {
            Self::Grub | Self::Bootenv => {
                let mut block = Block::default();
                resin::settle(&mut block.variables, self.notation(), Slot::A);
                block.variables.set("os_bc_lim", "3");
                BTreeMap::from([(GRUB_FILE.to_owned(), encode(&block).unwrap().to_vec())])
            }
            // As balenaOS ships it: without a limit and without a count.
            Self::UbootText => BTreeMap::from([text(PLAN_FILE, "resin_root_part=2\nupgrade_available=0\n")]),
            Self::UbootEnv | Self::Initramfs => BTreeMap::from([
                ("env.0".to_owned(), env_copy(1, true)),
                ("env.1".to_owned(), env_copy(0, true)),
            ]),
            Self::UbootEnvSingle => BTreeMap::from([("env.0".to_owned(), env_copy(0, false))]),
            Self::SystemdBoot => {
                let template = |slot| format!("title {slot}\nlinux /slot-{slot}/vmlinuz\n");
                let first = Entry::content(template(Slot::A).as_bytes(), 1).unwrap();
                let [a, b] = Slot::ALL.map(|slot| text(&template_name(slot), &template(slot)));
                BTreeMap::from([a, b, ("twinhull-a.conf".to_owned(), first)])
            }
            Self::Tryboot => {
                BTreeMap::from([text(tryboot::FILE, include_str!("../../boot/raspberrypi/autoboot.txt"))])
            }
            Self::Efi => efi_model::seed(),
        }
    }

    /// Whether kernels lie on the boot partition, in a set for each slot, and not in the slots' images.
    pub const fn has_boot_files(self) -> bool {
        matches!(self, Self::SystemdBoot | Self::Tryboot | Self::Efi)
    }

    fn notation(self) -> Notation {
        match self {
            Self::Grub => Notation::Decimal(PARTITIONS),
            Self::Bootenv => Notation::Letters,
            Self::UbootText | Self::UbootEnv | Self::UbootEnvSingle | Self::Initramfs => {
                Notation::Hex(PARTITIONS)
            }
            Self::SystemdBoot | Self::Tryboot | Self::Efi => unreachable!("it has no variables"),
        }
    }

    /// The real chooser over simulated files.
    pub fn chooser(self, store: MemoryStore) -> Box<dyn BootChooser> {
        match self {
            Self::Grub | Self::Bootenv => Box::new(Grub::new(store, GRUB_FILE, self.notation())),
            Self::UbootText => Box::new(UbootText::new(store, PARTITIONS)),
            Self::UbootEnv | Self::UbootEnvSingle | Self::Initramfs => {
                Box::new(UbootEnv::new(store, PARTITIONS))
            }
            Self::SystemdBoot => Box::new(SystemdBoot::new(store)),
            Self::Tryboot => Box::new(Tryboot::new(store, PARTITIONS, None)),
            Self::Efi => Box::new(EfiBoot::new(store, efi_model::wanted())),
        }
    }

    /// What runs before twinhull, with these files on the boot partition. `asked`: the reboot carried `0 tryboot`.
    pub fn choose(self, files: &BTreeMap<String, Vec<u8>>, asked: bool) -> Choice {
        let file = |name: &str| files.get(name).map(Vec::as_slice);
        match self {
            Self::Grub => {
                Choice::counting(GRUB_FILE, grub_script::choose(file(GRUB_FILE).unwrap_or_default()))
            }
            Self::Bootenv => {
                Choice::counting(GRUB_FILE, grub_script::abroot(file(GRUB_FILE).unwrap_or_default()))
            }
            Self::UbootText => {
                Choice::counting(COUNT_FILE, uboot_script::choose(file(PLAN_FILE), file(COUNT_FILE)))
            }
            Self::UbootEnv | Self::UbootEnvSingle => {
                let (slot, save) = uboot_env(file("env.0").unwrap_or_default(), file("env.1"));
                let save = save.map(|(copy, raw)| (format!("env.{copy}"), raw));
                Choice { slot, save, removed: None }
            }
            // No model: what runs is the program's own code.
            Self::Initramfs => {
                let counted = Rc::new(RefCell::new(files.clone()));
                let store = MemoryStore::new(counted.clone(), Power::default());
                let (slot, _) = initramfs::choose(&mut UbootEnv::new(store, PARTITIONS), Slot::A);
                let save = counted
                    .borrow()
                    .iter()
                    .find(|(name, raw)| files.get(*name) != Some(raw))
                    .map(|(name, raw)| (name.clone(), raw.clone()));
                Choice { slot, save, removed: None }
            }
            Self::SystemdBoot => {
                let (slot, rename) = sdboot_model::choose(files);
                let (removed, save) =
                    rename.map(|(old, new)| (old.clone(), (new, files[&old].clone()))).unzip();
                Choice { slot, save, removed }
            }
            Self::Tryboot => Choice::counting(tryboot::FILE, (firmware(file(tryboot::FILE), asked), None)),
            Self::Efi => {
                let (slot, removed) = efi_model::choose(files);
                Choice { slot, save: None, removed }
            }
        }
    }
}

/// A copy of a new environment, settled on slot A, among other variables.
fn env_copy(flag: u8, redundant: bool) -> Vec<u8> {
    let mut raw = vec![0; 512];
    let data_at = 4 + usize::from(redundant);
    let text = b"bootcount=0\0bootdelay=2\0resin_root_part=2\0upgrade_available=0\0";
    raw[data_at..data_at + text.len()].copy_from_slice(text);
    if redundant {
        raw[4] = flag;
    }
    let crc = crc32fast::hash(&raw[data_at..]);
    raw[..4].copy_from_slice(&crc.to_le_bytes());
    raw
}

/// The model of `boot/uboot-env/boot.cmd`: the decision is that of the text files' script; U-Boot's `saveenv` writes
/// the copy that it did not load.
fn uboot_env(first: &[u8], second: Option<&[u8]>) -> (Slot, Option<(usize, Vec<u8>)>) {
    let redundant = second.is_some();
    let copies = [Some(first), second].map(|raw| raw.and_then(|raw| decode(raw, redundant).ok()));
    let (loaded, target) = match &copies {
        [Some(a), Some(b)] if newer(a.flag, b.flag) => (b, 0),
        [Some(a), _] => (a, usize::from(redundant)),
        [None, Some(b)] => (b, 0),
        // U-Boot's built-in default, which knows of no trial.
        [None, None] => return (Slot::A, None),
    };
    let mut text = Vec::new();
    for entry in &loaded.entries.0 {
        text.extend(entry);
        text.push(b'\n');
    }
    let (slot, counted) = uboot_script::choose(Some(&text), Some(&text));
    let save = counted.map(|counted| {
        let mut entries = loaded.entries.clone();
        entries.set("bootcount", &uboot_script::import(&counted)["bootcount"]);
        (target, loaded.encode(&entries, loaded.flag.wrapping_add(1)).unwrap())
    });
    (slot, save)
}

/// The model of Raspberry Pi's firmware: `[tryboot]` once if the reboot asked for it, else `[all]`.
///
/// Source: Raspberry Pi documentation, "autoboot.txt".
fn firmware(file: Option<&[u8]>, asked: bool) -> Slot {
    let Some(autoboot) = file.and_then(|raw| tryboot::decode(raw).ok()) else { return Slot::A };
    let part = |section| autoboot.value(section, "boot_partition");
    let all = part(Section::All);
    let chosen = if asked { part(Section::Tryboot).or(all) } else { all };
    if chosen.as_deref() == Some("3") { Slot::B } else { Slot::A }
}
