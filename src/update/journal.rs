//! Our own durable record on the state partition.

use std::path::PathBuf;

use crate::model::record::Record;
use crate::{Error, Result, sys};

/// Far above any record, far below what could hurt.
const LIMIT_BYTES: u64 = 1024 * 1024;
const FORMAT: u32 = 1;

/// Where the journal's record is kept.
pub trait JournalStore {
    /// The record; a fresh one if none was ever written.
    ///
    /// # Errors
    /// `Failed` if it cannot be read.
    fn load(&self) -> Result<Record>;

    /// Replaces the record: after a cut at any point the old one or the new one is there.
    ///
    /// # Errors
    /// `Failed` if it cannot be written; the old record is then still there.
    fn store(&mut self, record: &Record) -> Result<()>;
}

/// The journal as a JSON file, replaced by an atomic rename (the state partition is ext4).
///
/// A text that makes no sense counts as no journal, and is kept aside as `FILE.bad` before it would be written over. That
/// is safe: without a journal a running trial is left and a waiting one called off, while a device that refused every
/// further update because of one bad block would have to be visited.
#[derive(Debug)]
pub struct FileJournal {
    file: PathBuf,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Stored<R> {
    format: u32,
    #[serde(flatten)]
    record: R,
}

impl FileJournal {
    /// The journal `file`. Nothing is read or written yet.
    pub const fn new(file: PathBuf) -> Self {
        Self { file }
    }

    /// Where a text that made no sense is kept.
    pub fn aside(&self) -> PathBuf {
        let mut aside = self.file.clone().into_os_string();
        aside.push(".bad");
        aside.into()
    }

    fn raw(&self) -> Result<Option<Vec<u8>>> {
        sys::file::read_if_exists(&self.file, LIMIT_BYTES)
    }

    /// What is wrong with the text that stands there; `None` if it can be read, or was never written.
    ///
    /// # Errors
    /// `Failed` if the file cannot be read.
    pub fn damage(&self) -> Result<Option<String>> {
        Ok(self.raw()?.and_then(|raw| decode(&raw).err()).map(|e| format!("{}: {e}", self.file.display())))
    }

    /// Moves a text that makes no sense out of the way.
    ///
    /// # Errors
    /// `Failed` if the file cannot be read, or not be set aside.
    pub fn set_damaged_aside(&mut self) -> Result<()> {
        let Some(what) = self.damage()? else { return Ok(()) };
        let aside = self.aside();
        sys::durable::rename(&self.file, &aside)?;
        log::error!("journal {what}; kept as {}", aside.display());
        Ok(())
    }
}

impl JournalStore for FileJournal {
    fn load(&self) -> Result<Record> {
        Ok(self.raw()?.and_then(|raw| decode(&raw).ok()).unwrap_or_default())
    }

    fn store(&mut self, record: &Record) -> Result<()> {
        if let Some(dir) = self.file.parent() {
            sys::durable::create_dir(dir)?;
        }
        self.set_damaged_aside()?;
        sys::durable::replace(&self.file, &encode(record)?, 0o644)
    }
}

/// The record as a JSON document with its format number.
///
/// # Errors
/// `Failed` if it cannot be encoded.
pub fn encode(record: &Record) -> Result<Vec<u8>> {
    let stored = Stored { format: FORMAT, record };
    let mut text = serde_json::to_vec_pretty(&stored).map_err(|e| Error::failed(e.to_string()))?;
    text.push(b'\n');
    Ok(text)
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// `Failed` for another format or anything else that is no record.
pub fn decode(raw: &[u8]) -> Result<Record> {
    let stored: Stored<Record> = serde_json::from_slice(raw).map_err(|e| Error::failed(e.to_string()))?;
    match stored.format {
        FORMAT => Ok(stored.record),
        newer if newer > FORMAT => {
            Err(Error::failed(format!("format {newer} of a newer twinhull, expected {FORMAT}")))
        }
        other => Err(Error::failed(format!("format {other}, expected {FORMAT}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::record::State;

    /// What version 0.1 writes: later versions must read it.
    const TRIAL: &[u8] = include_bytes!("../../tests/fixtures/journal/0.1-trial.json");

    #[test]
    fn reads_and_rewrites_a_trial_of_0_1() {
        let record = decode(TRIAL).unwrap();
        assert!(
            matches!(&record.state, State::Trial { verdict: None, release, .. } if release.version.to_string() == "2.0.0")
        );
        assert!(record.last.is_some());
        assert_eq!(encode(&record).unwrap(), TRIAL);
    }

    #[test]
    fn reads_and_rewrites_a_trial_with_hooks() {
        let raw = include_bytes!("../../tests/fixtures/journal/0.1-hooks.json");
        let record = decode(raw).unwrap();
        let State::Trial { hooks, .. } = &record.state else { panic!("{record:?}") };
        assert_eq!((hooks[0].name.as_str(), hooks[0].deadline_s), ("10-migrate", 60));
        assert_eq!(encode(&record).unwrap(), raw);
    }

    #[test]
    fn every_truncation_is_an_error() {
        for n in 0..TRIAL.len() - 1 {
            assert!(decode(&TRIAL[..n]).is_err(), "{n} bytes");
        }
    }

    #[test]
    fn a_missing_file_is_a_fresh_journal_and_so_is_a_bad_one_which_is_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("journal.json");
        let mut journal = FileJournal::new(file.clone());
        assert_eq!((journal.load().unwrap(), journal.damage().unwrap()), (Record::new(), None));
        for bad in ["{\"format\":1", "{\"format\":2,\"state\":\"idle\"}"] {
            sys::durable::replace(&file, bad.as_bytes(), 0o644).unwrap();
            assert_eq!(journal.load().unwrap(), Record::new());
            assert!(journal.damage().unwrap().is_some());
            assert_eq!(std::fs::read_to_string(&file).unwrap(), bad, "looking changes nothing");
            journal.store(&Record::new()).unwrap();
            assert_eq!(journal.damage().unwrap(), None);
            assert_eq!(std::fs::read_to_string(journal.aside()).unwrap(), bad);
        }
    }
}
