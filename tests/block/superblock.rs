use twinhull::block::{FileSystemKind, Superblock, probe};

use crate::tools::{Image, MIB, Scratch, must, run};

/// What blkid says: type, label, UUID.
fn by_blkid(file: &str) -> (String, String, String) {
    let value = |tag: &str| run("blkid", &["-p", "-s", tag, "-o", "value", file], "").1.trim().to_owned();
    (value("TYPE"), value("LABEL"), value("UUID").to_ascii_lowercase())
}

fn probe_file(file: &str) -> Option<Superblock> {
    let mut image = Image::load(file.as_ref());
    let len = image.len;
    probe(&mut image, 0, len).unwrap()
}

#[test]
fn kinds_labels_and_ids_are_those_of_blkid() {
    let scratch = Scratch::new();
    let made: [(u64, &[&str]); 8] = [
        (16, &["mke2fs", "-q", "-t", "ext4", "-L", "resin-state"]),
        (16, &["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "^64bit"]),
        (16, &["mke2fs", "-q", "-t", "ext2", "-L", "sixteen-letters!"]),
        (64, &["mkfs.vfat", "-F", "32", "-n", "resin-boot"]),
        (16, &["mkfs.vfat", "-F", "16", "-n", "RESIN-BOOT"]),
        (2, &["mkfs.vfat", "-F", "12"]),
        (64, &["mkfs.vfat", "-F", "32", "-S", "4096"]),
        (300, &["mke2fs", "-q", "-t", "ext4", "-L", "x", "-E", "lazy_itable_init=1"]),
    ];
    for (mib, command) in made {
        let file = scratch.path("fs");
        let file = file.to_str().unwrap();
        Image { len: mib * MIB, sectors: Default::default() }.save(file.as_ref());
        must(command[0], &[&command[1..], &[file]].concat(), "");
        let found = probe_file(file).unwrap();
        let (kind, label, uuid) = by_blkid(file);
        // ext2 is mounted by the same driver.
        assert_eq!(found.kind.name(), if kind == "ext2" { "ext4" } else { &kind }, "{command:?}");
        assert_eq!((found.label, found.uuid), (label, uuid), "{command:?}");
        if found.kind == FileSystemKind::Ext4 {
            assert_eq!(found.len_bytes, Some(mib * MIB), "{command:?}");
            assert!(!found.needs_check);
        }
    }
}

#[test]
fn squashfs_and_erofs() {
    let scratch = Scratch::new();
    let (source, file) = (scratch.path("tree"), scratch.path("fs"));
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "text").unwrap();
    let (source, file) = (source.to_str().unwrap(), file.to_str().unwrap());
    let tools: [(&str, &[&str], FileSystemKind); 2] = [
        ("mksquashfs", &[source, file, "-quiet", "-no-progress"], FileSystemKind::Squashfs),
        ("mkfs.erofs", &[file, source], FileSystemKind::Erofs),
    ];
    for (tool, args, kind) in tools {
        if !std::path::Path::new("/usr/bin").join(tool).exists() {
            // Written past the test harness's capture, which would hide it.
            let _ = std::io::Write::write_all(
                &mut std::io::stdout(),
                format!("SKIPPED: needs {tool}\n").as_bytes(),
            );
            continue;
        }
        let _ = std::fs::remove_file(file);
        must(tool, args, "");
        let found = probe_file(file).unwrap();
        let (name, label, uuid) = by_blkid(file);
        assert_eq!((found.kind, found.kind.name(), found.label), (kind, name.as_str(), label));
        assert_eq!(found.uuid, uuid);
    }
}

#[test]
fn an_ext4_marked_as_damaged_needs_a_check() {
    let scratch = Scratch::new();
    let file = scratch.path("fs");
    let file = file.to_str().unwrap();
    Image { len: 16 * MIB, sectors: Default::default() }.save(file.as_ref());
    must("mke2fs", &["-q", "-t", "ext4", file], "");
    must("debugfs", &["-w", "-R", "set_super_value state 2", file], "");
    assert!(probe_file(file).unwrap().needs_check);
    run("e2fsck", &["-p", file], "");
    assert!(!probe_file(file).unwrap().needs_check);
}

#[test]
fn anything_else_is_none() {
    for len in [0, 100, 2048, MIB] {
        let mut image = Image { len, sectors: Default::default() };
        assert_eq!(probe(&mut image, 0, len).unwrap(), None);
    }
    let mut noise = Image { len: 4096, sectors: Default::default() };
    for at in 0..8 {
        *noise.sector_mut(at) = [0xa5; 512];
    }
    assert_eq!(probe(&mut noise, 0, 4096).unwrap(), None);
}
