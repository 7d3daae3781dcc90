//! `twinhull preload`

#[cfg(feature = "build-host")]
mod pack;

use std::path::{Path, PathBuf};

use lexopt::prelude::*;
use serde_json::json;

use super::progress::Ticker;
use super::turn;
use crate::bundle::Keys;
use crate::cli::{Command, Context, usage};
use crate::config::Settings;
use crate::model::device::arch;
use crate::preload::{self, Archive, End, State};
use crate::{Doing, Error, Result, provision, sys};

pub(super) const COMMAND: Command = Command {
    name: "preload",
    summary: "unpack what this device was delivered with into its data partition; make such archives",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull preload: unpack what this device was delivered with into its data partition; make such archives

Usage: twinhull preload unpack [--json]
       twinhull preload verify FILE --keys DIR [--signatures N] [--json]
       twinhull preload pack -o OUT --compatible TYPE[,TYPE] --key SECRETKEY [OPTIONS] NAME=PATH [NAME=PATH]...

unpack: takes every archive *.preload in the directory of the setting preload.archives, in the order of names, that was not
  unpacked here before. Signatures are checked as a bundle's are (keys in bundle.keys, bundle.signatures of them); it must be
  for this device type and architecture; there must be room for all of it before anything is written; and each chunk is
  compared with its signed digest before anything looks into it. Everything is made in a hidden directory of the data
  partition and moved to its place when all of it is on the medium, so no half of an archive is ever taken for the whole. A
  run that was cut, at whatever moment, is gone on from. What is on the data partition already is never replaced: an archive
  whose place is taken is passed over, and told. An archive that lies on the data partition is removed when it was unpacked.
  The engine must not run yet: twinhull-preload.service is ordered before it. Progress is shown on the console as well.
  Exit: 0 (also if there is nothing to do), 1 failed (damaged, disk error), 3 refused (signature, device, room).

verify: checks signatures and every chunk and entry of an archive; writes nothing.

pack: makes an archive. Each NAME at the top of the data partition gets the file or tree at PATH, with owners, modes, extended
  attributes, hard links, devices and overlay2's whiteouts; holes stay holes. The same trees give the same bytes.
  An engine's storage must not be in use: stop the engine first. Its own name (engine-id) is left out, as it must not be the
  same on every device; so are sockets.
  -o, --output OUT     the archive; name it *.preload
  --compatible TYPES   device types that it is for, as in device-type.json
  --arch A             amd64, i386, aarch64, armv7hf or rpi (default: that of this twinhull)
  --key SECRETKEY      a minisign key; may be given several times
  --password-file FILE the password of the keys, on the first line
  --level N            zstd level 1 to 19 (default 12)
  --segment-size MIB   how much unpacking goes on from: what a power cut can cost (default 64)

The archive is a tar file: manifest.toml, its signatures (`minisign -V` checks them), and data.tar.zst, which `tar --zstd
--xattrs --xattrs-include='*' -x` unpacks just as well.

Examples:
  dockerd --data-root /tmp/engine …; docker pull …; (stop it)
  twinhull preload pack docker=/tmp/engine apps.json=apps.json --compatible intel-nuc --key fleet.key -o apps.preload
  twinhull preload verify apps.preload --keys keys.d
";

fn run(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let word = match parser.next().map_err(usage("preload"))? {
        Some(Value(word)) => word.to_string_lossy().into_owned(),
        Some(other) => return Err(usage("preload")(other.unexpected())),
        None => return Err(Error::usage("preload: unpack, verify or pack; see `twinhull preload --help`")),
    };
    match word.as_str() {
        "unpack" => match parser.next().map_err(usage("preload"))? {
            Some(arg) => Err(usage("preload")(arg.unexpected())),
            None => unpack(context),
        },
        "verify" => verify(parser, context),
        #[cfg(feature = "build-host")]
        "pack" => pack::run(parser, context),
        #[cfg(not(feature = "build-host"))]
        "pack" => Err(Error::usage("preload pack: this twinhull was built without the feature build-host")),
        _ => Err(Error::usage(format!("preload: no subcommand {word:?}; see `twinhull preload --help`"))),
    }
}

fn unpack(context: &Context) -> Result<u8> {
    let settings = context.settings()?;
    let archives = sys::file::fragments(&context.root.path(&settings.preload.archives), "preload")?;
    if archives.is_empty() {
        tell(context, "nothing to unpack", json!({ "event": "nothing" }));
        return Ok(0);
    }
    let _turn = turn::wait(&context.root)?;
    let data = context.root.path("/mnt/data");
    if context.root.is_host() && !sys::file::is_mount_point(&data)? {
        return Err(Error::failed(
            "preload: nothing is mounted on /mnt/data; boot with twinhull's initramfs",
        ));
    }
    // One that cannot be unpacked does not keep the others.
    let mut first = None;
    for path in &archives {
        if let Err(e) = one(path, &data, &settings, context).doing(|| format!("preload {}", path.display())) {
            log::error!("{e}");
            first.get_or_insert(e);
            preload::give_up(&data)?;
        }
    }
    first.map_or(Ok(0), Err)
}

fn one(path: &Path, data: &Path, settings: &Settings, context: &Context) -> Result<()> {
    let keys = Keys::load(&context.root.path(&settings.bundle.keys), settings.bundle.signatures)?;
    let archive = Archive::open(path, &keys)?;
    let manifest = archive.manifest();
    manifest.check_suits(&provision::device_type(&context.root, settings)?, arch())?;
    let (bytes, inodes) = manifest.needs(0);
    let (name, size) = (path.display(), manifest.size);
    let mut ticker = Ticker::new(context.json);
    let mut progress = |read: u64| {
        let percent = read.saturating_mul(100) / size.max(1);
        let event = json!({ "event": "progress", "archive": path, "read": read, "of": size });
        ticker.show(&format!("unpacking {name}: {percent:3} %"), percent, read >= size, &event);
    };
    let end = preload::unpack(&archive, data, &|_| Ok(()), &mut progress)?;
    ticker.end();
    match end {
        End::Unpacked => {
            let text = format!("unpacked {name}: {inodes} files, {} MiB on {}", bytes >> 20, data.display());
            tell(
                context,
                &text,
                json!({ "event": "unpacked", "archive": path, "files": inodes, "bytes": bytes }),
            );
        }
        End::Before => {
            let text = format!("{name} was unpacked before");
            tell(context, &text, json!({ "event": "before", "archive": path }));
        }
        End::Taken(place) => {
            let text =
                format!("{name} is passed over: {} is there already, and is not replaced", place.display());
            tell(context, &text, json!({ "event": "passed-over", "archive": path, "taken": place }));
            return Ok(());
        }
    }
    // It was seen to be unpacked: on the data partition it only takes up room.
    if sys::file::without_links(path).starts_with(sys::file::without_links(data)) {
        sys::durable::remove(path)?;
    }
    Ok(())
}

/// The archives of this device and where each stands, for `twinhull status`.
///
/// # Errors
/// `Failed` if they cannot be listed, or there are no keys to check them with.
pub(super) fn states(context: &Context, settings: &Settings) -> Result<Vec<(PathBuf, Result<State>)>> {
    let archives = sys::file::fragments(&context.root.path(&settings.preload.archives), "preload")?;
    if archives.is_empty() {
        return Ok(Vec::new());
    }
    let keys = Keys::load(&context.root.path(&settings.bundle.keys), settings.bundle.signatures)?;
    let look = |path: &Path| preload::look(&Archive::open(path, &keys)?, &context.root.path("/mnt/data"));
    Ok(archives.into_iter().map(|path| (path.clone(), look(&path))).collect())
}

fn verify(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let wrong = usage("preload");
    let (mut file, mut keys, mut signatures) = (None, None, 1);
    while let Some(arg) = parser.next().map_err(&wrong)? {
        match arg {
            Value(value) if file.is_none() => file = Some(PathBuf::from(value)),
            Long("keys") => keys = Some(PathBuf::from(parser.value().map_err(&wrong)?)),
            Long("signatures") => signatures = parser.value().and_then(|v| v.parse()).map_err(&wrong)?,
            other => return Err(wrong(other.unexpected())),
        }
    }
    let (Some(file), Some(keys)) = (file, keys) else {
        return Err(Error::usage(
            "preload verify: FILE and --keys DIR are needed; see `twinhull preload --help`",
        ));
    };
    if signatures == 0 {
        return Err(Error::usage("preload verify: --signatures 0: at least one is always needed"));
    }
    let archive = Archive::open(&file, &Keys::load(&keys, signatures)?)?;
    let entries = preload::verify(&archive, &mut |_| ()).doing(|| file.display().to_string())?;
    let m = archive.manifest();
    let (bytes, inodes) = m.needs(0);
    let types: Vec<_> = m.compatible.iter().map(ToString::to_string).collect();
    let by: Vec<_> = archive.signed_by().iter().map(ToString::to_string).collect();
    let text = format!(
        "{}: good: {} for {} ({}), {inodes} files, {} MiB unpacked, signed by {}",
        file.display(),
        m.names.join(", "),
        types.join(", "),
        m.arch,
        bytes >> 20,
        by.join(", ")
    );
    let json = json!({ "archive": file, "ok": true, "names": m.names, "compatible": types, "arch": m.arch,
        "entries": entries, "files": inodes, "bytes": bytes, "segments": m.segment.len(), "signed_by": by });
    sys::out::line(&if context.json { json.to_string() } else { text });
    Ok(0)
}

/// Says how it is: to who reads the output, and as the unit's status.
fn tell(context: &Context, text: &str, event: serde_json::Value) {
    sys::notify::status(text);
    if context.json {
        sys::out::line(&event.to_string());
    } else {
        log::info!("{text}");
    }
}
