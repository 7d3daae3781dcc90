//! The models of `boot/grub/grub.cfg` and of balena-bootloader's script: what they do with an environment block.

use crate::boot::Environment;
use crate::boot::grub::{Block, decode, encode};
use crate::model::Slot;

/// The function `choose` of the script: the slot to boot, and the block that has to be saved before that, if the boot is
/// counted. A block that cannot be read leaves every variable unset.
pub fn choose(raw: &[u8]) -> (Slot, Option<Vec<u8>>) {
    let block = decode(raw).unwrap_or_default();
    let value = |name: &str| block.variables.find(name).unwrap_or("");
    let slot = if value("resin_root_part") == "3" { Slot::B } else { Slot::A };
    if value("upgrade_available") != "1" {
        return (slot, None);
    }
    let limit = match value("os_bc_lim") {
        "" => "3",
        set => set,
    };
    let used = value("bootcount");
    match used {
        _ if used == limit => (!slot, None),
        "0" | "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" => {
            (slot, Some(counted(&block, used.parse::<i32>().unwrap() + 1)))
        }
        _ => (!slot, None),
    }
}

/// What balena-bootloader's own script does with its `bootenv`: it adds one whenever `upgrade_available` is 1, and
/// boots the other slot from 3 on, with or without a trial.
///
/// Source: meta-balena, initrdscripts `abroot`.
pub fn abroot(raw: &[u8]) -> (Slot, Option<Vec<u8>>) {
    let block = decode(raw).unwrap_or_default();
    let value = |name: &str| block.variables.find(name).unwrap_or("");
    let slot = if value("resin_root_part") == "A" { Slot::A } else { Slot::B };
    let mut count: i32 = value("bootcount").parse().unwrap_or(0);
    let mut save = None;
    if value("upgrade_available") == "1" {
        count += 1;
        save = Some(counted(&block, count));
    }
    (if count >= 3 { !slot } else { slot }, save)
}

fn counted(block: &Block, count: i32) -> Vec<u8> {
    let mut counted: Block = block.clone();
    counted.variables.set("bootcount", &count.to_string());
    encode(&counted).unwrap().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_block_boots_a() {
        assert_eq!(choose(b"garbage"), (Slot::A, None));
    }
}
