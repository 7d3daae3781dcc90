//! The sets of files that an install writes beside the root image: where each goes, and what it replaces.

use super::host::Host;
use crate::block::{FileSet, RealTree, missing, slot_dir, sums};
use crate::cli::Context;
use crate::config::Chooser;
use crate::model::record::Hook;
use crate::model::{FileEntry, Manifest, Payload, PayloadKind, Slot};
use crate::sys::mount::{MountFlags, Temporary};
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
    /// Boot partitions, for as long as they are written or read.
    _mounts: Vec<Temporary>,
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

/// Where the files of a kind lie: a tree and a directory in it, for the slot that is written, and for the one that runs.
struct Place {
    target: (RealTree, &'static str),
    active: Option<(RealTree, &'static str)>,
    name: String,
    mounts: Vec<Temporary>,
}

impl FileSets {
    /// Decides what is written where. Writes nothing; `read_only` sees to it that nothing can be.
    ///
    /// # Errors
    /// `Refused`, saying how to comply, if there is no room for the files, or this device's bootloader would not read them.
    pub fn plan(context: &Context, host: &Host, manifest: &Manifest, read_only: bool) -> Result<Self> {
        let mut sets = Self { disks: Vec::new(), sources: Vec::new(), _mounts: Vec::new() };
        let title = format!("version {}", manifest.version);
        for kind in [PayloadKind::BootFiles, PayloadKind::Hooks] {
            let number = manifest.files.iter().position(|p| p.kind == kind);
            let payload = number.and_then(|n| manifest.files.get(n).map(|p| (n, p.clone())));
            let place = place(&context.root, host, kind, read_only);
            let place = match place {
                // Where nothing can be written now, nothing of an earlier bundle can be either.
                Err(e) if payload.is_none() => {
                    log::info!("{e}; there are no boot files to see to");
                    continue;
                }
                place => place?,
            };
            let Some(place) = place else {
                if payload.is_some() {
                    return Err(Error::refused(format!(
                        "the bundle has files for the boot partition, of which {} boots none; make it without --boot-dir \
                         and --boot-file",
                        host.chooser
                    )));
                }
                continue;
            };
            let (tree, dir) = place.target;
            let before = sums(&tree, dir).doing(|| place.name.clone())?;
            if payload.is_none() && before.is_none() {
                continue;
            }
            let files = payload.as_ref().map_or(&[][..], |(_, p)| &p.files);
            let disk = FileSet::new(tree.clone(), dir, &title, files);
            disk.check_room().doing(|| place.name.clone())?;
            let active = match place.active {
                Some((tree, dir)) => FileSet::new(tree, dir, "", files),
                None => FileSet::new(tree, dir, "", &[]),
            };
            sets.disks.push(disk);
            sets.sources.push(Source { payload, active, name: place.name });
            sets._mounts.extend(place.mounts);
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
fn place(root: &Root, host: &Host, kind: PayloadKind, read_only: bool) -> Result<Option<Place>> {
    let target = host.machine.target();
    Ok(match (kind, host.chooser) {
        (PayloadKind::RootSlot | PayloadKind::Disk, _) => None,
        (PayloadKind::Hooks, _) => Some(Place {
            target: (RealTree(root.path("/mnt/state")), HOOKS),
            // There is nothing to copy from.
            active: None,
            name: "hooks on the state partition".into(),
            mounts: Vec::new(),
        }),
        (PayloadKind::BootFiles, Chooser::SystemdBoot | Chooser::Efi) => {
            let tree = RealTree(root.path("/mnt/boot"));
            Some(Place {
                target: (tree.clone(), slot_dir(target)),
                active: Some((tree, slot_dir(!target))),
                name: format!("boot files of slot {target}, {} on the boot partition", slot_dir(target)),
                mounts: Vec::new(),
            })
        }
        (PayloadKind::BootFiles, Chooser::Tryboot) => {
            let (tree, mounted) = boot_partition(root, host, target, read_only)?;
            let mut mounts = Vec::from_iter(mounted);
            let active = boot_partition(root, host, !target, true).map(|(tree, mounted)| {
                mounts.extend(mounted);
                (tree, "")
            });
            // It only saves a download.
            let active = active.inspect_err(|e| log::info!("{e}; nothing is copied from there")).ok();
            let number = partition_number(host, target);
            let name = format!("boot files of slot {target}, partition {number}");
            Some(Place { target: (tree, ""), active, name, mounts })
        }
        (
            PayloadKind::BootFiles,
            Chooser::Grub
            | Chooser::BalenaBootloader
            | Chooser::UbootText
            | Chooser::UbootEnv
            | Chooser::Initramfs,
        ) => None,
    })
}

fn partition_number(host: &Host, slot: Slot) -> u32 {
    let [a, b] = host.settings.boot.tryboot_partitions;
    match slot {
        Slot::A => a,
        Slot::B => b,
    }
}

/// The boot partition that one slot has for itself, mounted.
fn boot_partition(
    root: &Root,
    host: &Host,
    slot: Slot,
    read_only: bool,
) -> Result<(RealTree, Option<Temporary>)> {
    let at = root.path("/run/twinhull").join(slot_dir(slot));
    if !root.is_host() {
        return Ok((RealTree(at), None));
    }
    let number = partition_number(host, slot);
    let partition = host.disk.partitions.iter().find(|p| p.number == number).ok_or_else(|| {
        Error::failed(format!("partition {number}, for the boot files of slot {slot}, is not there"))
    })?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    flags.set(MountFlags::RDONLY, read_only);
    let mounted = Temporary::new(&partition.device, &at, "vfat", flags, "")?;
    Ok((RealTree(at), Some(mounted)))
}

/// The boot files that bundles brought, where they can be looked at without mounting anything: slot, whose they are, how
/// many, and which of them are missing.
///
/// # Errors
/// `Failed` if the boot partition cannot be read.
pub fn boot_files(root: &Root, host: &Host) -> Result<Vec<BootFiles>> {
    let mut found = Vec::new();
    if !matches!(host.chooser, Chooser::SystemdBoot | Chooser::Efi) {
        return Ok(found);
    }
    let tree = RealTree(root.path("/mnt/boot"));
    for slot in Slot::ALL {
        if let Some(sums) = sums(&tree, slot_dir(slot))? {
            let missing = missing(&tree, slot_dir(slot), &sums)?;
            found.push(BootFiles { slot, of: sums.title, files: sums.files.len(), missing });
        }
    }
    Ok(found)
}

/// What `status` shows of a slot's boot files.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BootFiles {
    /// Whose they are.
    pub slot: Slot,
    /// What brought them: `version 2.1.0`.
    pub of: String,
    /// How many.
    pub files: usize,
    /// Those that are not there.
    pub missing: Vec<String>,
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
            PayloadKind::RootSlot | PayloadKind::Disk => "image",
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
        PayloadKind::RootSlot | PayloadKind::Disk => {
            format!("image:       {} bytes, sha256 {}", payload.size, payload.sha256)
        }
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
