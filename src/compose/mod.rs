//! COMPOSE FILES: the services of a `docker-compose.yml`, as far as features and contracts need them.
//!
//! [`yaml`] turns text into a tree that remembers lines; [`file`](mod@file) reads services out of it.

pub mod file;
pub mod yaml;

pub use file::{Composition, Service};
pub use yaml::Node;
