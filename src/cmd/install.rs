//! `twinhull install`

use std::ffi::OsStr;
use std::path::PathBuf;

use serde_json::json;

use super::feed::{Feed, INDEX};
use super::file_sets::{self, FileSets};
use super::health;
use super::host::{Host, os_version};
use super::progress::Bar;
use super::turn;
use crate::block::{Disk, FileDisk};
use crate::bundle::{Bundle, Keys, Reach, Source, source};
use crate::cli::{Command, Context, usage};
use crate::model::RESET_REQUEST;
use crate::model::device::{DeviceType, arch};
use crate::model::manifest::DeviceFacts;
use crate::model::record::Release;
use crate::sys::clock::{BootClock, Clock};
use crate::update::{Armed, Goal, Image, Install};
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

  FILE|URL|-            the bundle: a file, an http(s):// address, or - for standard input; it is never stored
  --delta FILE|URL      a delta to this bundle (`twinhull bundle delta`): used where the running slot holds the image that
                        it was made against; what does not fit comes from the bundle
  --explain             say what would be fetched, reused and written, and whether it would be refused; write nothing
  --max-download BYTES  refuse, before anything is written, if more than so many bytes would have to be fetched
                        from servers (K, M and G stand for KiB, MiB and GiB); boot files and hooks count in full, whatever is
                        there of them
  --token-file FILE     a bearer token that the server is shown, instead of the setting bundle.token_file
  --reboot              reboot into the new system when it is armed
  --allow-downgrade     accept a version older than the running one; never a release counter below the floor
  --force               install even if a service that runs here loses what it requires

What happens: the signature is checked (keys in bundle.keys) before anything else is believed; the bundle must be meant for
this device and fit the slot; every block is checked before it is written; the slot is flushed and read back from the
medium; then, with one write, the bootloader is told to try it for boot.tries boots. The running system is not touched.
Files for the boot partition, if the bundle has any, go to the directory of that slot, and are read back too.
After the reboot `twinhull resume` checks its health, runs the bundle's hooks, and commits, or goes back.

From a server that gives parts of files (nearly all do), only what this device lacks is fetched: blocks are looked for
in the slot that is written and in the one that runs, and hashed each time. So any bundle updates from any version as
a delta would, and an install that was cut short in any way goes on where it was: install again.
A connection that breaks is opened again until nothing has come for bundle.stall_s seconds.
A token is sent over https alone, and only to the host and port of the bundle's address: not where that redirects to, and
not to a delta's other server. A server that asks for a client certificate gets bundle.client_cert (with bundle.client_key).
Servers are trusted by provision.ca_bundle and by balenaRootCA of config.json.

The floor of the release counter is that of the newest system that was ever committed here, or bundle.release_floor of the
image if that is higher; no option goes below it. It survives a factory reset. No check looks at the clock.

An update that takes from a service what its labels require (io.balena.features.requires.*) and this OS has is refused; an
optional service is told. See `twinhull contracts --help`.

Exit: 0 armed, 1 failed, 3 refused (not signed by enough of the keys, another device type, too large, a downgrade, a
release below the floor, a trial under way, a target slot that is mounted, a service that would be stranded, more than
--max-download, no room for the boot files), 4 if journal and boot plan contradict each other, 5 if a rollback waits for its
reboot. With --json: one line per event: {event:
look|plan|explain|begin|progress|flushed|read-back|armed|already-armed, ..}.

  twinhull install https://updates.example.com/nuc-2.1.0.bundle
  twinhull install --explain --max-download 100M https://updates.example.com/nuc-2.1.0.bundle
  ssh device twinhull install --reboot - < nuc-2.1.0.bundle
";

/// What was asked for.
pub(super) struct Args {
    bundle: String,
    pub(super) delta: Option<String>,
    pub(super) explain: bool,
    pub(super) max_download: Option<u64>,
    token_file: Option<PathBuf>,
    reboot: bool,
    allow_downgrade: bool,
    force: bool,
}

impl Args {
    fn parse(mut parser: lexopt::Parser) -> Result<Self> {
        use lexopt::prelude::*;
        let (mut bundle, mut reboot, mut allow_downgrade, mut force) = (None, false, false, false);
        let (mut explain, mut max_download, mut delta, mut token_file) = (false, None, None, None);
        while let Some(arg) = parser.next().map_err(usage("install"))? {
            match arg {
                Long("reboot") => reboot = true,
                Long("allow-downgrade") => allow_downgrade = true,
                Long("force") => force = true,
                Long("delta") => {
                    delta = Some(parser.value().and_then(|v| v.string()).map_err(usage("install"))?);
                }
                Long("explain") => explain = true,
                Long("token-file") => {
                    token_file = Some(parser.value().map_err(usage("install"))?.into());
                }
                Long("max-download") => {
                    max_download = Some(bytes(&parser.value().map_err(usage("install"))?)?)
                }
                Value(v) if bundle.is_none() => bundle = Some(v.string().map_err(usage("install"))?),
                _ => return Err(usage("install")(arg.unexpected())),
            }
        }
        let bundle = bundle.ok_or_else(|| {
            Error::usage("install: which bundle? give a FILE, a URL or -; see `twinhull install --help`")
        })?;
        Ok(Self { bundle, delta, explain, max_download, token_file, reboot, allow_downgrade, force })
    }
}

/// `100M` as a number of bytes.
fn bytes(text: &OsStr) -> Result<u64> {
    let text = text.to_string_lossy();
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (&*text, ""),
    };
    let shift = match unit {
        "" => Some(0),
        "K" | "KiB" => Some(10),
        "M" | "MiB" => Some(20),
        "G" | "GiB" => Some(30),
        _ => None,
    };
    let parsed = number.parse::<u64>().ok().zip(shift);
    parsed.and_then(|(n, shift)| n.checked_mul(1 << shift)).ok_or_else(|| {
        Error::usage(format!(
            "install: --max-download {text:?}: expected a number of bytes, as 5000000, 800K, 100M or 2G"
        ))
    })
}

fn run(parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let args = Args::parse(parser)?;
    let mut host = Host::open(context)?;
    let _turn = turn::take(&context.root)?;
    // Before a server can keep us waiting: a trial that runs needs its turn to be decided.
    may_begin(&args, context, &mut host).doing(|| format!("install {}", source::name_of(&args.bundle)))?;
    // The token is for the server of the bundle; where that is a file, for the delta's.
    let server = [Some(&args.bundle), args.delta.as_ref()].into_iter().flatten().find(|a| a.contains("://"));
    let server = server.map_or("", String::as_str);
    let reach =
        super::reach::reach(context, &host.settings, server, args.token_file.as_deref(), args.max_download)
            .doing(|| "install")?;
    let source = source::open(&args.bundle, &reach).doing(|| "install")?;
    // Without what the address may hold of secrets.
    let name = source.name().to_owned();
    let doing = || format!("install {name}");
    let said = match install(&args, source, &reach, context, &mut host).doing(doing)? {
        Done::Explained => return Ok(0),
        Done::Armed(armed) => format!("slot {} boots next, {} tries", armed.slot, armed.tries),
        Done::Already => {
            if context.json {
                let event = json!({ "event": "already-armed", "slot": host.machine.target() });
                sys::out::line(&event.to_string());
            }
            "this bundle is already installed and armed".into()
        }
    };
    if args.reboot && !args.explain {
        let why = format!("to try slot {}", host.machine.target());
        return super::resume::reboot(context, &mut host, &why);
    }
    if !context.json {
        sys::out::line(&format!("{said}; reboot to try it"));
    }
    Ok(0)
}

enum Done {
    Armed(Armed),
    /// This very bundle is armed already.
    Already,
    Explained,
}

/// Sees that an install may begin, with what an earlier update left put in order first.
fn may_begin(args: &Args, context: &Context, host: &mut Host) -> Result<()> {
    if context.root.path(RESET_REQUEST).exists() {
        return Err(Error::refused(
            "a factory reset is requested for the next boot; reboot first, or take it back with `twinhull reset --cancel`",
        ));
    }
    if !args.explain {
        host.settle()?;
    }
    host.machine.check_may_install()
}

fn install(args: &Args, source: Source, reach: &Reach, context: &Context, host: &mut Host) -> Result<Done> {
    let settings = host.settings.clone();
    let keys = Keys::load(&context.root.path(&settings.bundle.keys), settings.bundle.signatures)?;
    let (slot, device, slot_len_bytes) = host.target()?;
    let bundle = Bundle::open(source, &keys)?;
    let manifest = bundle.manifest().clone();
    manifest.check_suits(&facts(context, host, slot_len_bytes)?, args.allow_downgrade)?;
    super::stranded::check(context, &settings, &manifest, args.force)?;
    let release = Release {
        version: manifest.version.clone(),
        manifest: bundle.manifest_digest(),
        counter: manifest.release,
    };
    if host.machine.waits_for(&release)? {
        return Ok(Done::Already);
    }
    let image = Image { len_bytes: manifest.root.size, digest: manifest.root.sha256 };
    let mut bar = Bar::new(context.json, image.len_bytes, bundle.stream().len_bytes());
    let running = host.disk.slot_partition(host.machine.booted)?.device.clone();
    let kept = context.root.path(INDEX);
    let mut sets = FileSets::plan(context, host, &manifest, args.explain)?;
    let mut disk = FileDisk::claim(&device, !args.explain).doing(|| format!("slot {slot}"))?;
    let feed = Feed::prepare(bundle, args, reach, &kept, (&mut disk, &running), &mut bar)?;
    if args.explain {
        feed.explain(&manifest, slot, context.json);
        return Ok(Done::Explained);
    }
    let before = health::before(context, &settings);
    let started = BootClock.since_boot();
    let verity = manifest.root.verity;
    let goal = Goal { root: image, verity, sets: sets.images(), hooks: file_sets::hooks(&manifest) };
    let FileSets { disks, sources, .. } = &mut sets;
    let mut disks: Vec<&mut dyn Disk> = disks.iter_mut().map(|d| d as &mut dyn Disk).collect();
    let begun = Install::begin(&mut host.machine, release, goal)?;
    bar.begin(&manifest.version, slot);
    let written = begun
        .write(&mut disk, &mut disks, |disk, sets| feed.write(disk, sets, sources, &mut bar))
        .doing(|| format!("write slot {slot}"))?;
    bar.flushed();
    let armed = written
        .read_back(&mut disk, &mut disks, |bytes| bar.read_back(bytes))?
        .arm(settings.boot.tries, before)?;
    if let Err(e) = sys::durable::remove(&kept) {
        log::warn!("{e}; it only takes up room");
    }
    bar.armed(&armed, BootClock.since_boot().saturating_sub(started));
    Ok(Done::Armed(armed))
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
    let release_floor = host.machine.release_floor()?.max(host.settings.bundle.release_floor);
    Ok(DeviceFacts {
        device_type: DeviceType(device_type),
        arch: arch().into(),
        version,
        slot_len_bytes,
        release_floor,
    })
}
