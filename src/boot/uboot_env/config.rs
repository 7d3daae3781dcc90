//! `fw_env.config`: where U-Boot's environment is.

use std::path::PathBuf;

use super::Place;
use crate::{Error, Result};

/// The largest environment that is believed.
const LIMIT_BYTES: u64 = 1024 * 1024;

/// Reads the places of one copy, or of two if the environment is redundant.
///
/// A line is `DEVICE OFFSET SIZE`, numbers as in C; `#` starts a comment. An offset below zero counts from the end.
///
/// # Errors
/// `Failed`, naming the line, if it cannot be understood, a device needs erasing, or there is not one line or two.
///
/// Source: libubootenv, `docs/fw_env_config.md`; checked with fw_printenv 0.3.2 (tests/boot).
pub fn parse(text: &str) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            places.push(place(line).map_err(|e| e.within(format!("line {}", i + 1)))?);
        }
    }
    match places.as_slice() {
        [_] => Ok(places),
        [a, b] if a.len_bytes == b.len_bytes => Ok(places),
        [a, b] => Err(Error::failed(format!(
            "the two copies have {} and {} bytes, expected the same size",
            a.len_bytes, b.len_bytes
        ))),
        _ => Err(Error::failed(format!("{} places of an environment, expected one or two", places.len()))),
    }
}

fn place(line: &str) -> Result<Place> {
    let mut fields = line.split_whitespace();
    let (Some(device), Some(offset), Some(size)) = (fields.next(), fields.next(), fields.next()) else {
        return Err(Error::failed(format!("{line:?}: expected a device, an offset and a size")));
    };
    if ["/dev/mtd", "/dev/ubi"].iter().any(|flash| device.starts_with(flash)) {
        return Err(Error::failed(format!(
            "{device} is flash that must be erased before it is written; not supported"
        )));
    }
    let offset = match offset.strip_prefix('-') {
        Some(back) => -number(back)?,
        None => number(offset)?,
    };
    let len = u64::try_from(number(size)?).unwrap_or(0);
    if !(16..=LIMIT_BYTES).contains(&len) {
        return Err(Error::failed(format!("an environment of {len} bytes, expected 16 to {LIMIT_BYTES}")));
    }
    let len_bytes = usize::try_from(len).map_err(|_| Error::failed("too large"))?;
    Ok(Place { device: PathBuf::from(device), offset, len_bytes })
}

/// A number as `strtoul` with base 0 reads it.
fn number(text: &str) -> Result<i64> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => i64::from_str_radix(digits, 16),
        None if text.len() > 1 && text.starts_with('0') => i64::from_str_radix(text, 8),
        None => text.parse(),
    };
    parsed
        .ok()
        .filter(|n| *n >= 0)
        .ok_or_else(|| Error::failed(format!("{text:?}: expected a number such as 0x4000")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_their_numbers() {
        let text =
            "# environment\n/dev/mmcblk0 0x400000 0x20000\n\n/dev/mmcblk0\t-0x20000 131072 0x200 # second\n";
        let place = |offset| Place { device: "/dev/mmcblk0".into(), offset, len_bytes: 0x20000 };
        assert_eq!(parse(text).unwrap(), [place(0x40_0000), place(-0x20000)]);
        assert_eq!(parse("/boot/uboot.env 010 16\n").unwrap()[0].offset, 8);
    }

    #[test]
    fn mistakes_name_the_line() {
        for (text, expected) in [
            ("", "0 places of an environment, expected one or two"),
            ("\n/dev/a 0", "line 2: \"/dev/a 0\": expected a device, an offset and a size"),
            ("/dev/a x 0x1000", "line 1: \"x\": expected a number such as 0x4000"),
            ("/dev/a 0 -0x1000", "line 1: \"-0x1000\": expected a number such as 0x4000"),
            ("/dev/a 0 4", "line 1: an environment of 4 bytes, expected 16 to 1048576"),
            ("/dev/mtd0 0 0x1000", "line 1: /dev/mtd0 is flash that must be erased"),
            ("/dev/a 0 0x1000\n/dev/a 0x1000 0x2000", "the two copies have 4096 and 8192 bytes"),
        ] {
            let e = parse(text).unwrap_err().to_string();
            assert!(e.starts_with(expected), "{e}");
        }
    }
}
