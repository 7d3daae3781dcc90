//! FIRST BOOT: identity and registration with the cloud API.
//!
//! [`next_step`] decides from `config.json` and from what this attempt has learnt from the API; [`Provisioner`]
//! does it and asks again. Nothing else is remembered: after a cut or a failure the next attempt starts from the
//! file.
//!
//! # Laws
//! 1. The uuid and the device key are durable before any request carries them: what was asked for is known after
//!    any cut, and asking again is asking for the same device.
//! 2. The provisioning key is removed only by the write that says "registered", and only after a request with the
//!    device key was seen to work.
//! 3. That write leaves what the supervisor regards as provisioned: `uuid`, `apiEndpoint`, `registered_at`,
//!    `deviceId`, no `apiKey`.
//! 4. A device that is registered, as the one that `config.json` names now, asks the network nothing.
//! 5. Keys are never in a message, a log, an argument or a file of ours other than `config.json`
//!    and its last good copy.

mod about;
mod api;
mod backoff;
mod clock;
mod failure;
mod identity;
mod reach;
mod run;
mod status;
mod step;
#[cfg(test)]
mod tests;

pub use failure::{Failure, Why};
pub use reach::{device_type, http_settings, is_managed, ping};
pub use run::{End, Provisioner};
pub use status::{LastTry, Status, status};
pub use step::{Found, Learnt, Registration, State, Step, next_step};
