//! Who this device was when it was registered, so that a `config.json` of somebody else is not taken for registered.
//!
//! The record is on the state partition, written after `config.json` says "registered". A device that has none, as one
//! that balenaOS registered, is believed and gets one. A cut between the two only costs one more question to the API.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::api::Identity;
use crate::{Result, Root, sys};

const RECORD: &str = "/mnt/state/twinhull/registered.json";
const FORMER: &str = "/mnt/state/twinhull/former-identity.json";
const LIMIT_BYTES: u64 = 64 * 1024;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    endpoint: String,
    uuid: String,
    /// Of the device key: the key itself is in `config.json` alone.
    key_sha256: String,
}

impl Record {
    fn of(who: &Identity) -> Self {
        let key_sha256 =
            Sha256::digest(who.device_key.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        Self { endpoint: who.endpoint.clone(), uuid: who.uuid.clone(), key_sha256 }
    }
}

/// Whether the device was registered as `who`; `None`: there is no record, or none that can be read.
pub(super) fn was(root: &Root, who: &Identity) -> Option<bool> {
    let bytes = sys::file::read_if_exists(&root.path(RECORD), LIMIT_BYTES)
        .inspect_err(|e| log::warn!("{e}; going on as if there were none"))
        .ok()??;
    Some(serde_json::from_slice::<Record>(&bytes).ok()? == Record::of(who))
}

/// Notes that the device is registered as `who`. That it cannot be noted is told in the log and no more.
pub(super) fn note(root: &Root, who: &Identity) {
    let text = serde_json::to_string(&Record::of(who)).unwrap_or_default();
    if let Err(e) = write(root, RECORD, &text) {
        log::warn!("note who is registered: {e}");
    }
}

/// Keeps an identity that is given up: it may be somebody's key to a device in the cloud.
///
/// # Errors
/// `Failed` if it cannot be kept.
pub(super) fn keep_former(root: &Root, who: &Identity) -> Result<()> {
    let text = serde_json::json!({
        "apiEndpoint": who.endpoint, "uuid": who.uuid, "deviceApiKey": who.device_key
    });
    write(root, FORMER, &text.to_string())
}

fn write(root: &Root, path: &str, text: &str) -> Result<()> {
    // Without a state partition there is nothing that outlives this boot.
    if !root.path("/mnt/state").is_dir() {
        return Ok(());
    }
    let path = root.path(path);
    sys::durable::create_dir(sys::durable::parent(&path)?)?;
    sys::durable::replace(&path, text.as_bytes(), 0o600)
}
