//! What stands before the content of a signed archive, a bundle or another: a manifest as text, and its signatures.

use std::io::Read;

use super::archive::{self, Member};
use super::keys::{SIGNATURE_LIMIT_BYTES, SIGNATURES_MAX, Signature};
use crate::{Doing, Error, Result};

/// The beginning of a signed archive, of which nothing is checked yet.
pub struct Head {
    /// What was signed.
    pub text: Vec<u8>,
    /// The signatures, in ascending order of their keys.
    pub signatures: Vec<Signature>,
    /// Where the content begins, as bytes from the start.
    pub payload_start: u64,
    /// The member that comes next, whose header was read already.
    pub next: Option<Member>,
}

impl Head {
    /// Reads a manifest of at most `limit_bytes`, and its signatures. `None`: the archive begins with something else.
    ///
    /// # Errors
    /// `Failed` if the archive is damaged or no archive.
    pub fn read<R: Read>(members: &mut archive::Reader<R>, limit_bytes: u64) -> Result<Option<Self>> {
        if members.advance()?.is_none_or(|m| m.name != "manifest.toml") {
            return Ok(None);
        }
        let text = members.content(limit_bytes)?;
        let mut signatures = Vec::new();
        let mut payload_start = members.end_of_member();
        let mut next = members.advance()?;
        while let Some(name) = next.as_ref().map(|m| m.name.clone()) {
            let Some(id) = signature_member(&name) else { break };
            let signature = read_signature(members, id, signatures.last()).doing(|| name)?;
            signatures.push(signature);
            if signatures.len() > SIGNATURES_MAX {
                return Err(Error::failed(format!("more than {SIGNATURES_MAX} signatures")));
            }
            payload_start = members.end_of_member();
            next = members.advance()?;
        }
        Ok(Some(Self { text, signatures, payload_start, next }))
    }
}

/// The key number in the name of a signature member.
fn signature_member(name: &str) -> Option<&str> {
    name.strip_prefix("manifest.toml.")?.strip_suffix(".minisig")
}

/// Reads one signature. They stand in ascending order of their keys, so none can be there twice.
fn read_signature<R: Read>(
    members: &mut archive::Reader<R>,
    id: &str,
    before: Option<&Signature>,
) -> Result<Signature> {
    let bytes = members.content(SIGNATURE_LIMIT_BYTES)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| Error::failed("not UTF-8"))?;
    let signature = Signature::parse(text)?;
    if signature.id() != id.parse()? {
        return Err(Error::failed(format!(
            "a signature of key {}, not of the key in its name",
            signature.id()
        )));
    }
    if before.is_some_and(|b| b.id() >= signature.id()) {
        return Err(Error::failed("signatures out of order"));
    }
    Ok(signature)
}
