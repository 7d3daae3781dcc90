//! PID 1: from a kernel with an initramfs to systemd on the chosen slot.
//!
//! The initramfs holds this one program as `/init`, and kernel modules in `/modules` if the kernel needs any to
//! reach its root. The steps, in order: kernel file systems and log; modules; the disk of `root=`; the slot, where it is
//! PID 1 that counts boots; the last
//! partition grown in the table; the root read-only on `/sysroot`; boot, state and data in it, checked and repaired when
//! they cannot be mounted (`doctor`); a factory reset, if one is asked for; ext4 grown; machine id and what must persist bound over the root; switch root; the next
//! init.
//!
//! # Laws
//! - Nothing here ends PID 1: any error or panic is shown on the console, kept on the state partition if that can
//!   be mounted, and ends in a reboot, which the boot counter counts.
//! - Every step may be cut and repeated; what must be durable is published by one rename.
//! - Partitions are looked up on the disk of the root only.

mod boot;
mod data;
mod doctor;
mod failure;
mod find;
mod mounts;
mod notes;
mod persist;
mod preview;
mod reset;
mod size;
mod slot;
mod verity;

pub use boot::run;
pub use preview::{Preview, preview};
pub use size::human;
