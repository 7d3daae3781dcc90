//! What systemd-boot starts instead of a kernel in the lab: says with which options it was started, and ends with an error, so
//! that systemd-boot gives up and whoever started it goes on.
//!
//! `qemu/src/recorder.rs` compiles it for x86_64-unknown-uefi.
#![no_std]
#![no_main]

mod uefi;

use core::ffi::c_void;
use uefi::{LOADED_IMAGE, LoadedImage, SystemTable};

const ABORTED: usize = 0x8000_0000_0000_0015;

#[unsafe(no_mangle)]
extern "efiapi" fn efi_main(image: *mut c_void, system: *mut SystemTable) -> usize {
    let mut loaded: *mut LoadedImage = core::ptr::null_mut();
    // SAFETY: the firmware passes a system table that is valid until this returns, and gives the protocol of this very image.
    unsafe {
        if ((*(*system).boot).handle_protocol)(image, &LOADED_IMAGE, &mut loaded) != 0 {
            return ABORTED;
        }
        let out = (*system).console_out;
        // One character at a time: the options need no end of their own.
        for n in 0..(*loaded).options_bytes as usize / 2 {
            let character = [*(*loaded).options.add(n), 0];
            ((*out).output_string)(out, character.as_ptr());
        }
        ((*out).output_string)(out, ['\r' as u16, '\n' as u16, 0].as_ptr());
    }
    ABORTED
}
