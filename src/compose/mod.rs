//! COMPOSE FILES: the services of a `docker-compose.yml`, for features and contracts, and to run them.
//!
//! [`yaml`] turns text into a tree that remembers lines; [`file`](mod@file) reads out of it what features and contracts need;
//! [`definition`] what a service runs as, in the words of the engine's API.

pub mod definition;
pub mod file;
mod forms;
pub mod shared;
pub mod values;
pub mod yaml;

pub use definition::{Condition, Definition, Mount, Network};
pub use file::{Composition, Service};
pub use shared::Shared;
pub use yaml::Node;
