//! The model of `boot/grub/grub.cfg`: what the script does with an environment block, step by step.

use crate::boot::grub::{Block, decode, encode};
use crate::model::Slot;

/// What the script decides: the slot, and the block that it has to save before it boots it, if it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The slot to boot if the block could be saved, or need not be.
    pub slot: Slot,
    /// The block with the counted boot.
    pub save: Option<Vec<u8>>,
}

/// The function `choose` of the script. A block that cannot be read leaves every variable unset.
pub fn choose(raw: &[u8]) -> Choice {
    let block = decode(raw).unwrap_or_default();
    let value = |name: &str| block.variables.find(name).unwrap_or("");
    let slot = if value("resin_root_part") == "3" { Slot::B } else { Slot::A };
    if value("upgrade_available") != "1" {
        return Choice { slot, save: None };
    }
    let limit = match value("os_bc_lim") {
        "" => "3",
        set => set,
    };
    let used = value("bootcount");
    let next = match used {
        _ if used == limit => None,
        "0" | "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" => used.parse::<u8>().ok().map(|n| n + 1),
        _ => None,
    };
    match next {
        None => Choice { slot: !slot, save: None },
        Some(next) => {
            let mut counted: Block = block.clone();
            counted.variables.set("bootcount", &next.to_string());
            Choice { slot, save: Some(encode(&counted).unwrap().to_vec()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table in boot/README.md, row by row.
    #[test]
    fn gives_the_truth_table_of_the_readme() {
        let readme = include_str!("../../boot/README.md");
        let rows: Vec<Vec<&str>> = readme
            .lines()
            .skip_while(|l| !l.starts_with("| `resin_root_part` |"))
            .skip(2)
            .take_while(|l| l.starts_with('|'))
            .map(|l| l.trim_matches('|').split('|').map(|c| c.trim().trim_matches('`')).collect())
            .collect();
        assert!(rows.len() >= 12, "{} rows found", rows.len());
        for row in rows {
            let [part, available, used, limit, slot, saved, ..] = row[..] else { panic!("{row:?}") };
            let mut block = Block::default();
            for (name, value) in [
                ("resin_root_part", part),
                ("upgrade_available", available),
                ("bootcount", used),
                ("os_bc_lim", limit),
            ] {
                if value != "absent" {
                    block.variables.set(name, value);
                }
            }
            let choice = choose(&encode(&block).unwrap());
            assert_eq!(choice.slot.to_string(), slot, "{row:?}");
            let counted =
                choice.save.map(|raw| decode(&raw).unwrap().variables.find("bootcount").unwrap().to_owned());
            assert_eq!(counted.as_deref().unwrap_or("-"), saved, "{row:?}");
        }
    }

    #[test]
    fn an_unreadable_block_boots_a() {
        assert_eq!(choose(b"garbage"), Choice { slot: Slot::A, save: None });
    }
}
