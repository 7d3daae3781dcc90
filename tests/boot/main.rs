//! Environments of bootloaders, against the real tools: what they wrote is read, and what twinhull wrote is read by
//! them. A thousand random environments each.
#![allow(clippy::disallowed_methods, clippy::disallowed_macros, clippy::unwrap_used, clippy::panic)]

mod efi;
mod grub;
mod random;
mod sdboot;
mod uboot_env;
mod uboot_text;

use std::process::Command;

use sha2::{Digest as _, Sha256};
use twinhull::block::{FileDisk, Verified, read_back};
use twinhull::model::{Digest, Slot};

/// Runs a program that must succeed; its output.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The proof that arming needs, of a slot of one byte.
fn verified(slot: Slot) -> Verified {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"x").unwrap();
    let mut disk = FileDisk::open_read_only(file.path()).unwrap();
    read_back(&mut disk, slot, 1, &Digest(Sha256::digest(b"x").into()), |_| ()).unwrap()
}
