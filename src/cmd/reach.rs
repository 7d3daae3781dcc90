//! How the servers of bundles are reached: with what the settings say, and showing who asks.

use std::path::Path;
use std::time::Duration;

use crate::bundle::{Limits, Reach, Token};
use crate::cli::Context;
use crate::config::Settings;
use crate::sys::http::{ClientIdentity, HttpSettings};
use crate::{Result, provision};

/// For the bundle `what` and whatever belongs to it: at most `max_bytes`, with the token in `token_file` (instead of the
/// one that the settings name) for the server of `what` alone.
///
/// # Errors
/// `Failed`, naming the file, if something that is needed cannot be read.
pub fn reach(
    context: &Context,
    settings: &Settings,
    what: &str,
    token_file: Option<&Path>,
    max_bytes: Option<u64>,
) -> Result<Reach> {
    let ours = &settings.bundle;
    let in_root = |path: &Path| context.root.path(path);
    let client = ours.client_cert.as_deref().zip(ours.client_key.as_deref());
    let client = client
        .map(|(certificate, key)| ClientIdentity { certificate: in_root(certificate), key: in_root(key) });
    let token_file = token_file.map(Path::to_owned).or_else(|| ours.token_file.as_deref().map(in_root));
    let token = token_file.map(|file| Token::load(&file, what)).transpose()?.flatten();
    Ok(Reach {
        http: HttpSettings { client, ..provision::http_settings(&context.root, settings)? },
        token,
        limits: Limits { stall: Duration::from_secs(ours.stall_s), max_bytes },
    })
}
