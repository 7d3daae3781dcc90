//! PID 1 of the guest in which the writes to boot partitions are recorded: no system, a kernel, and twinhull's own code.
//!
//! `/plan` has a line for each boot partition: its device, and who writes to it (`recording::Writer`). Each step is framed by
//! marks, which are writes to a partition of their own, so that they stand in the log among the others. A second plan,
//! `/recover`, lists partitions that a power cut has left: there, what the next boot would do must succeed. A third, `/choose`,
//! lists partitions with a counter of PID 1's own.
#![allow(clippy::disallowed_methods, clippy::disallowed_macros)]

#[path = "../recording.rs"]
mod recording;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use recording::{
    Action, CONFIG_FILE, ENVIRONMENT_BYTES, ENVIRONMENT_FILES, MARK, RECORDED, STEPS, Step, TRIES, Writer,
    config_content,
};
use twinhull::block::{FileDisk, Verified, read_back};
use twinhull::boot::grub::Grub;
use twinhull::boot::resin::{Notation, Partitions};
use twinhull::boot::sdboot::SystemdBoot;
use twinhull::boot::tryboot::Tryboot;
use twinhull::boot::uboot_env::{Place, Places, UbootEnv};
use twinhull::boot::uboot_text::UbootText;
use twinhull::boot::{BootChooser, Directory, initramfs};
use twinhull::model::{BootPlan, Digest, Slot};
use twinhull::sys;
use twinhull::sys::mount::MountFlags;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const PARTITIONS: Partitions = Partitions { a: 2, b: 3 };
const AT: &str = "/boot";
const SECTOR_BYTES: usize = 512;
/// SHA-256 of nothing.
const OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn main() {
    match run() {
        Ok(()) => println!("{RECORDED}"),
        Err(e) => println!("lab: FAILED: {e}"),
    }
    sync();
    // SAFETY: reboot(2) with this command takes no pointer.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
}

fn run() -> Outcome {
    for (source, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/var")] {
        fs::create_dir_all(target)?;
        sys::mount::mount_if_not(source, Path::new(target), source, MountFlags::empty(), "")?;
    }
    for module in fs::read_to_string("/modules/order")?.lines() {
        sys::module::load(&Path::new("/modules").join(module), "")?;
    }
    fs::create_dir_all(AT)?;
    if Path::new("/plan").exists() {
        let plan = fs::read_to_string("/plan")?;
        let mut lines = plan.lines();
        let mut marks = Marks::open(lines.next().ok_or("/plan is empty")?)?;
        for line in lines {
            let (device, writer) = parse(line)?;
            let mounted = mount(device)?;
            let recorded = record(writer, &mut |text| marks.set(&format!("{} {text}", writer.name())));
            drop(mounted);
            sync();
            recorded.map_err(|e| format!("{}: {e}", writer.name()))?;
        }
    }
    if Path::new("/recover").exists() {
        for line in fs::read_to_string("/recover")?.lines() {
            let (device, writer) = parse(line)?;
            match recover(device, writer) {
                Ok(said) => println!("lab: {device} {said}"),
                Err(e) => println!("lab: {device} cannot go on: {e}"),
            }
        }
    }
    if Path::new("/choose").exists() {
        for line in fs::read_to_string("/choose")?.lines() {
            let (device, _) = parse(line)?;
            match choose(device) {
                Ok(said) => println!("lab: {device} boots {said}"),
                Err(e) => println!("lab: {device} cannot be looked at: {e}"),
            }
        }
    }
    Ok(())
}

/// What PID 1 does without a bootloader that counts; `root=` if it goes by the kernel's command line.
fn choose(device: &str) -> Outcome<String> {
    let _mounted = mount(device)?;
    let mut counter = initramfs::open(Path::new(AT), PARTITIONS);
    let (slot, problem) = initramfs::choose(&mut counter, Slot::A);
    if problem.is_none() {
        return Ok(slot.to_string());
    }
    let (other, _) = initramfs::choose(&mut counter, Slot::B);
    Ok(if other == slot { slot.to_string() } else { "root=".into() })
}

fn parse(line: &str) -> Outcome<(&str, Writer)> {
    let (device, writer) = line.split_once(' ').ok_or("a line without a writer")?;
    Ok((device, Writer::find(writer).ok_or_else(|| format!("no writer {writer}"))?))
}

/// As twinhull's PID 1 mounts the boot partition.
fn mount(device: &str) -> Outcome<sys::mount::Temporary> {
    let flags = MountFlags::NOATIME | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(sys::mount::Temporary::new(Path::new(device), Path::new(AT), "vfat", flags, "flush")?)
}

fn sync() {
    // SAFETY: sync(2) has no arguments and cannot fail.
    unsafe { libc::sync() };
}

/// Where the marks go: past the cache, so that each is in the log where it was set.
struct Marks {
    file: fs::File,
    set: u64,
}

impl Marks {
    fn open(device: &str) -> Outcome<Self> {
        let file = sys::direct::open(Path::new(device), true).ok_or_else(|| format!("open {device}"))?;
        Ok(Self { file, set: 0 })
    }

    fn set(&mut self, text: &str) -> Outcome {
        let mut sector = sys::direct::Buffer::new(SECTOR_BYTES);
        let text = format!("{MARK}{text}\n");
        sector[..text.len()].copy_from_slice(text.as_bytes());
        self.file.write_all_at(&sector, self.set % 64 * SECTOR_BYTES as u64)?;
        self.set += 1;
        Ok(())
    }
}

fn record(writer: Writer, mark: &mut dyn FnMut(&str) -> Outcome) -> Outcome {
    for (n, step) in STEPS.iter().enumerate() {
        // What an earlier step left to be written is not this one's.
        sync();
        mark(&format!("{n} begin"))?;
        match chooser(writer) {
            Some(mut chooser) => {
                act(&mut *chooser, *step)?;
                check(&*chooser, *step)?;
            }
            None => tool(writer, *step)?,
        }
        mark(&format!("{n} end"))?;
    }
    sync();
    mark("all end")
}

fn slot(name: char) -> Outcome<Slot> {
    Slot::ALL.into_iter().find(|s| s.to_string() == name.to_string()).ok_or_else(|| "no slot".into())
}

/// A proof of what was not read: there are no slots here.
fn verified(slot: Slot) -> Outcome<Verified> {
    let mut nothing = FileDisk::open_read_only(Path::new("/modules/order"))?;
    Ok(read_back(&mut nothing, slot, 0, &Digest::from_str(OF_NOTHING)?, |_| ())?)
}

fn act(chooser: &mut dyn BootChooser, step: Step) -> Outcome {
    let slot = slot(step.slot)?;
    match step.action {
        Action::Arm => chooser.arm(&verified(slot)?, TRIES)?,
        Action::Commit => chooser.commit(slot)?,
        Action::Disarm => chooser.disarm(slot)?,
    }
    Ok(())
}

fn check(chooser: &dyn BootChooser, step: Step) -> Outcome {
    let slot = slot(step.slot)?;
    let expected = match step.action {
        Action::Arm => BootPlan::on_trial(slot, TRIES),
        Action::Commit | Action::Disarm => BootPlan::settled(slot),
    };
    match chooser.plan()? {
        plan if plan == expected => Ok(()),
        plan => Err(format!("after {step:?} the plan is {plan:?}").into()),
    }
}

/// twinhull's own code with its real store; `None` where a tool writes.
fn chooser(writer: Writer) -> Option<Box<dyn BootChooser>> {
    let at = Path::new(AT);
    let directory = |path: &str| Directory::new(at.join(path));
    let environment = |files: &[&str]| {
        let place = |file: &&str| Place { device: at.join(file), offset: 0, len_bytes: ENVIRONMENT_BYTES };
        UbootEnv::new(Places(files.iter().map(place).collect()), PARTITIONS)
    };
    Some(match writer {
        Writer::Grub => Box::new(Grub::new(directory("EFI/BOOT"), "grubenv", Notation::Decimal(PARTITIONS))),
        Writer::Bootenv => Box::new(Grub::new(Directory::new(at), "bootenv", Notation::Letters)),
        Writer::UbootText => Box::new(UbootText::new(Directory::new(at), PARTITIONS)),
        Writer::UbootEnv => Box::new(environment(&ENVIRONMENT_FILES[..1])),
        Writer::UbootEnvRedundant => Box::new(environment(&ENVIRONMENT_FILES)),
        Writer::Initramfs => Box::new(initramfs::open(at, PARTITIONS)),
        Writer::SystemdBoot => Box::new(SystemdBoot::new(directory("loader/entries"))),
        Writer::Tryboot => Box::new(Tryboot::new(Directory::new(at), PARTITIONS, None)),
        Writer::Fatrw => Box::new(Config),
        Writer::GrubEditenv | Writer::FwSetenv | Writer::FwSetenvRedundant => return None,
    })
}

/// `config.json` in the place of a boot plan: what stands in it names the step that wrote it.
#[derive(Debug)]
struct Config;

impl Config {
    fn path() -> PathBuf {
        Path::new(AT).join(CONFIG_FILE)
    }

    fn write(action: Action, slot: Slot) -> twinhull::Result<()> {
        let slot = if slot == Slot::A { 'A' } else { 'B' };
        sys::fatrw::write(&Self::path(), &config_content(Step { action, slot }))
    }
}

impl BootChooser for Config {
    fn plan(&self) -> twinhull::Result<BootPlan> {
        let content = sys::fatrw::read(&Self::path(), 1 << 20)?.unwrap_or_default();
        // What was interrupted is finished now, and nothing is left of it.
        let files = sys::file::list(Path::new(AT))?;
        let left = files.iter().find(|file| file.to_string_lossy().contains("/.config.json."));
        if let Some(left) = left {
            return Err(twinhull::Error::failed(format!("{} is still there", left.display())));
        }
        for (name, slot) in [('A', Slot::A), ('B', Slot::B)] {
            for action in [Action::Arm, Action::Commit, Action::Disarm] {
                if config_content(Step { action, slot: name }) == content {
                    let armed = action == Action::Arm;
                    return Ok(if armed { BootPlan::on_trial(slot, TRIES) } else { BootPlan::settled(slot) });
                }
            }
        }
        Err(twinhull::Error::failed("config.json has what nobody has written"))
    }

    fn arm(&mut self, slot: &Verified, _: u8) -> twinhull::Result<()> {
        Self::write(Action::Arm, slot.slot())
    }

    fn commit(&mut self, booted: Slot) -> twinhull::Result<()> {
        Self::write(Action::Commit, booted)
    }

    fn disarm(&mut self, primary: Slot) -> twinhull::Result<()> {
        Self::write(Action::Disarm, primary)
    }

    fn give_back(&mut self) -> twinhull::Result<()> {
        Ok(())
    }
}

/// A root that would have to grow for a new name stays as it is: the change is refused, and somebody's whole journal file takes
/// the file's place itself.
fn full_root() -> Outcome {
    const JOURNAL: &str = ".config.json.0badcafe.99914b932bd37a50b983c5e7c90ae93b.md5sum";
    const CONTENT: &[u8] = b"{}";
    let at = Path::new(AT);
    let fill = |count| (0..count).try_for_each(|n| fs::write(at.join(format!("FULL{n}")), "x"));
    let is = |content: &[u8]| -> Outcome<bool> {
        Ok(fs::read(Config::path())? == content && fs::metadata(at)?.len() == SECTOR_BYTES as u64)
    };
    let before = fs::read(Config::path())?;
    fill(8)?;
    match sys::fatrw::write(&Config::path(), CONTENT) {
        Err(e) if e.kind() == twinhull::Kind::Refused && is(&before)? => {}
        other => return Err(format!("in a full root: {other:?}").into()),
    }
    (0..8).try_for_each(|n| fs::remove_file(at.join(format!("FULL{n}"))))?;
    fs::write(at.join(JOURNAL), CONTENT)?;
    fill(2)?;
    sys::fatrw::read(&Config::path(), 1 << 20)?;
    match is(CONTENT)? && !at.join(JOURNAL).exists() {
        true => Ok(()),
        false => Err("a journal file in a full root was not finished".into()),
    }
}

/// The same change with a tool of others: all variables in one call.
fn tool(writer: Writer, step: Step) -> Outcome {
    let root = if step.slot == 'A' { 2 } else { 3 };
    let armed = u8::from(step.action == Action::Arm);
    let variables =
        [format!("resin_root_part={root}"), format!("upgrade_available={armed}"), "bootcount=0".into()];
    let mut command = match writer {
        Writer::GrubEditenv => {
            let mut command = Command::new("/usr/bin/grub-editenv");
            command.arg(format!("{AT}/EFI/BOOT/grubenv")).arg("set").args(&variables);
            command
        }
        _ => {
            let count = if writer == Writer::FwSetenvRedundant { 2 } else { 1 };
            let line = |file: &&str| format!("{AT}/{file} 0x0 {ENVIRONMENT_BYTES:#x}\n");
            fs::create_dir_all("/etc")?;
            fs::create_dir_all("/var/lock")?;
            let config: String = ENVIRONMENT_FILES.iter().take(count).map(line).collect();
            fs::write("/etc/fw_env.config", config)?;
            let script: Vec<String> = variables.iter().map(|v| format!("{v}\n")).collect();
            fs::write("/var/script", script.concat())?;
            let mut command = Command::new("/usr/bin/fw_setenv");
            command.args(["-c", "/etc/fw_env.config", "-s", "/var/script"]);
            command
        }
    };
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}

/// What the next boots do on a partition that a power cut has left: call off what may be armed, arm, commit. Says what the
/// kernel and twinhull found there first.
fn recover(device: &str, writer: Writer) -> Outcome<String> {
    let _mounted = mount(device)?;
    let mut chooser = chooser(writer).ok_or("a tool's")?;
    let plan = chooser.plan()?;
    let (primary, other) = (plan.primary, !plan.primary);
    let tries = plan.trial.map_or(0, |t| t.tries_left);
    chooser.disarm(primary)?;
    chooser.arm(&verified(other)?, TRIES)?;
    chooser.commit(other)?;
    chooser.arm(&verified(primary)?, TRIES)?;
    chooser.disarm(other)?;
    if chooser.plan()? != BootPlan::settled(other) {
        return Err(format!("after all that the plan is {:?}", chooser.plan()?).into());
    }
    if writer == Writer::Fatrw {
        full_root()?;
    }
    Ok(format!("primary {primary}, {tries} tries left, goes on"))
}
