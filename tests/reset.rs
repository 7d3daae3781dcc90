//! The built `twinhull reset`: what is asked for, and what is refused.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(host.path("mnt/state/twinhull")).unwrap();
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn reset(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinhull"));
        command.arg("--root").arg(self.0.path()).arg("reset").args(args).output().unwrap()
    }

    fn request(&self) -> PathBuf {
        self.path("mnt/state/twinhull/reset-request.json")
    }
}

fn said(output: &Output) -> String {
    String::from_utf8([output.stdout.clone(), output.stderr.clone()].concat()).unwrap()
}

#[test]
fn nothing_is_requested_without_yes_or_by_mistake() {
    let host = Host::new();
    for (args, code, words) in [
        (&[] as &[&str], 0, "no reset is requested"),
        (&["data", "--keep", "a/b"], 3, "/mnt/data is emptied but for a/b, lost+found"),
        (&["data"], 3, "add --yes to empty this at the next boot"),
        (&["everything", "--yes"], 2, "expected state, data or all"),
        (&["all", "--keep", "a", "--yes"], 2, "say which: state:a or data:a"),
        (&["data", "--keep", "../a", "--yes"], 2, "expected a path inside of the partition"),
        (&["data", "--keep", "state:a", "--yes"], 2, "state is not reset"),
        (&["data", "--cancel"], 2, "--cancel takes nothing else"),
        // Whether an update is under way cannot be seen on a host without disk and boot plan.
        (&["data", "--yes"], 1, "reset: disk of the running root"),
    ] {
        let output = host.reset(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", said(&output));
        assert!(said(&output).contains(words), "{args:?}: {}", said(&output));
        assert!(!host.request().exists(), "{args:?}");
    }
}

#[test]
fn a_request_is_shown_and_taken_back() {
    let host = Host::new();
    fs::write(host.request(), r#"{"state":["root-overlay/etc/ssh"],"data":null}"#).unwrap();
    let shown = said(&host.reset(&[]));
    assert!(
        shown.starts_with("/mnt/state is emptied but for root-overlay/etc/ssh, twinhull/journal.json"),
        "{shown}"
    );
    assert!(host.reset(&["--cancel"]).status.success());
    assert!(!host.request().exists());
    fs::write(host.request(), "{\"data\":").unwrap();
    let output = host.reset(&[]);
    assert!(
        output.status.code() == Some(1) && said(&output).contains("reset-request.json"),
        "{}",
        said(&output)
    );
}
