//! The truth tables of boot/README.md, row by row, against the models.

use std::collections::BTreeMap;

use super::files::MemoryStore;
use super::loader::Loader;
use super::{efi_model, uboot_script};
use crate::boot::Environment;
use crate::boot::efi::{BOOT_NEXT, BOOT_ORDER, entry_file};
use crate::boot::grub::{Block, decode, encode};
use crate::boot::resin::Partitions;
use crate::boot::sdboot::Entry;
use crate::boot::uboot_env::{self, Copies, UbootEnv};
use crate::boot::uboot_text::{COUNT_FILE, PLAN_FILE};
use crate::boot::{initramfs, tryboot};
use crate::model::Slot;

const README: &str = include_str!("../../boot/README.md");

/// The rows of the first table below the heading that begins with `heading`.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let rows: Vec<Vec<&str>> = README
        .lines()
        .skip_while(|l| !l.starts_with(heading))
        .skip_while(|l| !l.starts_with("| `resin_root_part` |"))
        .skip(2)
        .take_while(|l| l.starts_with('|'))
        .map(|l| l.trim_matches('|').split('|').map(|c| c.trim().trim_matches('`')).collect())
        .collect();
    assert!(rows.len() >= 12, "{heading}: {} rows found", rows.len());
    rows
}

/// Prints what a model says of a row, for `qemu/run truth-table`, which holds it against the real bootloader.
fn tell(table: &str, before: &[&str], slot: impl std::fmt::Display, saved: Option<&str>) {
    let (before, saved) = (before.join(" | "), saved.unwrap_or("-"));
    crate::sys::out::line(&format!("model {table}: {before} -> {slot}, saved {saved}"));
}

const NAMES: [&str; 4] = ["resin_root_part", "upgrade_available", "bootcount", "os_bc_lim"];

#[test]
fn grub() {
    for row in rows("## GRUB") {
        let mut block = Block::default();
        for (name, value) in NAMES.iter().zip(&row).filter(|(_, v)| **v != "absent") {
            block.variables.set(name, value);
        }
        let files = BTreeMap::from([("grubenv".to_owned(), encode(&block).unwrap().to_vec())]);
        let choice = Loader::Grub.choose(&files, false);
        let counted = choice.save.map(|(_, raw)| decode(&raw).unwrap().variables.value("bootcount").unwrap());
        tell("grub", &row[..4], choice.slot, counted.as_deref());
        assert_eq!(
            (choice.slot.to_string().as_str(), counted.as_deref().unwrap_or("-")),
            (row[4], row[5]),
            "{row:?}"
        );
    }
}

#[test]
fn initramfs_counter() {
    for row in rows("## No bootloader that can count") {
        let values = NAMES.iter().zip(&row).filter(|(_, v)| **v != "absent");
        let text: String = values.map(|(name, value)| format!("{name}={value}\0")).collect();
        let raw = copy(&text, true);
        let mut booted = Vec::new();
        for otherwise in Slot::ALL {
            let store = MemoryStore::of(&[("env.0", &raw), ("env.1", &raw)]);
            let mut counter = UbootEnv::new(store.clone(), Partitions { a: 2, b: 3 });
            let (slot, problem) = initramfs::choose(&mut counter, otherwise);
            let saved = Copies::read(&store, 1).unwrap();
            let saved = uboot_env::decode(&saved, true).unwrap().entries.value("bootcount");
            let saved = saved.filter(|_| Copies::read(&store, 1).unwrap() != raw);
            let expected = if row[4] == "root=" { otherwise.to_string() } else { row[4].to_owned() };
            assert_eq!((slot.to_string(), saved.as_deref().unwrap_or("-")), (expected, row[5]), "{row:?}");
            assert_eq!(problem.is_some(), row[4] == "root=", "{row:?}");
            booted.push((slot.to_string(), saved));
        }
        let same = booted[0] == booted[1];
        let slot = if same { booted[0].0.as_str() } else { "root=" };
        tell("initramfs", &row[..4], slot, booted[0].1.as_deref());
    }
}

#[test]
fn raspberry_pi() {
    let rows: Vec<Vec<&str>> = README
        .lines()
        .skip_while(|l| !l.starts_with("| `[all]` |"))
        .skip(2)
        .take_while(|l| l.starts_with('|'))
        .map(|l| l.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert!(rows.len() >= 7, "{} rows found", rows.len());
    for row in rows {
        let text = format!(
            "[all]\ntryboot_a_b=1\nboot_partition={}\n[tryboot]\nboot_partition={}\n# twinhull: tries_left={}\n",
            row[0], row[1], row[2]
        );
        let files = BTreeMap::from([(tryboot::FILE.to_owned(), text.into_bytes())]);
        let slot = Loader::Tryboot.choose(&files, row[3] == "yes").slot;
        tell("tryboot", &row[..4], slot, None);
        assert_eq!(slot.to_string(), row[4], "{row:?}");
    }
}

#[test]
fn efi_variables() {
    let rows: Vec<Vec<&str>> = README
        .lines()
        .skip_while(|l| !l.starts_with("| `BootOrder` | `BootNext` |"))
        .skip(2)
        .take_while(|l| l.starts_with('|'))
        .map(|l| l.trim_matches('|').split('|').map(|c| c.trim().trim_matches('`')).collect())
        .collect();
    assert!(rows.len() >= 9, "{} rows found", rows.len());
    let number = |mark: &str| [("u", 0), ("b", 1), ("a", 3)].iter().find(|m| m.0 == mark).map(|m| m.1);
    let value = |marks: &str| -> Vec<u8> {
        let numbers = marks.split(' ').filter_map(number).flat_map(u16::to_le_bytes);
        [7, 0, 0, 0].into_iter().chain(numbers).collect()
    };
    for row in rows {
        let mut variables = Loader::Efi.seed();
        variables
            .insert(entry_file(1), [&[7, 0, 0, 0][..], &efi_model::wanted()[1].encode().unwrap()].concat());
        variables.insert(BOOT_ORDER.into(), value(row[0]));
        if row[1] != "-" {
            variables.insert(BOOT_NEXT.into(), value(row[1]));
        }
        let choice = Loader::Efi.choose(&variables, false);
        choice.save_into(&mut variables);
        let after = if variables.contains_key(BOOT_NEXT) { "set" } else { "-" };
        tell("efi", &row[..3], choice.slot, Some(after));
        assert_eq!((choice.slot.to_string().as_str(), after), (row[3], row[4]), "{row:?}");
    }
}

#[test]
fn u_boot_with_text_files() {
    for row in rows("## U-Boot with text files") {
        let mut files = BTreeMap::from([(PLAN_FILE.to_owned(), String::new())]);
        for (name, value) in NAMES.iter().zip(&row).filter(|(_, v)| **v != "absent") {
            let file = if *name == "bootcount" { COUNT_FILE } else { PLAN_FILE };
            *files.entry(file.to_owned()).or_default() += &format!("{name}={value}\n");
        }
        let files = files.into_iter().map(|(name, text)| (name, text.into_bytes())).collect();
        let choice = Loader::UbootText.choose(&files, false);
        let counted = choice.save.map(|(_, raw)| uboot_script::import(&raw)["bootcount"].clone());
        tell("uboot-text", &row[..4], choice.slot, counted.as_deref());
        assert_eq!(
            (choice.slot.to_string().as_str(), counted.as_deref().unwrap_or("-")),
            (row[4], row[5]),
            "{row:?}"
        );
    }
}

/// The same table as for text files.
#[test]
fn u_boot_with_its_native_environment() {
    for row in rows("## U-Boot with text files") {
        let values = NAMES.iter().zip(&row).filter(|(_, v)| **v != "absent");
        let text: String = values.map(|(name, value)| format!("{name}={value}\0")).collect();
        for redundant in [false, true] {
            let files: BTreeMap<_, _> =
                (0..=usize::from(redundant)).map(|n| (format!("env.{n}"), copy(&text, redundant))).collect();
            let loader = if redundant { Loader::UbootEnv } else { Loader::UbootEnvSingle };
            let choice = loader.choose(&files, false);
            let counted = choice.save.map(|(_, raw)| {
                uboot_env::decode(&raw, redundant).unwrap().entries.value("bootcount").unwrap()
            });
            if redundant {
                tell("uboot-env", &row[..4], choice.slot, counted.as_deref());
            }
            assert_eq!(
                (choice.slot.to_string().as_str(), counted.as_deref().unwrap_or("-")),
                (row[4], row[5]),
                "{row:?}"
            );
        }
    }
}

/// A copy of an environment of 512 bytes.
fn copy(text: &str, redundant: bool) -> Vec<u8> {
    let data_at = 4 + usize::from(redundant);
    let mut raw = vec![0; 512];
    raw[data_at..data_at + text.len()].copy_from_slice(text.as_bytes());
    if redundant {
        raw[4] = 1;
    }
    let crc = crc32fast::hash(&raw[data_at..]);
    raw[..4].copy_from_slice(&crc.to_le_bytes());
    raw
}

#[test]
fn systemd_boot() {
    let rows: Vec<Vec<&str>> = README
        .lines()
        .skip_while(|l| !l.starts_with("| entries |"))
        .skip(2)
        .take_while(|l| l.starts_with('|'))
        .map(|l| l.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert!(rows.len() >= 6, "{} rows found", rows.len());
    for row in rows {
        let before = row[0].replace('`', "");
        let mut files = Loader::SystemdBoot.seed();
        files.remove("twinhull-a.conf");
        for entry in before.split(", ") {
            let (name, version) = entry.split_once(" (").unwrap();
            let version = version.trim_end_matches(')').parse().unwrap();
            let content = Entry::content(b"title x\nlinux /x\n", version).unwrap();
            files.insert(format!("twinhull-{name}.conf"), content);
        }
        let choice = Loader::SystemdBoot.choose(&files, false);
        let saved = choice
            .save
            .map(|(file, _)| file.trim_start_matches("twinhull-").trim_end_matches(".conf").to_owned());
        tell("systemd-boot", &[&before], choice.slot, saved.as_deref());
        let renamed = saved.map_or_else(String::new, |name| format!(", renamed to `{name}`"));
        assert_eq!(format!("{}{renamed}", choice.slot), row[1], "{row:?}");
    }
}
