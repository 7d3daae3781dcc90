//! A whole device in memory, with a power switch (tests only).
//!
//! The update procedure and the boot choosers that run here are the real ones, over simulated files; what each
//! bootloader does is a model of its script in `boot/`, checked against the truth tables of boot/README.md. Every durable
//! step, the bootloader's included, is a place where the power can be cut or the process killed. Where kernels lie on the
//! boot partition, each boot checks that the boot files are those of the slot that boots.

mod boot_set;
pub mod efi_model;
pub mod files;
mod grub_script;
mod laws;
mod loader;
mod power;
mod sdboot_model;
mod sweep;
mod tree;
mod truth_table;
mod uboot_script;
mod world;
