//! An init without an initramfs that leaves a device as twinhull's PID 1 does: it loads the same modules, mounts the same
//! partitions in the same way, and becomes `lab-off`. `boot-time` compares with it what that costs by itself.
//!
//! For the NUC of the lab, whose kernel mounts the root. Says "lab-mounts: done" if all of it was.
#![allow(clippy::disallowed_methods, clippy::disallowed_macros)]

use std::ffi::CString;
use std::fs::File;
use std::io::Error;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// PID 1's modules and its list of them, as in the initramfs.
const MODULES: &str = "/usr/libexec/lab-modules";
const NOTHING: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
const MOUNTS: [(&str, &str, &str, libc::c_ulong, &str); 7] = [
    ("proc", "/proc", "proc", NOTHING, ""),
    ("sysfs", "/sys", "sysfs", NOTHING, ""),
    ("devtmpfs", "/dev", "devtmpfs", libc::MS_NOSUID, "mode=0755"),
    ("tmpfs", "/run", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=0755"),
    ("/dev/nvme0n1p4", "/mnt/state", "ext4", libc::MS_NOATIME, ""),
    ("/dev/nvme0n1p1", "/mnt/boot", "vfat", NOTHING | libc::MS_NOATIME, "flush"),
    ("/dev/nvme0n1p5", "/mnt/data", "ext4", libc::MS_NOATIME, ""),
];

fn mount(mount: (&str, &str, &str, libc::c_ulong, &str)) -> Result<(), Error> {
    let (source, target, kind, flags, options) = mount;
    let [source, target, kind, options] =
        [CString::new(source)?, CString::new(target)?, CString::new(kind)?, CString::new(options)?];
    // SAFETY: mount(2) reads four strings that live until it returns.
    let failed = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) != 0
    };
    match Error::last_os_error() {
        // The kernel may have mounted /dev itself.
        e if failed && e.raw_os_error() != Some(libc::EBUSY) => Err(e),
        _ => Ok(()),
    }
}

fn load_modules() -> Result<(), Error> {
    for line in std::fs::read_to_string(Path::new(MODULES).join("order"))?.lines() {
        let (name, parameters) = line.split_once(' ').unwrap_or((line, ""));
        let (file, parameters) = (File::open(Path::new(MODULES).join(name))?, CString::new(parameters)?);
        // SAFETY: finit_module(2) reads an open file and a string that lives until it returns.
        if unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) } != 0 {
            return Err(Error::last_os_error());
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match load_modules().and_then(|()| MOUNTS.into_iter().try_for_each(mount)) {
        Ok(()) => println!("lab-mounts: done"),
        Err(e) => eprintln!("lab-mounts: {e}"),
    }
    eprintln!("lab-mounts: {}", Command::new("/usr/libexec/lab-off").exec());
    ExitCode::FAILURE
}
