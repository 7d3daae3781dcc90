//! The scheme of balenaOS's variables, shared by every bootloader that counts in text: variables to boot plan and
//! back.
//!
//! | variable | meaning |
//! |---|---|
//! | `resin_root_part` | partition number of the slot to boot |
//! | `upgrade_available` | `1`: that slot is on trial and the other one is the primary |
//! | `bootcount` | boots that the trial has used, decimal |
//! | `os_bc_lim` | boots that it may use; absent: 3 |

use super::Variables;
use crate::model::{BootPlan, Slot};
use crate::{Error, Result};

/// The limit that the boot scripts use when the environment names none.
const DEFAULT_LIMIT: u8 = 3;

/// Which partition number stands for which slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partitions {
    /// Slot A's partition number, from 1.
    pub a: u32,
    /// Slot B's partition number, from 1.
    pub b: u32,
}

impl Partitions {
    const fn number(self, slot: Slot) -> u32 {
        match slot {
            Slot::A => self.a,
            Slot::B => self.b,
        }
    }

    fn slot(self, number: &str) -> Option<Slot> {
        Slot::ALL.into_iter().find(|s| self.number(*s).to_string() == number)
    }
}

/// What the boot script will do with these variables.
///
/// # Errors
/// `Failed`, naming the variable, its value and what was expected.
pub fn plan(variables: &Variables, partitions: Partitions) -> Result<BootPlan> {
    let part = variables.find("resin_root_part").unwrap_or("");
    let slot = partitions.slot(part).ok_or_else(|| {
        let Partitions { a, b } = partitions;
        Error::failed(format!("resin_root_part is {part:?}, expected {a} (slot A) or {b} (slot B)"))
    })?;
    match variables.find("upgrade_available") {
        None | Some("" | "0") => Ok(BootPlan::settled(slot)),
        Some("1") => {
            let limit = number(variables, "os_bc_lim")?.unwrap_or(DEFAULT_LIMIT);
            let used = number(variables, "bootcount")?
                .ok_or_else(|| Error::failed("bootcount is missing during a trial"))?;
            Ok(BootPlan::on_trial(slot, limit.saturating_sub(used)))
        }
        Some(other) => Err(Error::failed(format!("upgrade_available is {other:?}, expected 0 or 1"))),
    }
}

fn number(variables: &Variables, name: &str) -> Result<Option<u8>> {
    variables.find(name).filter(|v| !v.is_empty()).map_or(Ok(None), |text| {
        // One digit is all that the scripts can count.
        match text.parse::<u8>() {
            Ok(n @ 0..=9) if text.len() == 1 => Ok(Some(n)),
            _ => Err(Error::failed(format!("{name} is {text:?}, expected one digit"))),
        }
    })
}

/// Makes `slot` the trial, with `tries` boots to use.
pub fn arm(variables: &mut Variables, partitions: Partitions, slot: Slot, tries: u8) {
    variables.set("resin_root_part", &partitions.number(slot).to_string());
    variables.set("upgrade_available", "1");
    variables.set("bootcount", "0");
    variables.set("os_bc_lim", &tries.to_string());
}

/// Makes `slot` the primary, with no trial.
pub fn settle(variables: &mut Variables, partitions: Partitions, slot: Slot) {
    variables.set("resin_root_part", &partitions.number(slot).to_string());
    variables.set("upgrade_available", "0");
    variables.set("bootcount", "0");
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTITIONS: Partitions = Partitions { a: 2, b: 3 };

    fn variables(text: &str) -> Variables {
        let mut v = Variables::default();
        for pair in text.split_whitespace() {
            let (name, value) = pair.split_once('=').unwrap();
            v.set(name, value);
        }
        v
    }

    #[test]
    fn balena_s_own_seed_is_slot_a() {
        let v = variables("bootcount=0 resin_root_part=2 upgrade_available=0");
        assert_eq!(plan(&v, PARTITIONS).unwrap(), BootPlan::settled(Slot::A));
    }

    #[test]
    fn a_trial_counts_down_to_nothing_left() {
        for (used, left) in [("0", 3), ("2", 1), ("3", 0), ("7", 0)] {
            let v = variables(&format!("resin_root_part=3 upgrade_available=1 os_bc_lim=3 bootcount={used}"));
            assert_eq!(plan(&v, PARTITIONS).unwrap(), BootPlan::on_trial(Slot::B, left));
        }
    }

    #[test]
    fn a_trial_starts_to_count_anew_whatever_an_older_count_says() {
        for older in
            ["bootcount=3 upgrade_available=0", "bootcount=2 upgrade_available=1 os_bc_lim=3", "bootcount=x"]
        {
            let mut v = variables(&format!("resin_root_part=2 {older}"));
            arm(&mut v, PARTITIONS, Slot::B, 3);
            assert_eq!(plan(&v, PARTITIONS).unwrap(), BootPlan::on_trial(Slot::B, 3), "{older}");
        }
    }

    #[test]
    fn nonsense_is_an_error_that_names_the_variable() {
        for (text, expected) in [
            ("", "resin_root_part is \"\", expected 2 (slot A) or 3 (slot B)"),
            ("resin_root_part=4", "resin_root_part is \"4\""),
            ("resin_root_part=2 upgrade_available=yes", "upgrade_available is \"yes\", expected 0 or 1"),
            ("resin_root_part=2 upgrade_available=1", "bootcount is missing during a trial"),
            ("resin_root_part=2 upgrade_available=1 bootcount=1x", "bootcount is \"1x\", expected one digit"),
            ("resin_root_part=2 upgrade_available=1 bootcount=1 os_bc_lim=12", "os_bc_lim is \"12\""),
        ] {
            let e = plan(&variables(text), PARTITIONS).unwrap_err().to_string();
            assert!(e.starts_with(expected), "{text}: {e}");
        }
    }
}
