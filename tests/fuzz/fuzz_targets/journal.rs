//! Our own record on the state partition.
#![no_main]
mod lab;

use libfuzzer_sys::fuzz_target;
use twinhull::update::{FileJournal, JournalStore};

fuzz_target!(|bytes: &[u8]| {
    // A text that makes no sense is set aside, so there is always a record.
    let mut journal = FileJournal::new(lab::scratch("journal.json", bytes));
    let record = journal.load().unwrap();
    journal.store(&record).unwrap();
    assert_eq!(journal.load().unwrap(), record);
});
