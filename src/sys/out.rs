//! Standard output for people and programs. A reader that went away (`twinhull … | head`) is no error.

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether something was lost that should stand on standard output.
static LOST: AtomicBool = AtomicBool::new(false);

/// Prints one line, or several.
pub fn line(text: &str) {
    tell(writeln!(std::io::stdout(), "{}", text.trim_end_matches('\n')));
}

/// What cannot be written is told once, on standard error, and in the end by [`lost`].
fn tell(written: std::io::Result<()>) {
    if let Err(e) = written
        && e.kind() != ErrorKind::BrokenPipe
        && !LOST.swap(true, Ordering::Relaxed)
    {
        error(&format!("twinhull: standard output: {e}"));
    }
}

/// Whether output was lost in another way than by a reader that went away: a full disk, most often.
pub fn lost() -> bool {
    LOST.load(Ordering::Relaxed)
}

/// Prints one line to standard error.
pub fn error(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Passes bytes on to standard output as they are, at once.
pub fn raw(bytes: &[u8]) {
    let mut out = std::io::stdout();
    tell(out.write_all(bytes).and_then(|()| out.flush()));
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
