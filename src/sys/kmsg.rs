//! The kernel's log as our log: the console shows it before anything else runs, and the journal keeps it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use log::{Log, Metadata, Record};

use super::log::priority;
use crate::{Doing, Result};

/// The most bytes that one record may have: the kernel's `PRINTKRB_RECORD_MAX` less its prefix.
const RECORD_BYTES: usize = 900;

/// `/dev/kmsg`.
pub struct Kmsg(File);

impl Kmsg {
    /// Opens the kernel's log, and takes the limit off it: by default it drops all but ten lines in five seconds.
    ///
    /// # Errors
    /// `Failed` if there is no `/dev/kmsg`.
    pub fn open() -> Result<Self> {
        // A kernel told otherwise on its command line refuses; then some lines are lost, which is its owner's wish.
        let _ = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
        let path = Path::new("/dev/kmsg");
        let file = OpenOptions::new().write(true).open(path).doing(|| "open /dev/kmsg")?;
        Ok(Self(file))
    }
}

impl Log for Kmsg {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.target().starts_with("twinhull")
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            say(&self.0, priority(record.level()), &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Writes one line that every console shows, whatever its log level.
pub fn alert(text: &str) {
    match OpenOptions::new().write(true).open("/dev/kmsg") {
        // 1 is KERN_ALERT: below it is only KERN_EMERG, which also disturbs everybody who is logged in.
        Ok(file) => say(&file, 1, text),
        // Without /dev there may still be the console that the kernel opened for us.
        Err(_) => super::out::error(&format!("twinhull: {text}")),
    }
}

fn say(mut to: impl Write, priority: u8, text: &str) {
    for mut rest in text.lines() {
        loop {
            let mut end = rest.len().min(RECORD_BYTES);
            while !rest.is_char_boundary(end) {
                end -= 1;
            }
            let (part, left) = rest.split_at(end);
            // One write is one record. There is nowhere else to complain.
            let _ = to.write_all(format!("<{priority}>twinhull: {part}\n").as_bytes());
            if left.is_empty() {
                break;
            }
            rest = left;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_become_several_records() {
        let mut written = Vec::new();
        say(&mut written, 6, &format!("first\n{}end", "ä".repeat(500)));
        let text = String::from_utf8(written).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0], "<6>twinhull: first");
        assert!(lines.iter().all(|l| l.starts_with("<6>twinhull: ") && l.len() < 976));
        assert!(lines[2].ends_with("end"));
    }
}
