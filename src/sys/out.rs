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
