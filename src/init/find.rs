//! Before there is a root: kernel modules, and waiting for the root's disk.

use std::path::Path;
use std::time::Duration;

use crate::block::{BootedDisk, not_found};
use crate::model::RootSpec;
use crate::sys::clock::Clock;
use crate::{Result, Root, sys};

/// How long to wait for the disk when the command line does not say.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks, if the kernel tells of nothing meanwhile.
const PAUSE: Duration = Duration::from_millis(500);
const LIMIT_BYTES: u64 = 64 * 1024;

/// Loads the modules that `order` in `dir` lists: one file per line, with its parameters after it; `#` starts a
/// comment. No such list is fine. A module that cannot be loaded is only reported: whether it was needed is seen
/// when the root is not found.
///
/// # Errors
/// `Failed` if the list cannot be read.
pub(super) fn load_modules(dir: &Path) -> Result<()> {
    let Some(list) = sys::file::read_if_exists(&dir.join("order"), LIMIT_BYTES)? else { return Ok(()) };
    let mut loaded = 0;
    for (file, parameters) in parse_order(&String::from_utf8_lossy(&list)) {
        match sys::module::load(&dir.join(file), parameters) {
            Ok(()) => loaded += 1,
            Err(e) => log::warn!("{e}"),
        }
    }
    log::info!("{loaded} modules loaded");
    Ok(())
}

fn parse_order(text: &str) -> Vec<(&str, &str)> {
    let lines = text.lines().map(|l| l.split('#').next().unwrap_or("").trim()).filter(|l| !l.is_empty());
    lines.map(|l| l.split_once(char::is_whitespace).map_or((l, ""), |(f, p)| (f, p.trim()))).collect()
}

/// Waits until the disk of `spec` is there with all its partitions, for at most `patience`. At the deadline a disk
/// that lacks some of them is taken: what is missing is told when it is needed.
///
/// Looks, and looks again whenever the kernel tells of a block device: then waiting on `clock` ends early. What an event says
/// is not used, so none that is lost or of another's making matters.
///
/// # Errors
/// `Failed` if there is no such partition by then, with the disks that were found; `Inconsistent` as
/// [`BootedDisk::search`], at once.
pub(super) fn wait_for_disk(
    root: &Root,
    spec: &RootSpec,
    patience: Duration,
    clock: &impl Clock,
) -> Result<BootedDisk> {
    let deadline = clock.since_boot() + patience;
    let mut told = false;
    loop {
        let found = BootedDisk::search(root, spec)?;
        let late = clock.since_boot() >= deadline;
        match found {
            Some(disk) if late || disk.without_device.is_empty() => return Ok(disk),
            None if late => {
                return Err(not_found(root, spec).within(format!("waited {} s", patience.as_secs())));
            }
            Some(_) | None => {}
        }
        if !told {
            log::info!("waiting for root={spec}");
            told = true;
        }
        clock.sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock::TestClock;

    #[test]
    fn order_file_has_comments_and_parameters() {
        assert_eq!(
            parse_order("# fs\nfat.ko\n\n  vfat.ko  # after fat\nloop.ko max_part=8 x=1\n"),
            [("fat.ko", ""), ("vfat.ko", ""), ("loop.ko", "max_part=8 x=1")]
        );
    }

    #[test]
    fn no_list_of_modules_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        load_modules(dir.path()).unwrap();
    }

    #[test]
    fn a_disk_that_never_comes_is_an_error_that_says_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let clock = TestClock(Duration::from_secs(2).into());
        let spec = RootSpec::PartLabel("resin-rootA".into());
        let e = wait_for_disk(&Root::new(dir.path()), &spec, PATIENCE, &clock).unwrap_err().to_string();
        assert_eq!(e, "waited 30 s: root=PARTLABEL=resin-rootA: no such partition; found no disk at all");
        assert_eq!(clock.since_boot(), Duration::from_secs(32));
    }
}
