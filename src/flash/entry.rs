//! The firmware's boot entry of the new system: the loader at its usual place on the disk that was written, first in order.

use std::path::Path;

use crate::block::TableEntry;
use crate::boot::efi::{BOOT_ORDER, LoadOption, VariableStore, Volume, entry_file};
use crate::{Doing, Error, Result};

const DESCRIPTION: &str = "twinhull";
/// Attributes of UEFI's own variables: kept, and there before and after the system starts.
const ATTRIBUTES: [u8; 4] = [7, 0, 0, 0];
/// Where firmware looks on a removable medium. Source: UEFI specification 2.10, section 3.5.1.1.
const LOADERS: [&str; 4] =
    ["EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/BOOTAA64.EFI", "EFI/BOOT/BOOTIA32.EFI", "EFI/BOOT/BOOTARM.EFI"];

/// Makes the entry, or puts one that is there for this partition right, and in front of all others. `boot` is the new boot
/// partition's content. Gives its number; `None` if there is no loader for UEFI.
///
/// # Errors
/// `Failed` if a variable cannot be read or written: the disk boots without an entry where the firmware looks by itself.
pub fn make_entry(
    store: &mut impl VariableStore,
    boot: &Path,
    partition: &TableEntry,
    sector_bytes: u64,
) -> Result<Option<u16>> {
    let Some(loader) = LOADERS.iter().find(|loader| boot.join(loader).is_file()) else { return Ok(None) };
    let volume = Volume {
        number: partition.number,
        start_lba: partition.start_bytes / sector_bytes,
        sectors: partition.len_bytes / sector_bytes,
        partuuid: partition.partuuid.clone(),
    };
    let wanted = LoadOption::new(DESCRIPTION, &volume, loader, "")?;
    put_first(store, &wanted).doing(|| "boot entry").map(Some)
}

fn put_first(store: &mut impl VariableStore, wanted: &LoadOption) -> Result<u16> {
    let names = store.list()?;
    let is_ours = |number: &u16| {
        let raw = store.read(&entry_file(*number)).ok().flatten().unwrap_or_default();
        LoadOption::decode(raw.get(4..).unwrap_or_default()).is_ok_and(|option| option.is_for(wanted))
    };
    let there = (0..=u16::MAX).filter(|n| names.contains(&entry_file(*n))).find(is_ours);
    let free = || (0..=u16::MAX).find(|n| !names.contains(&entry_file(*n)));
    let number = there.or_else(free).ok_or_else(|| Error::failed("every number is taken"))?;
    store.write(&entry_file(number), &[&ATTRIBUTES[..], &wanted.encode()?].concat())?;
    let order = store.read(BOOT_ORDER)?.unwrap_or_else(|| ATTRIBUTES.to_vec());
    let (attributes, old) = order.split_at_checked(4).ok_or_else(|| Error::failed("BootOrder: too short"))?;
    let own = number.to_le_bytes();
    let others = old.as_chunks::<2>().0.iter().filter(|n| **n != own).flatten().copied();
    let new: Vec<u8> = attributes.iter().copied().chain(own).chain(others).collect();
    store.write(BOOT_ORDER, &new)?;
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::efi::Efivarfs;
    use crate::sys;

    #[test]
    fn one_entry_however_often_and_first() {
        let dir = tempfile::tempdir().unwrap();
        let (vars, boot) = (dir.path().join("vars"), dir.path().join("boot"));
        sys::durable::create_dir(&vars).unwrap();
        sys::durable::create_dir(&boot.join("EFI/BOOT")).unwrap();
        let put = |name: &str, raw: &[u8]| sys::durable::replace(&vars.join(name), raw, 0o644).unwrap();
        put(BOOT_ORDER, &[7, 0, 0, 0, 2, 0, 5, 0]);
        put(&entry_file(0), b"what we do not know");
        let partition = TableEntry {
            number: 1,
            start_bytes: 1 << 20,
            len_bytes: 64 << 20,
            partuuid: "a069de34-f845-4932-aa5f-0d0e532db4e9".into(),
            name: "resin-boot".into(),
        };
        let mut store = Efivarfs::new(&vars);
        assert_eq!(make_entry(&mut store, &boot, &partition, 512).unwrap(), None);
        sys::durable::replace(&boot.join(LOADERS[0]), b"MZ", 0o644).unwrap();
        for _again in 0..3 {
            assert_eq!(make_entry(&mut store, &boot, &partition, 512).unwrap(), Some(1));
            assert_eq!(store.read(BOOT_ORDER).unwrap().unwrap(), [7, 0, 0, 0, 1, 0, 2, 0, 5, 0]);
        }
        // Another disk is another entry.
        let other = TableEntry { partuuid: "b069de34-f845-4932-aa5f-0d0e532db4e9".into(), ..partition };
        assert_eq!(make_entry(&mut store, &boot, &other, 512).unwrap(), Some(2));
        assert_eq!(store.read(BOOT_ORDER).unwrap().unwrap(), [7, 0, 0, 0, 2, 0, 1, 0, 5, 0]);
    }
}
