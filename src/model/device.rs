//! What a device is: its type and its architecture.

use crate::{Error, Result};

/// A device type, as in `device-type.json`'s `slug` and in a bundle's `compatible`, such as `intel-nuc`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct DeviceType(pub String);

impl std::fmt::Display for DeviceType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// balena's names of the architectures.
pub const ARCHES: [&str; 5] = ["amd64", "i386", "aarch64", "armv7hf", "rpi"];

/// balena's name of the architecture that this program was built for.
pub const fn arch() -> &'static str {
    if cfg!(target_arch = "x86_64") {
        "amd64"
    } else if cfg!(target_arch = "aarch64") {
        "aarch64"
    } else if cfg!(target_arch = "arm") {
        "armv7hf"
    } else {
        "unknown"
    }
}

/// Sees that `name` is one of [`ARCHES`].
///
/// # Errors
/// `Usage`, with the names that there are.
pub fn check_arch(name: &str) -> Result<()> {
    match ARCHES.contains(&name) {
        true => Ok(()),
        false => Err(Error::usage(format!("--arch {name}: expected one of {}", ARCHES.join(", ")))),
    }
}
