//! Restarts or switches off a device of the lab at once, with an argument for its firmware: the last that the lab's own inits do.
//!
//! Usage: `lab-restart reboot|poweroff [ARGUMENT]`; by the name `lab-off` it switches off, whatever it is given; so by the
//! name `lab-off-clean`, which first makes read-only what PID 1 has mounted: the next boot finds it in order. busybox's
//! own takes no argument, which `tryboot` needs.
#![allow(clippy::disallowed_methods, clippy::disallowed_macros)]

use std::ffi::{CStr, CString};
use std::io::Error;
use std::process::ExitCode;

/// Where nothing is mounted there is nothing to do.
fn make_read_only(place: &CStr) {
    let (none, flags) = (std::ptr::null(), libc::MS_REMOUNT | libc::MS_RDONLY);
    // SAFETY: mount(2) reads the string, and with these flags nothing of the others.
    unsafe {
        libc::mount(none, place.as_ptr(), none, flags, none.cast());
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args();
    let name = args.next().unwrap_or_default();
    let clean = name.ends_with("/lab-off-clean");
    let off = args.next().is_some_and(|word| word == "poweroff") || clean || name.ends_with("/lab-off");
    if clean {
        [c"/mnt/data", c"/mnt/state", c"/mnt/boot"].into_iter().for_each(make_read_only);
    }
    let argument = CString::new(args.next().unwrap_or_default()).unwrap_or_default();
    let command = match (off, argument.is_empty()) {
        (true, _) => libc::LINUX_REBOOT_CMD_POWER_OFF,
        (false, true) => libc::LINUX_REBOOT_CMD_RESTART,
        (false, false) => libc::LINUX_REBOOT_CMD_RESTART2,
    };
    // SAFETY: reboot(2) reads a string that ends with NUL, and lives until it returns, which it does only on an error.
    unsafe {
        libc::syscall(
            libc::SYS_reboot,
            libc::LINUX_REBOOT_MAGIC1,
            libc::LINUX_REBOOT_MAGIC2,
            command,
            argument.as_ptr(),
        );
    }
    eprintln!("lab-restart: {}", Error::last_os_error());
    ExitCode::FAILURE
}
