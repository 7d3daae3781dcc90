//! Where the bytes of an install come from: the whole bundle in its order, or the parts of it that this device lacks.

use std::path::Path;

use serde_json::json;

use super::file_sets;
use super::install::Args;
use super::progress::Bar;
use crate::block::{Disk, FileDisk};
use crate::bundle::{self, Bundle, Delta, Frames, Progress, Reach, Source};
use crate::model::{Manifest, Slot};
use crate::update::{Plan, Reuse, use_delta};
use crate::{Doing, Result, sys};

/// The index of the bundle that is being fetched.
pub(super) const INDEX: &str = "/mnt/state/twinhull/bundle.index";
/// A larger one is not kept: the state partition is small.
const KEPT_LIMIT_BYTES: u64 = 8 * 1024 * 1024;

/// Where the image's bytes come from.
pub(super) enum Feed {
    /// All of them from the bundle, in its order.
    Whole(Box<Bundle<Source>>),
    /// Those that the device lacks from the bundle, the others from its slots.
    Parts(Box<Parts>),
}

pub(super) struct Parts {
    frames: Frames,
    plan: Plan,
    active: FileDisk,
    delta: Option<Patch>,
    /// What is fetched in all.
    fetch: u64,
}

/// What comes from a delta.
struct Patch {
    delta: Delta,
    /// What was on the device before.
    reuse: Reuse,
    needed: Vec<usize>,
    fetch_bytes: u64,
}

impl Feed {
    /// Finds out what is needed. Writes nothing but the index, which is kept for the next attempt.
    pub(super) fn prepare(
        bundle: Bundle<Source>,
        args: &Args,
        reach: &Reach,
        kept: &Path,
        (target, running): (&mut FileDisk, &Path),
        bar: &mut Bar,
    ) -> Result<Self> {
        if !bundle.stream().is_worth_skipping() && args.delta.is_none() {
            return Ok(Self::Whole(Box::new(bundle)));
        }
        let root = bundle.manifest().root.clone();
        // What of the files is on the device is seen when they are written: here they count as a whole.
        let files_bytes: u64 = bundle.manifest().files.iter().map(|p| p.index_size + p.frames_size).sum();
        let kept_bytes =
            sys::file::read_if_exists(kept, root.index_size.min(KEPT_LIMIT_BYTES)).unwrap_or(None);
        let mut frames = bundle.into_frames(kept_bytes)?;
        if frames.fresh && !args.explain && frames.index.bytes().len() as u64 <= KEPT_LIMIT_BYTES {
            // It only saves fetching it again; its digest is checked when it is used.
            let stored = sys::durable::parent(kept)
                .and_then(sys::durable::create_dir)
                .and_then(|()| sys::durable::replace(kept, frames.index.bytes(), 0o600));
            if let Err(e) = stored {
                log::warn!("{e}; an install that is cut short would fetch the index again");
            }
        }
        let mut delta = args.delta.as_ref().and_then(|what| {
            let opened = bundle::source::open(what, reach)
                .and_then(|source| Delta::open(source, &frames.index, &root.index_sha256));
            opened.inspect_err(|e| log::warn!("{e}; going on without the delta")).ok()
        });
        let mut active = FileDisk::open_read_only(running)?;
        let total = frames.image_len.saturating_add(active.len_bytes());
        let mut look = |read| bar.look(read, total);
        let (image_len, old) = (frames.image_len, delta.as_ref().map(|d| &d.old));
        let reuse = Reuse::survey(&frames.index, image_len, target, &mut active, old, &mut look)?;
        // With a limit, only a delta that is sure to fit is counted on.
        if delta.is_some() && !reuse.old_is_there {
            log::warn!(
                "the running slot does not hold the image that the delta was made against, or not quite"
            );
            delta = delta.filter(|_| args.max_download.is_none());
        }
        let (plan, delta) = match delta {
            None => (Plan::new(reuse, &mut frames)?, None),
            Some(mut delta) => {
                let (plan, needed, bytes) = Plan::with_delta(&reuse, &mut frames, &mut delta)?;
                let fetch_bytes = delta.meter().bytes.saturating_add(bytes);
                (plan, Some(Patch { delta, reuse, needed, fetch_bytes }))
            }
        };
        let fetch = frames.meter().bytes.saturating_add(plan.fetch_bytes);
        let fetch =
            fetch.saturating_add(delta.as_ref().map_or(0, |d| d.fetch_bytes)).saturating_add(files_bytes);
        if let Some(max) = args.max_download.filter(|max| fetch > *max) {
            return Err(bundle::too_much(fetch, max));
        }
        bar.planned(fetch, plan.reused_bytes());
        Ok(Self::Parts(Box::new(Parts { frames, plan, active, delta, fetch })))
    }

    pub(super) fn write(
        self,
        disk: &mut FileDisk,
        sets: &mut [&mut dyn Disk],
        sources: &mut [file_sets::Source],
        bar: &mut Bar,
    ) -> Result<()> {
        let with_payload =
            |source: &file_sets::Source| source.payload.clone().map(|p| (p, source.name.clone()));
        match self {
            Self::Whole(mut bundle) => {
                bundle.write_root(&mut |offset, bytes| disk.write_at(offset, bytes), &mut |p| {
                    bar.progress(p)
                })?;
                for (set, source) in sets.iter_mut().zip(sources) {
                    let Some(((number, _), name)) = with_payload(source) else { continue };
                    bundle
                        .write_files(number, &mut |offset, bytes| set.write_at(offset, bytes))
                        .doing(|| name)?;
                }
                Ok(())
            }
            Self::Parts(parts) => {
                let Parts { mut frames, mut plan, mut active, delta, .. } = *parts;
                let mut fetched = 0;
                if let Some(Patch { mut delta, mut reuse, needed, .. }) = delta {
                    use_delta(&mut reuse, &needed, &mut delta, &frames, disk, &mut active, &mut |p| {
                        bar.progress(p)
                    })?;
                    // What the delta did not bring after all is fetched too.
                    plan = Plan::new(reuse, &mut frames)?;
                    fetched = delta.meter().bytes;
                }
                plan.carry_out(&mut frames, disk, &mut active, &mut |p| {
                    bar.progress(Progress { read_bytes: p.read_bytes.saturating_add(fetched), ..p });
                })?;
                for (set, source) in sets.iter_mut().zip(sources) {
                    let Some(((_, payload), name)) = with_payload(source) else { continue };
                    frames = frames.next_payload(&payload).doing(|| name.clone())?;
                    let active = &mut source.active;
                    let reuse = Reuse::survey(&frames.index, payload.size, set, active, None, &mut |_| ())?;
                    let plan = Plan::new(reuse, &mut frames)?;
                    plan.carry_out(&mut frames, set, active, &mut |p| {
                        bar.fetched(p.read_bytes.saturating_add(fetched));
                    })
                    .doing(|| name)?;
                }
                Ok(())
            }
        }
    }

    pub(super) fn explain(&self, manifest: &Manifest, slot: Slot, as_json: bool) {
        let (version, image_bytes) = (&manifest.version, manifest.root.size);
        let (fetch, in_place, copied) = match self {
            Self::Whole(bundle) => (bundle.stream().len_bytes(), 0, 0),
            Self::Parts(parts) => {
                let (in_place, copied) = parts.plan.reused_bytes();
                (Some(parts.fetch), in_place, copied)
            }
        };
        if as_json {
            let line = json!({ "event": "explain", "version": version, "slot": slot, "image_bytes": image_bytes,
                "fetch_bytes": fetch, "in_place_bytes": in_place, "copied_bytes": copied, "files": manifest.files });
            return sys::out::line(&line.to_string());
        }
        let mib = |bytes: u64| format!("{}.{} MiB", bytes >> 20, (bytes >> 10 & 1023) * 10 / 1024);
        let fetch = fetch.map_or_else(|| "all that comes".into(), mib);
        let files: Vec<String> =
            manifest.files.iter().map(|p| format!("\n{}", file_sets::describe(p))).collect();
        sys::out::line(&format!(
            "version {version} would be written to slot {slot} and armed\n\
             fetched or read   {fetch}\n\
             in place already  {}\n\
             copied from the running slot  {}\n\
             image             {}{}",
            mib(in_place),
            mib(copied),
            mib(image_bytes),
            files.concat()
        ));
    }
}
