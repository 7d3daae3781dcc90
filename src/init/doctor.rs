//! State and data at boot: mounted, checked, repaired, and the state partition made anew if nothing else is left. And the boot
//! partition, which is FAT: mounted, and checked after a power cut.
//!
//! The check of an ext4 depends on no clock: it is made if the file system is marked as damaged or cannot be mounted, or if the
//! kernel's command line asks for it. First `e2fsck -p`, which changes only what is safe to change; then `e2fsck -y`,
//! which repairs whatever can be repaired and keeps what it cuts loose in lost+found.
//!
//! # Laws
//! 1. The data partition is never made anew: a boot goes on without it, and says so. A device that can be reached can
//!    be repaired. It goes on without the boot partition too, and without the state partition, with memory in its place, if
//!    that can neither be mounted nor made anew. A new system that cannot mount them does not pass for healthy.
//! 2. The state partition is made anew only if `e2fsck` itself says that it cannot repair it, the kernel cannot mount it, and the
//!    medium can be read. A missing tool, a mount point that is not there or a failing medium is no reason.
//! 3. With `emergency` on the command line nothing is made anew.

use std::path::Path;

use crate::block::{Disk, FileDisk};
use crate::model::Fsck;
use crate::sys::command::Outcome;
use crate::{Doing, Error, Result};

const CHECKER: &str = "/sbin/e2fsck";
const MAKER: &str = "/sbin/mke2fs";
/// Where distributions have it.
const FAT_CHECKERS: [&str; 2] = ["/usr/sbin/fsck.fat", "/sbin/fsck.fat"];
/// Both ends of a partition that must be readable before it is believed to be only damaged.
const PROBE_BYTES: u64 = 1024 * 1024;

/// What a partition is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Can be made anew.
    State,
    /// Cannot.
    Data,
    /// Cannot, and the bootloader reads it.
    Boot,
}

/// How it went; each with words for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Health {
    /// Mounted, nothing was wrong.
    Sound,
    /// Mounted after a repair.
    Repaired(String),
    /// Mounted, empty: what was there could not be repaired.
    Remade(String),
    /// Not mounted.
    Lost(String),
}

/// What is to be brought up.
pub(super) struct Patient<'a> {
    pub label: &'a str,
    pub device: &'a Path,
    pub role: Role,
    /// Its superblock says that it is damaged.
    pub marked: bool,
    /// What the command line asks for.
    pub fsck: Fsck,
    /// Whether it may be made anew at all.
    pub may_remake: bool,
}

/// The means: running a program of the root, and mounting.
pub(super) struct Means<'a> {
    pub run: &'a dyn Fn(&str, &[&str]) -> Result<Outcome>,
    pub mount: &'a dyn Fn() -> Result<()>,
}

/// Mounts the boot partition. If it was not unmounted in order it is checked first: what a power cut leaves of a file that was
/// being made may be a name whose clusters are free, and whoever reads, shortens or removes that makes Linux take the file system
/// for damaged, and read-only, at each boot anew. `fsck.fat -a` empties such a file. What a bootloader reads is never in that
/// state: it is overwritten in place. Without that program, which is no reason not to boot, it is mounted as it is.
///
/// # Errors
/// `Failed` if it cannot be mounted.
pub(super) fn bring_up_fat(patient: &Patient, means: &Means) -> Result<Health> {
    let mut checked = false;
    if patient.fsck == Fsck::Force || (patient.marked && patient.fsck != Fsck::Skip) {
        check_fat(patient, means);
        checked = true;
    }
    match (means.mount)() {
        Err(e) if !checked && patient.fsck != Fsck::Skip => {
            log::warn!("{}: {e}", patient.label);
            check_fat(patient, means);
            (means.mount)().map(|()| Health::Repaired(e.to_string()))
        }
        mounted => mounted.map(|()| Health::Sound),
    }
}

fn check_fat(patient: &Patient, means: &Means) {
    let device = patient.device.to_string_lossy();
    let mut result = Err(Error::failed("no checker"));
    for checker in FAT_CHECKERS {
        result = result.or_else(|_| (means.run)(checker, &["-a", &device]));
    }
    match result {
        Ok(outcome) => {
            for line in outcome.output.lines().map(str::trim).filter(|l| !l.is_empty()) {
                log::info!("fsck.fat: {line}");
            }
            // 0: nothing was wrong; 1: it is repaired.
            if !matches!(outcome.ending.as_str(), "exit 0" | "exit 1") {
                log::warn!("{}: fsck.fat: {}", patient.label, outcome.ending);
            }
        }
        Err(e) => log::warn!("{} was not unmounted in order, and cannot be checked: {e}", patient.label),
    }
}

/// What the checker said.
enum Verdict {
    /// Nothing to do, or repaired.
    Fine,
    /// It cannot repair it in this way.
    Hopeless(String),
}

/// Mounts it, after whatever that takes.
///
/// # Errors
/// `Failed` if the state partition cannot be mounted, and may or can not be made anew.
pub(super) fn bring_up(patient: &Patient, means: &Means) -> Result<Health> {
    match try_hard(patient, means) {
        Err(e) if patient.role == Role::Data => Ok(Health::Lost(e.to_string())),
        other => other,
    }
    .doing(|| patient.label.to_owned())
}

fn try_hard(patient: &Patient, means: &Means) -> Result<Health> {
    let mut why = "asked for on the kernel's command line".to_owned();
    let asked = patient.fsck == Fsck::Force;
    let damaged = patient.marked && patient.fsck != Fsck::Skip;
    if asked || damaged {
        if damaged {
            why = "the file system is marked as damaged".to_owned();
        }
        log::warn!("{}: {why}", patient.label);
        let how: &[&str] = if asked { &["-f", "-p"] } else { &["-p"] };
        if let Verdict::Hopeless(said) = check(patient, means, how)? {
            return thoroughly(patient, means, said);
        }
        return match (means.mount)() {
            Ok(()) if damaged => Ok(Health::Repaired(why)),
            Ok(()) => Ok(Health::Sound),
            Err(e) => thoroughly(patient, means, e.to_string()),
        };
    }
    let why = match (means.mount)() {
        Ok(()) => return Ok(Health::Sound),
        Err(e) if patient.fsck == Fsck::Skip => return Err(e),
        Err(e) => e.to_string(),
    };
    log::warn!("{}: {why}", patient.label);
    match check(patient, means, &["-p"])? {
        Verdict::Hopeless(said) => thoroughly(patient, means, said),
        Verdict::Fine => match (means.mount)() {
            Ok(()) => Ok(Health::Repaired(why)),
            Err(e) => thoroughly(patient, means, e.to_string()),
        },
    }
}

/// When what is safe to change was not enough.
fn thoroughly(patient: &Patient, means: &Means, why: String) -> Result<Health> {
    log::warn!("{}: {why}; repairing whatever can be repaired", patient.label);
    let said = match check(patient, means, &["-f", "-y"])? {
        // If the checker is content and the mount is not, the file system is not what is wrong.
        Verdict::Fine => return (means.mount)().map(|()| Health::Repaired(why)),
        Verdict::Hopeless(said) => said,
    };
    if patient.role != Role::State || !patient.may_remake {
        return Err(Error::failed(said));
    }
    readable(patient.device)?;
    // The kernel mounts what it can use, also with features that this root's e2fsck does not know.
    if (means.mount)().is_ok() {
        return Ok(Health::Repaired(format!("{why}; mounted, although {said}")));
    }
    log::error!("{}: {said}; it is made anew", patient.label);
    let device = patient.device.to_string_lossy();
    let made = (means.run)(MAKER, &["-q", "-F", "-t", "ext4", "-b", "4096", "-L", patient.label, &device])?;
    if !made.success {
        return Err(Error::failed(format!("{MAKER}: {}: {}", made.ending, first_line(&made.output))));
    }
    (means.mount)().map(|()| Health::Remade(said))
}

fn check(patient: &Patient, means: &Means, how: &[&str]) -> Result<Verdict> {
    let device = patient.device.to_string_lossy();
    let outcome = (means.run)(CHECKER, &[how, &[&device]].concat())?;
    for line in outcome.output.lines().map(str::trim).filter(|l| !l.is_empty()) {
        log::info!("e2fsck: {line}");
    }
    // 1 and 2: repaired. 4 and 8, alone or with these: not. e2fsck asks for a reboot with 2 only for a mounted root.
    match outcome.ending.as_str() {
        "exit 0" | "exit 1" | "exit 2" | "exit 3" => Ok(Verdict::Fine),
        ending
            if ending.strip_prefix("exit ").and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n < 16) =>
        {
            // What is wrong comes first, advice for people with a shell after it.
            let why = first_line(&outcome.output);
            Ok(Verdict::Hopeless(format!("{CHECKER} {} {device}: {ending}: {why}", how.join(" "))))
        }
        // Killed, not started, wrong arguments: nothing is known about the file system.
        ending => Err(Error::failed(format!("{CHECKER}: {ending}: {}", first_line(&outcome.output)))),
    }
}

fn first_line(output: &str) -> &str {
    output.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or("no output")
}

fn readable(device: &Path) -> Result<()> {
    let mut disk = FileDisk::open_read_only(device)?;
    let len = PROBE_BYTES.min(disk.len_bytes());
    let mut buffer = vec![0; usize::try_from(len).unwrap_or(0)];
    disk.read_at(0, &mut buffer)?;
    let end = disk.len_bytes() - len;
    disk.read_at(end, &mut buffer).doing(|| "the medium may be failing")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    use super::*;
    use crate::sys;

    /// Two block groups, so that there is a second superblock.
    const LEN_BYTES: usize = 160 * 1024 * 1024;

    fn tool(program: &str, args: &[&str]) -> Outcome {
        sys::command::run(Path::new(program), args, Duration::from_secs(120)).unwrap()
    }

    /// An ext4 in a file, with a file in it. e2fsck and mke2fs are the real ones; "mounting" asks e2fsck whether the
    /// kernel would find a superblock and a root directory.
    struct Bench {
        _dir: tempfile::TempDir,
        image: std::path::PathBuf,
        ran: RefCell<Vec<String>>,
    }

    impl Bench {
        fn new(harm: impl Fn(&std::fs::File)) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (image, tree) = (dir.path().join("image"), dir.path().join("tree"));
            sys::durable::create_dir(&tree).unwrap();
            sys::durable::replace(&tree.join("kept"), &vec![b'k'; 100_000], 0o644).unwrap();
            sys::durable::replace(&image, b"", 0o644).unwrap();
            let file = sys::file::open_read_write(&image).unwrap();
            file.set_len(LEN_BYTES as u64).unwrap();
            let args = ["-q", "-F", "-t", "ext4", "-b", "4096", "-L", "resin-state", "-d"];
            let paths = [tree.to_str().unwrap(), image.to_str().unwrap()];
            assert!(tool("/sbin/mke2fs", &[args.as_slice(), &paths].concat()).success);
            harm(&file);
            Self { _dir: dir, image, ran: RefCell::default() }
        }

        fn debugfs(&self, command: &str) -> String {
            tool("/sbin/debugfs", &["-R", command, self.image.to_str().unwrap()]).output
        }

        fn bring_up(&self, role: Role, fsck: Fsck, marked: bool, may_remake: bool) -> Result<Health> {
            let run = |program: &str, args: &[&str]| {
                self.ran.borrow_mut().push(format!("{program} {}", args[..args.len() - 1].join(" ")));
                Ok(tool(program, args))
            };
            let mount = || match self.debugfs("stat <2>").contains("Type: directory") {
                true => Ok(()),
                false => Err(Error::failed("mount: Structure needs cleaning (os error 117)")),
            };
            let patient =
                Patient { label: "resin-state", device: &self.image, role, marked, fsck, may_remake };
            bring_up(&patient, &Means { run: &run, mount: &mount })
        }

        fn kept(&self) -> bool {
            self.debugfs("stat kept").contains("Size: 100000")
        }

        fn is_clean(&self) -> bool {
            tool("/sbin/e2fsck", &["-fn", self.image.to_str().unwrap()]).success
        }
    }

    fn nothing(_: &std::fs::File) {}

    /// The first superblock is gone; its copies are there.
    fn first_superblock(file: &std::fs::File) {
        file.write_all_at(&[0; 4096], 0).unwrap();
    }

    /// Superblock, descriptors, and every copy of them.
    fn every_superblock(file: &std::fs::File) {
        file.write_all_at(&vec![0xa5; LEN_BYTES], 0).unwrap();
    }

    /// A newer system has made use of what this e2fsck has never heard of, and the kernel does not mind.
    #[test]
    fn what_only_the_checker_cannot_read_is_not_made_anew() {
        let bench = Bench::new(nothing);
        assert!(tool("/sbin/tune2fs", &["-O", "^metadata_csum", bench.image.to_str().unwrap()]).success);
        let file = sys::file::open_read_write(&bench.image).unwrap();
        // s_feature_compat, of the first superblock and of its copy.
        for superblock in [1024, 32768 * 4096] {
            let mut compat = [0; 4];
            file.read_exact_at(&mut compat, superblock + 0x5c).unwrap();
            compat[3] |= 0x80;
            file.write_all_at(&compat, superblock + 0x5c).unwrap();
        }
        let run = |program: &str, args: &[&str]| {
            bench.ran.borrow_mut().push(program.to_owned());
            Ok(tool(program, args))
        };
        let patient = Patient {
            label: "resin-state",
            device: &bench.image,
            role: Role::State,
            marked: true,
            fsck: Fsck::Auto,
            may_remake: true,
        };
        let health = bring_up(&patient, &Means { run: &run, mount: &|| Ok(()) }).unwrap();
        assert!(matches!(&health, Health::Repaired(why) if why.contains("exit 12")), "{health:?}");
        assert_eq!(*bench.ran.borrow(), ["/sbin/e2fsck", "/sbin/e2fsck"]);
    }

    #[test]
    fn what_is_sound_is_mounted_and_nothing_is_run() {
        let bench = Bench::new(nothing);
        assert_eq!(bench.bring_up(Role::State, Fsck::Auto, false, true).unwrap(), Health::Sound);
        assert_eq!(*bench.ran.borrow(), Vec::<String>::new());
    }

    #[test]
    fn what_is_marked_or_asked_for_is_checked_first_and_kept() {
        let bench = Bench::new(nothing);
        let health = bench.bring_up(Role::Data, Fsck::Auto, true, true).unwrap();
        assert_eq!(health, Health::Repaired("the file system is marked as damaged".into()));
        assert_eq!(bench.bring_up(Role::Data, Fsck::Force, false, true).unwrap(), Health::Sound);
        assert_eq!(bench.bring_up(Role::Data, Fsck::Skip, true, true).unwrap(), Health::Sound);
        assert_eq!(*bench.ran.borrow(), ["/sbin/e2fsck -p", "/sbin/e2fsck -f -p"]);
        assert!(bench.kept());
    }

    /// A device without a battery starts in 1970, long before its file systems were last written; or it ran with a clock that
    /// was ahead.
    #[test]
    fn times_that_the_clock_has_not_reached_are_no_damage() {
        for (marked, fsck) in [(true, Fsck::Auto), (false, Fsck::Force)] {
            let bench = Bench::new(nothing);
            let image = bench.image.to_str().unwrap();
            for field in ["mtime", "wtime", "lastcheck", "first_error_time", "last_error_time"] {
                let set = format!("set_super_value {field} 20900101000000");
                assert!(tool("/sbin/debugfs", &["-w", "-R", &set, image]).success, "{field}");
            }
            let health = bench.bring_up(Role::State, fsck, marked, true).unwrap();
            assert!(!matches!(health, Health::Remade(_)) && bench.kept(), "{health:?}");
            assert_eq!(bench.ran.borrow().len(), 1, "{:?}", bench.ran.borrow());
        }
    }

    #[test]
    fn what_can_be_repaired_is_repaired_and_kept_for_either_role() {
        for role in [Role::State, Role::Data] {
            let bench = Bench::new(first_superblock);
            assert!(matches!(bench.bring_up(role, Fsck::Auto, false, true).unwrap(), Health::Repaired(_)));
            assert!(bench.kept() && bench.is_clean(), "{:?}", bench.ran.borrow());
            assert!(!bench.ran.borrow().iter().any(|c| c.contains("mke2fs")));
        }
    }

    #[test]
    fn a_hopeless_state_partition_is_made_anew_and_data_never() {
        let bench = Bench::new(every_superblock);
        let health = bench.bring_up(Role::State, Fsck::Auto, false, true).unwrap();
        assert!(matches!(&health, Health::Remade(why) if why.contains("e2fsck -f -y")), "{health:?}");
        assert!(bench.is_clean() && !bench.kept());
        assert!(tool("/sbin/e2label", &[bench.image.to_str().unwrap()]).output.contains("resin-state"));

        for (role, may_remake) in [(Role::Data, true), (Role::State, false)] {
            let bench = Bench::new(every_superblock);
            let before = sys::file::read(&bench.image, u64::MAX).unwrap();
            match bench.bring_up(role, Fsck::Auto, false, may_remake) {
                Ok(Health::Lost(why)) => assert!(role == Role::Data && why.contains("e2fsck"), "{why}"),
                Err(e) => assert!(role == Role::State && e.to_string().starts_with("resin-state: "), "{e}"),
                Ok(other) => panic!("{other:?}"),
            }
            assert!(sys::file::read(&bench.image, u64::MAX).unwrap() == before, "{role:?}: not one byte");
        }
    }

    /// FAT as a power cut leaves it while `torn` is made: its name is there, and in the tables its clusters are free.
    fn fat_with_a_torn_file(dir: &Path) -> std::path::PathBuf {
        let image = dir.join("fat.img");
        let path = image.to_str().unwrap();
        assert!(tool("/usr/sbin/mkfs.vfat", &["-F", "16", "-s", "4", "-C", path, "20480"]).success);
        let put = |name: &str, len: usize| {
            let file = dir.join(name);
            sys::durable::replace(&file, &vec![b'x'; len], 0o644).unwrap();
            let args = ["-i", path, file.to_str().unwrap(), "::"];
            assert!(tool("/usr/bin/mcopy", &args).success);
        };
        put("plan", 5000);
        let before = sys::file::read(&image, u64::MAX).unwrap();
        put("torn", 9000);
        let tables =
            512 * usize::from(before[14])..512 * (usize::from(before[14]) + 2 * usize::from(before[22]));
        let file = sys::file::open_read_write(&image).unwrap();
        file.write_all_at(&before[tables.clone()], tables.start as u64).unwrap();
        // `FAT_STATE_DIRTY`
        file.write_all_at(&[1], 37).unwrap();
        image
    }

    #[test]
    fn a_boot_partition_after_a_power_cut_is_checked_and_keeps_what_is_whole() {
        for (fsck, mounts_at_once, expected) in [
            (Fsck::Auto, true, Some(Health::Sound)),
            (Fsck::Force, true, Some(Health::Sound)),
            (Fsck::Auto, false, None),
            (Fsck::Skip, true, Some(Health::Sound)),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let image = fat_with_a_torn_file(dir.path());
            let sound = || tool("/usr/sbin/fsck.fat", &["-n", image.to_str().unwrap()]).success;
            assert!(!sound());
            let marked = mounts_at_once && fsck == Fsck::Auto;
            let run = |program: &str, args: &[&str]| {
                sys::command::run(Path::new(program), args, Duration::from_secs(120))
            };
            let mount = || match mounts_at_once || sound() {
                true => Ok(()),
                false => Err(Error::failed("Input/output error")),
            };
            let patient = Patient {
                label: "resin-boot",
                device: &image,
                role: Role::Boot,
                marked,
                fsck,
                may_remake: true,
            };
            let health = bring_up_fat(&patient, &Means { run: &run, mount: &mount }).unwrap();
            assert_eq!(health, expected.unwrap_or_else(|| Health::Repaired("Input/output error".into())));
            assert_eq!(sound(), fsck != Fsck::Skip);
            let content = |name: &str| {
                let args = ["-i", image.to_str().unwrap(), name, "-"];
                sys::command::run(Path::new("/usr/bin/mcopy"), &args, Duration::from_secs(60)).unwrap().output
            };
            assert_eq!(content("::plan"), "x".repeat(5000));
            if fsck != Fsck::Skip {
                assert_eq!(content("::torn"), "");
            }
        }
    }

    #[test]
    fn a_boot_partition_is_mounted_though_nothing_can_check_it() {
        for missing in [true, false] {
            let run = |_: &str, _: &[&str]| match missing {
                true => Err(Error::failed("No such file or directory")),
                false => Ok(Outcome { success: false, ending: "signal 9".into(), output: String::new() }),
            };
            let patient = Patient {
                label: "resin-boot",
                device: Path::new("/dev/null"),
                role: Role::Boot,
                marked: true,
                fsck: Fsck::Auto,
                may_remake: true,
            };
            let mounted = bring_up_fat(&patient, &Means { run: &run, mount: &|| Ok(()) });
            assert_eq!(mounted.unwrap(), Health::Sound);
            let not = || Err(Error::failed("Input/output error"));
            assert!(bring_up_fat(&patient, &Means { run: &run, mount: &not }).is_err());
        }
    }

    /// Law 2: only the checker's own word is a reason.
    #[test]
    fn nothing_but_the_checkers_word_makes_a_state_partition_anew() {
        let remade = RefCell::new(false);
        for ending in
            ["exit 127", "exit 16", "exit 32", "signal 9", "no answer within 900 s", "missing", "exit 0"]
        {
            let run = |program: &str, _: &[&str]| {
                *remade.borrow_mut() |= program.contains("mke2fs");
                match ending {
                    "missing" => Err(Error::failed("No such file or directory")),
                    _ => Ok(Outcome {
                        success: ending == "exit 0",
                        ending: ending.into(),
                        output: String::new(),
                    }),
                }
            };
            let mount = || Err(Error::failed("there is no /mnt/state to mount on"));
            let patient = Patient {
                label: "resin-state",
                device: Path::new("/dev/null"),
                role: Role::State,
                marked: false,
                fsck: Fsck::Auto,
                may_remake: true,
            };
            assert!(bring_up(&patient, &Means { run: &run, mount: &mount }).is_err(), "{ending}");
            assert!(!*remade.borrow(), "{ending}");
        }
    }
}
