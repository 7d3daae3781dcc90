//! `twinhull init`

use std::process::ExitCode;

use crate::block::{Table, label};
use crate::cli::{Command, Context, usage};
use crate::init::{Preview, human, preview};
use crate::{Error, Result, init, sys};

pub(super) const COMMAND: Command = Command {
    name: "init",
    summary: "PID 1 of the initramfs; --dry-run says what it would do",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull init: from the kernel to the next init, as PID 1 of an initramfs

Usage: twinhull init --dry-run [--json]

By hand it only says what a boot of this host would find and mount; nothing is changed.

In an initramfs this program is /init and needs no options. It mounts /proc, /sys, /dev and /run, loads the
modules that /modules/order lists (one file per line), waits for the disk of root=, grows the data partition,
mounts the root read-only with /mnt/boot, /mnt/state and /mnt/data, binds what must persist, and starts the next
init. An error is shown on the console, kept in /mnt/state/twinhull/boot-failed and ends in a reboot, so that the
boot counter counts it. If the initramfs has a file /development, as only that of a development image may, a rescue shell
is offered on the console for 10 s first. A slot that is sealed (`twinhull bundle --help`) is mounted through dm-verity, or
not at all. A boot goes on without the state or data partition, if those can be neither mounted nor repaired.

Where the firmware cannot count (boot.chooser = \"initramfs\" in the initramfs's own settings), the boot counter is in
/mnt/boot/initramfs.env: this program reads it, counts, and mounts the slot that it says.

On the kernel's command line:
  root=PARTUUID=…|PARTLABEL=…|LABEL=…|UUID=…|/dev/…   the root partition; its disk holds all others
  rootwait=SECONDS   how long to wait for that disk (30)
  rootfstype=TYPE    rootflags=OPTIONS   how to mount the root
  fsck.mode=force|skip   check state and data in any case, or never; a bare fsck is force
  emergency          nothing is grown, reset or made anew; systemd takes this word too and stops for repair
  init=PATH          the next init; else twinhull.next=PATH, else init.next of the settings (/sbin/init)
";

fn run(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let mut dry_run = false;
    while let Some(arg) = parser.next().map_err(usage("init"))? {
        if arg != lexopt::Arg::Long("dry-run") {
            return Err(usage("init")(arg.unexpected()));
        }
        dry_run = true;
    }
    if !dry_run && sys::process::is_pid1() {
        init::run();
    }
    if !dry_run {
        return Err(Error::refused(
            "init: not PID 1: this mounts a whole system; `twinhull init --dry-run` says what it would do",
        ));
    }
    let found = preview(&context.root, &context.settings()?)?;
    sys::out::line(&if context.json { as_json(&found).to_string() } else { as_text(&found) });
    Ok(0)
}

/// The kernel's first program.
pub fn as_pid1() -> ExitCode {
    init::run()
}

fn mounted_at(found: &Preview, name: &str) -> &'static str {
    match name {
        label::BOOT => "/mnt/boot",
        label::STATE => "/mnt/state",
        label::DATA => "/mnt/data",
        name if name == label::root(found.disk.slot()) => "/ (read-only)",
        name if name == label::root(!found.disk.slot()) => "not mounted (the other slot)",
        _ => "not mounted",
    }
}

const fn table_name(table: &Table) -> &'static str {
    match table {
        Table::Gpt(_) => "GPT",
        Table::Mbr(_) => "MBR",
    }
}

fn as_text(found: &Preview) -> String {
    let disk = &found.disk;
    let mut text = format!(
        "disk {}: {}, sectors of {} bytes; slot {}\n",
        disk.device.display(),
        table_name(&disk.table),
        disk.sector_bytes,
        disk.slot()
    );
    for p in &disk.partitions {
        let file_system = p.file_system.as_ref().map_or("unknown", |s| s.kind.name());
        text.push_str(&format!(
            "  {:>2}  {:<12} {:<16} {:>9}  {:<9} {}\n",
            p.number,
            p.label,
            p.device.display(),
            human(p.len_bytes),
            file_system,
            mounted_at(found, &p.label)
        ));
    }
    for other in &disk.also_matching {
        text.push_str(&format!("passed over, though root= fits it: {}\n", other.display()));
    }
    text.push_str(&match &found.growth {
        Ok(Some((from, to))) => {
            format!("data partition would grow from {} to {}\n", human(*from), human(*to))
        }
        Ok(None) => "data partition stays as it is\n".to_owned(),
        Err(e) => format!("data partition is left alone: {e}\n"),
    });
    for path in &found.persist {
        text.push_str(&format!("kept on the state partition: {}\n", path.display()));
    }
    text.push_str(&format!("next init: {}", found.next.display()));
    text
}

fn as_json(found: &Preview) -> serde_json::Value {
    let disk = &found.disk;
    let partitions: Vec<_> = disk
        .partitions
        .iter()
        .map(|p| {
            serde_json::json!({
                "number": p.number,
                "label": p.label,
                "device": p.device,
                "partuuid": p.partuuid,
                "start_bytes": p.start_bytes,
                "len_bytes": p.len_bytes,
                "file_system": p.file_system.as_ref().map(|s| s.kind.name()),
                "mounted_at": mounted_at(found, &p.label),
            })
        })
        .collect();
    serde_json::json!({
        "disk": disk.device,
        "table": table_name(&disk.table),
        "sector_bytes": disk.sector_bytes,
        "slot": disk.slot(),
        "partitions": partitions,
        "also_matching": disk.also_matching,
        "growth": match &found.growth {
            Ok(None) => serde_json::Value::Null,
            Ok(Some((from, to))) => serde_json::json!({ "from_bytes": from, "to_bytes": to }),
            Err(e) => serde_json::json!({ "left_alone": e }),
        },
        "persist": found.persist,
        "next": found.next,
    })
}
