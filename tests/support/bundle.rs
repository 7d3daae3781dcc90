//! Makes the bundles that tests of an install need.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::{KeyPair, outcome, twinhull};

/// Runs `bundle create` for `image`, signed by `keys`; the image is left beside `out`. What `options` do not say is for the tests'
/// device: version 2.0.0 for an amd64 intel-nuc, compressed quickly.
pub fn create(out: &Path, image: &[u8], keys: &[&KeyPair], options: &[&str]) -> Output {
    let raw = out.with_extension("image");
    fs::write(&raw, image).unwrap();
    let mut args = vec!["bundle", "create", "--image", raw.to_str().unwrap(), "-o", out.to_str().unwrap()];
    let usual =
        [["--version", "2.0.0"], ["--compatible", "intel-nuc"], ["--arch", "amd64"], ["--level", "3"]];
    usual.iter().filter(|[name, _]| !options.contains(name)).for_each(|o| args.extend(o));
    keys.iter().for_each(|key| args.extend(["--key", key.secret.to_str().unwrap()]));
    args.extend(options);
    twinhull(&args)
}

/// The bundle `NAME.bundle` in `dir`, made as [`create`] says.
pub fn bundle(dir: &Path, name: &str, image: &[u8], keys: &[&KeyPair], options: &[&str]) -> PathBuf {
    let out = dir.join(format!("{name}.bundle"));
    let made = create(&out, image, keys, options);
    assert!(made.status.success(), "{}", outcome(&made).1);
    out
}
