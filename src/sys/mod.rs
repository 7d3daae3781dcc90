//! Every system call, child process, clock and durable write of the program, and all of its `unsafe`.
//!
//! Nothing here decides anything: these are the verbs that the folders above use.
// The one place where the rules of .clippy.toml do not hold.
#![allow(clippy::disallowed_methods, clippy::disallowed_macros)]

pub mod ahead;
pub mod beneath;
pub mod clock;
pub mod command;
mod console;
pub mod device;
pub mod device_mapper;
pub mod direct;
pub mod durable;
pub mod efivar;
pub mod fatrw;
pub mod file;
pub mod http;
pub mod json_file;
pub mod kmsg;
pub mod lock;
pub mod lock_file;
pub mod log;
pub mod module;
pub mod mount;
mod names;
pub mod notify;
pub mod out;
pub mod piecewise;
pub mod power;
pub mod process;
pub mod random;
pub mod rescue;
pub mod switch_root;
pub mod termination;
pub mod tls_date;
pub mod tree;
pub mod uevent;
pub mod unix_socket;
#[cfg(feature = "build-host")]
pub mod zstd_parse;
