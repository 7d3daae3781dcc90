//! What of UEFI's interface the lab's programs use. Source: UEFI 2.10, sections 4.3, 8.2, 8.5.1, 9.1 and 12.4.
#![allow(dead_code, reason = "layouts; each program uses a part of them")]

use core::ffi::c_void;

#[repr(C)]
pub struct Guid(pub u32, pub u16, pub u16, pub [u8; 8]);

pub const LOADED_IMAGE: Guid =
    Guid(0x5b1b31a1, 0x9562, 0x11d2, [0x8e, 0x3f, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b]);

#[repr(C)]
pub struct TextOutput {
    pub reset: *const c_void,
    pub output_string: extern "efiapi" fn(*mut TextOutput, *const u16) -> usize,
}

#[repr(C)]
pub struct BootServices {
    pub header: [u8; 24],
    pub before: [*const c_void; 16],
    pub handle_protocol: extern "efiapi" fn(*mut c_void, *const Guid, *mut *mut LoadedImage) -> usize,
}

#[repr(C)]
pub struct RuntimeServices {
    pub header: [u8; 24],
    pub before: [*const c_void; 6],
    pub get_variable: extern "efiapi" fn(*const u16, *const Guid, *mut u32, *mut usize, *mut u8) -> usize,
    pub next_name: *const c_void,
    pub set_variable: extern "efiapi" fn(*const u16, *const Guid, u32, usize, *const u8) -> usize,
    pub count: *const c_void,
    pub reset: extern "efiapi" fn(u32, usize, usize, *const c_void) -> !,
}

#[repr(C)]
pub struct SystemTable {
    pub header: [u8; 24],
    pub vendor: *const u16,
    pub revision: u32,
    pub console_in_handle: *mut c_void,
    pub console_in: *mut c_void,
    pub console_out_handle: *mut c_void,
    pub console_out: *mut TextOutput,
    pub error_handle: *mut c_void,
    pub error: *mut c_void,
    pub runtime: *mut RuntimeServices,
    pub boot: *mut BootServices,
}

#[repr(C)]
pub struct LoadedImage {
    pub revision: u32,
    pub parent: *mut c_void,
    pub system: *mut c_void,
    pub device: *mut c_void,
    pub path: *mut c_void,
    pub reserved: *mut c_void,
    pub options_bytes: u32,
    pub options: *const u16,
}

// There is nobody to tell.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
