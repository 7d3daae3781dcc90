//! A sealed root: the kernel checks each of its blocks as it is read (dm-verity).

use crate::block::{FileDisk, HashTree, Partition, seal};
use crate::{Doing, Result, sys};

/// The root partition as it is to be mounted: itself, or the device that checks what is read from it, if the slot is sealed.
///
/// What this protects from: bits that fall over, writes past the file system, whoever can change the root but not the
/// seal. It is no proof against somebody who can write the whole disk: the seal is not signed, and neither are the kernel
/// and the initramfs beside it, unless the firmware checks them.
///
/// # Errors
/// `Failed` if the seal or the hash tree is damaged, or the kernel cannot check. A sealed root is never mounted unchecked.
pub(super) fn checked(partition: &Partition) -> Result<Partition> {
    let doing = || format!("{} is sealed", partition.label);
    let mut disk = FileDisk::open_read_only(&partition.device)?;
    let Some(verity) = seal::read(&mut disk, 0).doing(doing)? else { return Ok(partition.clone()) };
    let table = HashTree::read(&mut disk, &verity).doing(doing)?.table(&partition.device);
    let device =
        sys::device_mapper::create_read_only("twinhull-root", "verity", table.sectors, &table.parameters)
            .doing(doing)?;
    log::info!("{}, with root hash {}: {}", doing(), verity.root_hash, device.display());
    Ok(Partition { device, ..partition.clone() })
}
