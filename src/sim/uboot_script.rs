//! The model of `boot/uboot/boot.cmd`: what the script does with the two text files, step by step.

use std::collections::BTreeMap;

use crate::model::Slot;

/// The slot to boot, and the `bootcount.env` that has to be saved before that, if the boot is counted.
pub fn choose(plan: Option<&[u8]>, count: Option<&[u8]>) -> (Slot, Option<Vec<u8>>) {
    let variables = import(plan.unwrap_or_default());
    let value = |name: &str| variables.get(name).map_or("", String::as_str);
    let slot = if value("resin_root_part") == "3" { Slot::B } else { Slot::A };
    if value("upgrade_available") != "1" {
        return (slot, None);
    }
    let limit = match value("os_bc_lim") {
        "" => "3",
        set => set,
    };
    let count = import(count.unwrap_or_default());
    let used = count.get("bootcount").map_or("", String::as_str);
    match used {
        _ if used == limit => (!slot, None),
        "0" | "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" => {
            let next = used.parse::<u8>().unwrap() + 1;
            (slot, Some(format!("bootcount={next}\n\0").into_bytes()))
        }
        _ => (!slot, None),
    }
}

/// `env import -t`: later lines win; a name without a value, and whatever follows a NUL, is nothing.
pub fn import(raw: &[u8]) -> BTreeMap<String, String> {
    let text = raw.split(|b| *b == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let mut variables = BTreeMap::new();
    for line in text.split('\n') {
        match line.trim_start_matches([' ', '\t']).split_once('=') {
            Some((name, value)) if !name.is_empty() && !name.starts_with('#') && !value.is_empty() => {
                variables.insert(name.to_owned(), value.to_owned());
            }
            Some((name, "")) => drop(variables.remove(name)),
            _ => {}
        }
    }
    variables
}
