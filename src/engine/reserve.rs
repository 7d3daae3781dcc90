//! Room on the data partition that is given up when there is no other.
//!
//! Containers run as root, so what a file system keeps for root is theirs to fill. On a full disk dockerd does not start
//! (`mkdir /mnt/data/docker/tmp: no space left on device`), and starts no container (`.tmp-hostconfig.json: no space left on
//! device`), not even the supervisor that would make room: both seen with 20.10. With this file gone they do.

use std::path::Path;

use crate::{Doing, Result, Root, sys};

const DATA: &str = "/mnt/data";
const FILE: &str = "/mnt/data/twinhull/reserve";
const BYTES: u64 = 8 << 20;
/// With less than this, it is given up.
const SCARCE: u64 = 1 << 20;
/// With at least this, it is made again.
const PLENTY: u64 = 64 << 20;

/// Whether the data partition is as good as full.
///
/// # Errors
/// `Failed` if that cannot be told.
pub fn is_full(root: &Root) -> Result<bool> {
    let data = root.path(DATA);
    Ok(data.is_dir() && sys::file::room(&data)?.bytes < SCARCE)
}

/// Gives it up if there is no other room; whether it did.
///
/// # Errors
/// `Failed`, naming the file.
pub fn give_up(root: &Root) -> Result<bool> {
    let file = root.path(FILE);
    if !file.exists() || !is_full(root)? {
        return Ok(false);
    }
    sys::durable::remove(&file)?;
    log::warn!("the data partition is full: {} MiB kept for this are given up", BYTES >> 20);
    Ok(true)
}

/// Keeps it again if there is room. Blocks are set aside, not written.
///
/// # Errors
/// `Failed`, naming the file.
pub fn keep(root: &Root) -> Result<()> {
    let (data, file) = (root.path(DATA), root.path(FILE));
    if file.exists() || !data.is_dir() || sys::file::room(&data)?.bytes < PLENTY {
        return Ok(());
    }
    let dir = file.parent().unwrap_or(Path::new("/"));
    sys::durable::create_dir(dir)
        .and_then(|()| sys::durable::set_aside(&file, BYTES))
        .doing(|| "keep room on the data partition")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_data_partition_nothing_is_kept_or_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        keep(&root).unwrap();
        assert!(!give_up(&root).unwrap() && !is_full(&root).unwrap());
    }

    #[test]
    fn room_is_kept_once_and_not_given_up_while_there_is_more() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        sys::durable::create_dir(&root.path(DATA)).unwrap();
        keep(&root).unwrap();
        keep(&root).unwrap();
        assert_eq!(std::fs::metadata(root.path(FILE)).unwrap().len(), BYTES);
        assert!(!give_up(&root).unwrap());
        assert!(root.path(FILE).exists());
    }
}
