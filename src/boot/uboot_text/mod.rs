//! U-Boot with text files on the FAT boot partition, as balenaOS has them: `resinOS_uEnv.txt` says which slot boots,
//! `bootcount.env` holds the count that U-Boot writes. Read and counted by `boot/uboot/boot.cmd`, by balenaOS's own
//! U-Boot, and by its L4TLauncher on Jetson Orin.

mod chooser;
mod text;

pub use chooser::{COUNT_FILE, PLAN_FILE, UbootText};
pub use text::{Text, decode};
