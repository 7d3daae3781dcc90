//! SERVICES WITHOUT A CLOUD: a Compose application, run straight on the container engine.
//!
//! For a device that no supervisor looks after. What a service gets (labels, update strategies, locks, `/data`) is what
//! balena's supervisor would give it. Laws:
//!
//! - a container that is what it should be is not touched: what it was made from is in its label [`app::SPEC`];
//! - volumes are made and never removed;
//! - nothing is stored but which file belongs to which application ([`record`]): what is to be done is found by comparing
//!   the file with the engine, so that whatever a cut leaves, the next `up` puts right.
//!
//! [`body`] says what a container should be and [`plan`] what is to be done, both without an engine; [`up`](mod@up) acts.
//!
//! Source: balena-supervisor v19.0.5, `src/compose/update-strategies.ts`, `service-manager.ts`, `src/lib/update-lock.ts`.

pub mod app;
pub mod body;
mod change;
mod down;
pub mod folder;
pub mod plan;
pub mod record;
pub mod strategy;
pub mod up;

pub use app::App;
pub use down::down;
pub use up::{Application, Report, up};
