//! Standard output for people and programs. A reader that went away (`twinhull … | head`) is no error.

use std::io::{IsTerminal, Write};

/// Prints one line, or several.
pub fn line(text: &str) {
    // Only a closed pipe or a full disk can fail here, and neither leaves anybody to tell.
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end_matches('\n'));
}

/// Prints one line to standard error.
pub fn error(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Passes bytes on to standard output as they are, at once.
pub fn raw(bytes: &[u8]) {
    let mut out = std::io::stdout();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

/// As [`raw`], to standard error.
pub fn raw_error(bytes: &[u8]) {
    let _ = std::io::stderr().write_all(bytes);
}

/// Draws `text` over the present line of standard error, for a progress bar.
pub fn redraw(text: &str) {
    let mut err = std::io::stderr();
    let _ = write!(err, "\r{text}\x1b[K");
    let _ = err.flush();
}

/// Whether a person watches standard error.
pub fn is_terminal() -> bool {
    std::io::stderr().is_terminal()
}
