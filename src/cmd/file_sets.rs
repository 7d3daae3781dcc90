//! The sets of files that an install writes beside the root image: where each goes, and what it replaces.

use super::host::Host;
use crate::block::{FileSet, RealTree, slot_dir, sums};
use crate::cli::Context;
use crate::config::Chooser;
use crate::model::record::Hook;
use crate::model::{FileEntry, Manifest, Payload, PayloadKind};
use crate::update::Image;
use crate::{Doing, Error, Result, Root};

/// Where the hooks of the bundle that is on trial lie, on the state partition.
pub const HOOKS: &str = "twinhull/hooks";

/// What an install writes beside the root image. Both lists go together.
pub struct FileSets {
    /// Where the files are written.
    pub disks: Vec<FileSet<RealTree>>,
    /// Where they come from.
    pub sources: Vec<Source>,
}

/// Where the files of one set come from.
pub struct Source {
    /// The bundle's payload and its number; `None` if the bundle has none, and what the one before left is removed.
    pub payload: Option<(usize, Payload)>,
    /// The same files as the running system has them.
    pub active: FileSet<RealTree>,
    /// For messages: `boot files of slot B`.
    pub name: String,
}

/// Where the files of a kind lie: for the slot that is written, and for the one that runs.
struct Place {
    tree: RealTree,
    target: &'static str,
    active: Option<&'static str>,
    name: String,
}

impl FileSets {
    /// Decides what is written where. Writes nothing.
    ///
    /// # Errors
    /// `Refused`, saying how to comply, if there is no room for the files, or this device's bootloader would not read them.
    pub fn plan(context: &Context, host: &Host, manifest: &Manifest) -> Result<Self> {
        let mut sets = Self { disks: Vec::new(), sources: Vec::new() };
        let title = format!("version {}", manifest.version);
        for kind in [PayloadKind::BootFiles, PayloadKind::Hooks] {
            let number = manifest.files.iter().position(|p| p.kind == kind);
            let payload = number.and_then(|n| manifest.files.get(n).map(|p| (n, p.clone())));
            let Some(place) = place(&context.root, host, kind) else {
                if payload.is_some() {
                    return Err(Error::refused(format!(
                        "the bundle has files for the boot partition, and {} boots what is in /boot of the root image; \
                         make it without --boot-dir and --boot-file",
                        host.chooser
                    )));
                }
                continue;
            };
            let before = sums(&place.tree, place.target).doing(|| place.name.clone())?;
            if payload.is_none() && before.is_none() {
                continue;
            }
            let files = payload.as_ref().map_or(&[][..], |(_, p)| &p.files);
            let disk = FileSet::new(place.tree.clone(), place.target, &title, files);
            disk.check_room().doing(|| place.name.clone())?;
            let active =
                FileSet::new(place.tree, place.active.unwrap_or(""), "", place.active.map_or(&[], |_| files));
            sets.disks.push(disk);
            sets.sources.push(Source { payload, active, name: place.name });
        }
        Ok(sets)
    }

    /// What each set must be in the end.
    pub fn images(&self) -> Vec<Image> {
        let image = |source: &Source| match &source.payload {
            Some((_, payload)) => Image { len_bytes: payload.size, digest: payload.sha256 },
            None => Image::empty(),
        };
        self.sources.iter().map(image).collect()
    }
}

/// `None` if the bootloader of this device reads no such files.
fn place(root: &Root, host: &Host, kind: PayloadKind) -> Option<Place> {
    let target = !host.machine.booted;
    match kind {
        PayloadKind::RootSlot => None,
        PayloadKind::Hooks => Some(Place {
            tree: RealTree(root.path("/mnt/state")),
            target: HOOKS,
            active: None,
            name: "hooks on the state partition".into(),
        }),
        PayloadKind::BootFiles => match host.chooser {
            Chooser::SystemdBoot | Chooser::Efi => Some(Place {
                tree: RealTree(root.path("/mnt/boot")),
                target: slot_dir(target),
                active: Some(slot_dir(!target)),
                name: format!("boot files of slot {target}, {} on the boot partition", slot_dir(target)),
            }),
            Chooser::Grub
            | Chooser::BalenaBootloader
            | Chooser::UbootText
            | Chooser::UbootEnv
            | Chooser::Initramfs
            | Chooser::Tryboot => None,
        },
    }
}

/// What the journal keeps of a bundle's hooks.
pub fn hooks(manifest: &Manifest) -> Vec<Hook> {
    let files = manifest.files_of(PayloadKind::Hooks).map_or(&[][..], |p| &p.files);
    files
        .iter()
        .map(|f| Hook { name: f.path.clone(), sha256: f.sha256, deadline_s: f.deadline_s.unwrap_or(1) })
        .collect()
}

/// `, 3 boot files, 1 hook`: what a bundle carries beside the image, or nothing.
pub fn count(manifest: &Manifest) -> String {
    let one = |p: &Payload| {
        let what = match p.kind {
            PayloadKind::RootSlot => "image",
            PayloadKind::BootFiles => "boot file",
            PayloadKind::Hooks => "hook",
        };
        let n = p.files.len();
        format!(", {n} {what}{}", if n == 1 { "" } else { "s" })
    };
    manifest.files.iter().map(one).collect()
}

/// A payload of files on one line, for people.
pub fn describe(payload: &Payload) -> String {
    let bytes: u64 = payload.files.iter().map(|f| f.size).sum();
    match payload.kind {
        PayloadKind::RootSlot => format!("image:       {} bytes, sha256 {}", payload.size, payload.sha256),
        PayloadKind::BootFiles => {
            format!("boot files:  {} with {bytes} bytes: {}", payload.files.len(), names(payload))
        }
        PayloadKind::Hooks => {
            let hook = |f: &FileEntry| format!("{} ({} s)", f.path, f.deadline_s.unwrap_or(0));
            format!("hooks:       {}", payload.files.iter().map(hook).collect::<Vec<_>>().join(", "))
        }
    }
}

fn names(payload: &Payload) -> String {
    const SHOWN: usize = 6;
    let mut names: Vec<&str> = payload.files.iter().take(SHOWN).map(|f| f.path.as_str()).collect();
    if payload.files.len() > SHOWN {
        names.push("…");
    }
    names.join(", ")
}
