//! `twinhull bundle create`, `sign` and `keygen`

use std::path::{Path, PathBuf};

use lexopt::prelude::*;

use super::Percent;
use crate::block::{FileDisk, HashTree};
use crate::bundle::Signature;
use crate::bundle::delta_pack;
use crate::bundle::pack::{self, Recipe};
use crate::bundle::pack_files::{self, NamedFile};
use crate::bundle::sign::{self, Signer};
use crate::cli::{Context, usage};
use crate::model::device::{DeviceType, arch, check_arch};
use crate::model::manifest::Provides;
use crate::model::{Digest, Manifest, PayloadKind, Verity, Version};
use crate::{Doing, Error, Result, sys};

const PASSWORD_LIMIT_BYTES: u64 = 4096;
/// Seconds that a hook may take if nothing else was said.
const HOOK_DEADLINE_S: u64 = 60;

/// Who signs: key files, and the file with their password.
#[derive(Default)]
pub(in crate::cmd) struct Signers {
    pub keys: Vec<PathBuf>,
    pub password_file: Option<PathBuf>,
}

impl Signers {
    /// The keys themselves.
    ///
    /// # Errors
    /// As [`Signer::load`], `Failed` if the password file cannot be read, and `Usage` for the same key twice: a second
    /// signature of it proves nothing more.
    pub fn load(&self) -> Result<Vec<Signer>> {
        let password = match &self.password_file {
            Some(path) => {
                let text = sys::file::read_text(path, PASSWORD_LIMIT_BYTES)?;
                Some(text.lines().next().unwrap_or_default().to_owned())
            }
            None => None,
        };
        let mut signers: Vec<Signer> = Vec::new();
        for path in &self.keys {
            let signer = Signer::load(path, password.clone())?;
            if signers.iter().any(|other| other.is_of_same_key(&signer)) {
                return Err(Error::usage(format!("--key {}: the same key is given twice", path.display())));
            }
            signers.push(signer);
        }
        Ok(signers)
    }

    /// The files that they are read from.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.keys.iter().chain(&self.password_file).map(PathBuf::as_path)
    }
}

fn sign_all(signers: &[Signer], manifest: &Manifest, text: &[u8]) -> Result<Vec<Signature>> {
    signers.iter().map(|s| s.sign(manifest, text)).collect()
}

/// What `create` was given.
struct Creation {
    image: PathBuf,
    out: PathBuf,
    recipe: Recipe,
    signers: Signers,
}

/// `bundle create`
pub(super) fn create(parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let asked = parse_creation(parser)?;
    // Before the work, not after it: a wrong password shows at once.
    let signers = asked.signers.load()?;
    if let Some(verity) = &asked.recipe.verity {
        let mut image = FileDisk::open_read_only(&asked.image)?;
        HashTree::read(&mut image, verity)
            .and_then(|tree| tree.check(&mut image))
            .doing(|| format!("image {}", asked.image.display()))?;
    }
    let mut shown = Percent::default();
    let made = pack::create(
        &asked.image,
        &asked.out,
        &asked.recipe,
        &|manifest, text| sign_all(&signers, manifest, text),
        &mut |done, total| shown.show("packed", done, total),
    );
    shown.end();
    let made = made?;
    let out = asked.out.display();
    sys::out::line(&if context.json {
        serde_json::json!({
            "bundle": asked.out,
            "len_bytes": made.len_bytes,
            "manifest": super::facts(&made.manifest),
            "signatures": signers.len(),
        })
        .to_string()
    } else {
        let root = &made.manifest.root;
        let signed = match signers.len() {
            0 => format!("unsigned: no device takes it before `twinhull bundle sign {out} --key SECRETKEY`"),
            n => format!("signed by {n} key{}", if n == 1 { "" } else { "s" }),
        };
        format!(
            "{out}: version {}, {} bytes for {} of image{}, {signed}",
            made.manifest.version,
            made.len_bytes,
            root.size,
            crate::cmd::file_sets::count(&made.manifest)
        )
    });
    Ok(0)
}

fn parse_creation(mut parser: lexopt::Parser) -> Result<Creation> {
    let wrong = usage("bundle");
    let (mut image, mut out, mut version, mut min_version) = (None, None, None, None);
    let mut compatible: Vec<DeviceType> = Vec::new();
    let mut signers = Signers::default();
    let mut provides = Provides::default();
    let (mut arch_name, mut release, mut level) = (arch().to_owned(), 0, 19);
    let mut prefix_kib = 4096_u32;
    let (mut root_hash, mut hash_offset): (Option<Digest>, Option<u64>) = (None, None);
    let (mut boot_files, mut hooks, mut deadline_s) = (Vec::new(), Vec::new(), HOOK_DEADLINE_S);
    while let Some(arg) = parser.next().map_err(&wrong)? {
        let known = match arg {
            Long(name) => name.to_owned(),
            Short('o') => "output".to_owned(),
            other => return Err(wrong(other.unexpected())),
        };
        let mut path = || parser.value().map(PathBuf::from).map_err(&wrong);
        match known.as_str() {
            "image" | "disk" if image.is_some() => {
                return Err(Error::usage("bundle create: a bundle is made of one --image or one --disk"));
            }
            "image" => image = Some((PayloadKind::RootSlot, path()?)),
            "disk" => image = Some((PayloadKind::Disk, path()?)),
            "output" => out = Some(path()?),
            "key" => signers.keys.push(path()?),
            "password-file" => signers.password_file = Some(path()?),
            "version" => version = Some(os_version(&mut parser)?),
            "min-version" => min_version = Some(os_version(&mut parser)?),
            "compatible" => {
                let types = parser.value().and_then(|v| v.string()).map_err(&wrong)?;
                compatible.extend(types.split(',').map(|t| DeviceType(t.trim().to_owned())));
            }
            "arch" => arch_name = parser.value().and_then(|v| v.string()).map_err(&wrong)?,
            "release" => release = parser.value().and_then(|v| v.parse()).map_err(&wrong)?,
            "level" => level = parser.value().and_then(|v| v.parse()).map_err(&wrong)?,
            "prefix-size" => prefix_kib = parser.value().and_then(|v| v.parse()).map_err(&wrong)?,
            "provides" => provide(&mut provides, &parser.value().and_then(|v| v.string()).map_err(&wrong)?)?,
            "verity-root" => root_hash = Some(parser.value().and_then(|v| v.parse()).map_err(&wrong)?),
            "verity-offset" => hash_offset = Some(parser.value().and_then(|v| v.parse()).map_err(&wrong)?),
            "boot-dir" => boot_files.extend(pack_files::of_directory(&path()?)?),
            "boot-file" => boot_files.push(named_file(&mut parser, None)?),
            "hook" => hooks.push(named_file(&mut parser, Some(deadline_s))?),
            "hook-deadline" => deadline_s = parser.value().and_then(|v| v.parse()).map_err(&wrong)?,
            other => return Err(wrong(lexopt::Error::UnexpectedOption(format!("--{other}")))),
        }
    }
    check_arch(&arch_name)?;
    hooks.sort_by(|a: &NamedFile, b| a.path.cmp(&b.path));
    let version = needed(version, "--version")?;
    if compatible.is_empty() {
        return Err(missing("--compatible"));
    }
    if !(1..=22).contains(&level) {
        return Err(Error::usage(format!("bundle create: --level {level}: 1 to 22")));
    }
    if prefix_kib > 8192 || !prefix_kib.is_multiple_of(4) {
        return Err(Error::usage(format!(
            "bundle create: --prefix-size {prefix_kib}: 0 to 8192, in steps of 4"
        )));
    }
    provides.os.get_or_insert_with(|| version.to_string());
    let prefix_blocks = prefix_kib / 4;
    let (kind, image) = needed(image, "--image or --disk")?;
    if kind == PayloadKind::Disk && !(boot_files.is_empty() && hooks.is_empty()) {
        return Err(Error::usage(
            "bundle create: --disk takes no boot files and no hooks: they are in the image",
        ));
    }
    let verity = match (root_hash, hash_offset, kind) {
        (None, None, _) => None,
        (Some(root_hash), Some(hash_offset), PayloadKind::RootSlot) => {
            Some(Verity { root_hash, hash_offset })
        }
        _ => return Err(missing("--verity-root, --verity-offset and --image together: each")),
    };
    let recipe = Recipe {
        kind,
        verity,
        compatible,
        arch: arch_name,
        version,
        release,
        min_version,
        provides,
        level,
        prefix_blocks,
        boot_files,
        hooks,
    };
    let files = recipe.boot_files.iter().chain(&recipe.hooks).map(|named| named.file.as_path());
    let out = output(out, signers.files().chain([image.as_path()]).chain(files))?;
    Ok(Creation { image, out, recipe, signers })
}

/// `PATH=FILE`: what a file is called in the bundle, and where it is.
fn named_file(parser: &mut lexopt::Parser, deadline_s: Option<u64>) -> Result<NamedFile> {
    let text = parser.value().and_then(|v| v.string()).map_err(usage("bundle"))?;
    let (path, file) =
        text.split_once('=').filter(|(path, file)| !path.is_empty() && !file.is_empty()).ok_or_else(
            || Error::usage(format!("bundle create: {text:?}: expected NAME=FILE, as vmlinuz=build/bzImage")),
        )?;
    Ok(NamedFile { path: path.to_owned(), file: file.into(), deadline_s })
}

fn os_version(parser: &mut lexopt::Parser) -> Result<Version> {
    let text = parser.value().and_then(|v| v.string()).map_err(usage("bundle"))?;
    text.parse().map_err(|e: Error| e.within("bundle create").with_kind(crate::Kind::Usage))
}

fn provide(provides: &mut Provides, text: &str) -> Result<()> {
    let place = match text.split_once('=') {
        Some(("os", v)) => (&mut provides.os, v),
        Some(("kernel", v)) => (&mut provides.kernel, v),
        Some(("l4t", v)) => (&mut provides.l4t, v),
        Some(("supervisor", v)) => (&mut provides.supervisor, v),
        _ => {
            return Err(Error::usage(format!(
                "bundle create: --provides {text}: expected os, kernel, l4t or supervisor, and =VERSION"
            )));
        }
    };
    *place.0 = Some(place.1.to_owned());
    Ok(())
}

/// The file that `--output` names, made from `inputs`; looked at before the work, which takes minutes.
fn output<'a>(named: Option<PathBuf>, inputs: impl IntoIterator<Item = &'a Path>) -> Result<PathBuf> {
    let out = needed(named, "--output")?;
    if out.as_os_str() == "-" {
        return Err(Error::usage(
            "bundle: --output -: it is written to a file, never to a pipe; give its name",
        ));
    }
    sys::durable::check_output(&out, inputs)?;
    Ok(out)
}

fn needed<T>(value: Option<T>, option: &str) -> Result<T> {
    value.ok_or_else(|| missing(option))
}

fn missing(option: &str) -> Error {
    Error::usage(format!("bundle: {option} is needed; see `twinhull bundle --help`"))
}

/// `bundle sign`
pub(super) fn sign(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let wrong = usage("bundle");
    let (mut bundle, mut signature, mut public): (Option<PathBuf>, Option<PathBuf>, Option<PathBuf>) =
        (None, None, None);
    let mut signers = Signers::default();
    while let Some(arg) = parser.next().map_err(&wrong)? {
        match arg {
            Value(value) if bundle.is_none() => bundle = Some(value.into()),
            Long("key") => signers.keys.push(parser.value().map_err(&wrong)?.into()),
            Long("password-file") => signers.password_file = Some(parser.value().map_err(&wrong)?.into()),
            Long("signature") => signature = Some(parser.value().map_err(&wrong)?.into()),
            Long("public") => public = Some(parser.value().map_err(&wrong)?.into()),
            other => return Err(wrong(other.unexpected())),
        }
    }
    let bundle = needed(bundle, "BUNDLE")?;
    let imported = match (signature, public) {
        (Some(signature), Some(public)) => Some((signature, public)),
        (None, None) if !signers.keys.is_empty() => None,
        (None, None) => return Err(missing("--key, or --signature and --public,")),
        _ => return Err(missing("--signature and --public together: each")),
    };
    let by = add(&bundle, &signers.load()?, imported.as_ref())?;
    sys::out::line(&if context.json {
        serde_json::json!({ "bundle": bundle, "signed_by": by }).to_string()
    } else {
        format!("{}: signed by {}", bundle.display(), by.join(", "))
    });
    Ok(0)
}

fn add(bundle: &Path, signers: &[Signer], imported: Option<&(PathBuf, PathBuf)>) -> Result<Vec<String>> {
    let all = sign::add(bundle, &|manifest, text| {
        let mut new = sign_all(signers, manifest, text)?;
        if let Some((signature, public)) = imported {
            new.push(sign::import(signature, public, text)?);
        }
        Ok(new)
    })?;
    Ok(all.iter().map(|s| s.id().to_string()).collect())
}

/// `bundle delta`
pub(super) fn delta(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let wrong = usage("bundle");
    let (mut from, mut to, mut out): (Option<PathBuf>, Option<PathBuf>, Option<PathBuf>) = (None, None, None);
    let mut level = 19;
    while let Some(arg) = parser.next().map_err(&wrong)? {
        match arg {
            Long("from") => from = Some(parser.value().map_err(&wrong)?.into()),
            Long("to") => to = Some(parser.value().map_err(&wrong)?.into()),
            Long("output") | Short('o') => out = Some(parser.value().map_err(&wrong)?.into()),
            Long("level") => level = parser.value().and_then(|v| v.parse()).map_err(&wrong)?,
            other => return Err(wrong(other.unexpected())),
        }
    }
    let (from, to) = (needed(from, "--from")?, needed(to, "--to")?);
    let out = output(out, [from.as_path(), to.as_path()])?;
    if !(1..=22).contains(&level) {
        return Err(Error::usage(format!("bundle delta: --level {level}: 1 to 22")));
    }
    let mut shown = Percent::default();
    let made = delta_pack::create(&from, &to, &out, level, &mut |done, of| shown.show("packed", done, of));
    shown.end();
    let made = made?;
    sys::out::line(&if context.json {
        serde_json::json!({ "delta": out, "len_bytes": made.len_bytes, "missing_blocks": made.missing_blocks })
            .to_string()
    } else {
        format!(
            "{}: {} bytes for {} blocks that the old image lacks",
            out.display(),
            made.len_bytes,
            made.missing_blocks
        )
    });
    Ok(0)
}

/// `bundle keygen`
pub(super) fn keygen(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let wrong = usage("bundle");
    let (mut public, mut secret): (Option<PathBuf>, Option<PathBuf>) = (None, None);
    while let Some(arg) = parser.next().map_err(&wrong)? {
        match arg {
            Long("public") => public = Some(parser.value().map_err(&wrong)?.into()),
            Long("secret") => secret = Some(parser.value().map_err(&wrong)?.into()),
            other => return Err(wrong(other.unexpected())),
        }
    }
    let (public, secret) = (needed(public, "--public")?, needed(secret, "--secret")?);
    sign::keygen(&public, &secret)?;
    sys::out::line(&if context.json {
        serde_json::json!({ "public": public, "secret": secret }).to_string()
    } else {
        format!(
            "{}: belongs into the image, in the directory of the setting bundle.keys\n{}: keep it secret; it has no password",
            public.display(),
            secret.display()
        )
    });
    Ok(0)
}
