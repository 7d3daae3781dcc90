//! What the firmware's boot manager starts in the lab, from each of its entries: says which one it was, sets the variables of the
//! next case, and resets the machine.
//!
//! `LAB_CASES` is a file with the entries and the cases (`qemu/src/tables_real.rs` writes it and compiles this). Which case is under
//! way is in a variable of its own. Source: UEFI 2.10, section 3.3.
#![no_std]
#![no_main]

mod uefi;

use core::ffi::c_void;
use uefi::{Guid, LOADED_IMAGE, LoadedImage, SystemTable};

include!(env!("LAB_CASES"));

const GLOBAL: Guid = Guid(0x8be4df61, 0x93ca, 0x11d2, [0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c]);
/// Random.
const LAB: Guid = Guid(0x6d3cf1b7, 0x51c2, 0x4e0e, [0x9b, 0x1d, 0x5a, 0x0a, 0x4c, 0x77, 0xe2, 0x35]);
/// Kept without power, and for the firmware as well as for a running system.
const ATTRIBUTES: u32 = 7;
const RESET_COLD: u32 = 0;

/// A name in UTF-16, ended by a zero.
type Name = [u16; 16];

fn name(text: &str) -> Name {
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().zip(text.bytes()) {
        *to = u16::from(from);
    }
    name
}

/// `Boot####`.
fn entry(number: u16) -> Name {
    let mut name = name("Boot0000");
    for (n, digit) in name[4..8].iter_mut().enumerate() {
        let nibble = (number >> (12 - 4 * n)) & 15;
        *digit = if nibble < 10 { 48 + nibble } else { 55 + nibble };
    }
    name
}

struct Firmware(*mut SystemTable);

impl Firmware {
    fn say(&self, text: &str) {
        // SAFETY: the console is there until the machine is reset.
        let out = unsafe { (*self.0).console_out };
        for byte in text.bytes() {
            let character = [u16::from(byte), 0];
            // SAFETY: a character and its end.
            unsafe { ((*out).output_string)(out, character.as_ptr()) };
        }
    }

    fn say_number(&self, number: usize) {
        if number >= 10 {
            self.say_number(number / 10);
        }
        let digit = [b'0' + (number % 10) as u8];
        self.say(core::str::from_utf8(&digit).unwrap_or("?"));
    }

    /// The first byte of a variable, if it is there.
    fn get(&self, name: &Name, vendor: &Guid) -> Option<u8> {
        let (mut value, mut attributes, mut bytes) = ([0; 1024], 0, 1024);
        // SAFETY: the name has its end, and `bytes` is what there is room for.
        let status = unsafe {
            let get = (*(*self.0).runtime).get_variable;
            get(name.as_ptr(), vendor, &mut attributes, &mut bytes, value.as_mut_ptr())
        };
        (status == 0).then_some(value[0])
    }

    /// Sets a variable; one of no length is removed.
    fn set(&self, name: &Name, vendor: &Guid, value: &[u8]) {
        // SAFETY: the name has its end, and the value its length.
        let status = unsafe {
            let set = (*(*self.0).runtime).set_variable;
            set(name.as_ptr(), vendor, ATTRIBUTES, value.len(), value.as_ptr())
        };
        if status != 0 && !value.is_empty() {
            self.say("lab: a variable cannot be set\r\n");
        }
    }
}

#[unsafe(no_mangle)]
extern "efiapi" fn efi_main(image: *mut c_void, system: *mut SystemTable) -> usize {
    let firmware = Firmware(system);
    let under_way = name("LabCase");
    let next = match firmware.get(&under_way, &LAB) {
        None => 0,
        Some(case) => {
            let mut loaded: *mut LoadedImage = core::ptr::null_mut();
            // SAFETY: the firmware gives the protocol of this very image, with options that are as long as it says.
            let slot = unsafe {
                ((*(*system).boot).handle_protocol)(image, &LOADED_IMAGE, &mut loaded);
                // `lab-slot=A`
                let at = 9;
                if (*loaded).options_bytes as usize > 2 * at { *(*loaded).options.add(at) } else { 45 }
            };
            firmware.say("lab: case ");
            firmware.say_number(case.into());
            firmware.say(" slot=");
            firmware.say(core::str::from_utf8(&[slot as u8]).unwrap_or("?"));
            let left = firmware.get(&name("BootNext"), &GLOBAL).is_some();
            firmware.say(if left { ". next=set.\r\n" } else { ". next=-.\r\n" });
            usize::from(case) + 1
        }
    };
    let Some((order, boot_next)) = CASES.get(next) else {
        firmware.say("lab: all cases done\r\n");
        loop {}
    };
    for (number, value) in ENTRIES {
        firmware.set(&entry(*number), &GLOBAL, value);
    }
    let mut value = [0; 16];
    for (to, number) in value.chunks_mut(2).zip(*order) {
        to.copy_from_slice(&number.to_le_bytes());
    }
    firmware.set(&name("BootOrder"), &GLOBAL, &value[..2 * order.len()]);
    match boot_next {
        Some(number) => firmware.set(&name("BootNext"), &GLOBAL, &number.to_le_bytes()),
        None => firmware.set(&name("BootNext"), &GLOBAL, &[]),
    }
    firmware.set(&under_way, &LAB, &[next as u8]);
    // SAFETY: it does not come back.
    unsafe { ((*(*system).runtime).reset)(RESET_COLD, 0, 0, core::ptr::null()) }
}
