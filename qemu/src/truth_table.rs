//! The table in `boot/README.md` against the real `grub.cfg` in the real GRUB: one boot, every row.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Outcome;
use crate::images::{Lab, run};
use crate::machine::{Disk, Machine};

const TABLE: &str = "boot/README.md";
const SCRIPT: &str = "boot/grub/grub.cfg";
const VARIABLES: [&str; 4] = ["resin_root_part", "upgrade_available", "bootcount", "os_bc_lim"];
/// GRUB's modules that `boot/README.md` names, and what this driver needs.
const MODULES: &str = "part_gpt part_msdos fat ext2 normal linux echo test regexp loadenv probe sleep reboot serial terminal halt configfile";
const PATIENCE: Duration = Duration::from_secs(300);

/// One row: the variables before, and what must come of them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    /// The values of [`VARIABLES`]; `None` where the variable is not there.
    before: [Option<String>; 4],
    /// Partition number: 2 is A, 3 is B.
    part: String,
    /// `bootcount` afterwards.
    count: Option<String>,
    meaning: String,
}

/// Runs all rows and prints them; the error says how many differ.
pub fn compare(lab: &Lab) -> Outcome {
    let readme = std::fs::read_to_string(TABLE).map_err(|e| format!("{TABLE}: {e}"))?;
    let rows = parse(&readme);
    if rows.len() < 10 {
        return Err(format!("{TABLE}: only {} rows of the table were understood", rows.len()));
    }
    let disk = lab.file("truth-table.img");
    make_disk(lab, &rows, &disk)?;
    let mut machine = Machine::nuc(&Disk { file: &disk, format: "raw" }, &lab.work)?;
    machine.wait_off(PATIENCE)?;
    let said = std::fs::read(&machine.console).map_err(|e| format!("console: {e}"))?;
    let said = String::from_utf8_lossy(&said).into_owned();

    println!("resin_root_part upgrade_available bootcount os_bc_lim   partition  bootcount after");
    let mut differ = 0;
    for (n, row) in rows.iter().enumerate() {
        let part = booted(&said, n).unwrap_or_else(|| "none".into());
        let count = count_after(lab, &disk, n)?;
        let right = part == row.part && count == row.count;
        let shown = |v: &Option<String>| v.clone().unwrap_or_else(|| "absent".into());
        let [root, upgrade, bootcount, limit] = &row.before;
        println!(
            "{:<15} {:<17} {:<9} {:<11} {part:<10} {:<16} {}",
            shown(root),
            shown(upgrade),
            shown(bootcount),
            shown(limit),
            shown(&count),
            if right { format!("ok: {}", row.meaning) } else { format!("DIFFERS: expected {row:?}") },
        );
        differ += usize::from(!right);
    }
    println!("{} rows, {differ} differ", rows.len());
    if differ == 0 { Ok(()) } else { Err(format!("{differ} of {} rows differ from {TABLE}", rows.len())) }
}

fn parse(readme: &str) -> Vec<Row> {
    readme.lines().filter_map(parse_row).collect()
}

/// `| 3 | 1 | 0 | 3 | B | 1 | first try of B |`; other lines are not rows.
fn parse_row(line: &str) -> Option<Row> {
    let cells: Vec<&str> =
        line.trim().strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
    let [root, upgrade, count, limit, slot, saved, meaning] = cells.as_slice() else { return None };
    let part = match *slot {
        "A" => "2",
        "B" => "3",
        _ => return None,
    };
    let value = |cell: &str| (cell != "absent").then(|| cell.to_owned());
    let count_after = if *saved == "-" { value(count) } else { Some((*saved).to_owned()) };
    Some(Row {
        before: [value(root), value(upgrade), value(count), value(limit)],
        part: part.into(),
        count: count_after,
        meaning: (*meaning).into(),
    })
}

fn environment(n: usize) -> String {
    format!("row{n:02}.env")
}

/// A disk whose GRUB calls the script's `choose` once for each row and then switches the machine off.
fn make_disk(lab: &Lab, rows: &[Row], disk: &Path) -> Outcome {
    let (boot, early, driver) = (lab.file("boot.fat"), lab.file("early.cfg"), lab.file("driver.cfg"));
    let mut script = format!("set twinhull_functions_only=1\nsource \"${{prefix}}/{}\"\n", "script.cfg");
    for n in 0..rows.len() {
        script.push_str(&format!(
            "set envfile=\"${{prefix}}/{}\"\nchoose\necho \"row {n:02} part ${{part}}.\"\n",
            environment(n)
        ));
    }
    script.push_str("halt\n");
    write(&driver, &script)?;
    write(&early, "serial --unit=0 --speed=115200\nterminal_output serial\n")?;

    let loader = lab.file("BOOTX64.EFI");
    run(Command::new("grub-mkimage")
        .args(["-O", "x86_64-efi", "-p", "/EFI/BOOT"])
        .arg("-c")
        .arg(&early)
        .arg("-o")
        .arg(&loader)
        .args(MODULES.split(' ')))?;
    run(Command::new("truncate").args(["-s", "64M"]).arg(&boot))?;
    run(Command::new("mkfs.vfat").args(["-F", "32", "-s", "1"]).arg(&boot))?;
    run(Command::new("mmd").arg("-i").arg(&boot).args(["::EFI", "::EFI/BOOT"]))?;
    let copy = |file: &Path, name: &str| {
        run(Command::new("mcopy").arg("-i").arg(&boot).arg(file).arg(format!("::EFI/BOOT/{name}"))).map(drop)
    };
    copy(&loader, "BOOTX64.EFI")?;
    copy(&driver, "grub.cfg")?;
    copy(Path::new(SCRIPT), "script.cfg")?;
    for (n, row) in rows.iter().enumerate() {
        let file = lab.file(&environment(n));
        run(Command::new("grub-editenv").arg(&file).arg("create"))?;
        for (name, value) in VARIABLES.iter().zip(&row.before) {
            if let Some(value) = value {
                run(Command::new("grub-editenv").arg(&file).args(["set", &format!("{name}={value}")]))?;
            }
        }
        copy(&file, &environment(n))?;
    }
    run(Command::new("truncate").args(["-s", "80M"]).arg(disk))?;
    run(Command::new("sh")
        .arg("-c")
        .arg("printf 'label: gpt\\nstart=1MiB, size=64MiB, type=U\\n' | sfdisk --quiet \"$0\" && dd if=\"$1\" of=\"$0\" bs=1M seek=1 conv=notrunc status=none")
        .arg(disk)
        .arg(&boot))?;
    Ok(())
}

fn write(file: &Path, text: &str) -> Outcome {
    std::fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))
}

/// The partition that row `n` chose, from what GRUB printed.
fn booted(said: &str, n: usize) -> Option<String> {
    let rest = said.split(&format!("row {n:02} part ")).nth(1)?;
    rest.split('.').next().map(str::to_owned)
}

fn count_after(lab: &Lab, disk: &Path, n: usize) -> Outcome<Option<String>> {
    let file = lab.file("after.env");
    run(Command::new("mcopy")
        .args(["-n", "-o", "-i"])
        .arg(format!("{}@@1M", disk.display()))
        .arg(format!("::EFI/BOOT/{}", environment(n)))
        .arg(&file))?;
    let listed = run(Command::new("grub-editenv").arg(&file).arg("list"))?;
    Ok(listed.lines().find_map(|l| l.strip_prefix("bootcount=")).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_and_other_tables_are_not() {
        let row = parse_row("| 3 | 1 | absent | 3 | A | - | a count |").unwrap();
        assert_eq!(row.before, [Some("3".into()), Some("1".into()), None, Some("3".into())]);
        assert_eq!((row.part.as_str(), row.count), ("2", None));
        assert_eq!(parse_row("| 3 | 1 | 0 | 3 | B | 1 | x |").unwrap().count.as_deref(), Some("1"));
        for other in ["| file | what it is |", "|---|---|---|---|---|---|---|", "text"] {
            assert_eq!(parse_row(other), None);
        }
    }

    #[test]
    fn what_grub_said_is_found_by_row() {
        assert_eq!(booted("twinhull: x\r\nrow 00 part 2.\r\nrow 01 part 3.\r\n", 1).as_deref(), Some("3"));
        assert_eq!(booted("row 00 part 2.", 1), None);
    }
}
