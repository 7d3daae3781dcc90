//! What a bootloader shows of itself while it counts: the evidence of the switch.

use crate::Outcome;
use crate::boards::Bootloader;
use crate::device::{BOOT, Device};
use crate::disk::list_fat;
use crate::images::Lab;
use crate::layout::Role;

/// The number of tries that every bootloader gives.
pub const TRIES: usize = 3;

/// What EDK II's boot manager says before it starts an entry.
const UEFI_STARTS: &str = "BdsDxe: starting ";

/// Who said it, and what.
pub type Evidence = (&'static str, String);

/// Waits until boot `n` of the trial of a slot has come as far as PID 1: what the bootloader says of it.
pub fn trial_boot(lab: &Lab, device: &mut Device, slot: char, n: usize) -> Outcome<Evidence> {
    match lab.board.bootloader {
        Bootloader::Grub | Bootloader::UbootText => {
            let text = format!("twinhull: trial of partition {}, boot {n} of {TRIES}", partition(lab, slot));
            device.console(&text, BOOT)?;
            pid1_starts(device, slot)?;
            Ok(("bootloader", text))
        }
        Bootloader::SystemdBoot => {
            pid1_starts(device, slot)?;
            let letter = slot.to_ascii_lowercase();
            counted_entry(lab, &format!("twinhull-{letter}+{}-{n}.conf", TRIES - n))
        }
        Bootloader::Tryboot => {
            let text = format!("boot ROM: a try of partition {}, config.txt", boot_partition(lab, slot));
            device.console(&text, BOOT)?;
            pid1_starts(device, slot)?;
            Ok(("bootloader", format!("{text}: boot {n} of {TRIES}")))
        }
        Bootloader::Efi => {
            // Between two tries the primary boots, which starts the next one.
            let entry = format!("\"twinhull {slot}\"");
            let said = loop {
                let said = device.console(UEFI_STARTS, BOOT)?;
                if said.contains(&entry) {
                    break said;
                }
            };
            pid1_starts(device, slot)?;
            Ok(("bootloader", format!("{UEFI_STARTS}{said}: boot {n} of {TRIES}")))
        }
    }
}

/// Waits until the bootloader has left the trial of a slot, and the other slot is as far as PID 1.
pub fn gives_up(lab: &Lab, device: &mut Device, slot: char) -> Outcome<Evidence> {
    let other = other(slot);
    match lab.board.bootloader {
        Bootloader::Grub | Bootloader::UbootText => {
            let [from, to] = [slot, other].map(|s| partition(lab, s));
            let text = format!("twinhull: partition {from} used up its tries, back to partition {to}");
            device.console(&text, BOOT)?;
            pid1_starts(device, other)?;
            Ok(("bootloader", text))
        }
        Bootloader::SystemdBoot => {
            pid1_starts(device, other)?;
            counted_entry(lab, &format!("twinhull-{}+0-{TRIES}.conf", slot.to_ascii_lowercase()))
        }
        Bootloader::Tryboot => {
            let text = format!("boot ROM: partition {}, config.txt", boot_partition(lab, other));
            device.console(&text, BOOT)?;
            pid1_starts(device, other)?;
            Ok(("bootloader", text))
        }
        Bootloader::Efi => {
            let said = device.console(UEFI_STARTS, BOOT)?;
            if !said.contains(&format!("\"twinhull {other}\"")) {
                return Err(format!("expected slot {other} to boot, the firmware starts {said}"));
            }
            pid1_starts(device, other)?;
            Ok(("bootloader", format!("{UEFI_STARTS}{said}")))
        }
    }
}

/// Waits until the console shows that PID 1 has found the root of a slot.
pub fn pid1_starts(device: &mut Device, slot: char) -> Outcome {
    // `root=PARTUUID=… is /dev/vda2: slot A`
    let found = device.console(" is /dev/", BOOT)?;
    // Where the running system starts each try, the primary has been up in between.
    device.agent_skip();
    match found.ends_with(&format!(": slot {slot}")) {
        true => Ok(()),
        false => Err(format!("expected slot {slot} to boot, the console says /dev/{found}")),
    }
}

/// The slot that is not this one.
pub const fn other(slot: char) -> char {
    match slot {
        'A' => 'B',
        _ => 'A',
    }
}

fn partition(lab: &Lab, slot: char) -> usize {
    let role = Role::Root(usize::from(slot == 'B'));
    lab.board.layout.place(role).map_or(0, |p| p.number)
}

/// The number of the slot's own boot partition.
fn boot_partition(lab: &Lab, slot: char) -> usize {
    let role = Role::SlotBoot(usize::from(slot == 'B'));
    lab.board.layout.place(role).map_or(0, |p| p.number)
}

/// systemd-boot renames before it starts anything, and what firmware has written is on the disk.
fn counted_entry(lab: &Lab, name: &str) -> Outcome<Evidence> {
    let boot = lab.board.layout.place(Role::Boot).ok_or("the disk has no boot partition")?;
    let entries = list_fat(&lab.file("disk.img"), boot, "loader/entries")?;
    match entries.iter().any(|e| e == name) {
        true => Ok(("bootloader", format!("systemd-boot has renamed the entry to {name}"))),
        false => Err(format!("expected systemd-boot to have made {name}; there are {}", entries.join(" "))),
    }
}
