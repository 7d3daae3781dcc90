//! U-Boot's text files, against U-Boot itself: Debian's, on an ARM machine of QEMU.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use twinhull::boot::resin::Partitions;
use twinhull::boot::uboot_text::{COUNT_FILE, PLAN_FILE, UbootText, decode};
use twinhull::boot::{BootChooser, Directory, Environment};
use twinhull::model::{BootPlan, Slot};

use crate::random::{Random, value};
use crate::run;

const OURS: [&str; 4] = ["resin_root_part", "upgrade_available", "bootcount", "os_bc_lim"];
const CASES: u64 = 1000;

/// Runs a script of `tests/fixtures/uboot`; its output.
fn fixture(name: &str, args: &[&Path]) -> String {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/uboot").join(name);
    let args: Vec<_> = args.iter().map(|path| path.to_str().unwrap()).collect();
    run(program.to_str().unwrap(), &args)
}

#[test]
fn a_thousand_environments_are_read_as_u_boot_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("files")).unwrap();
    let mut script = String::new();
    let mut expected = Vec::new();
    for seed in 0..CASES {
        let mut random = Random::new(seed);
        let variables = random.environment(["2", "3"], b"abc 01=#,./~");
        let mut text = String::new();
        for (name, value) in &variables {
            text += ["", "\n", "# comment\n", "  ", "odd\n"][random.below(5)];
            writeln!(text, "{name}={value}").unwrap();
        }
        text += ["", "\n\n", "\0"][random.below(3)];
        // Half of them as twinhull writes them after a change.
        let mut decoded = decode(text.as_bytes()).unwrap();
        if seed % 2 == 1 {
            decoded.set("resin_root_part", "3");
            decoded.set("upgrade_available", "1");
        }
        std::fs::write(dir.path().join("files").join(seed.to_string()), decoded.encode(text.len())).unwrap();
        expected.push(OURS.map(|name| decoded.value(name).unwrap()).join("/"));
        let names = OURS.join(" ");
        writeln!(script, "fatload virtio 0:2 ${{ramdisk_addr_r}} {seed}").unwrap();
        writeln!(script, "env import -t ${{ramdisk_addr_r}} ${{filesize}} {names}").unwrap();
        writeln!(script, "echo \"FOUND ${{{}}}\"", OURS.join("}/${")).unwrap();
    }
    let commands = dir.path().join("commands");
    std::fs::write(&commands, script).unwrap();
    let shown = fixture("run", &[&commands, &dir.path().join("files")]);
    let found: Vec<_> = shown.lines().filter_map(|line| line.strip_prefix("FOUND ")).collect();
    assert_eq!(found, expected);
}

/// Runs `boot.cmd` on the files of `dirs`: the partition that it would boot, and the count.
fn decide(dirs: &[PathBuf]) -> Vec<(String, String)> {
    let shown = fixture("decide", &dirs.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    let parse = |line: &str| {
        let (part, count) = line.strip_prefix("part=").unwrap().split_once(" bootcount=").unwrap();
        (part.to_owned(), count.to_owned())
    };
    shown.lines().map(parse).collect()
}

#[test]
fn boot_cmd_in_u_boot_gives_the_truth_table() {
    let rows: Vec<Vec<&str>> = include_str!("../../boot/README.md")
        .lines()
        .skip_while(|l| !l.starts_with("## U-Boot with text files"))
        .skip_while(|l| !l.starts_with("| `resin_root_part` |"))
        .skip(2)
        .take_while(|l| l.starts_with('|'))
        .map(|l| l.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert!(rows.len() > 20);
    let dir = tempfile::tempdir().unwrap();
    let mut dirs = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let place = dir.path().join(i.to_string());
        std::fs::create_dir(&place).unwrap();
        let mut plan = String::new();
        for (name, value) in OURS.iter().zip(row).filter(|(_, v)| **v != "absent") {
            match *name {
                "bootcount" => std::fs::write(place.join(COUNT_FILE), format!("{name}={value}\n\0")).unwrap(),
                name => writeln!(plan, "{name}={value}").unwrap(),
            }
        }
        std::fs::write(place.join(PLAN_FILE), plan).unwrap();
        dirs.push(place);
    }
    let decided = decide(&dirs);
    assert_eq!(decided.len(), rows.len());
    for ((row, dir), (part, _)) in rows.iter().zip(&dirs).zip(decided) {
        let slot = if part == "2" { "A" } else { "B" };
        let before = row[2];
        let count = std::fs::read(dir.join(COUNT_FILE)).ok();
        let count = count.map(|raw| decode(&raw).unwrap().value("bootcount").unwrap());
        let saved = count.filter(|c| c != before).unwrap_or_else(|| "-".into());
        assert_eq!((slot, saved.as_str()), (row[4], row[5]), "{row:?}");
    }
}

#[test]
fn u_boot_counts_a_trial_down_and_twinhull_sees_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(PLAN_FILE), "resin_root_part=3\nupgrade_available=1\nos_bc_lim=2\n")
        .unwrap();
    std::fs::write(dir.path().join(COUNT_FILE), "bootcount=0\n\0").unwrap();
    let chooser = || UbootText::new(Directory::new(dir.path()), Partitions { a: 2, b: 3 });
    for (left, part) in [(2, "3"), (1, "3"), (0, "2")] {
        assert_eq!(chooser().plan().unwrap(), BootPlan::on_trial(Slot::B, left));
        assert_eq!(decide(&[dir.path().to_owned()])[0].0, part);
    }
    chooser().disarm(Slot::A).unwrap();
    assert_eq!(decide(&[dir.path().to_owned()])[0].0, "2");
    chooser().commit(Slot::B).unwrap();
    assert_eq!(decide(&[dir.path().to_owned()])[0].0, "3");
    let after = std::fs::read_to_string(dir.path().join(PLAN_FILE)).unwrap();
    let pairs: Vec<_> = after.lines().filter_map(|l| l.split_once('=')).collect();
    let pairs: Vec<_> = pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    assert_eq!(value(&pairs, "os_bc_lim"), "99");
}
