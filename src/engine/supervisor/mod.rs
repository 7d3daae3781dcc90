//! The supervisor container: what it should be, what it is, and the process that makes the two equal.
//!
//! Decisions are pure: `desired` says what the container should be, `compare` what is to be done about the one
//! that exists, [`SupervisorHealth::of`] how it does, [`pace`](Pace) when it may be started again,
//! [`Trial::judge`] whether a new one stays. `watch` acts: an [`Update`] fetches the image and then only asks it to.
//!
//! Source: meta-balena v8.0.2, `start-balena-supervisor` and `balena-supervisor.service`.

mod compare;
mod conf;
mod desired;
mod facts;
mod health;
mod image;
mod pace;
mod record;
mod replace;
mod silence;
mod trial;
mod update;
mod watch;

pub use compare::{Action, compare};
pub use conf::{Conf, Named};
pub use desired::{Facts, desired};
pub use health::{SupervisorHealth, health};
pub use image::{Chosen, choose};
pub use pace::Pace;
pub use record::Record;
pub use silence::Silence;
pub use trial::{Outcome, Request, Trial, Verdict};
pub use update::{Update, of_os_image, previous};
pub use watch::watch;

/// The container's name. Supervisors look for themselves under it.
pub const NAME: &str = "balena_supervisor";

/// Made by the watcher when the engine is to be started again; a path unit looks for it.
pub const RESTART_REQUEST: &str = "/run/twinhull/engine-restart";
