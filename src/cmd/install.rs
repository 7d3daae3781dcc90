//! `twinhull install`

use std::io::BufReader;

use super::health;
use super::host::{Host, os_version};
use super::progress::Bar;
use crate::block::{Disk, FileDisk};
use crate::bundle::{self, Bundle, Keys, Source};
use crate::cli::{Command, Context, usage};
use crate::model::device::{DeviceType, arch};
use crate::model::manifest::DeviceFacts;
use crate::model::record::Release;
use crate::sys::clock::{BootClock, Clock};
use crate::update::{Armed, Image, Install};
use crate::{Doing, Error, Result, provision, sys};

pub(super) const COMMAND: Command = Command {
    name: "install",
    summary: "write a bundle's system into the other slot and arm it for the next boot",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull install: write a bundle's system into the other slot and arm it for the next boot

Usage: twinhull install [OPTIONS] FILE|URL|-

  FILE|URL|-         the bundle: a file, an http(s):// address, or - for standard input; it is never stored
  --reboot           reboot into the new system when it is armed
  --allow-downgrade  accept a version older than the running one
  --force            install even if a service that runs here loses what it requires

What happens: the signature is checked (keys in bundle.keys) before anything else is believed; the bundle must be meant for
this device and fit the slot; every block is checked before it is written; the slot is flushed and read back from the
medium; then, with one write, the bootloader is told to try it for boot.tries boots. The running system is not touched.
After the reboot `twinhull resume` checks its health and commits, or goes back.

Cut short in any way, the device stays on the running system; install again.
An update that takes from a service what its labels require (io.balena.features.requires.*) and this OS has is refused; an
optional service is told. See `twinhull contracts --help`.

Exit: 0 armed, 1 failed, 3 refused (not signed by enough of the keys, another device type, too large, a downgrade, a trial
under way, a service that would be stranded). With --json: one line per event: {event: begin|progress|read-back|armed, ..}.

  twinhull install https://updates.example.com/nuc-2.1.0.bundle
  ssh device twinhull install --reboot - < nuc-2.1.0.bundle
";

struct Args {
    bundle: String,
    reboot: bool,
    allow_downgrade: bool,
    force: bool,
}

impl Args {
    fn parse(mut parser: lexopt::Parser) -> Result<Self> {
        use lexopt::prelude::*;
        let (mut bundle, mut reboot, mut allow_downgrade, mut force) = (None, false, false, false);
        while let Some(arg) = parser.next().map_err(usage("install"))? {
            match arg {
                Long("reboot") => reboot = true,
                Long("allow-downgrade") => allow_downgrade = true,
                Long("force") => force = true,
                Value(v) if bundle.is_none() => bundle = Some(v.string().map_err(usage("install"))?),
                _ => return Err(usage("install")(arg.unexpected())),
            }
        }
        let bundle = bundle.ok_or_else(|| {
            Error::usage("install: which bundle? give a FILE, a URL or -; see `twinhull install --help`")
        })?;
        Ok(Self { bundle, reboot, allow_downgrade, force })
    }
}

fn run(parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let args = Args::parse(parser)?;
    let mut host = Host::open(context)?;
    let lock = context.root.path("/run/twinhull/install.lock");
    let Some(_lock) = sys::lock::try_lock(&lock)? else {
        return Err(Error::refused("another install is under way; wait for it (`twinhull status`)"));
    };
    let http = provision::http_settings(&context.root, &host.settings)?;
    let source = BufReader::new(bundle::source::open(&args.bundle, &http)?);
    let armed = install(&args, source, context, &mut host).doing(|| format!("install {}", args.bundle))?;
    let Some(armed) = armed else {
        sys::out::line("this bundle is already installed and armed; reboot to try it");
        return Ok(0);
    };
    if args.reboot {
        return super::resume::reboot(&mut host, &format!("to try slot {}", armed.slot));
    }
    if !context.json {
        sys::out::line(&format!("slot {} boots next, {} tries; reboot to try it", armed.slot, armed.tries));
    }
    Ok(0)
}

/// `None`: this very bundle is armed already.
fn install(
    args: &Args,
    source: BufReader<Source>,
    context: &Context,
    host: &mut Host,
) -> Result<Option<Armed>> {
    // What an earlier update left is put in order first; a trial under way is refused by `begin`.
    host.settle()?;
    let settings = host.settings.clone();
    let keys = Keys::load(&context.root.path(&settings.bundle.keys), settings.bundle.signatures)?;
    let (slot, device, slot_len_bytes) = host.target()?;
    let total = source.get_ref().len_bytes();
    let mut bundle = Bundle::open(source, &keys)?;
    let facts = facts(context, host, slot_len_bytes)?;
    bundle.manifest().check_suits(&facts, args.allow_downgrade)?;
    super::stranded::check(context, &settings, bundle.manifest(), args.force)?;
    let release = Release { version: bundle.manifest().version.clone(), manifest: bundle.manifest_digest() };
    if host.machine.waits_for(&release)? {
        return Ok(None);
    }
    let before = health::before(context, &settings);
    let root = &bundle.manifest().root;
    let image = Image { len_bytes: root.size, digest: root.sha256 };
    let mut disk = FileDisk::open(&device)?;
    let started = BootClock.since_boot();
    let mut bar = Bar::new(context.json, total);
    bar.begin(&release.version, slot, image.len_bytes);
    let armed = Install::begin(&mut host.machine, release, image)?
        .write(&mut disk, |disk| feed(&mut bundle, disk, &mut bar))
        .doing(|| format!("write slot {slot}"))?
        .read_back(&mut disk, |bytes| bar.read_back(bytes, image.len_bytes))?
        .arm(settings.boot.tries, before)?;
    bar.armed(&armed, BootClock.since_boot().saturating_sub(started));
    Ok(Some(armed))
}

fn feed(bundle: &mut Bundle<BufReader<Source>>, disk: &mut FileDisk, bar: &mut Bar) -> Result<()> {
    bundle.write_root(&mut |offset, bytes| disk.write_at(offset, bytes), &mut |p| bar.progress(p))
}

fn facts(context: &Context, host: &Host, slot_len_bytes: u64) -> Result<DeviceFacts> {
    let device_type = provision::device_type(&context.root, &host.settings)?;
    let version = match os_version(&context.root) {
        Ok(version) => Some(version),
        Err(e) => {
            log::warn!("{e}; the bundle's version cannot be compared with the running one");
            None
        }
    };
    Ok(DeviceFacts { device_type: DeviceType(device_type), arch: arch().into(), version, slot_len_bytes })
}
