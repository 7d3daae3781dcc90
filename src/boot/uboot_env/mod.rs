//! U-Boot's own environment, single or redundant, in a file or on a raw partition, where `/etc/fw_env.config` says.
//! Read and counted by `boot/uboot-env/boot.cmd`. The `initramfs` counter has the same format.

mod chooser;
mod config;
mod copy;
mod place;

pub use chooser::{Copies, UbootEnv};
pub use config::parse as parse_config;
pub use copy::{EnvCopy, decode, newer};
pub use place::{Place, Places};
