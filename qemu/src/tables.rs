//! The truth tables of `boot/README.md`, row by row: what the model in `src/sim` says, and what the real bootloader does in QEMU.

use std::collections::BTreeMap;
use std::process::Command;

use crate::images::{Lab, run};
use crate::tables_real::real;
use crate::{Outcome, boards, truth_table};

/// Where the tables are.
pub const README: &str = "boot/README.md";

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
    /// UEFI's own boot manager.
    Efi,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What is there before.
    pub before: Vec<String>,
    /// The slot that must boot.
    pub slot: String,
    /// What must be saved; `-`: nothing.
    pub saved: String,
    /// For people.
    pub meaning: String,
}

/// The slot that boots, and what is saved.
pub type Seen = (String, String);

impl Table {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Grub,
        Self::UbootText,
        Self::UbootEnv,
        Self::SystemdBoot,
        Self::Tryboot,
        Self::Initramfs,
        Self::Efi,
    ];

    /// Its name on the command line, as of `boot.chooser`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grub => "grub",
            Self::UbootText => "uboot-text",
            Self::UbootEnv => "uboot-env",
            Self::SystemdBoot => "systemd-boot",
            Self::Tryboot => "tryboot",
            Self::Initramfs => "initramfs",
            Self::Efi => "efi",
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
            Self::Efi => &["efi", "recorder"],
        }
    }

    const fn real(self) -> &'static str {
        match self {
            Self::Grub => "GRUB",
            Self::UbootText | Self::UbootEnv => "U-Boot",
            Self::SystemdBoot => "systemd-boot",
            Self::Tryboot => "boot ROM",
            Self::Initramfs => "PID 1's code in a guest",
            Self::Efi => "UEFI",
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
            Self::Efi => ("## UEFI's own boot manager", "| `BootOrder` | `BootNext` |", 3),
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
            // The firmware of these counts nothing.
            assert_eq!(counts, ![Table::Tryboot, Table::Efi].contains(&table), "{table:?}");
        }
        let renamed = Table::SystemdBoot.rows(&text).unwrap()[1].clone();
        assert_eq!((renamed.slot.as_str(), renamed.saved.as_str()), ("B", "b+2-1"));
        assert_eq!(renamed.before, ["a (1), b+3 (2)"]);
    }
}
