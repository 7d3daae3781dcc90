//! What a bundle carries, each payload for one place: the root image, files for the boot partition, hooks.
//!
//! A payload of files is an image too: the files one after the other, each filled up with zeros to whole blocks. So one
//! index and one kind of frame serve everything.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Digest, Verity};
use crate::{Error, Result};

/// The smallest root image, in bytes.
pub const IMAGE_MIN_BYTES: u64 = 1024;
/// The smallest image of a whole disk, in bytes: less than that holds no partition.
pub const DISK_MIN_BYTES: u64 = 4 << 20;
/// The largest image, in bytes (1 TiB).
pub const IMAGE_MAX_BYTES: u64 = 1 << 40;
/// Images are hashed and checked in blocks of this many bytes.
pub const BLOCK_BYTES: u64 = 4096;
/// The most bytes that the files for the boot partition may have together.
pub const BOOT_FILES_MAX_BYTES: u64 = 256 << 20;
/// The most bytes that one hook may have.
pub const HOOK_MAX_BYTES: u64 = 256 * 1024;
/// The most seconds that one hook may take.
pub const HOOK_DEADLINE_MAX_S: u64 = 3600;
/// The list of a set's files, beside them; no file of a bundle may have this name.
pub const SUMS: &str = "twinhull.sums";

const WORD_MAX: usize = 64;
const FILES_MAX: usize = 400;
const HOOKS_MAX: usize = 16;
const PATH_MAX: usize = 100;

/// `[[payload]]`: bytes for one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payload {
    /// Names the members `NAME.index` and `NAME.frames`.
    pub name: String,
    /// Where it goes.
    #[serde(rename = "type")]
    pub kind: PayloadKind,
    /// Length of the image in bytes.
    pub size: u64,
    /// Digest of the whole image.
    pub sha256: Digest,
    /// Digest of the whole index member.
    pub index_sha256: Digest,
    /// Length of the index member in bytes.
    pub index_size: u64,
    /// Length of the frames member in bytes.
    pub frames_size: u64,
    /// Digest of the whole frames member: what was read in one go was not touched on its way.
    pub frames_sha256: Digest,
    /// The files that the image consists of, in its order; none for a root slot.
    #[serde(rename = "file", default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileEntry>,
    /// How the kernel checks it as it is read; of a root slot only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity: Option<Verity>,
}

/// Where a payload goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PayloadKind {
    /// The root partition that is not running.
    RootSlot,
    /// A whole disk, with its partition table: what an installer writes. Alone in its bundle.
    Disk,
    /// The boot files of the slot that is written: kernel, device trees, configuration.
    BootFiles,
    /// Programs that the new system runs before it is committed.
    Hooks,
}

/// `[[payload.file]]`: one file of a payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its path below the set's directory, parts separated by `/`; for a hook its name.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// Its digest.
    pub sha256: Digest,
    /// Hooks only: the seconds that it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_s: Option<u64>,
}

impl FileEntry {
    /// How much of the image it takes, in bytes.
    pub const fn padded(&self) -> u64 {
        self.size.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
    }
}

impl PayloadKind {
    /// The payload's usual name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RootSlot => "root",
            Self::Disk => "disk",
            Self::BootFiles => "boot",
            Self::Hooks => "hooks",
        }
    }
}

impl Payload {
    /// How many blocks the image has; the last may be a part of one.
    pub const fn blocks(&self) -> u64 {
        self.size.div_ceil(BLOCK_BYTES)
    }

    /// Checks what a manifest says of a payload.
    ///
    /// # Errors
    /// `Failed`, naming payload and file, for sizes and names that no payload may have.
    pub fn check(self) -> Result<Self> {
        let checked = match self.kind {
            // The name becomes part of member names, and of messages.
            _ if !is_word(&self.name) => Err("not a name of letters, digits, '.', '_' and '-'".into()),
            PayloadKind::RootSlot => self.check_image(IMAGE_MIN_BYTES),
            PayloadKind::Disk => self.check_image(DISK_MIN_BYTES),
            PayloadKind::BootFiles => self.check_files(),
            PayloadKind::Hooks => self.check_files().and_then(|()| self.check_hooks()),
        };
        match checked {
            Ok(()) => Ok(self),
            Err(text) => Err(Error::failed(format!("manifest.toml: payload {:?}: {text}", self.name))),
        }
    }

    fn check_image(&self, min_bytes: u64) -> std::result::Result<(), String> {
        if !self.files.is_empty() {
            return Err("an image has no files".into());
        }
        if self.verity.is_some_and(|v| !(1..self.size).contains(&v.hash_offset)) {
            return Err("verity: the hash tree does not lie in the image".into());
        }
        if !(min_bytes..=IMAGE_MAX_BYTES).contains(&self.size) {
            return Err(format!("image of {} bytes, expected {min_bytes} to {IMAGE_MAX_BYTES}", self.size));
        }
        Ok(())
    }

    fn check_files(&self) -> std::result::Result<(), String> {
        if self.files.is_empty() || self.files.len() > FILES_MAX {
            return Err(format!("{} files, expected 1 to {FILES_MAX}", self.files.len()));
        }
        if let Some(large) = self.files.iter().find(|f| f.size > BOOT_FILES_MAX_BYTES) {
            return Err(too_large(large, BOOT_FILES_MAX_BYTES));
        }
        let total: u64 = self.files.iter().map(FileEntry::padded).sum();
        if total != self.size || !(1..=BOOT_FILES_MAX_BYTES).contains(&total) {
            return Err(format!(
                "image of {} bytes, its files take {total}, expected 1 to {BOOT_FILES_MAX_BYTES}",
                self.size
            ));
        }
        check_paths(self.files.iter().map(|f| f.path.as_str()))
    }

    fn check_hooks(&self) -> std::result::Result<(), String> {
        if self.files.len() > HOOKS_MAX {
            return Err(format!("{} hooks, at most {HOOKS_MAX}", self.files.len()));
        }
        for hook in &self.files {
            if !is_word(&hook.path) {
                return Err(format!("{:?}: a hook's name has letters, digits, '.', '_' and '-'", hook.path));
            }
            if hook.size == 0 || hook.size > HOOK_MAX_BYTES {
                return Err(too_large(hook, HOOK_MAX_BYTES));
            }
            if hook.deadline_s.is_none_or(|s| s == 0 || s > HOOK_DEADLINE_MAX_S) {
                return Err(format!("{:?}: expected deadline_s of 1 to {HOOK_DEADLINE_MAX_S}", hook.path));
            }
        }
        Ok(())
    }
}

fn too_large(file: &FileEntry, limit: u64) -> String {
    format!("{:?}: {} bytes, expected at most {limit}", file.path, file.size)
}

/// Checks that files of these paths can lie beside each other on FAT and nowhere else: no path leads out of the
/// directory, and no two are the same to a file system that takes `A` and `a` for one.
///
/// # Errors
/// The path, and what is wrong with it.
pub fn check_paths<'a>(paths: impl Iterator<Item = &'a str>) -> std::result::Result<(), String> {
    // Each path and each directory above it, without case: its spelling, and whether it is a file.
    let mut known: BTreeMap<String, (&str, bool)> = BTreeMap::new();
    for path in paths {
        if !is_safe_path(path) {
            return Err(format!(
                "{path:?}: expected names of letters, digits and any of \"._-+,@=\", separated by '/', that do not \
                 begin or end with '.', {PATH_MAX} characters in all"
            ));
        }
        let above = path.match_indices('/').filter_map(|(at, _)| path.get(..at)).map(|dir| (dir, false));
        for (part, is_file) in above.chain([(path, true)]) {
            match known.insert(part.to_ascii_lowercase(), (part, is_file)) {
                Some((other, was_file)) if other != part || was_file || is_file => {
                    return Err(format!("{path:?}: clashes with {other:?}; FAT does not tell A from a"));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether a path stays below its directory and means the same on every file system. FAT drops dots at the end of a
/// name; a `~` could meet one of the short names that it makes up itself.
pub fn is_safe_path(path: &str) -> bool {
    let safe_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with('.')
            && !name.ends_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+,@=".contains(&b))
    };
    path.len() <= PATH_MAX && path.split('/').all(safe_name) && !path.to_ascii_lowercase().starts_with(SUMS)
}

/// Whether this is a name that may stand in file names and messages.
pub fn is_word(s: &str) -> bool {
    (1..=WORD_MAX).contains(&s.len())
        && s.starts_with(|c: char| c.is_ascii_alphanumeric())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, size: u64) -> FileEntry {
        FileEntry { path: path.into(), size, sha256: Digest([0; 32]), deadline_s: None }
    }

    fn payload(kind: PayloadKind, files: Vec<FileEntry>) -> Payload {
        Payload {
            name: kind.name().into(),
            kind,
            size: files.iter().map(FileEntry::padded).sum(),
            sha256: Digest([0; 32]),
            index_sha256: Digest([0; 32]),
            index_size: 64,
            frames_size: 0,
            frames_sha256: Digest([0; 32]),
            files,
            verity: None,
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_or_mean_another_file_are_refused() {
        for good in ["vmlinuz", "dtbs/bcm2711-rpi-4-b.dtb", "a/b/c/d", "overlays/st,x.dtbo", "a", "b.c.d"] {
            check_paths([good].into_iter()).unwrap();
        }
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/../b",
            "/etc/passwd",
            "a//b",
            "a/",
            "./a",
            ".hidden",
            "a/.b",
            "a.",
            "a./b",
            "KERNEL~1.IMG",
            "a b",
            "a\\b",
            "a:b",
            "a*",
            "a?",
            "a\nb",
            "a\0",
            "é",
            "twinhull.sums",
            "Twinhull.SUMS.new",
        ] {
            assert!(check_paths([bad].into_iter()).is_err(), "{bad:?}");
        }
        assert!(check_paths([&*"x".repeat(101)].into_iter()).is_err());
    }

    #[test]
    fn what_is_one_file_on_fat_may_not_be_two() {
        check_paths(["dtbs/a", "dtbs/b", "x"].into_iter()).unwrap();
        for pair in [["a", "a"], ["a", "A"], ["dtbs/a", "Dtbs/b"], ["a", "a/b"], ["a/b", "A"], ["d/A", "d/a"]]
        {
            assert!(check_paths(pair.into_iter()).is_err(), "{pair:?}");
        }
    }

    #[test]
    fn sizes_and_numbers_have_limits() {
        let hook = |size, deadline_s| FileEntry { deadline_s, ..file("check", size) };
        let many = |n: usize| (0..n).map(|i| file(&i.to_string(), 1)).collect::<Vec<_>>();
        for (kind, files, good) in [
            (PayloadKind::BootFiles, many(400), true),
            (PayloadKind::BootFiles, many(401), false),
            (PayloadKind::BootFiles, many(0), false),
            (PayloadKind::BootFiles, vec![file("empty", 0)], false),
            (PayloadKind::BootFiles, vec![file("empty", 0), file("x", 1)], true),
            (PayloadKind::BootFiles, vec![file("x", 256 << 20)], true),
            (PayloadKind::BootFiles, vec![file("x", 256 << 20), file("y", 1)], false),
            (PayloadKind::BootFiles, vec![file("x", u64::MAX)], false),
            (PayloadKind::Hooks, vec![hook(100, Some(60))], true),
            (PayloadKind::Hooks, vec![hook(100, None)], false),
            (PayloadKind::Hooks, vec![hook(100, Some(3601))], false),
            (PayloadKind::Hooks, vec![hook(0, Some(60))], false),
            (PayloadKind::Hooks, vec![hook(HOOK_MAX_BYTES + 1, Some(60))], false),
            (PayloadKind::Hooks, vec![FileEntry { path: "a/b".into(), ..hook(1, Some(60)) }], false),
        ] {
            let shown = format!("{kind:?}, {} files", files.len());
            let checked = if files.iter().any(|f| f.size == u64::MAX) {
                Payload { files, ..payload(kind, many(1)) }.check()
            } else {
                payload(kind, files).check()
            };
            assert_eq!(checked.is_ok(), good, "{shown}: {checked:?}");
        }
        let wrong_sum = Payload { size: 4096, ..payload(PayloadKind::BootFiles, many(2)) };
        assert!(wrong_sum.check().unwrap_err().to_string().contains("its files take 8192"));
        let root = Payload { files: many(1), ..payload(PayloadKind::RootSlot, vec![file("x", 4096)]) };
        assert!(root.check().is_err());
    }
}
