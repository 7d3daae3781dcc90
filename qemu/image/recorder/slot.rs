//! What systemd-boot starts instead of a kernel in the lab: says with which options it was started, and ends with an error, so
//! that systemd-boot gives up and whoever started it goes on.
//!
//! Compiled by `qemu/image/recorder/make` for x86_64-unknown-uefi. Source: UEFI 2.10, sections 4.3, 9.1 and 12.4.
#![no_std]
#![no_main]

use core::ffi::c_void;

const ABORTED: usize = 0x8000_0000_0000_0015;

#[repr(C)]
struct Guid(u32, u16, u16, [u8; 8]);

const LOADED_IMAGE: Guid = Guid(0x5b1b31a1, 0x9562, 0x11d2, [0x8e, 0x3f, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b]);

#[repr(C)]
struct TextOutput {
    reset: *const c_void,
    output_string: extern "efiapi" fn(*mut TextOutput, *const u16) -> usize,
}

#[repr(C)]
struct BootServices {
    header: [u8; 24],
    before: [*const c_void; 16],
    handle_protocol: extern "efiapi" fn(*mut c_void, *const Guid, *mut *mut LoadedImage) -> usize,
}

#[repr(C)]
struct SystemTable {
    header: [u8; 24],
    vendor: *const u16,
    revision: u32,
    console_in_handle: *mut c_void,
    console_in: *mut c_void,
    console_out_handle: *mut c_void,
    console_out: *mut TextOutput,
    error_handle: *mut c_void,
    error: *mut c_void,
    runtime: *mut c_void,
    boot: *mut BootServices,
}

#[repr(C)]
struct LoadedImage {
    revision: u32,
    parent: *mut c_void,
    system: *mut c_void,
    device: *mut c_void,
    path: *mut c_void,
    reserved: *mut c_void,
    options_bytes: u32,
    options: *const u16,
}

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

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
