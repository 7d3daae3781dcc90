//! The log: standard error with systemd's priority prefixes under a unit, plain on a terminal.

use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Stderr {
    prefixed: bool,
}

/// Starts logging to standard error. `verbosity`: -1 warnings only, 0 information, 1 debug, 2 trace.
pub fn start(verbosity: i8) {
    let level = match verbosity {
        ..=-1 => LevelFilter::Warn,
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        2.. => LevelFilter::Trace,
    };
    install(Box::new(Stderr { prefixed: is_journal() }), level);
}

/// Whether standard error goes to the journal, where "<6>" is a priority; elsewhere it is noise. A program that a
/// unit starts inherits the variable, but not always the stream: systemd.exec(5), `JOURNAL_STREAM`.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(std::io::stderr()).is_ok_and(|s| stream == format!("{}:{}", s.st_dev, s.st_ino))
}

/// Makes `logger` the program's log. A second call changes only the level: the first logger stays.
pub fn install(logger: Box<dyn Log>, level: LevelFilter) {
    // Fails only if a logger is already set, as in tests that start the program twice in one process.
    let _ = log::set_boxed_logger(logger);
    log::set_max_level(level);
}

/// syslog's number for a level.
pub const fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.target().starts_with("twinhull")
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // A closed standard error is no reason to stop.
        let _ = if self.prefixed {
            writeln!(std::io::stderr(), "<{}>{}", priority(record.level()), record.args())
        } else {
            writeln!(std::io::stderr(), "{}", record.args())
        };
    }

    fn flush(&self) {}
}
