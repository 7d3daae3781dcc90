//! A `systemctl` that only writes down what it was asked.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub struct Systemctl {
    dir: PathBuf,
}

impl Systemctl {
    /// One in a new directory under `dir`.
    pub fn new(dir: &Path) -> Self {
        let made = Self { dir: dir.join("systemctl") };
        fs::create_dir(&made.dir).unwrap();
        made.write("#!/bin/sh\necho \"$@\" >> \"$(dirname \"$0\")/asked\"\n");
        made
    }

    /// Makes another program of it.
    pub fn write(&self, script: &str) {
        fs::write(self.program(), script).unwrap();
        fs::set_permissions(self.program(), fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn program(&self) -> PathBuf {
        self.dir.join("systemctl")
    }

    /// A `PATH` on which it stands first.
    pub fn path_variable(&self) -> String {
        format!("{}:{}", self.dir.display(), std::env::var("PATH").unwrap())
    }

    /// What it was asked since the last time.
    pub fn asked(&self) -> String {
        let file = self.dir.join("asked");
        let asked = fs::read_to_string(&file).unwrap_or_default();
        if file.exists() {
            fs::remove_file(file).unwrap();
        }
        asked
    }
}
