//! GRUB: an environment block of 1024 bytes on the boot partition, read and counted by `boot/grub/grub.cfg`.

mod block;
mod chooser;

pub use block::{BLOCK_BYTES, Block, decode, encode};
pub use chooser::Grub;
