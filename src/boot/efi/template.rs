//! What a slot's boot entry is made from: a small text file on the boot partition, from the image.

use super::device_path::Volume;
use super::load_option::LoadOption;
use crate::model::Slot;
use crate::{Error, Result};

/// The file of a slot, in `EFI/twinhull` on the boot partition.
pub const fn template_name(slot: Slot) -> &'static str {
    match slot {
        Slot::A => "a.entry",
        Slot::B => "b.entry",
    }
}

/// On which partition the program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    /// On the slot's own, if the firmware can read its file system (Jetson's reads ext4).
    Slot,
    /// On the boot partition.
    Boot,
}

/// The lines `partition slot|boot`, `efi PATH` and `options TEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// On which partition.
    pub partition: Where,
    /// The program's path there: a kernel with EFI stub, or a unified kernel image.
    efi: String,
    /// Its command line.
    options: String,
}

impl Template {
    /// Reads a template. `#` starts a comment line.
    ///
    /// # Errors
    /// `Failed`, naming the key, if one is missing, unknown, or there twice.
    pub fn parse(text: &str) -> Result<Self> {
        let (mut partition, mut efi, mut options) = (None, None, None);
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let value = value.trim();
            let place = match key {
                "partition" => &mut partition,
                "efi" => &mut efi,
                "options" => &mut options,
                _ => return Err(Error::failed(format!("{key}: expected partition, efi or options"))),
            };
            if place.replace(value.to_owned()).is_some() {
                return Err(Error::failed(format!("{key} stands twice")));
            }
        }
        let partition = match partition.as_deref() {
            Some("slot") => Where::Slot,
            Some("boot") => Where::Boot,
            other => {
                return Err(Error::failed(format!(
                    "partition {}: expected slot or boot",
                    other.unwrap_or("is missing")
                )));
            }
        };
        let efi = efi
            .filter(|path| path.starts_with(['/', '\\']))
            .ok_or_else(|| Error::failed("efi: expected an absolute path"))?;
        Ok(Self { partition, efi, options: options.unwrap_or_default() })
    }

    /// The entry of `slot`, whose program is on `volume`.
    ///
    /// # Errors
    /// As [`LoadOption::new`].
    pub fn entry(&self, slot: Slot, volume: &Volume) -> Result<LoadOption> {
        LoadOption::new(&format!("twinhull {slot}"), volume, &self.efi, &self.options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_says_where_the_program_is_and_how_it_is_started() {
        let text = "# of the image\npartition boot\nefi  /slot-a/vmlinuz\noptions root=PARTUUID=aa  quiet \n";
        let template = Template::parse(text).unwrap();
        assert_eq!(template.partition, Where::Boot);
        assert_eq!(
            (template.efi.as_str(), template.options.as_str()),
            ("/slot-a/vmlinuz", "root=PARTUUID=aa  quiet")
        );
    }

    #[test]
    fn mistakes_name_the_key() {
        for (text, expected) in [
            ("efi /a\n", "partition is missing: expected slot or boot"),
            ("partition root\nefi /a\n", "partition root: expected slot or boot"),
            ("partition slot\n", "efi: expected an absolute path"),
            ("partition slot\nefi boot/vmlinuz\n", "efi: expected an absolute path"),
            ("partition slot\npartition boot\nefi /a\n", "partition stands twice"),
            ("partition slot\nefi /a\nlinux /a\n", "linux: expected partition, efi or options"),
        ] {
            assert_eq!(Template::parse(text).unwrap_err().to_string(), expected);
        }
    }
}
