//! `twinhull bundle`

#[cfg(feature = "build-host")]
mod make;

use std::path::PathBuf;

use lexopt::prelude::*;

use crate::bundle::{self, Bundle, Keys, Signature, source};
use crate::cli::{Command, Context, usage};
use crate::model::{Manifest, PayloadKind};
use crate::{Doing, Error, Result, sys};

#[cfg(feature = "build-host")]
pub(super) use make::Signers;

pub(super) const COMMAND: Command = Command {
    name: "bundle",
    summary: "make, sign, show and check update files (build host; devices use install)",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull bundle: make, sign, show and check update files

Usage: twinhull bundle create --image FILE|--disk FILE --version V --compatible TYPE[,TYPE] -o OUT [OPTIONS]
       twinhull bundle sign BUNDLE --key SECRETKEY [--key SECRETKEY]... [--password-file FILE]
       twinhull bundle sign BUNDLE --signature FILE.minisig --public FILE.pub
       twinhull bundle delta --from OLD --to NEW.bundle -o OUT [--level N]
       twinhull bundle keygen --public FILE.pub --secret FILE.key
       twinhull bundle inspect FILE|URL|- [--keys DIR] [--json]
       twinhull bundle verify FILE|URL|- --keys DIR [--signatures N] [--json]

create: makes a bundle of a root image, or of a whole disk. The same input gives the same bytes (but for signatures).
  --image FILE         the image of a root partition: ext4, squashfs, erofs; 1 KiB to 1 TiB, may be sparse
  --disk FILE          instead: the image of a whole disk, which an installer writes (`twinhull flash`)
  --version V          version of the OS in it, as 2.1.0 or 2.1.0+rev1
  --compatible TYPES   device types that it is for, as in device-type.json: intel-nuc,genericx86-64-ext
  --arch A             amd64, i386, aarch64, armv7hf or rpi (default: that of this twinhull)
  --release N          a counter that never decreases: a device that committed N takes nothing below N any more, whatever
                       the version; raise it when older systems must not come back (default 0)
  --min-version V      the oldest OS version that may be updated to this one directly
  --provides KEY=V     version of os, kernel, l4t or supervisor in it; may be given several times
                       (os is --version if it is not given)
  --level N            zstd level 1 to 22 (default 19)
  --prefix-size KIB    how much before a block helps to compress it, 0 to 8192 KiB (default 4096); the device needs
                       twice as much memory
  --verity-root HASH   the image ends with a hash tree (`veritysetup format --hash-offset`, SHA-256), and this is its root hash:
  --verity-offset N    its place in the image, in bytes. Devices keep both with the slot, and PID 1 mounts the root so that
                       the kernel checks each block as it is read (dm-verity); the slot must have 4096 bytes more
  --boot-dir DIR       every file in DIR goes to the boot partition, for the slot that is written: kernel, initramfs, device
                       trees; for devices that boot from there (systemd-boot, EFI, Raspberry Pi without U-Boot)
  --boot-file PATH=FILE  one such file, as dtbs/board.dtb=build/board.dtb; may be given several times
  --hook NAME=FILE     a program that the new system runs before it is committed, in the order of names; if it does not exit
                       with 0, the update is rolled back; may be given several times
  --hook-deadline S    seconds that each --hook after it may take (default 60)
  --key SECRETKEY      sign it at once; may be given several times
  --password-file FILE the password of the keys, on the first line
  -o, --output OUT     the bundle; an old file is replaced when the new one is whole, anything else (a device, a
                       link) never

sign: adds signatures to a bundle, after checking all of it against its manifest. Keys are minisign's
  (`minisign -G`, with or without -W). A signature made elsewhere (tar -xf BUNDLE manifest.toml;
  minisign -S -m manifest.toml) is added with --signature and --public.

delta: makes a file with which `twinhull install NEW.bundle --delta OUT` fetches less on devices that run OLD (an image or a
  bundle of it). It needs no signature: what comes out of it is compared with the signed hashes of NEW.

keygen: makes a minisign key pair without a password. The public half belongs into the image, in the
  directory of the setting bundle.keys; the secret half never does.

inspect: shows what a bundle says of itself. Signatures are checked only with --keys.

verify: checks signatures, indexes, every block, the whole images, each file and the end of the bundle; writes nothing.
  --keys DIR           directory of minisign public keys, *.pub; those that are there as *.revoked do not count
  --signatures N       how many different keys must have signed (default 1)

With --json, sign tells {bundle, signed_by: [..]}, keygen {public, secret}.

Examples:
  twinhull bundle keygen --public fleet.pub --secret fleet.key
  twinhull bundle create --image root.ext4 --version 2.1.0 --compatible intel-nuc --key fleet.key -o os-2.1.0.bundle
  twinhull bundle inspect os-2.1.0.bundle
  curl https://example.org/os-2.1.0.bundle | twinhull bundle verify - --keys /usr/share/twinhull/keys.d
";

fn run(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let Some(word) = parser.next().map_err(usage("bundle"))? else {
        return Err(Error::usage(
            "bundle: create, sign, delta, keygen, inspect or verify; see `twinhull bundle --help`",
        ));
    };
    let word = match word {
        Value(word) => word.to_string_lossy().into_owned(),
        other => return Err(usage("bundle")(other.unexpected())),
    };
    match word.as_str() {
        #[cfg(feature = "build-host")]
        "create" => make::create(parser, context),
        #[cfg(feature = "build-host")]
        "sign" => make::sign(parser, context),
        #[cfg(feature = "build-host")]
        "delta" => make::delta(parser, context),
        #[cfg(feature = "build-host")]
        "keygen" => make::keygen(parser, context),
        #[cfg(not(feature = "build-host"))]
        "create" | "sign" | "delta" | "keygen" => Err(Error::usage(format!(
            "bundle {word}: this twinhull was built without the feature build-host"
        ))),
        "inspect" => inspect(parser, context),
        "verify" => verify(parser, context),
        _ => Err(Error::usage(format!("bundle: no subcommand {word:?}; see `twinhull bundle --help`"))),
    }
}

/// What `inspect` and `verify` were given.
struct Asked {
    what: String,
    keys: Option<PathBuf>,
    signatures: usize,
}

fn asked(mut parser: lexopt::Parser) -> Result<Asked> {
    let wrong = usage("bundle");
    let (mut what, mut keys, mut signatures) = (None, None, 1);
    while let Some(arg) = parser.next().map_err(&wrong)? {
        match arg {
            Value(value) if what.is_none() => what = Some(value.string().map_err(&wrong)?),
            Long("keys") => keys = Some(parser.value().map_err(&wrong)?.into()),
            Long("signatures") => {
                signatures = parser.value().and_then(|v| v.parse()).map_err(&wrong)?;
            }
            other => return Err(wrong(other.unexpected())),
        }
    }
    let what =
        what.ok_or_else(|| Error::usage("bundle: which? give FILE, URL or -; see `twinhull bundle --help`"))?;
    if signatures == 0 {
        return Err(Error::usage("bundle: --signatures 0: at least one is always needed"));
    }
    Ok(Asked { what, keys, signatures })
}

fn open(what: &str, context: &Context) -> Result<bundle::Source> {
    let settings = context.settings()?;
    source::open(what, &super::reach::reach(context, &settings, what, None, None)?)
}

fn inspect(parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let asked = asked(parser)?;
    let keys = asked.keys.as_ref().map(|dir| Keys::load(dir, asked.signatures)).transpose()?;
    let source = open(&asked.what, context)?;
    let (name, len_bytes) = (source.name().to_owned(), source.len_bytes());
    let doing = || format!("bundle {name}");
    let (manifest, digest, signatures, checked) = match &keys {
        Some(keys) => {
            let b = Bundle::open(source, keys).doing(doing)?;
            (b.manifest().clone(), b.manifest_digest(), b.signatures().to_vec(), b.signed_by().to_vec())
        }
        None => {
            let d = bundle::describe(source).doing(doing)?;
            (d.manifest, d.manifest_digest, d.signatures, Vec::new())
        }
    };
    let state = |s: &Signature| match (&keys, checked.contains(&s.id())) {
        (None, _) => "not checked",
        (Some(_), true) => "good",
        (Some(_), false) => "by a key that is not among ours",
    };
    if context.json {
        let signatures: Vec<_> = signatures
            .iter()
            .map(|s| {
                serde_json::json!({ "key": s.id().to_string(), "comment": s.trusted_comment(), "state": state(s) })
            })
            .collect();
        sys::out::line(
            &serde_json::json!({
                "bundle": name,
                "len_bytes": len_bytes,
                "manifest_sha256": digest,
                "manifest": facts(&manifest),
                "signatures": signatures,
                "signatures_checked": keys.is_some(),
            })
            .to_string(),
        );
        return Ok(0);
    }
    sys::out::line(&describe(&name, &manifest, len_bytes));
    sys::out::line(&format!("manifest:    {digest}"));
    if signatures.is_empty() {
        sys::out::line("signatures:  none; no device takes it before `twinhull bundle sign`");
    }
    for s in &signatures {
        sys::out::line(&format!("signature:   key {} ({}): {}", s.id(), s.trusted_comment(), state(s)));
    }
    if keys.is_none() && !signatures.is_empty() {
        sys::out::line(
            "             anybody may have made this: --keys DIR checks signatures, `verify` everything",
        );
    }
    Ok(0)
}

fn verify(parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let asked = asked(parser)?;
    let keys = asked
        .keys
        .as_ref()
        .ok_or_else(|| Error::usage("bundle verify: --keys DIR is needed; see `twinhull bundle --help`"))?;
    let keys = Keys::load(keys, asked.signatures)?;
    let source = open(&asked.what, context)?;
    let name = source.name().to_owned();
    let doing = || format!("bundle {name}");
    let mut bundle = Bundle::open(source, &keys).doing(doing)?;
    let mut shown = Percent::default();
    let result = bundle.check_all(&mut |p| shown.show("checked", p.done_bytes, p.total_bytes));
    shown.end();
    result.doing(doing)?;
    let by: Vec<String> = bundle.signed_by().iter().map(ToString::to_string).collect();
    let manifest = bundle.manifest();
    sys::out::line(&if context.json {
        serde_json::json!({
            "bundle": name,
            "ok": true,
            "manifest_sha256": bundle.manifest_digest(),
            "manifest": facts(manifest),
            "signed_by": by,
        })
        .to_string()
    } else {
        format!(
            "{name}: good: version {}, {} bytes of image{}, signed by {}",
            manifest.version,
            manifest.root.size,
            super::file_sets::count(manifest),
            by.join(", ")
        )
    });
    Ok(0)
}

fn facts(m: &Manifest) -> serde_json::Value {
    serde_json::json!({
        "compatible": m.compatible,
        "arch": m.arch,
        "version": m.version,
        "release": m.release,
        "min_version": m.min_version,
        "provides": m.provides,
        "payload": m.payloads().collect::<Vec<_>>(),
    })
}

fn describe(name: &str, m: &Manifest, len_bytes: Option<u64>) -> String {
    let types: Vec<String> = m.compatible.iter().map(ToString::to_string).collect();
    let mut lines = vec![
        format!("bundle:      {name}{}", len_bytes.map_or_else(String::new, |n| format!(", {n} bytes"))),
        format!("version:     {} (release {})", m.version, m.release),
        format!("for:         {} ({})", types.join(", "), m.arch),
    ];
    if let Some(min) = &m.min_version {
        lines.push(format!("updates:     from {min} or newer"));
    }
    let provides = [
        ("os", &m.provides.os),
        ("kernel", &m.provides.kernel),
        ("l4t", &m.provides.l4t),
        ("supervisor", &m.provides.supervisor),
    ];
    let provides: Vec<String> =
        provides.iter().filter_map(|(k, v)| v.as_ref().map(|v| format!("{k} {v}"))).collect();
    if !provides.is_empty() {
        lines.push(format!("provides:    {}", provides.join(", ")));
    }
    let what = if m.root.kind == PayloadKind::Disk { "disk:        " } else { "image:       " };
    lines.push(format!("{what}{} bytes, sha256 {}", m.root.size, m.root.sha256));
    lines
        .push(format!("carried:     {} bytes of frames, {} of index", m.root.frames_size, m.root.index_size));
    lines.extend(m.files.iter().map(super::file_sets::describe));
    lines.join("\n")
}

/// A percentage on a terminal; nothing elsewhere.
#[derive(Default)]
struct Percent {
    last: Option<u64>,
}

impl Percent {
    fn show(&mut self, verb: &str, done: u64, total: u64) {
        let percent = done.saturating_mul(100) / total.max(1);
        if self.last != Some(percent) && sys::out::is_terminal() {
            sys::out::redraw(&format!("{verb} {percent} %"));
            self.last = Some(percent);
        }
    }

    fn end(&self) {
        if self.last.is_some() {
            sys::out::redraw("");
        }
    }
}
