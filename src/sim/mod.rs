//! A whole device in memory, with a power switch (tests only).
//!
//! The update procedure that runs here is the real one; the boot chooser is the real GRUB codec and scheme over a
//! simulated file; what the bootloader does is a model of `boot/grub/grub.cfg` ([`grub_script`]). Every durable step,
//! the bootloader's included, is a place where the power can be cut or the process killed.

mod grub_script;
mod power;
mod sweep;
mod world;
