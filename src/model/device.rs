//! What a device is: its type and its architecture.

/// A device type, as in `device-type.json`'s `slug` and in a bundle's `compatible`, such as `intel-nuc`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct DeviceType(pub String);

impl std::fmt::Display for DeviceType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

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
