//! U-Boot's native environment, against fw_printenv and fw_setenv.

use std::path::Path;

use twinhull::boot::initramfs;
use twinhull::boot::resin::{self, Partitions};
use twinhull::boot::uboot_env::{Place, Places, UbootEnv, parse_config};
use twinhull::boot::{BootChooser, Environment, Variables};
use twinhull::model::{BootPlan, Slot};

use crate::random::{Random, foreign, value};
use crate::{run, verified};

const PARTITIONS: Partitions = Partitions { a: 2, b: 3 };
const NOTATION: resin::Notation = resin::Notation::Hex(PARTITIONS);

/// What `fw_printenv` shows, in the order in which it stands there.
fn printed(config: &str) -> Vec<(String, String)> {
    let pair = |line: &str| line.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())).unwrap();
    run("fw_printenv", &["-c", config]).lines().map(pair).collect()
}

fn places(config: &str) -> Vec<Place> {
    parse_config(&std::fs::read_to_string(config).unwrap()).unwrap()
}

fn set_by_tool(dir: &Path, config: &str, variables: &[(String, String)]) {
    let lines: Vec<_> = variables.iter().map(|(n, v)| format!("{n}={v}\n")).collect();
    let script = dir.join("script");
    std::fs::write(&script, lines.concat()).unwrap();
    std::fs::write(dir.join("default"), "x_default=1\n").unwrap();
    let (default, script) = (dir.join("default"), script.display().to_string());
    run("fw_setenv", &["-c", config, "-f", default.to_str().unwrap(), "x_default", "2"]);
    run("fw_setenv", &["-c", config, "-s", &script]);
}

fn variables(all: &[(String, String)]) -> Variables {
    let mut variables = Variables::default();
    for (name, value) in all {
        variables.set(name, value);
    }
    variables
}

#[test]
fn a_thousand_environments_are_read_and_written_as_the_tools_do() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("fw_env.config");
    let file = dir.path().join("env");
    for seed in 0..1000 {
        let mut random = Random::new(seed);
        let redundant = seed % 2 == 1;
        let size = 2048;
        let offset = [0, 512, 4096][random.below(3)];
        let mut lines = format!("{} {offset:#x} {size:#x}\n", file.display());
        if redundant {
            lines += &format!("{} {} {size:#x}\n", file.display(), offset + size);
        }
        std::fs::write(&config, lines).unwrap();
        std::fs::write(&file, vec![0xa5; 16384]).unwrap();
        let config = config.to_str().unwrap();
        // The tool writes, we read.
        set_by_tool(dir.path(), config, &random.environment(["2", "3"], b"abc 01=#,./~\"$"));
        let shown = printed(config);
        let mut chooser = UbootEnv::new(Places(places(config)), PARTITIONS);
        let plan = chooser.plan().unwrap();
        assert_eq!(plan, resin::plan(&variables(&shown), NOTATION).unwrap(), "seed {seed}");
        // We write, the tool reads: after one change, and after a second one, which goes to the other copy.
        let primary = plan.primary;
        chooser.commit(!primary).unwrap();
        let after = printed(config);
        assert_eq!(foreign(&after), foreign(&shown), "seed {seed}");
        assert_eq!(value(&after, "resin_root_part"), if primary == Slot::A { "3" } else { "2" });
        assert_eq!((value(&after, "upgrade_available"), value(&after, "bootcount")), ("0", "0"));
        let tries = u8::try_from(1 + random.below(9)).unwrap();
        chooser.arm(&verified(primary), tries).unwrap();
        assert_eq!(chooser.plan().unwrap(), BootPlan::on_trial(primary, tries));
        let armed = printed(config);
        assert_eq!(foreign(&armed), foreign(&shown), "seed {seed}");
        assert_eq!(value(&armed, "resin_root_part"), if primary == Slot::A { "2" } else { "3" });
        assert_eq!((value(&armed, "upgrade_available"), value(&armed, "bootcount")), ("1", "0"));
        assert_eq!(value(&armed, "os_bc_lim"), tries.to_string());
        chooser.disarm(primary).unwrap();
        assert_eq!(foreign(&printed(config)), foreign(&shown), "seed {seed}");
        assert_eq!(value(&printed(config), "resin_root_part"), if primary == Slot::A { "2" } else { "3" });
        // The tool changes what we wrote.
        run("fw_setenv", &["-c", config, "resin_root_part", "3"]);
        assert_eq!(chooser.plan().unwrap().primary, Slot::B);
        let around = std::fs::read(&file).unwrap();
        let used = offset..offset + size * if redundant { 2 } else { 1 };
        assert!(around.iter().enumerate().all(|(i, b)| used.contains(&i) || *b == 0xa5), "only the copies");
    }
}

#[test]
fn the_counter_of_pid_1_is_made_and_read_by_the_tools() {
    let dir = tempfile::tempdir().unwrap();
    let (file, config) = (dir.path().join(initramfs::FILE), dir.path().join("fw_env.config"));
    let (name, config) = (file.display().to_string(), config.to_str().unwrap());
    std::fs::write(config, format!("{name} 0 0x200\n{name} 0x200 0x200\n")).unwrap();
    // As boot/README.md has it.
    let text = dir.path().join("text");
    std::fs::write(&text, "resin_root_part=2\nupgrade_available=0\nbootcount=0\n").unwrap();
    run("mkenvimage", &["-r", "-s", "512", "-o", &name, text.to_str().unwrap()]);
    let copy = std::fs::read(&file).unwrap();
    std::fs::write(&file, [copy.as_slice(), &copy].concat()).unwrap();
    let mut counter = initramfs::open(dir.path(), PARTITIONS);
    assert_eq!(initramfs::choose(&mut counter, Slot::B), (Slot::A, None));
    // The tool arms, PID 1 counts, the tool sees it.
    let arm = dir.path().join("arm");
    std::fs::write(&arm, "resin_root_part=3\nupgrade_available=1\nos_bc_lim=2\n").unwrap();
    run("fw_setenv", &["-c", config, "-s", arm.to_str().unwrap()]);
    for (slot, count) in [(Slot::B, "1"), (Slot::B, "2"), (Slot::A, "2")] {
        assert_eq!(initramfs::choose(&mut counter, Slot::A), (slot, None));
        assert_eq!(value(&printed(config), "bootcount"), count);
    }
    // Damaged altogether, it is what root= says, and the reason names the file.
    std::fs::write(&file, vec![0xff; 1024]).unwrap();
    let (slot, problem) = initramfs::choose(&mut counter, Slot::B);
    assert!(
        slot == Slot::B && problem.unwrap().to_string().starts_with(&format!("boot plan: {name} at 0x0: "))
    );
}

#[test]
fn the_tool_and_we_agree_on_the_newer_copy_for_every_pair_of_flags() {
    let dir = tempfile::tempdir().unwrap();
    let (config, file) = (dir.path().join("fw_env.config"), dir.path().join("env"));
    std::fs::write(&config, format!("{0} 0 0x100\n{0} 0x100 0x100\n", file.display())).unwrap();
    let copy = |part: &str, flag: u8| {
        let mut raw = format!("....{}resin_root_part={part}\0upgrade_available=0\0\0", '.').into_bytes();
        raw.resize(0x100, 0);
        let crc = crc32fast::hash(&raw[5..]);
        raw[..4].copy_from_slice(&crc.to_le_bytes());
        raw[4] = flag;
        raw
    };
    let mut checked = 0;
    for first in 0..=255_u8 {
        for second in [0, 1, 2, 100, 254, 255, first, first.wrapping_add(1), first.wrapping_sub(1)] {
            std::fs::write(&file, [copy("2", first), copy("3", second)].concat()).unwrap();
            let ours = UbootEnv::new(Places(places(config.to_str().unwrap())), PARTITIONS).plan().unwrap();
            let theirs = run("fw_printenv", &["-c", config.to_str().unwrap(), "-n", "resin_root_part"]);
            assert_eq!(ours.primary == Slot::A, theirs.trim() == "2", "flags {first} and {second}");
            checked += 1;
        }
    }
    assert!(checked > 2000);
}
