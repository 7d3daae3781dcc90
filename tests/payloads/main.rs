//! Bundles that carry more than a root image: files for the boot partition, and hooks; from the maker to the commit.
#![cfg(feature = "build-host")]
// Tests may panic and start programs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, clippy::disallowed_macros)]
#![allow(clippy::cast_possible_truncation)]

mod boot_files;
#[path = "../support/bundle.rs"]
mod bundle;
mod format;
mod hooks;
mod seal;
#[path = "../transfer/server.rs"]
#[allow(dead_code)]
mod server;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/systemctl.rs"]
#[allow(dead_code)]
mod systemctl;
mod transfer;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::{Device, KeyPair, pattern};
use systemctl::Systemctl;

/// A device, a key that it trusts, and a place for files.
struct Bench {
    dir: tempfile::TempDir,
    key: KeyPair,
    device: Device,
    systemctl: Systemctl,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::new(dir.path(), "fleet");
        let device = Device::new(&[&key]);
        device.write("etc/twinhull/20-health.toml", "[health]\nsettle_s = 0\ndeadline_s = 1\n");
        Self { systemctl: Systemctl::new(dir.path()), dir, key, device }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Makes a bundle of an image of its own; `more` are further arguments of `bundle create`.
    fn create(&self, name: &str, version: &str, more: &[&str]) -> Output {
        let (image, options) = Self::contents(name, version, more);
        bundle::create(&self.path(&format!("{name}.bundle")), &image, &[&self.key], &options)
    }

    fn bundle(&self, name: &str, version: &str, more: &[&str]) -> PathBuf {
        let (image, options) = Self::contents(name, version, more);
        bundle::bundle(self.dir.path(), name, &image, &[&self.key], &options)
    }

    fn contents<'a>(name: &str, version: &'a str, more: &[&'a str]) -> (Vec<u8>, Vec<&'a str>) {
        (pattern(1 << 20, name.len() as u64 + 7), [&["--version", version], more].concat())
    }

    fn install(&self, bundle: &Path) -> Output {
        self.device.twinhull(&["install", bundle.to_str().unwrap()])
    }

    /// The bootloader's choice: the device now runs slot B, on its first try.
    fn boot_into_b(&self) {
        self.device.write("proc/cmdline", "root=PARTLABEL=resin-rootB ro\n");
        self.device.write("proc/sys/kernel/random/boot_id", "22222222-2222-3333-4444-555555555555\n");
    }

    fn resume(&self) -> Output {
        let path = self.systemctl.path_variable();
        let root = self.device.path("");
        let args = ["--root", root.to_str().unwrap(), "resume"];
        Command::new(env!("CARGO_BIN_EXE_twinhull")).args(args).env("PATH", path).output().unwrap()
    }

    fn rebooted(&self) -> bool {
        self.systemctl.asked() == "reboot\n"
    }
}

#[test]
fn a_bundle_without_them_is_still_of_format_1() {
    let bench = Bench::new();
    let inspect = |bundle: PathBuf| {
        let text = support::run("tar", &["-xOf", bundle.to_str().unwrap(), "manifest.toml"]);
        text.lines().next().unwrap().to_owned()
    };
    assert_eq!(inspect(bench.bundle("plain", "2.0.0", &[])), "format = 1");
    let hook = bench.write("hook", b"#!/bin/sh\n");
    let named = format!("check={}", hook.display());
    assert_eq!(inspect(bench.bundle("more", "2.0.0", &["--hook", &named])), "format = 2");
}
