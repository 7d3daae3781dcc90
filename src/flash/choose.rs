//! Which disk the image goes to.

use std::path::PathBuf;

use crate::block::{BootedDisk, natural};
use crate::{Error, Result, Root, sys};

/// What is no disk of a device: memory, images, optical media, maps of other disks.
const VIRTUAL: [&str; 8] = ["loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd"];
const SMALL_FILE: u64 = 64 * 1024;

/// A disk that the kernel knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Medium {
    /// The kernel's name, such as `nvme0n1`.
    pub name: String,
    /// Its device.
    pub device: PathBuf,
    /// Its size in bytes.
    pub len_bytes: u64,
    /// Bytes per logical sector.
    pub sector_bytes: u64,
    /// What it calls itself.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// Why nothing may be written to it.
    pub unfit: Option<String>,
}

impl std::fmt::Display for Medium {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let or_none = |text: &str| if text.is_empty() { "not told".to_owned() } else { text.to_owned() };
        write!(
            f,
            "{}, {} MB, model {}, serial {}",
            self.device.display(),
            self.len_bytes / 1_000_000,
            or_none(&self.model),
            or_none(&self.serial)
        )
    }
}

/// Every disk, in the order of the kernel's names, and whether an image of `needed_bytes` may go there.
///
/// # Errors
/// `Refused` if it cannot be told which medium this system runs from.
pub fn media(root: &Root, needed_bytes: u64) -> Result<Vec<Medium>> {
    let own = own_disks(root)?;
    let mut found: Vec<Medium> = sys::file::list(&root.path("/sys/block"))?
        .iter()
        .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
        .filter(|name| !VIRTUAL.iter().any(|v| name.starts_with(v)))
        .map(|name| look(root, name))
        .collect();
    found.sort_by_key(|medium| natural(&medium.name));
    for medium in &mut found {
        if own.contains(&medium.name) {
            medium.unfit = Some("this system runs from it".into());
        } else if medium.unfit.is_none() && medium.len_bytes < needed_bytes {
            medium.unfit = Some(format!("too small: the image has {} MB", needed_bytes / 1_000_000));
        }
    }
    Ok(found)
}

/// The first medium that fits, in the order of `patterns` (kernel names with `*` and `?`).
///
/// # Errors
/// `Refused`, saying what was found and why it does not do.
pub fn choose<'a>(media: &'a [Medium], patterns: &[String]) -> Result<&'a Medium> {
    let fitting =
        patterns.iter().find_map(|p| media.iter().find(|m| m.unfit.is_none() && matches(p, &m.name)));
    fitting.ok_or_else(|| {
        let seen: Vec<String> = media
            .iter()
            .map(|m| format!("{}: {}", m.name, m.unfit.as_deref().unwrap_or("not in the list")))
            .collect();
        let seen = if seen.is_empty() { "no disk at all".into() } else { seen.join("; ") };
        Error::refused(format!(
            "no disk to write to: looked for {} (flash.devices, or installer.target_devices of config.json); found {seen}",
            patterns.join(" ")
        ))
    })
}

fn look(root: &Root, name: String) -> Medium {
    let dir = root.path("/sys/block").join(&name);
    let text =
        |file: &str| sys::file::read_text(&dir.join(file), SMALL_FILE).map(|t| t.trim().to_owned()).ok();
    let number = |file: &str| text(file).and_then(|t| t.parse::<u64>().ok());
    // Always in units of 512 bytes, whatever the sectors are.
    let len_bytes = number("size").unwrap_or(0).saturating_mul(512);
    let unfit = match name.strip_prefix("mmcblk") {
        _ if len_bytes == 0 => Some("no medium in it"),
        _ if number("ro") == Some(1) => Some("write-protected"),
        _ if number("hidden") == Some(1) => Some("one of several ways to another"),
        Some(rest) if rest.contains("boot") || rest.contains("rpmb") => Some("a boot area of the eMMC"),
        _ => None,
    };
    Medium {
        device: root.path("/dev").join(&name),
        len_bytes,
        sector_bytes: number("queue/logical_block_size").unwrap_or(512),
        model: text("device/model").or_else(|| text("device/name")).unwrap_or_default(),
        serial: text("device/serial").or_else(|| text("serial")).unwrap_or_default(),
        unfit: unfit.map(str::to_owned),
        name,
    }
}

/// The disks that this system uses: that of its root, and those with anything mounted.
fn own_disks(root: &Root) -> Result<Vec<String>> {
    let mut own = Vec::new();
    if let Ok(disk) = BootedDisk::find(root)
        && let Some(name) = disk.device.file_name().and_then(|n| n.to_str())
    {
        own.push(name.to_owned());
    }
    let mounts =
        sys::file::read_if_exists(&root.path("/proc/self/mountinfo"), 16 * 1024 * 1024)?.unwrap_or_default();
    for line in String::from_utf8_lossy(&mounts).lines() {
        // The third field is the device, as MAJOR:MINOR.
        let Some(numbers) = line.split(' ').nth(2) else { continue };
        let place = sys::file::without_links(&root.path("/sys/dev/block").join(numbers));
        let is_partition = place.join("partition").exists();
        let disk = if is_partition { place.parent() } else { Some(place.as_path()) };
        if let Some(name) = disk.filter(|d| d.join("queue").exists()).and_then(|d| d.file_name()?.to_str()) {
            own.push(name.to_owned());
        }
    }
    if own.is_empty() {
        return Err(Error::refused(
            "it cannot be told which medium this system runs from; boot the installer with twinhull's initramfs, or with \
             root= naming a partition of it",
        ));
    }
    Ok(own)
}

/// Whether a name fits a pattern of the shell's kind: `?` is any one character, `*` any number of them.
fn matches(pattern: &str, name: &str) -> bool {
    let (mut p, mut n) = (pattern.chars(), name.chars());
    match (p.next(), n.next()) {
        (None, None) => true,
        (Some('*'), None) => matches(p.as_str(), ""),
        (Some('*'), Some(_)) => matches(p.as_str(), name) || matches(pattern, n.as_str()),
        (Some(a), Some(b)) => (a == '?' || a == b) && matches(p.as_str(), n.as_str()),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(disks: &[(&str, &[(&str, &str)])]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        for (name, files) in disks {
            for (file, text) in *files {
                let path = root.path("/sys/block").join(name).join(file);
                sys::durable::create_dir(path.parent().unwrap()).unwrap();
                sys::durable::replace(&path, text.as_bytes(), 0o644).unwrap();
            }
        }
        let stick = root.path("/sys/block/sda/sda2");
        sys::durable::create_dir(&stick).unwrap();
        sys::durable::create_dir(&root.path("/sys/block/sda/queue")).unwrap();
        sys::durable::replace(&stick.join("partition"), b"2", 0o644).unwrap();
        sys::durable::create_dir(&root.path("/sys/dev/block")).unwrap();
        sys::tree::link(&root.path("/sys/dev/block/8:2"), &stick).unwrap();
        sys::durable::create_dir(&root.path("/proc/self")).unwrap();
        let mounts = "22 1 8:2 / / ro - ext4 /dev/sda2 ro\n23 22 0:5 / /proc rw - proc proc rw\n";
        sys::durable::replace(&root.path("/proc/self/mountinfo"), mounts.as_bytes(), 0o644).unwrap();
        (dir, root)
    }

    fn patterns(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_first_that_fits_in_the_order_of_the_list() {
        let large = ("size", "62500000");
        let (_dir, root) = host(&[
            ("sda", &[large]),
            ("sdb", &[("size", "0")]),
            ("sdc", &[large, ("ro", "1")]),
            ("sdd", &[("size", "1000")]),
            ("sde", &[large]),
            ("mmcblk0", &[large, ("device/name", "EMMC"), ("device/serial", "0x1234")]),
            ("mmcblk0boot0", &[large]),
            ("nvme0n1", &[large, ("device/model", "Fast  "), ("device/serial", " S1")]),
            ("loop0", &[large]),
            ("dm-0", &[large]),
        ]);
        let all = media(&root, 10_000_000_000).unwrap();
        for (list, expected) in [
            ("nvme0n1 sda sdb mmcblk0", "nvme0n1"),
            ("sd? mmcblk?", "sde"),
            ("mmcblk* nvme*", "mmcblk0"),
            ("*", "mmcblk0"),
            ("sda sdb sdc sdd sde", "sde"),
        ] {
            assert_eq!(choose(&all, &patterns(list)).unwrap().name, expected, "{list}");
        }
        let e = choose(&all, &patterns("sda sdb sdc sdd mmcblk0boot0 loop0 vd?")).unwrap_err();
        assert_eq!(e.kind(), crate::Kind::Refused);
        for expected in [
            "sda: this system runs from it",
            "sdb: no medium in it",
            "sdc: write-protected",
            "sdd: too small",
            "sde: not in the list",
            "mmcblk0boot0: a boot area",
        ] {
            assert!(e.to_string().contains(expected), "{e}");
        }
        let shown = choose(&all, &patterns("nvme?n?")).unwrap().to_string();
        assert!(shown.ends_with("/dev/nvme0n1, 32000 MB, model Fast, serial S1"), "{shown}");
    }

    #[test]
    fn without_knowing_its_own_medium_nothing_is_chosen() {
        let (_dir, root) = host(&[("sdb", &[("size", "62500000")])]);
        sys::durable::replace(&root.path("/proc/self/mountinfo"), b"", 0o644).unwrap();
        assert_eq!(media(&root, 1).unwrap_err().kind(), crate::Kind::Refused);
    }

    #[test]
    fn patterns_are_the_shell_s() {
        for (pattern, name, fits) in [
            ("sd?", "sda", true),
            ("sd?", "sdaa", false),
            ("nvme?n?", "nvme0n1", true),
            ("*", "", true),
            ("md/*", "mmcblk0", false),
            ("mmc*0", "mmcblk0", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
