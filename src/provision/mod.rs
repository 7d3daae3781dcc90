//! FIRST BOOT: identity and registration with the cloud API.

mod reach;

pub use reach::{device_type, http_settings, is_managed, ping};

/// Placeholder until the branch lands.
#[derive(Debug, Default, serde::Serialize)]
pub struct Status {
    /// The device's id.
    pub uuid: Option<String>,
}

/// Looks at the host.
pub fn status(_: &crate::Root, _: &crate::config::Settings) -> Status {
    Status::default()
}
