//! The mounts of the running system, made under the new root.

use std::path::Path;
use std::time::Duration;

use super::doctor::{self, Health, Means, Patient, Role};
use crate::block::{FileDisk, FileSystemKind, Partition, probe};
use crate::model::Cmdline;
use crate::sys::command::Outcome;
use crate::sys::mount::MountFlags;
use crate::{Doing, Error, Result, Root, sys};

/// A check of a large data partition on a slow card takes minutes, not more.
const CHECK_DEADLINE: Duration = Duration::from_secs(900);

/// The kernel's own file systems: source, directory, type, flags, options.
const KERNEL: [(&str, &str, MountFlags, &str); 4] = [
    ("proc", "/proc", NOTHING, ""),
    ("sysfs", "/sys", NOTHING, ""),
    ("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755"),
    ("tmpfs", "/run", MountFlags::NOSUID.union(MountFlags::NODEV), "mode=0755"),
];
const NOTHING: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Mounts the kernel's own file systems in the initramfs.
///
/// # Errors
/// `Failed`, naming the first that cannot be mounted.
pub(super) fn kernel() -> Result<()> {
    for (kind, target, flags, options) in KERNEL {
        let target = Path::new(target);
        sys::switch_root::make_dir(target)?;
        sys::mount::mount_if_not(kind, target, kind, flags, options)?;
    }
    Ok(())
}

/// Moves them into the new root.
///
/// # Errors
/// `Failed`, naming the directory that the image lacks.
pub(super) fn hand_over(sysroot: &Root) -> Result<()> {
    // /dev last: until then /dev/kmsg can be opened by its name to tell of an error.
    for target in ["/proc", "/sys", "/run", "/dev"] {
        sys::mount::move_to(Path::new(target), &sysroot.path(target))?;
    }
    Ok(())
}

/// Mounts the root read-only: as `rootfstype=` says, else as its superblock says, else whatever fits.
///
/// # Errors
/// `Failed`, with what each file system said.
pub(super) fn root(partition: &Partition, cmdline: &Cmdline, at: &Path) -> Result<()> {
    let options = cmdline.value("rootflags").unwrap_or("");
    let probed = partition.file_system.as_ref().map(|s| s.kind);
    let mut errors = Vec::new();
    if probed.is_none() {
        errors.push("holds no file system that is known here".to_owned());
    }
    for kind in root_kinds(cmdline.value("rootfstype"), probed) {
        match sys::mount::mount(&partition.device, at, kind, MountFlags::RDONLY, options) {
            Ok(()) => return Ok(()),
            Err(e) => errors.push(e.to_string()),
        }
    }
    Err(Error::failed(errors.join("; ")).within(partition.label.clone()))
}

fn root_kinds(asked: Option<&str>, probed: Option<FileSystemKind>) -> Vec<&str> {
    match (asked, probed) {
        (Some(list), _) => list.split(',').collect(),
        (None, Some(kind)) => vec![kind.name()],
        (None, None) => vec!["ext4", "squashfs", "erofs"],
    }
}

/// Mounts the boot partition, checked with the root's own tool as `doctor` says.
///
/// # Errors
/// As [`doctor::bring_up_fat`].
pub(super) fn boot(partition: &Partition, cmdline: &Cmdline, sysroot: &Root) -> Result<Health> {
    let mount = || boot_at(partition, &sysroot.path("/mnt/boot"));
    let run = |program: &str, args: &[&str]| in_root(sysroot, program, args);
    let patient = patient(partition, Role::Boot, cmdline);
    doctor::bring_up_fat(&patient, &Means { run: &run, mount: &mount })
}

/// Mounts the boot partition elsewhere, as it is.
///
/// # Errors
/// `Failed`, naming device and directory.
pub(super) fn boot_at(partition: &Partition, at: &Path) -> Result<()> {
    let flags = NOTHING.union(MountFlags::NOATIME);
    // `flush` starts writing as soon as a file is closed: FAT has no journal, so nothing should wait in memory.
    sys::mount::mount(&partition.device, at, "vfat", flags, "flush").doing(|| partition.label.clone())
}

/// Mounts an ext4 partition at a directory of the root, checked and repaired with the root's own tools as `doctor` says.
///
/// # Errors
/// As [`doctor::bring_up`].
pub(super) fn ext4(
    partition: &Partition,
    at: &str,
    role: Role,
    cmdline: &Cmdline,
    sysroot: &Root,
) -> Result<Health> {
    let target = sysroot.path(at);
    let mount = || sys::mount::mount(&partition.device, &target, "ext4", MountFlags::NOATIME, "");
    let run = |program: &str, args: &[&str]| in_root(sysroot, program, args);
    let patient = patient(partition, role, cmdline);
    doctor::bring_up(&patient, &Means { run: &run, mount: &mount })
}

fn patient<'a>(partition: &'a Partition, role: Role, cmdline: &Cmdline) -> Patient<'a> {
    Patient {
        label: &partition.label,
        device: &partition.device,
        role,
        marked: marked_damaged(partition),
        fsck: cmdline.fsck(),
        may_remake: !cmdline.emergency(),
    }
}

/// Mounts memory where a partition should be that cannot be used.
///
/// # Errors
/// `Failed`, naming the directory.
pub(super) fn in_memory(at: &str, sysroot: &Root) -> Result<()> {
    let flags = MountFlags::NOSUID.union(MountFlags::NODEV);
    sys::mount::mount(Path::new("tmpfs"), &sysroot.path(at), "tmpfs", flags, "mode=0755,size=16M")
}

fn marked_damaged(partition: &Partition) -> bool {
    // Read again through the partition's own device: the kernel keeps another cache for the whole disk.
    let superblock =
        FileDisk::open_read_only(&partition.device).and_then(|mut d| probe(&mut d, 0, partition.len_bytes));
    superblock.ok().flatten().is_some_and(|s| s.needs_check)
}

/// Runs a program of the root with the device nodes in its reach.
fn in_root(sysroot: &Root, program: &str, args: &[&str]) -> Result<Outcome> {
    let dev = sysroot.path("/dev");
    sys::mount::bind(Path::new("/dev"), &dev)?;
    let outcome = sys::command::run_in_root(&sysroot.path("/"), Path::new(program), args, CHECK_DEADLINE);
    sys::mount::detach(&dev)?;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_then_the_superblock_then_a_guess_name_the_roots_type() {
        for (asked, probed, expected) in [
            (Some("erofs"), Some(FileSystemKind::Ext4), vec!["erofs"]),
            (Some("ext4,squashfs"), None, vec!["ext4", "squashfs"]),
            (None, Some(FileSystemKind::Squashfs), vec!["squashfs"]),
            (None, None, vec!["ext4", "squashfs", "erofs"]),
        ] {
            assert_eq!(root_kinds(asked, probed), expected);
        }
    }
}
