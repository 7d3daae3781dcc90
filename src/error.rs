//! One error type: a kind, which sets the exit code, and a chain of what was being done.

use std::fmt::{self, Write};

/// What a failure means for the caller; each kind has its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something did not work: exit 1.
    Failed,
    /// The command line is wrong: exit 2.
    Usage,
    /// A policy forbids it (wrong device, too large, downgrade): exit 3. The text says how to comply.
    Refused,
    /// What is on disk contradicts itself; nothing was touched: exit 4.
    Inconsistent,
    /// Nothing can go on before a reboot: exit 5.
    RebootNeeded,
    /// The power switch of the simulated world was thrown (tests only).
    #[cfg(test)]
    PowerCut,
}

impl Kind {
    /// The process exit code of this kind.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::Inconsistent => 4,
            Self::RebootNeeded => 5,
            #[cfg(test)]
            Self::PowerCut => 255,
        }
    }
}

/// A failure: its kind, and what was being done, outermost first.
///
/// `Display` prints the chain on one line: `install os-2.bundle: write slot B: open /dev/sda3: Permission denied`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    /// Innermost first; printed in reverse.
    chain: Vec<String>,
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure of `kind` that says `text`: lower case, no full stop, one line.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, chain: vec![text.into()] }
    }

    /// A plain failure (exit 1).
    pub fn failed(text: impl Into<String>) -> Self {
        Self::new(Kind::Failed, text)
    }

    /// A refusal by policy (exit 3).
    pub fn refused(text: impl Into<String>) -> Self {
        Self::new(Kind::Refused, text)
    }

    /// A mistake in the command line (exit 2).
    pub fn usage(text: impl Into<String>) -> Self {
        Self::new(Kind::Usage, text)
    }

    /// A contradiction between records on disk (exit 4).
    pub fn inconsistent(text: impl Into<String>) -> Self {
        Self::new(Kind::Inconsistent, text)
    }

    /// What this failure means.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The same failure, one step further out: `doing` names the action and its object.
    #[must_use]
    pub fn within(mut self, doing: impl Into<String>) -> Self {
        self.chain.push(doing.into());
        self
    }

    /// The same failure with another meaning.
    #[must_use]
    pub const fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.chain.iter().rev().enumerate() {
            if i > 0 {
                f.write_str(": ")?;
            }
            // A name may hold anything; a terminal must not obey it, and a message stays one line.
            for c in part.chars() {
                if c.is_control() { write!(f, "{}", c.escape_default()) } else { f.write_char(c) }?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        // An error of ours that travelled through `Read` or `Write` keeps its kind and chain.
        match e.downcast::<Self>() {
            Ok(ours) => ours,
            Err(e) => Self::failed(e.to_string()),
        }
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(e: rustix::io::Errno) -> Self {
        std::io::Error::from(e).into()
    }
}

/// Adds what was being done to a failing result.
pub trait Doing<T> {
    /// Wraps the error in `what()`, for example `open /mnt/boot/config.json`.
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Doing<T> for std::result::Result<T, E> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| e.into().within(what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_outermost_first_on_one_line() {
        let e = Error::failed("No space left on device").within("write slot B").within("install os.bundle");
        assert_eq!(e.to_string(), "install os.bundle: write slot B: No space left on device");
        let e = Error::failed("é").within("a\nb \u{1b}[31m");
        assert_eq!(e.to_string(), "a\\nb \\u{1b}[31m: é");
    }

    #[test]
    fn our_error_survives_a_trip_through_io() {
        let io = std::io::Error::other(Error::refused("too large"));
        assert_eq!(Error::from(io).kind(), Kind::Refused);
    }
}
