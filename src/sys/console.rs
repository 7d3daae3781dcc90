//! Standard streams for a PID 1 that the kernel could give none.
//!
//! With no console at all (`console=null`, or a board without a serial port) the kernel starts its first program
//! with its standard streams closed. Rust's start-up code then opens /dev/null in their place and aborts if there
//! is none, before `main`; in an initramfs that holds one program there is none. So it is made before that.

use rustix::fs::{CWD, FileType, Mode, makedev, mkdirat, mknodat};

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = make_null_device;

extern "C" fn make_null_device() {
    if !super::process::is_pid1() {
        return;
    }
    // Both may be there already, and nobody can be told of anything else.
    let _ = mkdirat(CWD, "/dev", Mode::from_raw_mode(0o755));
    let _ = mknodat(CWD, "/dev/null", FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3));
}
