//! EFI variables, against efibootmgr, in a directory that stands for efivarfs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use twinhull::boot::BootChooser;
use twinhull::boot::efi::{EfiBoot, Efivarfs, LoadOption, Template, Volume};
use twinhull::model::{BootPlan, Slot};

use crate::random::Random;
use crate::{run, verified};

const GUIDS: [&str; 3] = [
    "11111111-2222-4333-8444-555555555501",
    "a069de34-f845-4932-aa5f-0d0e532db4e2",
    "a069de34-f845-4932-aa5f-0d0e532db4e3",
];

/// The tool, a disk for it, and a directory of variables.
struct Lab {
    dir: tempfile::TempDir,
}

/// What `efibootmgr -v` says.
#[derive(Debug, Default, PartialEq)]
struct Shown {
    order: Vec<String>,
    next: Option<String>,
    /// Number, then `* ` if it is active, then description and path.
    entries: BTreeMap<String, String>,
}

impl Shown {
    fn is(&self, number: &str, slot: Slot) -> bool {
        self.entries.get(number).is_some_and(|e| e.starts_with(&format!("* twinhull {slot}\t")))
    }

    fn first(&self) -> Option<Slot> {
        let of = |number: &String| Slot::ALL.into_iter().find(|slot| self.is(number, *slot));
        self.order.iter().find_map(of)
    }

    /// The order without the entries of ours.
    fn foreign_order(&self) -> Vec<&String> {
        self.order.iter().filter(|n| Slot::ALL.iter().all(|slot| !self.is(n, *slot))).collect()
    }
}

impl Lab {
    /// `None` if the tool cannot make entries here: it looks at the device that holds the image in sysfs.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let lab = Self { dir };
        let image = lab.path("disk");
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let image = image.to_str().unwrap();
        let ids: Vec<_> = GUIDS.iter().enumerate().map(|(i, id)| format!("{}:{id}", i + 1)).collect();
        run("sgdisk", &["-n", "1:2048:+8M", "-n", "2:18432:+8M", "-n", "3:34816:+8M", image]);
        run("sgdisk", &["-u", &ids[0], "-u", &ids[1], "-u", &ids[2], image]);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/efi/disk.c");
        let library = lab.path("disk.so");
        run("cc", &["-shared", "-fPIC", "-o", library.to_str().unwrap(), source.to_str().unwrap()]);
        lab.clear();
        let made =
            lab.efibootmgr(&["-q", "-C", "-b", "0000", "-d", image, "-p", "1", "-L", "x", "-l", "\\x"]);
        made.status.success().then_some(lab)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn clear(&self) {
        let _ = std::fs::remove_dir_all(self.path("vars"));
        std::fs::create_dir(self.path("vars")).unwrap();
    }

    fn efibootmgr(&self, args: &[&str]) -> std::process::Output {
        let mut command = Command::new("efibootmgr");
        command
            .env("LIBEFIVAR_OPS", "efivarfs")
            .env("EFIVARFS_PATH", format!("{}/", self.path("vars").display()));
        command.env("LD_PRELOAD", self.path("disk.so")).env("DISK", self.path("disk"));
        command.args(args).output().unwrap()
    }

    fn tool(&self, args: &[&str]) -> String {
        let output = self.efibootmgr(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn make_entry(&self, number: &str, partition: &str, description: &str, file: &str, options: &str) {
        let disk = self.path("disk");
        self.tool(&[
            "-q",
            "-C",
            "-b",
            number,
            "-d",
            disk.to_str().unwrap(),
            "-p",
            partition,
            "-L",
            description,
            "-l",
            file,
            "-u",
            options,
        ]);
    }

    fn shown(&self) -> Shown {
        let mut shown = Shown::default();
        for line in self.tool(&["-v"]).lines() {
            if let Some(order) = line.strip_prefix("BootOrder: ") {
                shown.order = order.split(',').map(str::to_owned).collect();
            } else if let Some(next) = line.strip_prefix("BootNext: ") {
                shown.next = Some(next.to_owned());
            } else if let Some((number, text)) = line.strip_prefix("Boot").and_then(|l| l.split_at_checked(4))
            {
                shown.entries.insert(number.to_owned(), text.to_owned());
            }
        }
        shown
    }

    /// Every variable that is not ours, byte for byte.
    fn foreign(&self, shown: &Shown) -> BTreeMap<String, Vec<u8>> {
        let files = std::fs::read_dir(self.path("vars")).unwrap().map(|e| e.unwrap().path());
        let named =
            files.map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&p).unwrap()));
        let ours = |name: &str| {
            let number = name.get(4..8).unwrap_or_default();
            ["BootOrder-", "BootNext-", "TwinhullTrial-"].iter().any(|n| name.starts_with(n))
                || Slot::ALL.into_iter().any(|slot| shown.is(number, slot))
        };
        named.filter(|(name, _)| !ours(name)).collect()
    }

    fn chooser(&self) -> EfiBoot<Efivarfs> {
        EfiBoot::new(Efivarfs::new(self.path("vars")), Slot::ALL.map(wanted))
    }
}

fn wanted(slot: Slot) -> LoadOption {
    let (number, partuuid) = if slot == Slot::A { (2, GUIDS[1]) } else { (3, GUIDS[2]) };
    let start_lba = if slot == Slot::A { 18432 } else { 34816 };
    let volume = Volume { number, start_lba, sectors: 16384, partuuid: partuuid.into() };
    let text = "partition slot\nefi /boot/vmlinuz\noptions root=PARTLABEL=x quiet\n";
    Template::parse(text).unwrap().entry(slot, &volume).unwrap()
}

/// The environment of one case: entries of others, and ours or not, in any order or none.
fn environment(lab: &Lab, random: &mut Random) {
    lab.clear();
    let mut numbers: Vec<String> = Vec::new();
    let mut new_number = |random: &mut Random| loop {
        let number = format!("{:04X}", random.below(64));
        if !numbers.contains(&number) {
            numbers.push(number.clone());
            return number;
        }
    };
    let mut in_order = Vec::new();
    for _ in 0..1 + random.below(2) {
        let number = new_number(random);
        lab.make_entry(
            &number,
            "1",
            &random.text(b"abc XYZ", 1, 12),
            "\\EFI\\x.efi",
            &random.text(b"abc =", 1, 20),
        );
        in_order.push(number);
    }
    for (slot, partition) in [(Slot::A, "2"), (Slot::B, "3")] {
        if random.below(3) > 0 {
            let number = new_number(random);
            let name = format!("twinhull {slot}");
            lab.make_entry(&number, partition, &name, "\\boot\\vmlinuz", "root=PARTLABEL=x quiet");
            in_order.insert(random.below(in_order.len() + 1), number);
        }
    }
    if random.below(8) > 0 {
        lab.tool(&["-q", "-o", &in_order.join(",")]);
    }
    if random.below(4) == 0 {
        lab.tool(&["-q", "-n", &in_order[random.below(in_order.len())]]);
    }
    let other = lab.path("vars").join("LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f");
    std::fs::write(other, [b"\x06\0\0\0", random.text(b"abc", 1, 30).as_bytes()].concat()).unwrap();
}

#[test]
fn a_thousand_environments_are_read_and_written_as_efibootmgr_does() {
    let Some(lab) = Lab::new() else {
        println!("SKIPPED: needs a temporary directory on a disk that sysfs shows, for efibootmgr --create");
        return;
    };
    let (mut whole, mut lost) = (0, 0);
    for seed in 0..1000 {
        let mut random = Random::new(seed);
        environment(&lab, &mut random);
        let before = lab.shown();
        let foreign = lab.foreign(&before);
        let mut chooser = lab.chooser();
        let booted = Slot::ALL[random.below(2)];
        let ours = before.order.iter().filter(|n| Slot::ALL.iter().any(|slot| before.is(n, *slot))).count();
        // The tool writes, we read.
        match chooser.plan() {
            Ok(plan) => {
                assert_eq!((ours, Some(plan)), (1, before.first().map(BootPlan::settled)), "seed {seed}");
                whole += 1;
            }
            Err(e) => {
                assert!(ours != 1 && e.to_string().starts_with("boot plan: "), "seed {seed}: {e}");
                chooser.restore(booted).unwrap();
                lost += 1;
            }
        }
        let primary = before.first().unwrap_or(booted);
        assert_eq!(chooser.plan().unwrap(), BootPlan::settled(primary), "seed {seed}");
        // We write, the tool reads.
        chooser.disarm(primary).unwrap();
        let settled = lab.shown();
        assert_eq!(settled.first(), Some(primary), "seed {seed}: {settled:?}");
        assert_eq!(settled.foreign_order(), before.foreign_order(), "seed {seed}");
        chooser.commit(!primary).unwrap();
        let after = lab.shown();
        assert_eq!(after.first(), Some(!primary), "seed {seed}: {after:?}");
        assert_eq!(after.foreign_order(), before.foreign_order(), "seed {seed}");
        assert_eq!(lab.foreign(&after), foreign, "seed {seed}");
        let kept = before.next.clone().filter(|n| Slot::ALL.iter().all(|slot| !before.is(n, *slot)));
        assert_eq!(after.next, kept, "seed {seed}");
        // Armed, and its first try asked for: BootNext is the trial's entry.
        let tries = u8::try_from(1 + random.below(9)).unwrap();
        chooser.arm(&verified(primary), tries).unwrap();
        assert_eq!(
            chooser.plan().unwrap(),
            BootPlan { primary: !primary, ..BootPlan::on_trial(primary, tries) }
        );
        chooser.before_reboot().unwrap();
        let armed = lab.shown();
        assert!(armed.next.as_ref().is_some_and(|n| armed.is(n, primary)), "seed {seed}: {armed:?}");
        assert_eq!(armed.first(), Some(!primary), "seed {seed}: {armed:?}");
        chooser.disarm(!primary).unwrap();
        let after = lab.shown();
        assert_eq!((after.first(), &after.next), (Some(!primary), &None), "seed {seed}: {after:?}");
        assert_eq!(after.foreign_order(), before.foreign_order(), "seed {seed}");
        assert_eq!(lab.foreign(&after), foreign, "seed {seed}");
        // The tool changes what we wrote.
        let number = after.order.iter().find(|n| after.is(n, !primary)).unwrap();
        lab.tool(&["-q", "-B", "-b", number]);
        assert!(chooser.plan().is_err(), "seed {seed}");
    }
    assert!(whole > 300 && lost > 300, "{whole} whole, {lost} not");
}

#[test]
fn an_entry_of_ours_is_the_one_that_efibootmgr_makes() {
    let Some(lab) = Lab::new() else {
        println!("SKIPPED: needs a temporary directory on a disk that sysfs shows, for efibootmgr --create");
        return;
    };
    lab.chooser().restore(Slot::A).unwrap();
    let ours = lab.shown();
    let number = ours.order.first().unwrap().clone();
    let file = lab.path("vars").join(format!("Boot{number}-8be4df61-93ca-11d2-aa0d-00e098032b8c"));
    let raw = std::fs::read(&file).unwrap();
    lab.tool(&["-q", "-B", "-b", &number]);
    lab.make_entry(&number, "2", "twinhull A", "\\boot\\vmlinuz", "root=PARTLABEL=x quiet");
    assert_eq!(std::fs::read(&file).unwrap(), raw);
    assert_eq!(
        ours.entries[&number].split_once("File").unwrap().0,
        format!("* twinhull A\tHD(2,GPT,{},0x4800,0x4000)/", GUIDS[1])
    );
}
