//! The kernel's command line and the `root=` on it.

use std::fmt;
use std::time::Duration;

use crate::{Error, Result};

/// `/proc/cmdline`, split as the kernel splits it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cmdline(Vec<(String, Option<String>)>);

impl Cmdline {
    /// Splits a command line.
    ///
    /// White space separates; `--` ends the list, since what follows belongs to init. Double quotes
    /// protect white space; they are dropped where they stand at the start of an argument or of its value and
    /// kept elsewhere. A dash and an underscore in a name are the same.
    ///
    /// Source: Linux, `lib/cmdline.c`, `next_arg`, and `kernel/params.c`, `dash2underscore`.
    pub fn parse(text: &str) -> Self {
        let mut arguments = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (argument, left) = next(rest);
            if argument == "--" {
                break;
            }
            arguments.push(split(argument));
            rest = left.trim_start();
        }
        Self(arguments)
    }

    /// The value of the last `name=value`; the kernel, too, lets the last one win.
    pub fn value(&self, name: &str) -> Option<&str> {
        let name = name.replace('-', "_");
        self.0.iter().rev().find(|(n, v)| *n == name && v.is_some()).and_then(|(_, v)| v.as_deref())
    }

    /// The root that the kernel was told to use.
    ///
    /// # Errors
    /// `Failed` if there is none, or it is of a kind that is not known.
    pub fn root(&self) -> Result<RootSpec> {
        let text = self.value("root").ok_or_else(|| {
            Error::failed("kernel command line: no root=; add root=PARTUUID=… or root=PARTLABEL=…")
        })?;
        RootSpec::parse(text)
    }

    /// Whether `name` is there as a word of its own, without a value.
    pub fn has(&self, name: &str) -> bool {
        let name = name.replace('-', "_");
        self.0.iter().any(|(n, v)| *n == name && v.is_none())
    }

    /// Whether file systems are to be checked: `fsck.mode=force` or `skip` as systemd has it, or a bare `fsck`.
    pub fn fsck(&self) -> Fsck {
        match self.value("fsck.mode") {
            Some("force") => Fsck::Force,
            Some("skip") => Fsck::Skip,
            Some(_) | None if self.has("fsck") => Fsck::Force,
            Some(_) | None => Fsck::Auto,
        }
    }

    /// Whether somebody wants to look at a broken system (`emergency`, which systemd takes as well): then nothing is
    /// grown, reset or made anew.
    pub fn emergency(&self) -> bool {
        self.has("emergency")
    }

    /// How long to wait for the root's disk: `rootwait=SECONDS`. A bare `rootwait`, which the kernel takes as
    /// "for ever", is `None`: a device that waits for ever never comes back.
    pub fn rootwait(&self) -> Option<Duration> {
        self.value("rootwait").and_then(|s| s.parse().ok()).map(Duration::from_secs)
    }
}

/// When file systems are checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fsck {
    /// When they are marked as damaged, or cannot be mounted.
    #[default]
    Auto,
    /// In any case.
    Force,
    /// Not at all.
    Skip,
}

fn next(text: &str) -> (&str, &str) {
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        if c == '"' {
            quoted = !quoted;
        } else if c.is_whitespace() && !quoted {
            return text.split_at(at);
        }
    }
    (text, "")
}

fn split(argument: &str) -> (String, Option<String>) {
    let whole = unquote(argument);
    // `"name=a b"` and `name="a b"` mean the same.
    match whole.split_once('=') {
        Some((name, value)) => (name.replace('-', "_"), Some(unquote(value).to_owned())),
        None => (whole.replace('-', "_"), None),
    }
}

fn unquote(text: &str) -> &str {
    text.strip_prefix('"').map_or(text, |t| t.strip_suffix('"').unwrap_or(t))
}

/// Which partition `root=` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSpec {
    /// The table's id of the partition: a GUID, or `DISKID-NN` on MBR; lower case.
    PartUuid(String),
    /// The partition's name in a GPT.
    PartLabel(String),
    /// The file system's label.
    Label(String),
    /// The file system's UUID, lower case.
    Uuid(String),
    /// The kernel's name of the partition, without `/dev/`.
    Device(String),
}

impl RootSpec {
    /// Parses the value of `root=`.
    ///
    /// # Errors
    /// `Failed` if it is of another kind (NFS, numbers, `PARTNROFF`).
    pub fn parse(text: &str) -> Result<Self> {
        let unknown = || {
            Error::failed(format!(
                "kernel command line: root={text}: expected PARTUUID=, PARTLABEL=, LABEL=, UUID= or /dev/…"
            ))
        };
        if let Some(device) = text.strip_prefix("/dev/") {
            let plain = !device.is_empty() && !device.contains('/');
            return if plain { Ok(Self::Device(device.into())) } else { Err(unknown()) };
        }
        match text.split_once('=') {
            Some((_, "")) => Err(unknown()),
            Some(("PARTUUID", id)) if !id.contains('/') => Ok(Self::PartUuid(id.to_ascii_lowercase())),
            Some(("PARTLABEL", name)) => Ok(Self::PartLabel(name.into())),
            Some(("LABEL", label)) => Ok(Self::Label(label.into())),
            Some(("UUID", id)) => Ok(Self::Uuid(id.to_ascii_lowercase())),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for RootSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PartUuid(id) => write!(f, "PARTUUID={id}"),
            Self::PartLabel(name) => write!(f, "PARTLABEL={name}"),
            Self::Label(label) => write!(f, "LABEL={label}"),
            Self::Uuid(id) => write!(f, "UUID={id}"),
            Self::Device(name) => write!(f, "/dev/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_split_as_the_kernel_does() {
        // Expected: lib/cmdline.c of Linux 6.12, read.
        for (line, name, expected) in [
            ("root=/dev/sda1 ro\n", "root", Some("/dev/sda1")),
            ("root=PARTUUID=ab-01", "root", Some("PARTUUID=ab-01")),
            ("  quiet\troot=LABEL=x  ", "root", Some("LABEL=x")),
            ("root=LABEL=\"a b\" ro", "root", Some("LABEL=\"a b\"")),
            ("root=\"LABEL=a b\" ro", "root", Some("LABEL=a b")),
            ("\"root=LABEL=a b\" ro", "root", Some("LABEL=a b")),
            ("dyndbg=\"file x.c +p; root=/dev/no\" ro", "root", None),
            ("root=/dev/sda1 root=/dev/sdb1", "root", Some("/dev/sdb1")),
            ("root", "root", None),
            ("root=", "root", Some("")),
            ("init=/bin/sh -- init=/no", "init", Some("/bin/sh")),
            ("foo-bar=1", "foo_bar", Some("1")),
            ("foo_bar=1", "foo-bar", Some("1")),
            ("x=\"never closed root=/dev/sda", "root", None),
            ("", "root", None),
        ] {
            assert_eq!(Cmdline::parse(line).value(name), expected, "{line:?}");
        }
    }

    #[test]
    fn roots() {
        for (text, expected) in [
            ("PARTUUID=0A1B-02", Ok(RootSpec::PartUuid("0a1b-02".into()))),
            ("PARTLABEL=resin-rootA", Ok(RootSpec::PartLabel("resin-rootA".into()))),
            ("LABEL=resin-rootA", Ok(RootSpec::Label("resin-rootA".into()))),
            ("UUID=BA1E-ADEF", Ok(RootSpec::Uuid("ba1e-adef".into()))),
            ("/dev/nvme0n1p2", Ok(RootSpec::Device("nvme0n1p2".into()))),
            ("/dev/", Err(())),
            ("/dev/mapper/x", Err(())),
            ("/dev/../etc", Err(())),
            ("PARTUUID=", Err(())),
            ("PARTUUID=x/PARTNROFF=1", Err(())),
            ("0803", Err(())),
            ("/dev", Err(())),
            ("", Err(())),
        ] {
            assert_eq!(RootSpec::parse(text).map_err(drop), expected, "{text:?}");
        }
    }

    #[test]
    fn words_that_ask_for_a_check_or_for_quiet() {
        for (line, fsck, emergency) in [
            ("quiet", Fsck::Auto, false),
            ("fsck", Fsck::Force, false),
            ("fsck.mode=force emergency", Fsck::Force, true),
            ("fsck.mode=skip fsck", Fsck::Skip, false),
            ("fsck.mode=auto", Fsck::Auto, false),
            ("fsck=1 emergency=1 x.emergency", Fsck::Auto, false),
            ("-- fsck emergency", Fsck::Auto, false),
        ] {
            let line = Cmdline::parse(line);
            assert_eq!((line.fsck(), line.emergency()), (fsck, emergency), "{line:?}");
        }
    }

    #[test]
    fn rootwait_without_seconds_is_no_wait_for_ever() {
        for (line, expected) in
            [("rootwait", None), ("rootwait=5", Some(5)), ("rootwait=x", None), ("", None)]
        {
            assert_eq!(Cmdline::parse(line).rootwait(), expected.map(Duration::from_secs), "{line:?}");
        }
    }

    #[test]
    fn no_root_says_what_to_add() {
        assert!(Cmdline::parse("ro quiet").root().unwrap_err().to_string().contains("add root=PARTUUID="));
    }
}
