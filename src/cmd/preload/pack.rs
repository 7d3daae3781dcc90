//! `twinhull preload pack`

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use lexopt::prelude::*;
use serde_json::json;

use crate::cli::{Context, usage};
use crate::cmd::bundle::Signers;
use crate::cmd::progress::Ticker;
use crate::model::device::{DeviceType, arch, check_arch};
use crate::preload::pack::{self, Recipe};
use crate::{Doing, Error, Result, sys};

const MIB: u64 = 1024 * 1024;

/// `preload pack`
pub(super) fn run(parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let (recipe, signers, out) = parse(parser)?;
    // Before the work, not after it: a wrong password shows at once.
    let signers = signers.load()?;
    let mut ticker = Ticker::new(context.json);
    let mut progress = |read: u64| {
        let event = json!({ "event": "progress", "read": read });
        ticker.show(&format!("packed {} MiB", read / MIB), 0, false, &event);
    };
    let made = pack::create(&recipe, &signers, &out, &mut progress).doing(|| "preload pack")?;
    ticker.end();
    for path in &made.left_out {
        log::warn!("{} is left out", path.display());
    }
    let (bytes, inodes) = made.manifest.needs(0);
    let text = format!(
        "{}: {} bytes for {inodes} files, {} MiB unpacked, {} segments",
        out.display(),
        made.len_bytes,
        bytes / MIB,
        made.manifest.segment.len()
    );
    let json = json!({ "archive": out, "len_bytes": made.len_bytes, "files": inodes, "bytes": bytes,
        "segments": made.manifest.segment.len(), "left_out": made.left_out });
    sys::out::line(&if context.json { json.to_string() } else { text });
    Ok(0)
}

fn parse(mut parser: lexopt::Parser) -> Result<(Recipe, Signers, PathBuf)> {
    let wrong = usage("preload");
    let missing =
        |what: &str| Error::usage(format!("preload pack: {what} is needed; see `twinhull preload --help`"));
    let (mut out, mut signers, mut segment_mib) = (None, Signers::default(), 64_u64);
    let mut recipe = Recipe {
        compatible: Vec::new(),
        arch: arch().to_owned(),
        trees: Vec::new(),
        level: 12,
        segment_bytes: 0,
    };
    while let Some(arg) = parser.next().map_err(&wrong)? {
        match arg {
            Value(tree) => {
                let bytes = tree.into_vec();
                let (name, path) = split(&bytes).ok_or_else(|| {
                    let tree = String::from_utf8_lossy(&bytes);
                    Error::usage(format!("preload pack: {tree:?}: expected NAME=PATH, as docker=/tmp/engine"))
                })?;
                recipe.trees.push((name, path));
            }
            Long("output") | Short('o') => out = Some(PathBuf::from(parser.value().map_err(&wrong)?)),
            Long("compatible") => {
                let types = parser.value().and_then(|v| v.string()).map_err(&wrong)?;
                recipe.compatible.extend(types.split(',').map(|t| DeviceType(t.trim().to_owned())));
            }
            Long("arch") => recipe.arch = parser.value().and_then(|v| v.string()).map_err(&wrong)?,
            Long("key") => signers.keys.push(parser.value().map_err(&wrong)?.into()),
            Long("password-file") => signers.password_file = Some(parser.value().map_err(&wrong)?.into()),
            Long("level") => recipe.level = parser.value().and_then(|v| v.parse()).map_err(&wrong)?,
            Long("segment-size") => segment_mib = parser.value().and_then(|v| v.parse()).map_err(&wrong)?,
            other => return Err(wrong(other.unexpected())),
        }
    }
    check_arch(&recipe.arch)?;
    recipe.segment_bytes = segment_mib.saturating_mul(MIB);
    let out = out.ok_or_else(|| missing("--output"))?;
    let trees = recipe.trees.iter().map(|(_, tree)| tree.as_path());
    sys::durable::check_output(&out, signers.files().chain(trees))?;
    for (is_missing, what) in [
        (recipe.trees.is_empty(), "NAME=PATH"),
        (recipe.compatible.is_empty(), "--compatible"),
        (signers.keys.is_empty(), "--key"),
        (segment_mib == 0, "--segment-size of at least 1"),
    ] {
        if is_missing {
            return Err(missing(what));
        }
    }
    Ok((recipe, signers, out))
}

fn split(text: &[u8]) -> Option<(String, PathBuf)> {
    let at = text.iter().position(|b| *b == b'=')?;
    let (name, path) = text.split_at(at);
    let path = path.get(1..).filter(|p| !p.is_empty())?;
    Some((std::str::from_utf8(name).ok()?.to_owned(), PathBuf::from(std::ffi::OsStr::from_bytes(path))))
}
