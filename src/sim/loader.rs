//! The bootloaders of the simulated devices: each is its real chooser, and a model of what runs before twinhull.

use std::collections::BTreeMap;

use super::files::MemoryStore;
use super::{grub_script, uboot_script};
use crate::boot::grub::{Block, Grub, encode};
use crate::boot::resin::{self, Notation, Partitions};
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
}

impl Loader {
    pub const ALL: [Self; 3] = [Self::Grub, Self::Bootenv, Self::UbootText];

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
        }
    }

    const fn notation(self) -> Notation {
        match self {
            Self::Grub => Notation::Decimal(PARTITIONS),
            Self::Bootenv => Notation::Letters,
            Self::UbootText => Notation::Hex(PARTITIONS),
        }
    }

    /// The real chooser over simulated files.
    pub fn chooser(self, store: MemoryStore) -> Box<dyn BootChooser> {
        match self {
            Self::Grub | Self::Bootenv => Box::new(Grub::new(store, GRUB_FILE, self.notation())),
            Self::UbootText => Box::new(UbootText::new(store, PARTITIONS)),
        }
    }

    /// What runs before twinhull, with these files on the boot partition.
    pub fn choose(self, files: &BTreeMap<String, Vec<u8>>) -> Choice {
        let file = |name: &str| files.get(name).map(Vec::as_slice);
        match self {
            Self::Grub => {
                let (slot, save) = grub_script::choose(file(GRUB_FILE).unwrap_or_default());
                Choice { slot, save: save.map(|raw| (GRUB_FILE.to_owned(), raw)) }
            }
            Self::Bootenv => {
                let (slot, save) = grub_script::abroot(file(GRUB_FILE).unwrap_or_default());
                Choice { slot, save: save.map(|raw| (GRUB_FILE.to_owned(), raw)) }
            }
            Self::UbootText => {
                let (slot, save) = uboot_script::choose(file(PLAN_FILE), file(COUNT_FILE));
                Choice { slot, save: save.map(|raw| (COUNT_FILE.to_owned(), raw)) }
            }
        }
    }
}
