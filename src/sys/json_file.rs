//! Small records of the program's own, each a JSON file.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{durable, file};
use crate::{Doing, Error, Result};

/// What no record of the program's own is longer than, in bytes.
const LIMIT_BYTES: u64 = 1024 * 1024;

/// What the file says; `None` if there is none.
///
/// # Errors
/// `Failed`, naming the path, if it cannot be read or understood.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(bytes) = file::read_if_exists(path, LIMIT_BYTES)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| Error::failed(e.to_string()))
        .doing(|| path.display().to_string())
}

/// Replaces the file, readable for everybody, as [`durable::replace`] does; its directory is made if need be.
///
/// # Errors
/// `Failed`, naming the path. Then the old file is there.
pub fn replace(path: &Path, value: &impl Serialize) -> Result<()> {
    let doing = || format!("write {}", path.display());
    let mut bytes = serde_json::to_vec(value).map_err(|e| Error::failed(e.to_string())).doing(doing)?;
    bytes.push(b'\n');
    durable::create_dir(durable::parent(path)?)?;
    durable::replace(path, &bytes, 0o644)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_as_it_was_written_and_what_is_damaged_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/record.json");
        assert_eq!(read::<Vec<u8>>(&path).unwrap(), None);
        replace(&path, &[1, 2]).unwrap();
        assert_eq!(read(&path).unwrap(), Some(vec![1, 2]));
        durable::replace(&path, b"[1, 2", 0o644).unwrap();
        let e = read::<Vec<u8>>(&path).unwrap_err().to_string();
        assert!(e.contains("record.json: EOF"), "{e}");
    }
}
