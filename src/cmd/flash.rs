//! `twinhull flash`

use std::path::Path;

use lexopt::prelude::*;
use serde_json::json;

use super::progress::Ticker;
use super::turn;
use crate::block::{FileDisk, FileSystemKind, Table, TableEntry, label, probe};
use crate::boot::efi::Efivarfs;
use crate::bundle::{self, Bundle, Keys};
use crate::cli::{Command, Context, usage};
use crate::config::{ConfigJson, FlashEnd, Settings};
use crate::flash::{self, Carried, Head, Medium};
use crate::model::PayloadKind;
use crate::model::device::{DeviceType, arch};
use crate::sys::mount::{MountFlags, Temporary};
use crate::{Doing, Error, Result, provision, sys};

pub(super) const COMMAND: Command = Command {
    name: "flash",
    summary: "write a device's disk image from this installer to its internal disk",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull flash: write a device's disk image from this installer to its internal disk

Usage: twinhull flash [--yes] [--target DISK] [--stay] [FILE|URL|-] [--json]

  FILE|URL|-        a bundle of a whole disk (`twinhull bundle create --disk`); default: the setting flash.image
  --yes             write; without it only what would be written where is shown
  --target DISK     this disk, as nvme0n1, instead of the first that fits
  --stay            neither power off nor reboot at the end (the setting flash.end)

The disk is the first real medium with room for the image, in the order of installer.target_devices of config.json, or of the
setting flash.devices (kernel names with * and ?, separated by spaces). Never the medium that this system runs from, one with
anything mounted, or a write-protected one. What was found is shown with size, model and serial number.

The bundle must be signed (keys in bundle.keys) and made for this device type. Every block is compared with its signed hash
before it is written, holes are discarded or zeroed, and all of it is read back from the medium. Until then the disk has no
partition table, so a disk that was written in part does not boot; run it again. Then config.json without its section
`installer`, and system-connections, system-proxy, dispatcher.d and splash are copied to the new boot partition; with UEFI a boot
entry is made and put first; and with the last write the disk becomes bootable. The installer's own medium is not changed, and
serves the next device as well.

twinhull-flash.service runs this at boot if `flasher` is on the kernel's command line; the units that would make a device of
the installer do not start then. Progress is on the console.

Exit: 0 done, 1 failed, 3 refused (signature, device type, no fitting disk). With --json: one line per event:
{event: medium|target|progress|carried|boot-entry|done, ..}.

  twinhull flash                                  what would happen
  twinhull flash --yes --target mmcblk0 --stay /mnt/usb/nuc-2.1.0.disk.bundle
";

struct Args {
    image: Option<String>,
    target: Option<String>,
    yes: bool,
    stay: bool,
}

fn parse(mut parser: lexopt::Parser) -> Result<Args> {
    let wrong = usage("flash");
    let mut args = Args { image: None, target: None, yes: false, stay: false };
    while let Some(arg) = parser.next().map_err(&wrong)? {
        match arg {
            Long("yes") => args.yes = true,
            Long("stay") => args.stay = true,
            Long("target") => {
                let name = parser.value().and_then(|v| v.string()).map_err(&wrong)?;
                args.target = Some(name.trim_start_matches("/dev/").to_owned());
            }
            Value(image) if args.image.is_none() => args.image = Some(image.string().map_err(&wrong)?),
            other => return Err(wrong(other.unexpected())),
        }
    }
    Ok(args)
}

fn run(parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let args = parse(parser)?;
    let settings = context.settings()?;
    let _turn = turn::take(&context.root)?;
    flash(&args, &settings, context).doing(|| "flash")?;
    if !args.yes || args.stay || !context.root.is_host() {
        return Ok(0);
    }
    match settings.flash.end {
        FlashEnd::Poweroff => sys::power::power_off(),
        FlashEnd::Reboot => sys::power::reboot(None),
        FlashEnd::Stay => Ok(()),
    }
    .map(|()| 0)
}

fn flash(args: &Args, settings: &Settings, context: &Context) -> Result<()> {
    let root = &context.root;
    // Everything that can be refused is looked at before anything is written.
    let default = || root.path(&settings.flash.image).display().to_string();
    let image = args.image.clone().unwrap_or_else(default);
    let reach = super::reach::reach(context, settings, &image, None, None)?;
    let keys = Keys::load(&root.path(&settings.bundle.keys), settings.bundle.signatures)?;
    let source = bundle::source::open(&image, &reach)?;
    let name = source.name().to_owned();
    let mut bundle = Bundle::open(source, &keys).doing(|| name.clone())?;
    let manifest = bundle.manifest();
    if manifest.root.kind != PayloadKind::Disk {
        return Err(Error::refused(format!(
            "{name} holds a root image, not a whole disk; give one made with `twinhull bundle create --disk`"
        )));
    }
    manifest.check_made_for(&DeviceType(provision::device_type(root, settings)?), arch())?;
    let config_json = &settings.provision.config_json;
    let carried = Carried::read(root, config_json)?;
    let media = flash::media(root, manifest.root.size)?;
    for medium in &media {
        let text =
            format!("{medium}{}", medium.unfit.as_ref().map_or(String::new(), |why| format!(": {why}")));
        say(
            context,
            &text,
            &json!({ "event": "medium", "device": medium.device, "bytes": medium.len_bytes,
            "model": medium.model, "serial": medium.serial, "unfit": medium.unfit }),
        );
    }
    let patterns = patterns(args, settings, ConfigJson::peek(root, config_json)?.as_ref())?;
    let target = flash::choose(&media, &patterns)?;
    let version = &manifest.version;
    say(
        context,
        &format!("target: {target}; version {version}"),
        &json!({ "event": "target", "device": target.device,
        "serial": target.serial, "version": version, "image_bytes": manifest.root.size }),
    );
    if !args.yes {
        return Err(Error::refused("nothing is written yet; add --yes to write over all of that disk"));
    }
    let doing = || format!("{}: this disk does not boot now, run it again", target.device.display());
    let head = write(&mut bundle, target, context)?;
    let done = carry(&carried, &head, target, context).and_then(|()| {
        let mut disk = flash::claim(target)?;
        flash::finish(&head, &mut disk, target.sector_bytes)
    });
    done.doing(doing)?;
    let text = format!("{} is written; take the installer's medium out", target.device.display());
    say(context, &text, &json!({ "event": "done", "device": target.device }));
    Ok(())
}

/// Kernel names of the disks that may be written to, in order.
fn patterns(args: &Args, settings: &Settings, config: Option<&ConfigJson>) -> Result<Vec<String>> {
    if let Some(target) = &args.target {
        return Ok(vec![target.clone()]);
    }
    let installer = config.and_then(|c| c.value("installer"));
    let listed = installer.as_ref().and_then(|i| i.get("target_devices")).and_then(|t| t.as_str());
    match listed.map(|l| l.split_whitespace().map(str::to_owned).collect::<Vec<_>>()) {
        Some(list) if !list.is_empty() => Ok(list),
        _ => Ok(settings.flash.devices.clone()),
    }
}

fn write(bundle: &mut Bundle<bundle::Source>, target: &Medium, context: &Context) -> Result<Head> {
    let mut ticker = Ticker::new(context.json);
    let mut progress = |done: u64, total: u64| {
        let percent = done.saturating_mul(100) / total.max(1);
        let verb = if done * 2 <= total { "writing" } else { "reading back" };
        let event = json!({ "event": "progress", "done": done, "of": total });
        ticker.show(&format!("{verb} {}: {percent:3} %", target.name), percent, done >= total, &event);
    };
    let mut disk = flash::claim(target)?;
    let head = flash::write(bundle, &mut disk, target.sector_bytes, &mut progress)
        .doing(|| format!("write {}, which does not boot until a run ends well", target.device.display()))?;
    ticker.end();
    Ok(head)
}

/// Mounts the new boot partition and puts into it what is carried over; and makes the firmware's entry.
fn carry(carried: &Carried, head: &Head, target: &Medium, context: &Context) -> Result<()> {
    let mut disk = FileDisk::open_read_only(&target.device)?;
    let (partition, kind) = boot_partition(head, &mut disk, target.sector_bytes)?;
    let TableEntry { number, start_bytes, len_bytes, .. } = partition;
    // The kernel is told of this one: a table that it could read must not be there yet.
    let device = sys::device::Partition::add(&target.device, number, start_bytes, len_bytes)?;
    let place = context.root.path("/run/twinhull/flash");
    let _mounted =
        Temporary::new(device.device(), &place, kind.name(), MountFlags::empty(), mount_options(kind))?;
    carried.write(&place)?;
    let names = carried.names();
    say(
        context,
        &format!("carried over: {}", names.join(", ")),
        &json!({ "event": "carried", "names": names }),
    );
    let variables = context.root.path("/sys/firmware/efi/efivars");
    if !sys::file::list(&variables)?.is_empty() {
        boot_entry(&variables, &place, &partition, target.sector_bytes, context);
    }
    Ok(())
}

/// The disk boots without an entry too, where the firmware looks for loaders by itself.
fn boot_entry(variables: &Path, boot: &Path, partition: &TableEntry, sector_bytes: u64, context: &Context) {
    match flash::make_entry(&mut Efivarfs::new(variables), boot, partition, sector_bytes) {
        Ok(Some(number)) => {
            let text = format!("boot entry {number:04X} is the first");
            say(context, &text, &json!({ "event": "boot-entry", "number": number }));
        }
        Ok(None) => {}
        Err(e) => log::warn!("{e}; the firmware has to find the disk by itself"),
    }
}

const fn mount_options(kind: FileSystemKind) -> &'static str {
    match kind {
        // FAT has no modes; "quiet" lets copies keep what it has.
        FileSystemKind::Vfat => "quiet",
        _ => "",
    }
}

/// The partition with `config.json` in the image that was written.
fn boot_partition(
    head: &Head,
    disk: &mut FileDisk,
    sector_bytes: u64,
) -> Result<(TableEntry, FileSystemKind)> {
    let mut disk = head.over(disk);
    let table = Table::read(&mut disk, sector_bytes)?
        .ok_or_else(|| Error::failed("the image has no partition table; it is not one of a device's disk"))?;
    for partition in table.partitions() {
        let found = probe(&mut disk, partition.start_bytes, partition.len_bytes)?;
        let Some(found) = found else { continue };
        if partition.name == label::BOOT || found.label.eq_ignore_ascii_case(label::BOOT) {
            return Ok((partition, found.kind));
        }
    }
    Err(Error::failed(format!("the image has no partition {} with a file system", label::BOOT)))
}

fn say(context: &Context, text: &str, event: &serde_json::Value) {
    sys::notify::status(text);
    if context.json {
        sys::out::line(&event.to_string());
    } else {
        log::info!("{text}");
    }
}
