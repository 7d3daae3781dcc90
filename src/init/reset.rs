//! The factory reset, carried out by PID 1 before anything uses the partitions.
//!
//! # Laws
//! 1. Only what a whole request names is emptied, and what it keeps is not touched.
//! 2. The request goes last, after everything before it is on the medium: a cut anywhere is taken up by the next boot.
//! 3. What cannot be removed is told and ends neither the reset nor the boot; the request then stays.

use std::path::{Path, PathBuf};

use crate::model::{KEPT_OF_DATA, KEPT_OF_STATE, RESET_REQUEST, ResetRequest};
use crate::{Doing, Error, Result, Root, sys};

const LIMIT_BYTES: u64 = 64 * 1024;

/// Told before each removal; an error ends everything there, as a power cut would.
type Observer<'a> = dyn Fn(&Path) -> Result<()> + 'a;

/// Carries out what is requested, if anything is; says what was emptied.
///
/// # Errors
/// `Failed` if the request makes no sense, or something cannot be removed.
pub(super) fn carry_out(sysroot: &Root, has_data: bool) -> Result<Vec<&'static str>> {
    carry_out_observed(sysroot, has_data, &|_| Ok(()))
}

fn carry_out_observed(sysroot: &Root, has_data: bool, observer: &Observer) -> Result<Vec<&'static str>> {
    let path = sysroot.path(RESET_REQUEST);
    let doing = || "factory reset";
    let Some(bytes) = sys::file::read_if_exists(&path, LIMIT_BYTES).doing(doing)? else {
        return Ok(Vec::new());
    };
    let request = ResetRequest::parse(&bytes)
        .doing(|| format!("{}: nothing was emptied; remove it", path.display()))
        .doing(doing)?;
    let mut emptied = Vec::new();
    if let Some(keep) = &request.data {
        if !has_data {
            return Err(Error::failed("the data partition is not mounted")).doing(doing);
        }
        log::warn!("factory reset: emptying the data partition");
        empty(&sysroot.path("/mnt/data"), keep, &KEPT_OF_DATA, observer).doing(doing)?;
        emptied.push("data");
    }
    if let Some(keep) = &request.state {
        log::warn!("factory reset: emptying the state partition");
        // The request itself must outlive the rest.
        let own = Path::new(RESET_REQUEST).strip_prefix("/mnt/state").unwrap_or(Path::new(""));
        let keep = [keep.as_slice(), &[own.to_owned()]].concat();
        empty(&sysroot.path("/mnt/state"), &keep, &KEPT_OF_STATE, observer).doing(doing)?;
        emptied.push("state");
    }
    observer(&path)?;
    sys::durable::remove(&path).doing(doing)?;
    Ok(emptied)
}

/// Removes everything in `top` but what is kept, and makes that durable.
fn empty(top: &Path, keep: &[PathBuf], always: &[&str], observer: &Observer) -> Result<()> {
    let keep: Vec<PathBuf> =
        keep.iter().cloned().chain(always.iter().map(PathBuf::from)).map(|k| top.join(k)).collect();
    let mut failed = None;
    sweep(top, &keep, observer, &mut failed)?;
    sys::tree::sync(top)?;
    failed.map_or(Ok(()), Err)
}

/// Goes on after a removal that failed; the first such error is kept.
fn sweep(dir: &Path, keep: &[PathBuf], observer: &Observer, failed: &mut Option<Error>) -> Result<()> {
    for entry in sys::file::list(dir)? {
        if keep.contains(&entry) {
            continue;
        }
        let is_dir = entry.symlink_metadata().is_ok_and(|m| m.is_dir());
        if is_dir && keep.iter().any(|k| k.starts_with(&entry)) {
            sweep(&entry, keep, observer, failed)?;
            continue;
        }
        observer(&entry)?;
        if let Err(e) = sys::tree::remove(&entry) {
            log::error!("factory reset: {e}");
            failed.get_or_insert(e);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn host(request: &ResetRequest) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        for path in [
            "/mnt/state/machine-id",
            "/mnt/state/root-overlay/etc/ssh/key",
            "/mnt/state/root-overlay/etc/hostname",
            "/mnt/state/twinhull/journal.json",
            "/mnt/state/twinhull/boot-failed",
            "/mnt/data/docker/overlay2/a/diff/file",
            "/mnt/data/resin-data/db",
            "/mnt/data/apps.json",
        ] {
            write(&root, path, path);
        }
        std::os::unix::fs::symlink("/mnt/state", root.path("/mnt/data/link")).unwrap();
        write(&root, RESET_REQUEST, &request.to_text());
        (dir, root)
    }

    fn write(root: &Root, path: &str, text: &str) {
        let path = root.path(path);
        sys::durable::create_dir(path.parent().unwrap()).unwrap();
        sys::durable::replace(&path, text.as_bytes(), 0o600).unwrap();
    }

    /// Every file that is left, as a path of the host.
    fn left(root: &Root) -> Vec<String> {
        fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
            for entry in sys::file::list(dir).unwrap() {
                if entry.symlink_metadata().unwrap().is_dir() {
                    walk(&entry, found)
                } else {
                    found.push(entry)
                }
            }
        }
        let mut found = Vec::new();
        walk(&root.path("/mnt"), &mut found);
        let host = |p: &PathBuf| format!("/{}", p.strip_prefix(root.path("/")).unwrap().display());
        found.iter().map(host).collect()
    }

    fn both() -> ResetRequest {
        ResetRequest {
            state: Some(vec!["root-overlay/etc/ssh".into()]),
            data: Some(vec!["resin-data/db".into(), "none".into()]),
        }
    }

    const KEPT: [&str; 3] = [
        "/mnt/data/resin-data/db",
        "/mnt/state/root-overlay/etc/ssh/key",
        "/mnt/state/twinhull/journal.json",
    ];

    #[test]
    fn what_is_named_is_emptied_but_for_what_is_kept() {
        let (_dir, root) = host(&both());
        assert_eq!(carry_out(&root, true).unwrap(), ["data", "state"]);
        assert_eq!(left(&root), KEPT);
        assert_eq!(carry_out(&root, true).unwrap(), Vec::<&str>::new());

        let (_dir, root) = host(&ResetRequest { data: Some(Vec::new()), state: None });
        let state: Vec<_> =
            left(&root).into_iter().filter(|p| p.starts_with("/mnt/state") && p != RESET_REQUEST).collect();
        assert_eq!(carry_out(&root, true).unwrap(), ["data"]);
        assert_eq!(left(&root), state, "a link leads nowhere");
    }

    #[test]
    fn without_a_whole_request_nothing_is_touched() {
        for request in ["", "{\"data\":", "{\"data\":[\"..\"]}", "{}"] {
            let (_dir, root) = host(&both());
            write(&root, RESET_REQUEST, request);
            let before = left(&root);
            let result = carry_out(&root, true);
            assert_eq!(result.is_ok(), request == "{}", "{request}");
            let after = if request == "{}" {
                before.into_iter().filter(|p| p != RESET_REQUEST).collect()
            } else {
                before
            };
            assert_eq!(left(&root), after, "{request}");
        }
        let (_dir, root) = host(&both());
        sys::durable::remove(&root.path(RESET_REQUEST)).unwrap();
        let before = left(&root);
        carry_out(&root, true).unwrap();
        assert_eq!(left(&root), before, "no file, no reset");
    }

    #[test]
    fn a_cut_anywhere_is_taken_up_by_the_next_boot() {
        let mut cuts = 0;
        for at in 0.. {
            let (_dir, root) = host(&both());
            let seen = Cell::new(0);
            let cut = |_: &Path| match seen.replace(seen.get() + 1) {
                n if n == at => Err(Error::failed("cut")),
                _ => Ok(()),
            };
            if carry_out_observed(&root, true, &cut).is_ok() {
                break;
            }
            assert!(root.path(RESET_REQUEST).exists(), "{at}: the request goes last");
            carry_out(&root, true).unwrap();
            assert_eq!(left(&root), KEPT, "{at}");
            cuts += 1;
        }
        assert!(cuts >= 7, "{cuts}");
    }

    #[test]
    fn data_that_is_not_mounted_keeps_the_request() {
        let (_dir, root) = host(&both());
        let before = left(&root);
        assert!(carry_out(&root, false).is_err());
        assert_eq!(left(&root), before);
    }
}
