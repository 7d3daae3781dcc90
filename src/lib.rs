//! twinhull: the host-OS agent of a device that runs containers.
//!
//! It is PID 1 of the initramfs, provisions the device on first boot, keeps two copies of the host OS and
//! moves between them with a boot counter that rolls back, and keeps the supervisor container running.
//!
//! Folders are named for what the program does; dependencies point downwards only (`tests/architecture.rs`
//! checks the table):
//!
//! ```text
//! cmd                  one file per subcommand
//! update               the update procedure: install, journal, resume, health
//! init   provision     PID 1; first boot
//! flash preload        from an installer to a device; what it is delivered with
//! services             Compose applications on a device without a cloud
//! engine               the container engine and the supervisor
//! compose contract     Compose files; what services require of the device
//! feature bundle boot  labels; the update file; who boots next
//! block  config        bytes on disks; settings and config.json
//! model  sys           pure values; every system call
//! ```

pub mod block;
pub mod boot;
pub mod bundle;
pub mod cli;
pub mod cmd;
pub mod compose;
pub mod config;
pub mod contract;
pub mod engine;
mod error;
pub mod feature;
pub mod flash;
pub mod init;
pub mod model;
pub mod preload;
pub mod provision;
mod root;
pub mod services;
#[cfg(test)]
mod sim;
pub mod sys;
pub mod update;

pub use error::{Doing, Error, Kind, Result};
pub use root::Root;
