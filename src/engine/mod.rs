//! THE CONTAINER ENGINE: HTTP over its Unix socket, the calls we need, and the supervisor container.
//!
//! One client for balenaEngine 20.10 and later, Docker, and Podman's Docker API. Laws:
//!
//! - every call has a deadline, and a hung engine costs that deadline and no more;
//! - an error carries the engine's own message;
//! - what the engine does not have (a container, an image) is `None`, not an error.
//!
//! [`supervisor`] decides with pure functions (`desired`, `compare`, `health`) and acts in one place (`watch`).

mod api;
pub mod archive;
mod client;
mod container;
mod events;
mod fetch;
mod image;
mod logs;
pub mod mend;
mod network;
mod registry;
pub mod reserve;
mod spec;
mod stream;
pub mod supervisor;
mod transport;
mod version;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use api::{Container, ContainerHealth, ContainerState, Image, Mount, Summary};
pub use client::Engine;
pub use events::{Events, Wake};
pub use fetch::Sources;
pub use image::{OnProgress, Progress};
pub use logs::{Output, Sink};
pub use network::NetworkInfo;
pub use registry::login;
pub use spec::{Bind, ContainerSpec};
pub use version::ApiVersion;
