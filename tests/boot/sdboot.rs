//! systemd-boot's entries, against bootctl, which sorts them as systemd-boot does and shows their counters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use twinhull::boot::sdboot::{Entry, EntryName, SystemdBoot, template_name};
use twinhull::boot::{BootChooser, Directory};
use twinhull::model::Slot;

use crate::random::Random;

const CASES: u64 = 1000;

/// Entries of both slots, at least one of them not counted, each version once; and some foreign ones.
fn entries(random: &mut Random) -> BTreeMap<String, Vec<u8>> {
    let template = |slot: Slot| format!("title {slot}\nlinux /slot-{slot}/vmlinuz\n");
    let mut files: BTreeMap<_, _> =
        Slot::ALL.map(|slot| (template_name(slot), template(slot).into_bytes())).into();
    let primary = Slot::ALL[random.below(2)];
    let version = u32::try_from(random.below(12)).unwrap();
    let mut put = |slot, counter, version| {
        let content = Entry::content(template(slot).as_bytes(), version).unwrap();
        files.insert(EntryName { slot, counter }.file(), content);
    };
    put(primary, None, version);
    let number = |random: &mut Random| u32::try_from(random.below(4)).unwrap();
    match random.below(4) {
        0 => {}
        1 => put(!primary, None, version + 1),
        2 => put(primary, Some((number(random), number(random))), version),
        _ => put(!primary, Some((number(random), number(random))), version + 1 + number(random)),
    }
    if random.below(3) == 0 {
        files.insert("memtest+2.conf".into(), b"title Memtest\nefi /memtest.efi\n".to_vec());
        files.insert("debian.conf".into(), b"title Debian\nsort-key debian\nversion 99\nlinux /d\n".to_vec());
    }
    files
}

#[test]
fn a_thousand_directories_are_sorted_and_counted_as_bootctl_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut script = String::from("mount -t tmpfs none \"$1/esp\" && cd \"$1\" || exit 77\n");
    std::fs::create_dir(dir.path().join("esp")).unwrap();
    let mut expected = Vec::new();
    for seed in 0..CASES {
        let mut random = Random::new(seed);
        let place = dir.path().join(seed.to_string());
        let here = place.join("loader/entries");
        std::fs::create_dir_all(&here).unwrap();
        for (file, content) in entries(&mut random) {
            std::fs::write(here.join(file), content).unwrap();
        }
        let mut chooser = SystemdBoot::new(Directory::new(&here));
        // Half of them as twinhull leaves them.
        if seed % 2 == 1 {
            let plan = chooser.plan().unwrap();
            chooser.commit(if random.below(2) == 0 { plan.primary } else { !plan.primary }).unwrap();
        }
        let plan = chooser.plan().unwrap();
        let next = plan.trial.filter(|t| t.tries_left > 0);
        expected.push((next.map_or(plan.primary, |t| t.slot), next.map(|t| u64::from(t.tries_left))));
        writeln!(script, "rm -rf esp/* && cp -r {seed}/loader esp/ && mkdir esp/slot-A esp/slot-B && touch esp/d esp/memtest.efi esp/slot-A/vmlinuz esp/slot-B/vmlinuz").unwrap();
        writeln!(script, "bootctl --esp-path=\"$1/esp\" --json=short list | head -n 1").unwrap();
    }
    let mut output = Command::new("unshare");
    output
        .args(["-m", "sh", "-c", &format!(". {}/script", dir.path().display()), "sh"])
        .arg(dir.path())
        .env("SYSTEMD_RELAX_ESP_CHECKS", "1");
    std::fs::write(dir.path().join("script"), script).unwrap();
    let output = output.output().unwrap();
    if output.status.code() == Some(77) {
        println!("SKIPPED: needs the right to mount a tmpfs");
        return;
    }
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let found: Vec<_> = shown
        .lines()
        .map(|line| {
            let first: serde_json::Value =
                serde_json::from_str(line.trim_start_matches('[').trim_end_matches([',', ']'])).unwrap();
            let slot = if first["linux"] == "/slot-A/vmlinuz" { Slot::A } else { Slot::B };
            (slot, first["triesLeft"].as_u64())
        })
        .collect();
    assert_eq!(found.len(), expected.len(), "{}", String::from_utf8_lossy(&output.stderr));
    for (seed, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let files = read(&dir.path().join(format!("{seed}/loader/entries")));
        let names = files.keys();
        assert_eq!(found.0, expected.0, "seed {seed}: {names:?}");
        // Of entries that differ in nothing but the count, bootctl shows any first.
        if !differ_in_the_count_alone(&files) {
            assert_eq!(found.1, expected.1, "seed {seed}: {names:?}");
        }
    }
}

fn read(dir: &Path) -> BTreeMap<String, String> {
    let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    files
        .map(|f| (f.file_name().into_string().unwrap(), std::fs::read_to_string(f.path()).unwrap()))
        .collect()
}

/// Whether two entries of one slot have the same content, version included.
fn differ_in_the_count_alone(files: &BTreeMap<String, String>) -> bool {
    let mut seen = BTreeSet::new();
    let entries = files.iter().filter_map(|(name, text)| Some((name.strip_suffix(".conf")?, text)));
    entries.into_iter().any(|(name, text)| !seen.insert((name.split('+').next(), text)))
}
