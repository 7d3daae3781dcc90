//! FROM AN INSTALLER TO A DEVICE: a signed image of a whole disk written to the internal one.
//!
//! # Laws
//! 1. Never to the medium that this system runs from, to one that is in use, or to one without room.
//! 2. Every block matched its signed hash before it is written, and all of it is read back from the medium.
//! 3. From the first write on the disk has no partition table; the first sector goes last, in one write. So whatever happens
//!    in between leaves a disk that does not boot, and nothing that looks like a device; the next try begins anew.
//! 4. The installer's own medium is not written: it serves the next device as well.

mod carry;
mod choose;
mod entry;
mod write;

pub use carry::Carried;
pub use choose::{Medium, choose, media};
pub use entry::make_entry;
pub use write::{Head, claim, finish, write};
