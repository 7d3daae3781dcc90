//! The truth tables of `boot/README.md`, row by row: what the model in `src/sim` says, and what the real bootloader does in QEMU.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::images::{self, Lab, run};
use crate::jury::{self, Case, CaseDisk};
use crate::recording::Writer;
use crate::{Outcome, boards, boot_rom, recorder, truth_table};

const README: &str = "boot/README.md";
const VARIABLES: [&str; 4] = ["resin_root_part", "upgrade_available", "bootcount", "os_bc_lim"];
/// Where U-Boot's environment is in QEMU's `virt`, and how long it is.
const FLASH: &str = "0x4000000 0x40000";

/// A table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// `boot/grub/grub.cfg`.
    Grub,
    /// `boot/uboot/boot.cmd`.
    UbootText,
    /// `boot/uboot-env/boot.cmd`: the same table.
    UbootEnv,
    /// systemd-boot's own rules.
    SystemdBoot,
    /// The Raspberry Pi's firmware, for which the lab's boot ROM stands in.
    Tryboot,
    /// PID 1's own counter.
    Initramfs,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    /// What is there before.
    before: Vec<String>,
    /// The slot that must boot.
    slot: String,
    /// What must be saved; `-`: nothing.
    saved: String,
    /// For people.
    meaning: String,
}

/// The slot that boots, and what is saved.
type Seen = (String, String);

impl Table {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Grub, Self::UbootText, Self::UbootEnv, Self::SystemdBoot, Self::Tryboot, Self::Initramfs];

    /// Its name on the command line, as of `boot.chooser`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grub => "grub",
            Self::UbootText => "uboot-text",
            Self::UbootEnv => "uboot-env",
            Self::SystemdBoot => "systemd-boot",
            Self::Tryboot => "tryboot",
            Self::Initramfs => "initramfs",
        }
    }

    /// The table of that name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// What must be there, in words that `qemu/run` knows.
    pub const fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Grub => &["grub", "x86"],
            Self::UbootText | Self::UbootEnv => &["recorder", "u-boot"],
            Self::SystemdBoot => &["grub", "recorder", "systemd-boot"],
            Self::Tryboot => &["recorder"],
            Self::Initramfs => &["grub", "recorder", "u-boot"],
        }
    }

    const fn real(self) -> &'static str {
        match self {
            Self::Grub => "GRUB",
            Self::UbootText | Self::UbootEnv => "U-Boot",
            Self::SystemdBoot => "systemd-boot",
            Self::Tryboot => "boot ROM",
            Self::Initramfs => "PID 1's code in a guest",
        }
    }

    /// The section of the table, the beginning of its first line, and how many cells say what is there before.
    const fn place(self) -> (&'static str, &'static str, usize) {
        match self {
            Self::Grub => ("## GRUB", "| `resin_root_part` |", 4),
            Self::UbootText | Self::UbootEnv => ("## U-Boot with text files", "| `resin_root_part` |", 4),
            Self::SystemdBoot => ("## systemd-boot", "| entries |", 1),
            Self::Tryboot => ("## Raspberry Pi firmware", "| `[all]` |", 4),
            Self::Initramfs => ("## No bootloader that can count", "| `resin_root_part` |", 4),
        }
    }

    fn rows(self, text: &str) -> Outcome<Vec<Row>> {
        let (heading, first, inputs) = self.place();
        let lines =
            text.lines().skip_while(|l| !l.starts_with(heading)).skip_while(|l| !l.starts_with(first));
        let rows: Vec<Row> = lines
            .skip(2)
            .take_while(|l| l.starts_with('|'))
            .map(|line| {
                let cells: Vec<String> =
                    line.trim_matches('|').split('|').map(|c| c.trim().replace('`', "")).collect();
                let mut rest = cells.iter().skip(inputs).cloned();
                let mut next = || rest.next().ok_or_else(|| format!("{README}: too few cells in {line}"));
                let slot = next()?;
                let (slot, saved) = match (self, slot.split_once(", renamed to ")) {
                    (Self::SystemdBoot, Some((slot, name))) => (slot.to_owned(), name.to_owned()),
                    (Self::SystemdBoot | Self::Tryboot, _) => (slot, "-".to_owned()),
                    (_, _) => (slot, next()?),
                };
                Ok(Row {
                    before: cells.iter().take(inputs).cloned().collect(),
                    slot,
                    saved,
                    meaning: next()?,
                })
            })
            .collect::<Outcome<_>>()?;
        if rows.len() < 6 {
            return Err(format!("{README}: {} rows of {}", rows.len(), self.name()));
        }
        Ok(rows)
    }
}

/// Compares tables, models and real bootloaders; prints a line per row.
///
/// # Errors
/// If any two say different things, or something could not be tried.
pub fn compare(tables: &[Table]) -> Outcome {
    let text = std::fs::read_to_string(README).map_err(|e| format!("{README}: {e}"))?;
    let models = models()?;
    let mut failed = Vec::new();
    for table in tables {
        println!("\n{}", table.name());
        let result = table.rows(&text).and_then(|rows| compare_one(*table, &rows, &models));
        if let Err(e) = result {
            failed.push(format!("{}: {e}", table.name()));
        }
    }
    match failed.as_slice() {
        [] => Ok(()),
        failed => Err(failed.join("; ")),
    }
}

fn compare_one(table: Table, rows: &[Row], models: &BTreeMap<String, Seen>) -> Outcome {
    let mut different = 0;
    let seen = match table {
        // It goes beyond its table, and prints its rows itself.
        Table::Grub => {
            Lab::open(boards::named("nuc")?).and_then(|lab| truth_table::compare(&lab))?;
            rows.iter().map(|row| Ok((row.slot.clone(), row.saved.clone()))).collect()
        }
        _ => real(table, rows)?,
    };
    let words = |seen: &Outcome<Seen>| match seen {
        Ok((slot, saved)) if saved == "-" => slot.clone(),
        Ok((slot, saved)) => format!("{slot}, saved {saved}"),
        Err(e) => e.clone(),
    };
    for (row, seen) in rows.iter().zip(seen) {
        let expected = Ok((row.slot.clone(), row.saved.clone()));
        let model = models.get(&key(table, &row.before)).cloned().ok_or_else(|| "no such row".to_owned());
        let same = seen == expected && model == expected;
        different += usize::from(!same);
        let before: Vec<String> = row.before.iter().map(|b| format!("{b:<6}")).collect();
        println!(
            "{} {} -> {:<14} model: {:<14} {}: {:<14} {}",
            if same { "ok       " } else { "DIFFERENT" },
            before.join(" "),
            words(&expected),
            words(&model),
            table.real(),
            words(&seen),
            row.meaning
        );
    }
    match different {
        0 => {
            println!("All {} rows are so in the model and in {}.", rows.len(), table.real());
            Ok(())
        }
        n => Err(format!("{n} of {} rows are different", rows.len())),
    }
}

fn key(table: Table, before: &[String]) -> String {
    format!("{}: {}", table.name(), before.join(" | "))
}

/// What the models say: the lines that their tests print, `model NAME: CELLS -> SLOT, saved COUNT`.
fn models() -> Outcome<BTreeMap<String, Seen>> {
    let said = run(Command::new("cargo").args([
        "test",
        "-q",
        "-p",
        "twinhull",
        "--lib",
        "sim::truth_table",
        "--",
        "--nocapture",
        "--test-threads=1",
    ]))?;
    let line = |line: &str| {
        let (_, rest) = line.split_once("model ")?;
        let (before, after) = rest.split_once(" -> ")?;
        let (slot, saved) = after.split_once(", saved ")?;
        Some((before.to_owned(), (slot.to_owned(), saved.trim().to_owned())))
    };
    let found: BTreeMap<_, _> = said.lines().filter_map(line).collect();
    if found.is_empty() { Err("the models said nothing".into()) } else { Ok(found) }
}

/// What the real one does in each row.
fn real(table: Table, rows: &[Row]) -> Outcome<Vec<Outcome<Seen>>> {
    let work = images::work(&format!("truth-table-{}", table.name()))?;
    std::fs::create_dir_all(&work).map_err(|e| format!("{}: {e}", work.display()))?;
    match table {
        Table::Grub => Err("it has its own driver".into()),
        Table::UbootText => uboot_text(&work, rows),
        Table::UbootEnv => uboot_env(&work, rows),
        Table::SystemdBoot => systemd_boot(&work, rows),
        Table::Tryboot => Ok(rows.iter().map(tryboot).collect()),
        Table::Initramfs => initramfs(&work, rows),
    }
}

/// A variable's value in a row; `None` if it is not there.
fn values(row: &Row) -> impl Iterator<Item = (&'static str, &str)> {
    let all = VARIABLES.into_iter().zip(row.before.iter().map(String::as_str));
    all.filter(|(_, value)| *value != "absent")
}

fn numbers(rows: &[Row]) -> Vec<usize> {
    (0..rows.len()).collect()
}

fn slot(part: &str) -> Outcome<String> {
    match part {
        "2" => Ok("A".into()),
        "3" => Ok("B".into()),
        other => Err(format!("chose {other}")),
    }
}

/// A disk with a case for each row, all from the same partition.
fn disk(work: &Path, writer: Writer, driver: &Path, rows: &[Row]) -> Outcome<CaseDisk> {
    let base = recorder::boot_partition(work, writer)?;
    let cases: Vec<Case> = rows.iter().map(|_| Case { base: &base, over: Vec::new() }).collect();
    std::fs::create_dir_all(driver).map_err(|e| format!("{}: {e}", driver.display()))?;
    CaseDisk::make(work.join("cases.img"), driver, &cases)
}

fn uboot_text(work: &Path, rows: &[Row]) -> Outcome<Vec<Outcome<Seen>>> {
    let driver = work.join("driver");
    jury::uboot_driver(&driver, &numbers(rows), jury::uboot_text_case)?;
    let disk = disk(work, Writer::UbootText, &driver, rows)?;
    for (n, row) in rows.iter().enumerate() {
        let line = |count: bool| {
            let of = values(row).filter(move |(name, _)| (*name == "bootcount") == count);
            of.map(|(name, value)| format!("{name}={value}\n")).collect::<String>()
        };
        disk.put(n, "resinOS_uEnv.txt", line(false).as_bytes())?;
        if !line(true).is_empty() {
            disk.put(n, "bootcount.env", line(true).as_bytes())?;
        }
    }
    let console = disk.judge(boards::named("jetson-tx2")?, work)?;
    let seen = |(n, row): (usize, &Row)| {
        let slot = slot(jury::said(&console, n, "part").ok_or("it did not come to this")?)?;
        let count = disk.tree(n)?.get("bootcount.env").map(|raw| String::from_utf8_lossy(raw).into_owned());
        let count =
            count.and_then(|t| Some(t.trim_end_matches('\0').trim().strip_prefix("bootcount=")?.to_owned()));
        let before = values(row).find(|(name, _)| *name == "bootcount").map(|(_, value)| value.to_owned());
        Ok((slot, if count == before { "-".into() } else { count.unwrap_or_else(|| "nothing".into()) }))
    };
    Ok(rows.iter().enumerate().map(seen).collect())
}

fn uboot_env(work: &Path, rows: &[Row]) -> Outcome<Vec<Outcome<Seen>>> {
    let driver = work.join("driver");
    jury::uboot_driver(&driver, &numbers(rows), |case| {
        let set = |name: &str| {
            let value = values(&rows[case]).find(|(n, _)| *n == name).map_or("", |(_, value)| value);
            format!("setenv {name} {value}\n")
        };
        let variables: String = VARIABLES.iter().map(|name| set(name)).collect();
        format!(
            "{variables}setenv part none; setenv twinhull_decide_only 1; setenv lab_row {case}\n\
             fatload virtio 0:1 ${{kernel_addr_r}} env.scr && source ${{kernel_addr_r}}\n\
             setenv lab_row; setenv bootcount\nenv import -c {FLASH} lab_row bootcount\n\
             echo \"{}part=${{part}}. row=${{lab_row}}. saved=${{bootcount}}.\"\n",
            jury::line_of(case)
        )
    })?;
    run(Command::new("mkimage")
        .args(["-A", "arm64", "-T", "script", "-C", "none", "-d", "boot/uboot-env/boot.cmd"])
        .arg(driver.join("env.scr")))?;
    let disk = CaseDisk::make(work.join("cases.img"), &driver, &[])?;
    let console = disk.judge(boards::named("jetson-tx2")?, work)?;
    let seen = |n: usize| {
        let said = |key| jury::said(&console, n, key).ok_or_else(|| "it did not come to this".to_owned());
        let saved = if said("row")? == n.to_string() { said("saved")? } else { "-" };
        Ok((slot(said("part")?)?, saved.to_owned()))
    };
    Ok((0..rows.len()).map(seen).collect())
}

fn systemd_boot(work: &Path, rows: &[Row]) -> Outcome<Vec<Outcome<Seen>>> {
    let driver = work.join("driver");
    jury::grub_driver(&driver, &numbers(rows), jury::systemd_boot_case)?;
    let disk = disk(work, Writer::SystemdBoot, &driver, rows)?;
    for (n, row) in rows.iter().enumerate() {
        disk.remove(n, "loader/entries/twinhull-a.conf")?;
        for entry in row.before[0].split(", ") {
            let (name, version) = entry.split_once(" (").ok_or_else(|| format!("{README}: {entry}"))?;
            let letter = name.chars().next().unwrap_or('?');
            let content = format!(
                "title slot {letter}\nlinux /slot-{letter}/vmlinuz\noptions lab-slot={}\nsort-key 0-twinhull\nversion {}\n",
                letter.to_ascii_uppercase(),
                version.trim_end_matches(')')
            );
            disk.put(n, &format!("loader/entries/twinhull-{name}.conf"), content.as_bytes())?;
        }
    }
    let names = |n: usize| -> Outcome<Vec<String>> {
        let name = |path: &String| {
            path.strip_prefix("loader/entries/twinhull-")?.strip_suffix(".conf").map(str::to_owned)
        };
        Ok(disk.tree(n)?.keys().filter_map(name).collect())
    };
    let before: Vec<Vec<String>> = (0..rows.len()).map(names).collect::<Outcome<_>>()?;
    let console = disk.judge(boards::named("nuc")?, work)?;
    let seen = |n: usize| {
        let slot = jury::started_slot(&console, n).ok_or("it started nothing")?;
        let new = names(n)?.into_iter().find(|name| !before[n].contains(name));
        Ok((slot.to_string(), new.unwrap_or_else(|| "-".into())))
    };
    Ok((0..rows.len()).map(seen).collect())
}

fn tryboot(row: &Row) -> Outcome<Seen> {
    let [all, tryboot, tries, asked] = row.before.as_slice() else { return Err("four cells".into()) };
    let text = format!(
        "[all]\ntryboot_a_b=1\nboot_partition={all}\n[tryboot]\nboot_partition={tryboot}\n# twinhull: tries_left={tries}\n"
    );
    let number = boot_rom::partition(&text, asked == "yes").ok_or("names no boot_partition")?;
    Ok((slot(&number.to_string())?, "-".into()))
}

fn initramfs(work: &Path, rows: &[Row]) -> Outcome<Vec<Outcome<Seen>>> {
    let disk = disk(work, Writer::Initramfs, &work.join("driver"), rows)?;
    let mut before = Vec::new();
    for (n, row) in rows.iter().enumerate() {
        let text: String = values(row).map(|(name, value)| format!("{name}={value}\n")).collect();
        let copy = recorder::environment_of(work, &text, 512, true)?.repeat(2);
        disk.put(n, "initramfs.env", &copy)?;
        before.push(copy);
    }
    let list: Vec<(usize, Writer)> =
        (0..rows.len()).map(|n| (CaseDisk::partition(n), Writer::Initramfs)).collect();
    let console = recorder::look(work, &disk.file, "choose", &list)?;
    let seen = |n: usize| {
        let slot =
            recorder::line_about(&console, CaseDisk::partition(n)).ok_or("the guest did not come to this")?;
        let slot = slot.strip_prefix("boots ").ok_or(slot)?.to_owned();
        let tree = disk.tree(n)?;
        let after = tree.get("initramfs.env").ok_or("the counter is gone")?;
        let changed = after.chunks(512).zip(before[n].chunks(512)).find(|(a, b)| a != b).map(|(a, _)| a);
        let saved = changed.map(|copy| {
            let text = String::from_utf8_lossy(copy).into_owned();
            text.split('\0').find_map(|e| e.strip_prefix("bootcount=")).unwrap_or("nothing").to_owned()
        });
        Ok((slot, saved.unwrap_or_else(|| "-".into())))
    };
    Ok((0..rows.len()).map(seen).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_of_the_documentation_is_understood() {
        let text =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../boot/README.md")).unwrap();
        for table in Table::ALL {
            let rows = table.rows(&text).unwrap();
            assert!(rows.iter().any(|r| r.slot == "A") && rows.iter().any(|r| r.slot == "B"), "{table:?}");
            let counts = rows.iter().any(|r| r.saved != "-");
            assert_eq!(counts, table != Table::Tryboot, "{table:?}");
        }
        let renamed = Table::SystemdBoot.rows(&text).unwrap()[1].clone();
        assert_eq!((renamed.slot.as_str(), renamed.saved.as_str()), ("B", "b+2-1"));
        assert_eq!(renamed.before, ["a (1), b+3 (2)"]);
    }

    #[test]
    fn the_boot_rom_goes_by_the_flag() {
        let row = |cells: [&str; 4]| Row {
            before: cells.map(str::to_owned).to_vec(),
            slot: String::new(),
            saved: String::new(),
            meaning: String::new(),
        };
        assert_eq!(tryboot(&row(["2", "3", "3", "no"])).unwrap().0, "A");
        assert_eq!(tryboot(&row(["2", "3", "3", "yes"])).unwrap().0, "B");
    }
}
