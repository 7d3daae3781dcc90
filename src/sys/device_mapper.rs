//! Devices of the device mapper.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use crate::{Doing, Error, Result};

const CONTROL: &str = "/dev/mapper/control";
/// `struct dm_ioctl` of linux/dm-ioctl.h.
const HEADER: usize = 312;
/// `struct dm_target_spec`.
const SPEC: usize = 40;
const REQUEST: usize = 2048;
const READ_ONLY: u32 = 1;
const NAME_AT: usize = 48;

const CREATE: Opcode = opcode::read_write::<[u8; HEADER]>(0xfd, 3);
const SUSPEND: Opcode = opcode::read_write::<[u8; HEADER]>(0xfd, 6);
const LOAD: Opcode = opcode::read_write::<[u8; HEADER]>(0xfd, 9);

/// A header with what follows it.
#[repr(C, align(8))]
struct Request([u8; REQUEST]);

impl Request {
    fn new(name: &str, flags: u32) -> Result<Self> {
        let mut request = Self([0; REQUEST]);
        let len = u32::try_from(REQUEST).unwrap_or(0);
        let start = u32::try_from(HEADER).unwrap_or(0);
        // Version 4.0.0, which every kernel since 2.6 has.
        for (at, value) in [(0, 4), (12, len), (16, start), (28, flags)] {
            request.put(at, &value.to_ne_bytes())?;
        }
        request.put(NAME_AT, name.as_bytes())?;
        Ok(request)
    }

    fn put(&mut self, at: usize, value: &[u8]) -> Result<()> {
        // The byte behind it stays zero, which ends a text.
        let place = self.0.get_mut(at..=at + value.len()).and_then(|p| p.get_mut(..value.len()));
        place.ok_or_else(|| Error::inconsistent("too long for a request"))?.copy_from_slice(value);
        Ok(())
    }

    fn send<const WHAT: Opcode>(&mut self, control: &File) -> Result<()> {
        // SAFETY: these calls take a pointer to a `dm_ioctl`, whose `data_size` says how many bytes are there to be read
        // and written: all of the request.
        Ok(unsafe { ioctl(control, Updater::<WHAT, Self>::new(self)) }?)
    }
}

/// Makes a device that can only be read, of one target over its whole length. Gives its node.
///
/// # Errors
/// `Failed` if the kernel has no device mapper or not this target, or refuses the parameters; or if the name is taken.
pub fn create_read_only(name: &str, target: &str, sectors: u64, parameters: &str) -> Result<PathBuf> {
    let doing = || format!("make device {name} of {target} {parameters}");
    let control = super::file::open_read_write(Path::new(CONTROL))
        .doing(|| "is the device mapper in the kernel, or in /modules of the initramfs?")
        .doing(doing)?;
    let mut request = Request::new(name, READ_ONLY)?;
    request.send::<CREATE>(&control).doing(doing)?;
    let device =
        u64::from_ne_bytes(request.0.get(40..48).and_then(|b| b.try_into().ok()).unwrap_or_default());

    let mut request = Request::new(name, READ_ONLY)?;
    request.put(20, &1_u32.to_ne_bytes())?;
    request.put(HEADER + 8, &sectors.to_ne_bytes())?;
    request.put(HEADER + 24, target.as_bytes())?;
    request.put(HEADER + SPEC, parameters.as_bytes())?;
    request.send::<LOAD>(&control).doing(doing)?;
    // Without the flag that suspends, it resumes: the table that was loaded takes effect.
    Request::new(name, 0)?.send::<SUSPEND>(&control).doing(doing)?;
    Ok(format!("/dev/dm-{}", minor(device)).into())
}

/// As the kernel's `huge_encode_dev` puts it together.
const fn minor(device: u64) -> u64 {
    (device & 0xff) | ((device >> 12) & 0xf_ff00)
}
