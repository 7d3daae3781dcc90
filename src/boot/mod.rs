//! WHO BOOTS NEXT. One implementation of [`BootChooser`] per bootloader.
//!
//! Inside a backend: **codec** (bytes to variables and back, pure), **scheme** (variables to boot plan and back,
//! pure), **store** (where and how it is written).
//!
//! # Laws
//! Run against every implementation (`conformance`):
//! 1. After `arm(s, n)` the plan is the old primary and a trial of `s` with `n` tries left.
//! 2. `commit` and `disarm` leave no trial, and nothing that the bootloader could fall back to by itself except
//!    the primary.
//! 3. Twice is once.
//! 4. One durable commit point each: cut anywhere, the plan is the one before or the one after.
//! 5. Variables that are not ours survive, in order.
//! 6. An environment that cannot be read is an error that names it, never a default and never a panic.

#[cfg(test)]
pub mod conformance;
pub mod efi;
pub mod grub;
pub mod initramfs;
pub mod resin;
pub mod sdboot;
mod store;
pub mod tryboot;
pub mod uboot_env;
pub mod uboot_text;
mod variables;

pub use store::{Directory, SECTOR_BYTES, Store, changed_sector, overwrite_one_sector};
pub use variables::{Entries, Environment, Variables};

use std::ffi::CStr;

use crate::Result;
use crate::block::Verified;
use crate::model::{BootPlan, Slot};

/// Who boots next.
pub trait BootChooser {
    /// What the bootloader will do at the next boot.
    ///
    /// # Errors
    /// `Failed`, naming the environment, if it cannot be read or makes no sense.
    fn plan(&self) -> Result<BootPlan>;

    /// Starts a trial: `slot` boots next, for at most `tries` boots (1 to 9).
    ///
    /// # Errors
    /// `Failed` if the environment cannot be written; the plan is then the old one.
    fn arm(&mut self, slot: &Verified, tries: u8) -> Result<()>;

    /// Makes the running slot the primary one and ends its trial.
    ///
    /// # Errors
    /// As [`BootChooser::arm`].
    fn commit(&mut self, booted: Slot) -> Result<()>;

    /// Ends any trial; `primary` boots next.
    ///
    /// # Errors
    /// As [`BootChooser::arm`].
    fn disarm(&mut self, primary: Slot) -> Result<()>;

    /// Whether the firmware tries a system only once and by itself never again: then each try of an armed trial is
    /// started by the running system, with [`BootChooser::before_reboot`].
    fn one_shot(&self) -> bool {
        false
    }

    /// To be called before each orderly reboot. If a trial is armed and the firmware is a one-shot, makes the reboot one of
    /// its tries: the try is counted, durably, before this returns. Gives the argument that the reboot must carry
    /// (Raspberry Pi: `0 tryboot`).
    ///
    /// # Errors
    /// As [`BootChooser::arm`]; the reboot then ends in the primary slot.
    fn before_reboot(&mut self) -> Result<Option<&'static CStr>> {
        Ok(None)
    }

    /// Gives back the try that was counted for this boot, which ends in order; nothing without a trial, or if no try was used.
    ///
    /// # Errors
    /// As [`BootChooser::arm`].
    fn give_back(&mut self) -> Result<()>;

    /// Puts back what the firmware has lost of the plan by itself (UEFI's entries after an update of the firmware); called
    /// once in every boot. `booted` is the slot that runs.
    ///
    /// # Errors
    /// As [`BootChooser::arm`].
    fn restore(&mut self, _booted: Slot) -> Result<()> {
        Ok(())
    }
}

impl<C: BootChooser + ?Sized> BootChooser for Box<C> {
    fn plan(&self) -> Result<BootPlan> {
        (**self).plan()
    }

    fn arm(&mut self, slot: &Verified, tries: u8) -> Result<()> {
        (**self).arm(slot, tries)
    }

    fn commit(&mut self, booted: Slot) -> Result<()> {
        (**self).commit(booted)
    }

    fn disarm(&mut self, primary: Slot) -> Result<()> {
        (**self).disarm(primary)
    }

    fn one_shot(&self) -> bool {
        (**self).one_shot()
    }

    fn before_reboot(&mut self) -> Result<Option<&'static CStr>> {
        (**self).before_reboot()
    }

    fn give_back(&mut self) -> Result<()> {
        (**self).give_back()
    }

    fn restore(&mut self, booted: Slot) -> Result<()> {
        (**self).restore(booted)
    }
}
