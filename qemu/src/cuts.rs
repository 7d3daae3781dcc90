//! Power cuts in real writes to boot partitions: recorded in a guest, replayed here, and shown to the real bootloaders.
//!
//! At each moment between two writes, everything that the disk may then hold (`replay`) must make the bootloader do what the plan
//! before the step says, or what the plan after it says, and after the step the latter only. All of it is judged by `fat` and
//! `rules`; the boot partitions that are different from each other are then shown to mtools, to the real bootloader, and to a
//! kernel with twinhull, which must be able to go on from there.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::path::Path;

use crate::block_log::{SECTOR_BYTES, Sector};
use crate::boards::{self, Board};
use crate::fat::{self, Tree};
use crate::jury::{self, Case, CaseDisk, MOST};
use crate::recorder::{self, Recording};
use crate::recording::{Action, MARK, STEPS, Step, Writer};
use crate::replay::{Event, Replay, State};
use crate::rules::{self, Decision};
use crate::{Outcome, boot_rom};

/// What a device is before the first step.
const FIRST: Step = Step { action: Action::Disarm, slot: 'A' };
/// The words of a test that asks for everything that one writer leaves.
const SHOWN: usize = 3;

/// What was found in the replay of one writer's log.
#[derive(Default)]
struct Found {
    /// Moments at which the power was cut.
    moments: usize,
    /// How many of these allow more states than were tried.
    sampled: usize,
    /// States of the disk at these moments, one after the other.
    variants: usize,
    /// Those in which the plan is still the old one, and in which it is the new one.
    old: usize,
    new: usize,
    /// Those in which it is the old one, though the step had ended.
    late: usize,
    /// Those in which it is neither, and the moments at which there is such a one.
    neither: usize,
    moments_with_neither: usize,
    /// The first of them, for people.
    examples: Vec<String>,
    /// Each boot partition that is different from the others, in the order in which it was found.
    distinct: Vec<Different>,
}

/// A boot partition that is different from the others.
struct Different {
    state: State,
    /// What the rules say.
    decision: Outcome<Decision>,
    /// A number for its files: what is not theirs may differ as well.
    files: u64,
}

/// Records, replays and judges. The error says what failed of twinhull's own writes.
///
/// # Errors
/// If one of twinhull's writes leaves a state that is neither the old nor the new plan, a real bootloader sees one otherwise than
/// the rules, or twinhull cannot go on from one; or if something could not be tried.
pub fn sweep(work: &Path, writers: &[Writer]) -> Outcome {
    std::fs::create_dir_all(work).map_err(|e| format!("{}: {e}", work.display()))?;
    println!("recording the writes of {} in a guest", names(writers));
    let recording = recorder::record(work, writers)?;
    println!("{} entries in the log\n", recording.events.len());
    let mut failed = Vec::new();
    for (n, (writer, base)) in recording.bases.iter().enumerate() {
        let mut replay = Replay::default();
        let events = events_of(&recording, n, *writer)?;
        let found = replay_all(*writer, base, &events, &mut replay)?;
        println!("{}", found.summary(*writer));
        for example in &found.examples {
            println!("    {example}");
        }
        if !is_twinhull(*writer) {
            continue;
        }
        if found.neither > 0 {
            failed.push(format!("{}: {} states are neither old nor new", writer.name(), found.neither));
        }
        match judge(work, *writer, base, &replay, &found) {
            Ok(lines) => println!("    {}", lines.join("\n    ")),
            Err(e) => {
                println!("    FAILED: {e}");
                failed.push(format!("{}: {e}", writer.name()));
            }
        }
    }
    match failed.as_slice() {
        [] => {
            println!("\n0 unbootable states in what twinhull writes");
            Ok(())
        }
        failed => Err(failed.join("; ")),
    }
}

fn names(writers: &[Writer]) -> String {
    writers.iter().map(|w| w.name()).collect::<Vec<_>>().join(", ")
}

const fn is_twinhull(writer: Writer) -> bool {
    !matches!(writer, Writer::GrubEditenv | Writer::FwSetenv | Writer::FwSetenvRedundant)
}

/// What concerns one writer: a mark, or an event on its partition.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Event(Event),
    Begin(usize),
    End(usize),
    AllEnd,
}

fn events_of(recording: &Recording, n: usize, writer: Writer) -> Outcome<Vec<Entry>> {
    let start = Recording::first_sector(n);
    let end = Recording::first_sector(n + 1);
    let marks = Recording::first_sector(recording.bases.len());
    let mut entries = Vec::new();
    for event in &recording.events {
        match event {
            Event::Flush => entries.push(Entry::Event(Event::Flush)),
            Event::Write { sector, content, through } if (start..end).contains(sector) => {
                let (sector, content) = (sector - start, content.clone());
                entries.push(Entry::Event(Event::Write { sector, content, through: *through }));
            }
            Event::Write { sector, content, .. } if *sector >= marks => {
                entries.extend(content.first().and_then(|c| mark(c, writer)));
            }
            Event::Write { .. } => {}
        }
    }
    let begun = entries.iter().filter(|e| matches!(e, Entry::Begin(_))).count();
    if begun != STEPS.len() || !entries.contains(&Entry::AllEnd) {
        return Err(format!("{}: {begun} of {} steps are in the log", writer.name(), STEPS.len()));
    }
    Ok(entries)
}

fn mark(sector: &Sector, writer: Writer) -> Option<Entry> {
    let text = str::from_utf8(sector).ok()?.lines().next()?;
    let text = text.strip_prefix(MARK)?.strip_prefix(writer.name())?.strip_prefix(' ')?;
    match text.split_once(' ')? {
        ("all", "end") => Some(Entry::AllEnd),
        (n, "begin") => n.parse().ok().map(Entry::Begin),
        (n, "end") => n.parse().ok().map(Entry::End),
        _ => None,
    }
}

/// Cuts the power after each write and flush between the first mark and the last.
fn replay_all(writer: Writer, base: &[u8], entries: &[Entry], replay: &mut Replay) -> Outcome<Found> {
    let mut found = Found::default();
    let untouched = untouched(writer, &tree_of(base, &State::new(), replay)?);
    let mut known: HashMap<State, Outcome<Decision>> = HashMap::new();
    let (mut before, mut after) = (FIRST, FIRST);
    let (mut begun, mut ended) = (false, false);
    for entry in entries {
        match entry {
            Entry::Begin(n) => {
                (begun, ended) = (true, false);
                before = after;
                after = STEPS[*n];
            }
            Entry::End(_) => ended = true,
            Entry::AllEnd => break,
            Entry::Event(event) => {
                replay.apply(event);
                if !begun {
                    continue;
                }
                let (states, all) = replay.states();
                found.moments += 1;
                found.sampled += usize::from(!all);
                let plans = [before, after].map(|step| rules::expected(writer, step));
                let mut neither = 0;
                for state in states {
                    found.variants += 1;
                    let state = without_unchanged(state, base, replay);
                    let decision = known.entry(state).or_insert_with_key(|state| {
                        let tree = tree_of(base, state, replay);
                        let files = BuildHasherDefault::<DefaultHasher>::default().hash_one(&tree);
                        let decision = tree.and_then(|tree| judge_tree(writer, &tree, &untouched));
                        found.distinct.push(Different {
                            state: state.clone(),
                            decision: decision.clone(),
                            files,
                        });
                        decision
                    });
                    match decision {
                        Ok(decision) if *decision == plans[1] => found.new += 1,
                        Ok(decision) if *decision == plans[0] && !ended => found.old += 1,
                        // A tool that does not flush promises nothing.
                        Ok(decision) if *decision == plans[0] && !is_twinhull(writer) => found.late += 1,
                        other => {
                            neither += 1;
                            if found.examples.len() < SHOWN {
                                let what = other.as_ref().map_or_else(Clone::clone, ToString::to_string);
                                let when = if ended { "after" } else { "in" };
                                found.examples.push(format!("{when} {after}, before it {before}: {what}"));
                            }
                        }
                    }
                }
                found.neither += neither;
                found.moments_with_neither += usize::from(neither > 0);
            }
        }
    }
    Ok(found)
}

impl Found {
    /// Those that others than the rules are shown: one for all files that are the same, and of the rest as many as there is
    /// room for on a disk.
    fn shown(&self) -> Vec<&Different> {
        let mut seen = BTreeSet::new();
        let (mut shown, rest): (Vec<_>, Vec<_>) = self.distinct.iter().partition(|d| seen.insert(d.files));
        let room = MOST.saturating_sub(shown.len());
        let every = rest.len().div_ceil(room.max(1)).max(1);
        shown.extend(rest.into_iter().step_by(every).take(room));
        shown
    }

    fn summary(&self, writer: Writer) -> String {
        let sampled = match self.sampled {
            0 => "all of them".to_owned(),
            n => format!("a sample at {n} of the points"),
        };
        let result = if is_twinhull(writer) {
            format!("{} unbootable", self.neither)
        } else {
            format!(
                "FAILS in {} of {} variants, at {} of {} points; not on the disk yet when it had ended: {}",
                self.neither, self.variants, self.moments_with_neither, self.moments, self.late
            )
        };
        format!(
            "{}: {} cut points, {} variants ({sampled}), {} different boot partitions: {result}; old plan {}, new plan {}",
            writer.name(),
            self.moments,
            self.variants,
            self.distinct.len(),
            self.old,
            self.new
        )
    }
}

/// Sectors that hold what they held in the beginning say nothing.
fn without_unchanged(mut state: State, base: &[u8], replay: &Replay) -> State {
    state.retain(|sector, number| sector_of(base, *sector) != *replay.content(*number));
    state
}

fn sector_of(base: &[u8], sector: u64) -> Sector {
    let at = usize::try_from(sector).ok().and_then(|n| base.as_chunks().0.get(n));
    at.copied().unwrap_or([0; SECTOR_BYTES])
}

fn tree_of(base: &[u8], state: &State, replay: &Replay) -> Outcome<Tree> {
    fat::read(&|sector| match state.get(&sector) {
        Some(number) => *replay.content(*number),
        None => sector_of(base, sector),
    })
}

/// The files that no writer may touch.
fn untouched(writer: Writer, tree: &Tree) -> Tree {
    let others = tree.iter().filter(|(path, _)| !rules::is_written(writer, path));
    others.map(|(path, content)| (path.clone(), content.clone())).collect()
}

fn judge_tree(writer: Writer, tree: &Tree, others: &Tree) -> Outcome<Decision> {
    let found = untouched(writer, tree);
    if found != *others {
        let differs = |path: &&String| found.get(*path) != others.get(*path);
        let paths: BTreeSet<&String> = found.keys().chain(others.keys()).filter(differs).collect();
        return Err(format!("another file has changed: {paths:?}"));
    }
    rules::decide(writer, tree)
}

/// Shows the different boot partitions to mtools, to the real bootloader and to twinhull in a guest; a line for each.
fn judge(work: &Path, writer: Writer, base: &[u8], replay: &Replay, found: &Found) -> Outcome<Vec<String>> {
    let mut lines = Vec::new();
    let mut shown = 0;
    let (mut with_loader, mut loader) = (0, String::new());
    for (batch, states) in found.shown().chunks(MOST).enumerate() {
        let over = |state: &State| {
            state.iter().map(|(sector, number)| (*sector, *replay.content(*number))).collect()
        };
        let cases: Vec<Case> = states.iter().map(|d| Case { base, over: over(&d.state) }).collect();
        let directory = work.join(format!("driver-{}-{batch}", writer.name()));
        std::fs::create_dir_all(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        let file = directory.with_extension("img");
        let bootloader = Loader::of(writer);
        if let Some(bootloader) = bootloader {
            bootloader.driver(&directory, &(0..cases.len()).collect::<Vec<_>>())?;
        }
        let disk = CaseDisk::make(file.clone(), &directory, &cases)?;
        check_with_mtools(&disk, writer, base, replay, states)?;
        // Twinhull works on a copy: the bootloader counts on the disk itself.
        let for_twinhull = CaseDisk::make(directory.with_extension("twinhull.img"), &directory, &cases)?;
        let decisions: Vec<&Outcome<Decision>> = states.iter().map(|d| &d.decision).collect();
        if let Some(bootloader) = bootloader {
            loader = bootloader.words().to_owned();
            let wrong = bootloader.wrong(work, &disk, &decisions)?;
            if let Some(wrong) = wrong.first() {
                return Err(format!("{loader}: {wrong}"));
            }
            with_loader += cases.len();
        }
        let list: Vec<(usize, Writer)> = (0..cases.len()).map(|n| (CaseDisk::partition(n), writer)).collect();
        let console = recorder::look(work, &for_twinhull.file, "recover", &list)?;
        for (n, decision) in decisions.iter().enumerate() {
            goes_on(&console, n, writer, decision)?;
        }
        shown += cases.len();
        for used in [file, for_twinhull.file] {
            std::fs::remove_file(&used).map_err(|e| format!("{}: {e}", used.display()))?;
        }
    }
    let all = found.distinct.len();
    if with_loader > 0 {
        lines.push(format!("{loader} does the same in {with_loader} of {all}"));
    }
    lines.push(format!("mtools reads the same in {shown} of {all}"));
    lines.push(format!("the kernel and twinhull read the same, and go on, in {shown} of {all}"));
    Ok(lines)
}

fn check_with_mtools(
    disk: &CaseDisk,
    writer: Writer,
    base: &[u8],
    replay: &Replay,
    states: &[&Different],
) -> Outcome {
    for (n, different) in states.iter().enumerate() {
        for (path, content) in tree_of(base, &different.state, replay)? {
            if rules::is_written(writer, &path) && disk.mtools_read(n, &path)? != content {
                return Err(format!("mtools reads {path} of state {n} otherwise"));
            }
        }
    }
    Ok(())
}

/// What the guest said of a case must be the same plan, and that it goes on.
fn goes_on(console: &str, case: usize, writer: Writer, decision: &Outcome<Decision>) -> Outcome {
    let said = recorder::line_about(console, CaseDisk::partition(case));
    let said = said.ok_or_else(|| format!("the guest did not come to state {case}"))?;
    let decision = decision.as_ref().map_err(|e| format!("state {case}: {e}"))?;
    let other = if decision.slot == 'A' { 'B' } else { 'A' };
    let (primary, tries) = match (writer, &decision.counted, decision.asked) {
        (Writer::Tryboot, _, Some(asked)) if asked != decision.slot => (decision.slot, 3),
        (_, Some(_), _) => (other, 3),
        _ => (decision.slot, 0),
    };
    match said == format!("primary {primary}, {tries} tries left, goes on") {
        true => Ok(()),
        false => Err(format!("state {case} ({decision}): in the guest: {said}")),
    }
}

/// A real bootloader that can be shown many boot partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loader {
    Grub,
    /// GRUB reads the block; the first stage of balena-bootloader is a system of balenaOS.
    GrubReadsBootenv,
    Uboot,
    UbootEnv,
    SystemdBoot,
    BootRom,
}

impl Loader {
    const fn of(writer: Writer) -> Option<Self> {
        match writer {
            Writer::Grub => Some(Self::Grub),
            Writer::Bootenv => Some(Self::GrubReadsBootenv),
            Writer::UbootText => Some(Self::Uboot),
            Writer::UbootEnv => Some(Self::UbootEnv),
            Writer::SystemdBoot => Some(Self::SystemdBoot),
            Writer::Tryboot => Some(Self::BootRom),
            // Debian has no U-Boot with a redundant environment; the others are read by twinhull, which the guest shows.
            _ => None,
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Grub => "GRUB with boot/grub/grub.cfg",
            Self::GrubReadsBootenv => "GRUB reads the block, and balena-bootloader's rules",
            Self::Uboot => "U-Boot with boot/uboot/boot.cmd",
            Self::UbootEnv => "U-Boot, which checks the environment's CRC, with boot/uboot-env/boot.cmd",
            Self::SystemdBoot => "systemd-boot",
            Self::BootRom => "the lab's boot ROM",
        }
    }

    fn board(self) -> Outcome<&'static Board> {
        match self {
            Self::Uboot | Self::UbootEnv => boards::named("jetson-tx2"),
            _ => boards::named("nuc"),
        }
    }

    fn driver(self, directory: &Path, cases: &[usize]) -> Outcome {
        match self {
            Self::Grub => jury::grub_driver(directory, cases, |case| {
                format!(
                    "set twinhull_functions_only=1\nset part=none\nset envfile=\"${{case}}/EFI/BOOT/grubenv\"\n\
                     source \"${{case}}/EFI/BOOT/grub.cfg\"\nchoose\necho \"{}part=${{part}}.\"\n",
                    jury::line_of(case)
                )
            }),
            Self::GrubReadsBootenv => jury::grub_driver(directory, cases, |case| {
                format!(
                    "unset resin_root_part\nunset upgrade_available\nunset bootcount\nload_env --skip-sig --file \
                     \"${{case}}/bootenv\" resin_root_part upgrade_available bootcount\n\
                     echo \"{}values=${{resin_root_part}} ${{upgrade_available}} ${{bootcount}}.\"\n",
                    jury::line_of(case)
                )
            }),
            Self::SystemdBoot => jury::grub_driver(directory, cases, jury::systemd_boot_case),
            Self::Uboot => jury::uboot_driver(directory, cases, jury::uboot_text_case),
            Self::UbootEnv => jury::uboot_driver(directory, cases, |case| {
                format!(
                    "setenv resin_root_part; setenv upgrade_available; setenv bootcount; setenv os_bc_lim; setenv part none\n\
                     setenv twinhull_decide_only 1\n\
                     fatload virtio 0:${{case}} ${{ramdisk_addr_r}} uboot.env && env import -c ${{ramdisk_addr_r}} ${{filesize}} \
                     resin_root_part upgrade_available bootcount os_bc_lim && \
                     fatload virtio 0:${{case}} ${{kernel_addr_r}} boot.scr && source ${{kernel_addr_r}}\n\
                     echo \"{}part=${{part}}. saved=${{bootcount}}.\"\n",
                    jury::line_of(case)
                )
            }),
            Self::BootRom => Ok(()),
        }
    }

    /// What the real one does otherwise than the rules say.
    fn wrong(self, work: &Path, disk: &CaseDisk, decisions: &[&Outcome<Decision>]) -> Outcome<Vec<String>> {
        let console = match self {
            Self::BootRom => String::new(),
            _ => disk.judge(self.board()?, work)?,
        };
        let mut wrong = Vec::new();
        for (case, expected) in decisions.iter().enumerate() {
            let seen = self.seen(&console, case, disk);
            if seen != **expected {
                let words = |d: &Outcome<Decision>| d.as_ref().map_or_else(Clone::clone, ToString::to_string);
                wrong.push(format!("state {case}: {}, expected {}", words(&seen), words(expected)));
            }
        }
        Ok(wrong)
    }

    /// What it did in one case, from the console and from what it has written.
    fn seen(self, console: &str, case: usize, disk: &CaseDisk) -> Outcome<Decision> {
        let said = |key| jury::said(console, case, key).ok_or_else(|| "it did not come to this".to_owned());
        let slot = |part: &str| match part {
            "2" => Ok('A'),
            "3" => Ok('B'),
            other => Err(format!("chose {other}")),
        };
        match self {
            Self::Grub => {
                let slot = slot(said("part")?)?;
                Ok(Decision { slot, counted: counted(&disk.tree(case)?, "EFI/BOOT/grubenv"), asked: None })
            }
            Self::GrubReadsBootenv => {
                let values: Vec<&str> = said("values")?.split(' ').collect();
                let [root, upgrade, count] = values.as_slice() else { return Err(values.join(" ")) };
                let text =
                    format!("resin_root_part={root}\nupgrade_available={upgrade}\nbootcount={count}\n");
                let mut block = format!("# GRUB Environment Block\n{text}").into_bytes();
                block.resize(1024, b'#');
                rules::decide(Writer::Bootenv, &Tree::from([("bootenv".to_owned(), block)]))
            }
            Self::Uboot => {
                let slot = slot(said("part")?)?;
                Ok(Decision { slot, counted: counted(&disk.tree(case)?, "bootcount.env"), asked: None })
            }
            Self::UbootEnv => {
                let (slot, saved) = (slot(said("part")?)?, said("saved")?);
                Ok(Decision { slot, counted: Some(saved.to_owned()).filter(|n| n != "0"), asked: None })
            }
            Self::SystemdBoot => {
                let slot = jury::started_slot(console, case).ok_or("it started nothing")?;
                let tree = disk.tree(case)?;
                let name = |path: &String| path.strip_prefix("loader/entries/").map(str::to_owned);
                let counted = tree.keys().filter_map(name).find(|n| n.ends_with("+2-1.conf"));
                Ok(Decision { slot, counted, asked: None })
            }
            Self::BootRom => {
                let text = disk.mtools_read(case, "autoboot.txt")?;
                let text = String::from_utf8_lossy(&text).into_owned();
                let boots = |asked| {
                    let number = boot_rom::partition(&text, asked).ok_or("names no boot_partition")?;
                    slot(&number.to_string())
                };
                Ok(Decision { slot: boots(false)?, counted: None, asked: Some(boots(true)?) })
            }
        }
    }
}

/// The count that a bootloader has left in a file, unless it is none.
fn counted(tree: &Tree, path: &str) -> Option<String> {
    let text = String::from_utf8_lossy(tree.get(path)?).into_owned();
    let count = text.lines().find_map(|l| l.strip_prefix("bootcount="))?.to_owned();
    Some(count).filter(|n| n != "0")
}
