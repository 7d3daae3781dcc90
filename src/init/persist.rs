//! What outlives an update although the root is read-only: kept on the state partition, bound over the root.

use std::path::{Component, Path, PathBuf};

use super::notes::Notes;
use crate::config::apply::{self, HOST_NAME};
use crate::config::{ConfigJson, Settings};
use crate::{Doing, Error, Result, Root, sys};

/// Where copies are kept, as a path of the host; balenaOS's name.
pub(super) const OVERLAY: &str = "/mnt/state/root-overlay";
const MACHINE_ID: &str = "/mnt/state/machine-id";

/// For this boot only, where the state partition cannot take the device's own.
const TRANSIENT_ID: &str = "/run/twinhull/machine-id";

/// Binds the kept copy of each path over the root's own. On the first boot the copy is made from the image; if the state
/// partition cannot take it, being full or worn out, the image's own stays, and that is noted.
///
/// # Errors
/// `Failed`, naming the path: not absolute, not in the image, or not to be bound.
pub(super) fn bind_all(paths: &[PathBuf], sysroot: &Root, notes: &mut Notes) -> Result<()> {
    for path in paths {
        let doing = || format!("keep {}", path.display());
        check(path, sysroot).doing(doing)?;
        match keep(path, sysroot) {
            Ok(kept) => sys::mount::bind(&kept, &sysroot.path(path)).doing(doing)?,
            Err(e) => notes.problem(&format!("{} is the image's own: {e}", path.display())),
        }
    }
    Ok(())
}

/// What is wrong with the image or its settings shows in the first boot of a trial, on every device alike.
fn check(path: &Path, sysroot: &Root) -> Result<()> {
    let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || path.file_name().is_none() {
        return Err(Error::failed("init.persist: expected an absolute path without '..'"));
    }
    match sysroot.path(path).exists() {
        true => Ok(()),
        false => Err(Error::failed("the image has no such file or directory to bind over")),
    }
}

/// Makes the kept copy of a path, if there is none, and says where it is. Cut anywhere, the copy is there whole
/// or not at all.
fn keep(path: &Path, sysroot: &Root) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default();
    let kept = sysroot.path(Path::new(OVERLAY).join(path.strip_prefix("/").unwrap_or(path)));
    if kept.symlink_metadata().is_ok() {
        return Ok(kept);
    }
    let own = sysroot.path(path);
    let parent = kept.parent().unwrap_or(&kept);
    sys::durable::create_dir(parent)?;
    let mut unfinished = std::ffi::OsString::from(".");
    unfinished.push(name);
    unfinished.push(".new");
    let unfinished = parent.join(unfinished);
    // Left by a cut: never trusted.
    sys::tree::remove(&unfinished)?;
    sys::tree::copy(&own, &unfinished)?;
    sys::tree::publish(&unfinished, &kept)?;
    Ok(kept)
}

/// Gives the device its machine id, made once, and binds it over the image's empty file. If it cannot be kept, the device
/// has another one for this boot, and that is noted.
///
/// # Errors
/// `Failed` if the image has no `/etc/machine-id`.
pub(super) fn machine_id(sysroot: &Root, notes: &mut Notes) -> Result<()> {
    let id = ensure_machine_id(sysroot).or_else(|e| {
        notes.problem(&format!("machine id: {e}; another one for this boot"));
        let path = PathBuf::from(TRANSIENT_ID);
        sys::switch_root::make_dir(path.parent().unwrap_or(&path))?;
        sys::switch_root::note(&path, &new_machine_id()?).map(|()| path)
    });
    id.and_then(|id| sys::mount::bind(&id, &sysroot.path("/etc/machine-id"))).doing(|| "machine id")
}

fn new_machine_id() -> Result<String> {
    Ok(format!("{}\n", sys::random::hex(16)?))
}

fn ensure_machine_id(sysroot: &Root) -> Result<PathBuf> {
    let path = sysroot.path(MACHINE_ID);
    match sys::file::read_if_exists(&path, 4096)? {
        Some(text) if is_machine_id(&text) => return Ok(path),
        Some(_) => log::warn!("{}: not 32 hex digits; the device gets a new machine id", path.display()),
        None => log::info!("first boot: the device gets a machine id"),
    }
    sys::durable::replace(&path, new_machine_id()?.as_bytes(), 0o444)?;
    Ok(path)
}

/// Gives this boot the host name of `config.json` from its first moment, and binds it over the image's
/// `/etc/hostname`, if there is one. A later change of `config.json` is seen there too.
///
/// # Errors
/// `Failed` if `config.json` cannot be read, or the name not be set.
pub(super) fn host_name(settings: &Settings, sysroot: &Root) -> Result<()> {
    // Without its lock and without writing: what a cut left unfinished is for the running system to finish.
    let Some(config) = ConfigJson::peek(sysroot, &settings.provision.config_json)? else { return Ok(()) };
    let Some(name) = apply::host_name_of(&config)? else { return Ok(()) };
    // /run is not under the new root yet.
    let note = Path::new(HOST_NAME);
    sys::switch_root::make_dir(note.parent().unwrap_or(note))?;
    sys::switch_root::note(note, &format!("{name}\n"))?;
    sys::process::set_host_name(&name)?;
    let own = sysroot.path("/etc/hostname");
    if own.is_file() { sys::mount::bind(note, &own) } else { Ok(()) }
}

/// Source: machine-id(5).
fn is_machine_id(text: &[u8]) -> bool {
    let digits = text.strip_suffix(b"\n").unwrap_or(text);
    digits.len() == 32
        && digits.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        && digits.iter().any(|b| *b != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        for d in ["/mnt/state", "/etc/ssh/keys"] {
            sys::durable::create_dir(&root.path(d)).unwrap();
        }
        sys::durable::replace(&root.path("/etc/hostname"), b"image\n", 0o644).unwrap();
        sys::durable::replace(&root.path("/etc/ssh/keys/one"), b"1", 0o600).unwrap();
        (dir, root)
    }

    fn read(root: &Root, path: &str) -> String {
        sys::file::read_text(&root.path(path), 100).unwrap()
    }

    #[test]
    fn first_boot_copies_the_images_content_and_later_ones_keep_the_devices() {
        let (_dir, root) = host();
        keep(Path::new("/etc/hostname"), &root).unwrap();
        keep(Path::new("/etc/ssh"), &root).unwrap();
        assert_eq!(read(&root, "/mnt/state/root-overlay/etc/hostname"), "image");
        assert_eq!(read(&root, "/mnt/state/root-overlay/etc/ssh/keys/one"), "1");

        sys::durable::replace(&root.path("/mnt/state/root-overlay/etc/hostname"), b"mine\n", 0o644).unwrap();
        keep(Path::new("/etc/hostname"), &root).unwrap();
        assert_eq!(read(&root, "/mnt/state/root-overlay/etc/hostname"), "mine");
    }

    #[test]
    fn a_copy_that_was_cut_is_made_again() {
        let (_dir, root) = host();
        let cut = root.path("/mnt/state/root-overlay/etc/.ssh.new/keys");
        sys::durable::create_dir(&cut).unwrap();
        keep(Path::new("/etc/ssh"), &root).unwrap();
        assert_eq!(read(&root, "/mnt/state/root-overlay/etc/ssh/keys/one"), "1");
        assert!(!root.path("/mnt/state/root-overlay/etc/.ssh.new").exists());
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let (_dir, root) = host();
        for path in ["etc/hostname", "/etc/../etc/hostname", "/", "/no/such/file"] {
            assert!(check(Path::new(path), &root).is_err(), "{path}");
        }
        check(Path::new("/etc/hostname"), &root).unwrap();
    }

    /// A state partition that is full or worn out keeps no device down; a directory that cannot be made stands for it.
    #[test]
    fn what_the_state_partition_cannot_take_is_noted_and_the_images_own_stays() {
        let (_dir, root) = host();
        sys::durable::replace(&root.path(OVERLAY), b"no directory", 0o600).unwrap();
        let mut notes = Notes::default();
        bind_all(&["/etc/hostname".into(), "/etc/ssh".into()], &root, &mut notes).unwrap();
        let noted = notes.problems();
        assert_eq!(noted.len(), 2, "{noted:?}");
        assert!(noted[0].starts_with("/etc/hostname is the image's own: "), "{noted:?}");
        assert!(bind_all(&["/etc/none".into()], &root, &mut notes).is_err(), "the image's mistake is one");
    }

    #[test]
    fn machine_id_is_made_once() {
        let (_dir, root) = host();
        ensure_machine_id(&root).unwrap();
        let id = read(&root, MACHINE_ID);
        assert!(is_machine_id(id.as_bytes()), "{id}");
        ensure_machine_id(&root).unwrap();
        assert_eq!(read(&root, MACHINE_ID), id);
    }

    #[test]
    fn damaged_machine_ids_are_replaced() {
        for damaged in ["", "abc", "00000000000000000000000000000000", "0123456789ABCDEF0123456789ABCDEF"] {
            let (_dir, root) = host();
            sys::durable::replace(&root.path(MACHINE_ID), damaged.as_bytes(), 0o444).unwrap();
            ensure_machine_id(&root).unwrap();
            assert!(is_machine_id(read(&root, MACHINE_ID).as_bytes()));
        }
    }
}
