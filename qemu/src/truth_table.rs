//! The real `grub.cfg` in the real GRUB under OVMF, against the truth table of `boot/README.md`.
//!
//! One boot of a machine without any system: a driver sources `grub.cfg` for its functions alone, calls `choose` on one
//! environment block per row and says on the console which partition it chose. What GRUB saved is read from the blocks
//! afterwards with `grub-editenv`. Besides the table's rows it tries blocks that cannot be read or written.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Outcome;
use crate::disk::mtools;
use crate::hardware::Setup;
use crate::images::{Lab, run};
use crate::machine::{Disk, Machine};

const TABLE: &str = "boot/README.md";
const SCRIPT: &str = "boot/grub/grub.cfg";
const VARIABLES: [&str; 4] = ["resin_root_part", "upgrade_available", "bootcount", "os_bc_lim"];
/// Where the boot partition begins on the disk.
const START_BYTES: u64 = 1024 * 1024;
/// Starting the firmware and GRUB on a busy machine, and 25 rows.
const PATIENCE: Duration = Duration::from_secs(300);

/// The modules of `boot_partition`, and what the driver needs besides.
const MODULES: &str = "part_gpt part_msdos fat ext2 normal linux echo test regexp loadenv probe sleep reboot serial \
                       terminal configfile halt loopback tar";

/// An archive that GRUB mounts as a disk; it cannot write to one.
const READ_ONLY: &str = "read-only.tar";
const EARLY: &str = "serial --unit=0 --speed=115200\nterminal_output serial\nterminal_input serial\n";

/// One row: the variables before, in the order of [`VARIABLES`], and what must come of them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    /// What it means, for people.
    meaning: String,
    /// `None` is a variable that is not there.
    before: [Option<String>; 4],
    kind: Block,
    /// The partition number that must be chosen.
    part: u32,
    /// The `bootcount` that must be saved; `None`: the block is as it was.
    saved: Option<String>,
}

/// Where the block of a row lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    /// In a file as a device has it.
    File,
    /// In a file of no length, as `grub-editenv` leaves it when the power goes.
    Empty,
    /// Nowhere.
    Missing,
    /// Where it can be read but not written.
    ReadOnly,
}

/// Compares them; prints a line per row.
///
/// # Errors
/// If a row is different, or the machine does not get through all of them.
pub fn compare(lab: &Lab) -> Outcome {
    let text = std::fs::read_to_string(TABLE).map_err(|e| format!("{TABLE}: {e}"))?;
    let mut rows = parse_table(&text)?;
    let of_the_table = rows.len();
    rows.extend(beyond_the_table());
    let directory = lab.file("truth-table");
    std::fs::create_dir_all(&directory).map_err(|e| format!("make {}: {e}", directory.display()))?;
    let disk = make_disk(&directory, &rows)?;

    let mut machine =
        Machine::start(lab.board, &Disk { file: &disk, format: "raw" }, &lab.work, &Setup::default())?;
    let off = machine.wait_off(PATIENCE);
    let console = std::fs::read(&machine.console).map_err(|e| format!("the console: {e}"))?;
    let console = String::from_utf8_lossy(&console).into_owned();
    drop(machine);
    off.map_err(|e| format!("{e}; the console ends with: {}", tail(&console)))?;

    let mut different = 0;
    for (n, row) in rows.iter().enumerate() {
        let wrong = judge(row, n, &console, &disk, &directory)?;
        different += usize::from(wrong.is_some());
        println!("{}", line(row, wrong.as_deref()));
    }
    if different > 0 {
        return Err(format!("{different} of {} rows are different in the real GRUB", rows.len()));
    }
    let beyond = rows.len() - of_the_table;
    println!("\nAll {of_the_table} rows of {TABLE} are so in the real GRUB, and {beyond} cases beyond it.");
    Ok(())
}

/// What the text around the table promises.
fn beyond_the_table() -> Vec<Row> {
    let row = |meaning: &str, kind| Row {
        meaning: meaning.into(),
        before: ["3", "1", "0", "3"].map(|v| Some(v.to_owned())),
        kind,
        part: 2,
        saved: None,
    };
    vec![
        row("an empty block boots A", Block::Empty),
        row("no block at all boots A", Block::Missing),
        row("a trial that cannot be counted does not happen", Block::ReadOnly),
    ]
}

fn parse_table(text: &str) -> Outcome<Vec<Row>> {
    let lines = text.lines().skip_while(|l| !l.starts_with("| `resin_root_part`"));
    let rows: Vec<Row> =
        lines.skip(2).take_while(|l| l.starts_with('|')).map(parse_row).collect::<Outcome<_>>()?;
    if rows.is_empty() {
        return Err(format!("{TABLE}: no table that begins with `resin_root_part`"));
    }
    Ok(rows)
}

fn parse_row(line: &str) -> Outcome<Row> {
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    let wrong = |what: &str| format!("{TABLE}: {what} in the row {line}");
    let [root, upgrade, count, limit, slot, saved, meaning] = cells.as_slice() else {
        return Err(wrong("expected seven cells"));
    };
    let part = match *slot {
        "A" => 2,
        "B" => 3,
        _ => return Err(wrong("a slot that is neither A nor B")),
    };
    let present = |cell: &&str, absent: &str| (*cell != absent).then(|| (*cell).to_owned());
    Ok(Row {
        meaning: (*meaning).to_owned(),
        before: [root, upgrade, count, limit].map(|c| present(c, "absent")),
        kind: Block::File,
        part,
        saved: present(saved, "-"),
    })
}

fn block_name(n: usize) -> String {
    format!("row{n:02}.env")
}

/// The GRUB script that goes through the rows and switches the machine off.
fn driver(rows: &[Row]) -> String {
    let mut script = String::from("set twinhull_functions_only=1\nsource \"${prefix}/chooser.cfg\"\n");
    script.push_str(&format!("loopback locked \"${{prefix}}/{READ_ONLY}\"\n"));
    for (n, row) in rows.iter().enumerate() {
        let place = if row.kind == Block::ReadOnly { "(locked)" } else { "${prefix}" };
        let name = block_name(n);
        script.push_str(&format!("set envfile=\"{place}/{name}\"\nset part=none\nchoose\n"));
        script.push_str(&format!("echo \"lab: row {n} part ${{part}}.\"\n"));
    }
    script.push_str("halt\n");
    script
}

/// A disk with a boot partition that holds GRUB, the script, the driver and the blocks.
fn make_disk(directory: &Path, rows: &[Row]) -> Outcome<PathBuf> {
    let file = |name: &str| directory.join(name);
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(file(name), bytes).map(|()| file(name)).map_err(|e| format!("{name}: {e}"))
    };
    let mut files = vec![write("grub.cfg", driver(rows).as_bytes())?, file("BOOTX64.EFI")];
    let script = std::fs::read(SCRIPT).map_err(|e| format!("{SCRIPT}: {e}"))?;
    files.push(write("chooser.cfg", &script)?);
    let early = write("early.cfg", EARLY.as_bytes())?;
    for (n, row) in rows.iter().enumerate() {
        let block = file(&block_name(n));
        match row.kind {
            Block::Missing => continue,
            Block::Empty => drop(write(&block_name(n), b"")?),
            Block::File | Block::ReadOnly => make_block(&block, row)?,
        }
        if row.kind == Block::ReadOnly {
            run(Command::new("tar")
                .arg("-C")
                .arg(directory)
                .arg("-cf")
                .arg(file(READ_ONLY))
                .arg(block_name(n)))?;
            files.push(file(READ_ONLY));
        } else {
            files.push(block.clone());
        }
        std::fs::copy(&block, block.with_extension("before"))
            .map_err(|e| format!("{}: {e}", block.display()))?;
    }
    run(Command::new("grub-mkimage")
        .args(["-O", "x86_64-efi", "-p", "/EFI/BOOT", "-c"])
        .arg(early)
        .arg("-o")
        .arg(file("BOOTX64.EFI"))
        .args(MODULES.split_whitespace()))?;

    let disk = file("disk.img");
    let image = std::fs::File::create(&disk).and_then(|f| f.set_len(START_BYTES * 66));
    image.map_err(|e| format!("{}: {e}", disk.display()))?;
    let table = write("table", b"label: gpt\nstart=1MiB, size=64MiB, type=U, name=resin-boot\n")?;
    run(Command::new("sh").args(["-c", "sfdisk --quiet \"$1\" <\"$2\"", "sh"]).arg(&disk).arg(table))?;
    run(Command::new("mkfs.vfat")
        .args(["-F", "32", "-s", "1", "--offset", "2048", "-n", "resin-boot"])
        .arg(&disk)
        .arg("65536"))?;
    let partition = partition(&disk);
    run(mtools("mmd").args(["-i", &partition, "::EFI", "::EFI/BOOT"]))?;
    run(mtools("mcopy").args(["-i", &partition]).args(files).arg("::EFI/BOOT/"))?;
    Ok(disk)
}

fn make_block(block: &Path, row: &Row) -> Outcome {
    run(Command::new("grub-editenv").arg(block).arg("create"))?;
    let values = VARIABLES.iter().zip(&row.before);
    let values = values.filter_map(|(name, value)| value.as_ref().map(|v| format!("{name}={v}")));
    run(Command::new("grub-editenv").arg(block).arg("set").args(values)).map(drop)
}

/// mtools' name of the boot partition on the disk.
fn partition(disk: &Path) -> String {
    format!("{}@@{START_BYTES}", disk.display())
}

/// What is different about a row, if anything is.
fn judge(row: &Row, n: usize, console: &str, disk: &Path, directory: &Path) -> Outcome<Option<String>> {
    let Some(part) = chosen(console, n) else {
        return Ok(Some("GRUB did not come to this row".into()));
    };
    if part != row.part.to_string() {
        return Ok(Some(format!("GRUB chose partition {part}, not {}", row.part)));
    }
    if matches!(row.kind, Block::Missing | Block::ReadOnly) {
        return Ok(None);
    }
    let before = directory.join(block_name(n)).with_extension("before");
    let after = directory.join(block_name(n)).with_extension("after");
    let place = format!("::EFI/BOOT/{}", block_name(n));
    run(mtools("mcopy").args(["-n", "-i", &partition(disk), &place]).arg(&after))?;
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let Some(saved) = &row.saved else {
        let same = read(&before)? == read(&after)?;
        return Ok((!same).then(|| "GRUB wrote to the block".into()));
    };
    let list = |path: &Path| run(Command::new("grub-editenv").arg(path).arg("list"));
    let expected: String = list(&before)?
        .lines()
        .map(|l| if l.starts_with("bootcount=") { format!("bootcount={saved}\n") } else { format!("{l}\n") })
        .collect();
    let found = list(&after)?;
    Ok((found != expected).then(|| format!("GRUB saved {:?}", found.trim().replace('\n', " "))))
}

/// The partition that the driver said for row `n`.
fn chosen(console: &str, n: usize) -> Option<&str> {
    console.split_once(&format!("lab: row {n} part "))?.1.split_once('.').map(|(part, _)| part)
}

fn line(row: &Row, wrong: Option<&str>) -> String {
    let values: Vec<String> =
        row.before.iter().map(|v| format!("{:<6}", v.as_deref().unwrap_or("absent"))).collect();
    let slot = if row.part == 2 { "A" } else { "B" };
    let saved = row.saved.as_deref().unwrap_or("-");
    let verdict = wrong.map_or_else(|| "ok       ".to_owned(), |w| format!("DIFFERENT {w};"));
    format!("{verdict} {} -> {slot}, saved {saved}: {}", values.join(" "), row.meaning)
}

fn tail(console: &str) -> String {
    let lines: Vec<&str> = console.lines().collect();
    lines.get(lines.len().saturating_sub(10)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_documentation_is_understood() {
        let text =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../boot/README.md")).unwrap();
        let rows = parse_table(&text).unwrap();
        assert!(rows.len() >= 22, "{} rows", rows.len());
        assert!(rows.iter().any(|r| r.part == 2) && rows.iter().any(|r| r.saved.is_some()));
    }

    #[test]
    fn a_row_has_variables_slot_and_count() {
        let row = parse_row("| 3 | 1 | 2 | absent | B | 3 | without a limit it is 3 |").unwrap();
        assert_eq!(row.before, [Some("3".into()), Some("1".into()), Some("2".into()), None]);
        assert_eq!((row.part, row.saved.as_deref()), (3, Some("3")));
        assert_eq!(parse_row("| 3 | 0 | 0 | 3 | B | - | settled |").unwrap().saved, None);
        for wrong in ["| 3 | 1 | 2 | 3 | C | 3 | x |", "| 3 | 1 | 2 |"] {
            assert!(parse_row(wrong).is_err(), "{wrong}");
        }
        assert!(parse_table("no table").is_err());
    }

    #[test]
    fn the_choice_of_a_row_is_found_on_the_console() {
        let console = "x\r\nlab: row 1 part 3.\r\nlab: row 11 part 2.\r\n";
        assert_eq!(chosen(console, 1), Some("3"));
        assert_eq!(chosen(console, 11), Some("2"));
        assert_eq!(chosen(console, 2), None);
    }
}
