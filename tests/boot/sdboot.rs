//! systemd-boot's entries, against bootctl, which sorts them as systemd-boot does and shows their counters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use twinhull::boot::sdboot::{Entry, EntryName, SystemdBoot, template_name};
use twinhull::boot::{BootChooser, Directory};
use twinhull::model::{BootPlan, Slot};

use crate::random::Random;
use crate::verified;

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
        if seed % 4 == 1 {
            let trial = !chooser.plan().unwrap().primary;
            chooser.arm(&verified(trial), u8::try_from(1 + random.below(9)).unwrap()).unwrap();
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

/// A root for systemd-bless-boot, which does nothing in a container: it goes by files that are not in this one. The firmware's
/// variable says which entry was counted.
const BLESS: &str = r#"
mount -t tmpfs none "$1/root" || exit 77
for d in bin sbin lib lib64 usr; do
    if [ -L /$d ]; then cp -P /$d "$1/root/"; elif [ -d /$d ]; then mkdir "$1/root/$d" && mount --rbind /$d "$1/root/$d"; fi
done
mkdir -p "$1/root/proc" "$1/root/boot" "$1/root/sys/firmware/efi/efivars" || exit 77
mount --rbind /proc "$1/root/proc" && mount --bind "$1/boots" "$1/root/boot" || exit 77
exec chroot "$1/root" sh /boot/script
"#;
const COUNTED: &str = "/sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// An entry that systemd-boot has counted.
struct Counted {
    slot: Slot,
    left: u8,
    verb: &'static str,
}

#[test]
fn a_thousand_trials_are_blessed_by_systemd_bless_boot_and_read_and_the_other_way_round() {
    let dir = tempfile::tempdir().unwrap();
    let boots = dir.path().join("boots");
    std::fs::create_dir(dir.path().join("root")).unwrap();
    let mut script = String::new();
    let mut cases = Vec::new();
    for seed in 0..CASES {
        let mut random = Random::new(seed);
        let here = boots.join(format!("{seed}/loader/entries"));
        std::fs::create_dir_all(&here).unwrap();
        for (file, content) in entries(&mut random) {
            std::fs::write(here.join(file), content).unwrap();
        }
        let mut chooser = SystemdBoot::new(Directory::new(&here));
        let primary = chooser.plan().unwrap().primary;
        // A trial that was counted already and has as many tries left would stay as it is.
        chooser.disarm(primary).unwrap();
        let slot = !primary;
        let tries = u8::try_from(1 + random.below(9)).unwrap();
        chooser.arm(&verified(slot), tries).unwrap();
        // systemd-boot renames it before it starts it, once or more.
        let done = u8::try_from(1 + random.below(usize::from(tries))).unwrap();
        let left = tries - done;
        let name = |counter| EntryName { slot, counter: Some(counter) }.file();
        let counted = name((left.into(), done.into()));
        std::fs::rename(here.join(name((tries.into(), 0))), here.join(&counted)).unwrap();
        let verb = ["good", "bad", "indeterminate"][random.below(3)];
        let variable: Vec<u8> =
            format!("\\loader\\entries\\{counted}\0").encode_utf16().flat_map(u16::to_le_bytes).collect();
        std::fs::write(boots.join(format!("{seed}/variable")), [&b"\x06\0\0\0"[..], &variable].concat())
            .unwrap();
        let program = format!("/lib/systemd/systemd-bless-boot --path=/boot/{seed}");
        writeln!(
            script,
            "cp /boot/{seed}/variable {COUNTED}; {program} status; {program} {verb}; {program} status"
        )
        .unwrap();
        cases.push(Counted { slot, left, verb });
    }
    std::fs::write(boots.join("script"), script).unwrap();
    let output =
        Command::new("unshare").args(["-m", "sh", "-c", BLESS, "sh"]).arg(dir.path()).output().unwrap();
    if output.status.code() == Some(77) {
        println!("SKIPPED: needs the right to mount a tmpfs");
        return;
    }
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let shown: Vec<_> = shown.lines().collect();
    assert_eq!(shown.len(), 2 * cases.len(), "{}", String::from_utf8_lossy(&output.stderr));
    for (seed, (shown, Counted { slot, left, verb })) in shown.chunks(2).zip(&cases).enumerate() {
        // What twinhull wrote, the tool reads: not decided yet; and what it has decided then.
        assert_eq!(shown[0], "indeterminate", "seed {seed}");
        // Without tries left "bad" changes nothing.
        let bad_again = *verb == "bad" && *left == 0;
        assert_eq!(shown[1], if bad_again { "indeterminate" } else { verb }, "seed {seed}");
        // What the tool made of it, twinhull reads.
        let expected = match *verb {
            "good" => BootPlan::settled(*slot),
            "bad" => BootPlan::on_trial(*slot, 0),
            _ => BootPlan::on_trial(*slot, *left),
        };
        let mut chooser = SystemdBoot::new(Directory::new(boots.join(format!("{seed}/loader/entries"))));
        assert_eq!(chooser.plan().unwrap(), expected, "seed {seed}: {verb}");
        chooser.disarm(expected.primary).unwrap();
        assert_eq!(chooser.plan().unwrap(), BootPlan::settled(expected.primary), "seed {seed}");
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
