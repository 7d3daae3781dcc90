//! Restarts or switches off a device of the lab at once, with an argument for its firmware: the last that the lab's own inits do.
//!
//! Usage: `lab-restart reboot|poweroff [ARGUMENT]`; by the name `lab-off` it switches off whatever it is given. busybox's own takes no argument, which `tryboot` needs.
#![allow(clippy::disallowed_methods, clippy::disallowed_macros)]

use std::ffi::CString;
use std::io::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args();
    let named_off = args.next().is_some_and(|name| name.ends_with("/lab-off"));
    let off = args.next().is_some_and(|word| word == "poweroff") || named_off;
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
