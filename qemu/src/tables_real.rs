//! What the real bootloaders do in each row of the tables of `boot/README.md`.

use std::path::Path;
use std::process::Command;

use twinhull::boot::efi::{LoadOption, Volume};

use crate::images::{self, run};
use crate::jury::{self, Case, CaseDisk, DRIVER_MIB};
use crate::recording::Writer;
use crate::tables::{README, Row, Seen, Table};
use crate::{Outcome, boards, boot_rom, recorder};

const VARIABLES: [&str; 4] = ["resin_root_part", "upgrade_available", "bootcount", "os_bc_lim"];
/// Where U-Boot's environment is in QEMU's `virt`, and how long it is.
const FLASH: &str = "0x4000000 0x40000";

/// What the real one does in each row.
///
/// # Errors
/// If they could not be tried at all; what was wrong in one row is its own error.
pub fn real(table: Table, rows: &[Row]) -> Outcome<Vec<Outcome<Seen>>> {
    let work = images::work(&format!("truth-table-{}", table.name()))?;
    std::fs::create_dir_all(&work).map_err(|e| format!("{}: {e}", work.display()))?;
    match table {
        Table::Grub => Err("it has its own driver".into()),
        Table::UbootText => uboot_text(&work, rows),
        Table::UbootEnv => uboot_env(&work, rows),
        Table::SystemdBoot => systemd_boot(&work, rows),
        Table::Tryboot => Ok(rows.iter().map(tryboot).collect()),
        Table::Initramfs => initramfs(&work, rows),
        Table::Efi => efi(&work, rows),
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

/// The marks of the table: each entry's number, and the slot that its program says it is.
const EFI_ENTRIES: [(&str, u16, char); 3] = [("u", 0, 'U'), ("b", 1, 'B'), ("a", 3, 'A')];
/// What is started instead of a kernel.
const EFI_PROGRAM: &str = "qemu/image/efi/manager.rs";

/// Each entry is as twinhull makes it; one program goes from case to case, whichever the firmware starts.
fn efi(work: &Path, rows: &[Row]) -> Outcome<Vec<Outcome<Seen>>> {
    let partuuid = "a069de34-f845-4932-aa5f-0d0e532db4e1";
    let volume = Volume { number: 1, start_lba: 2048, sectors: DRIVER_MIB * 2048, partuuid: partuuid.into() };
    let mut cases = String::from("const ENTRIES: &[(u16, &[u8])] = &[");
    for (mark, number, slot) in EFI_ENTRIES {
        let entry = LoadOption::new(mark, &volume, &format!("/{mark}.efi"), &format!("lab-slot={slot}"));
        let raw = entry.and_then(|entry| entry.encode()).map_err(|e| e.to_string())?;
        cases.push_str(&format!("({number}, &{raw:?}), "));
    }
    cases.push_str("];\nconst CASES: &[(&[u16], Option<u16>)] = &[");
    let number = |mark: &str| {
        let entry = EFI_ENTRIES.iter().find(|(name, ..)| *name == mark);
        entry.map(|(_, number, _)| *number).ok_or_else(|| format!("{README}: no entry {mark:?}"))
    };
    for row in rows {
        let [order, next, _] = row.before.as_slice() else { return Err("three cells".into()) };
        let order: Vec<u16> = order.split(' ').map(number).collect::<Outcome<_>>()?;
        let next = if next == "-" { None } else { Some(number(next)?) };
        cases.push_str(&format!("(&{order:?}, {next:?}), "));
    }
    cases.push_str("];\n");
    let driver = work.join("driver");
    let boot = driver.join("EFI/BOOT");
    let source = work.join("cases.rs");
    let program = boot.join("BOOTAA64.EFI");
    let problem = |e: std::io::Error| format!("{}: {e}", driver.display());
    std::fs::create_dir_all(&boot).map_err(problem)?;
    std::fs::write(&source, cases).map_err(problem)?;
    run(Command::new("rustc")
        .env("LAB_CASES", &source)
        .args(["--edition", "2024", "--target", "aarch64-unknown-uefi", "-Copt-level=s", "-Cpanic=abort"])
        .arg("-o")
        .arg(&program)
        .arg(EFI_PROGRAM))?;
    for mark in ["a", "b"] {
        std::fs::copy(&program, driver.join(format!("{mark}.efi"))).map_err(problem)?;
    }
    let disk = CaseDisk::make(work.join("cases.img"), &driver, &[])?;
    run(Command::new("sfdisk").args(["--quiet", "--part-uuid"]).arg(&disk.file).args(["1", partuuid]))?;
    let console = disk.judge(boards::named("jetson-orin")?, work)?;
    let said = |n, key| jury::said(&console, n, key).map(str::to_owned);
    let seen = |n| said(n, "slot").zip(said(n, "next")).ok_or_else(|| "it did not come to this".to_owned());
    Ok((0..rows.len()).map(seen).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

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
