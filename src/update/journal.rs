//! Our own durable record on the state partition.

use std::path::PathBuf;

use crate::model::record::Record;
use crate::{Doing, Error, Result, sys};

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
    /// Opens the journal `file`. One that makes no sense is kept aside as `FILE.bad`, and a fresh record takes its
    /// place: that is safe, because without a journal every doubt leads back to the primary slot, while a device that
    /// refuses every further update because of one bad block would have to be visited.
    ///
    /// # Errors
    /// `Failed` if the file cannot be read, or not be set aside.
    pub fn open(file: PathBuf) -> Result<Self> {
        let journal = Self { file };
        if let Some(raw) = sys::file::read_if_exists(&journal.file, LIMIT_BYTES)?
            && let Err(e) = decode(&raw)
        {
            let mut aside = journal.file.clone().into_os_string();
            aside.push(".bad");
            log::error!("journal {}: {e}; kept as {}", journal.file.display(), aside.to_string_lossy());
            sys::durable::replace(aside.as_ref(), &raw, 0o644)?;
            sys::durable::remove(&journal.file)?;
        }
        Ok(journal)
    }
}

impl JournalStore for FileJournal {
    fn load(&self) -> Result<Record> {
        match sys::file::read_if_exists(&self.file, LIMIT_BYTES)? {
            None => Ok(Record::new()),
            Some(raw) => decode(&raw).doing(|| format!("journal {}", self.file.display())),
        }
    }

    fn store(&mut self, record: &Record) -> Result<()> {
        if let Some(dir) = self.file.parent() {
            sys::durable::create_dir(dir)?;
        }
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
    fn every_truncation_is_an_error() {
        for n in 0..TRIAL.len() - 1 {
            assert!(decode(&TRIAL[..n]).is_err(), "{n} bytes");
        }
    }

    #[test]
    fn a_missing_file_is_a_fresh_journal_and_a_bad_one_is_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("journal.json");
        assert_eq!(FileJournal::open(file.clone()).unwrap().load().unwrap(), Record::new());
        sys::durable::replace(&file, b"{\"format\":1", 0o644).unwrap();
        assert_eq!(FileJournal::open(file).unwrap().load().unwrap(), Record::new());
        assert!(dir.path().join("journal.json.bad").exists());
    }
}
