//! The scheme of balenaOS's variables, shared by every bootloader that counts in text: variables to boot plan and
//! back.
//!
//! | variable | meaning |
//! |---|---|
//! | `resin_root_part` | the slot to boot: its partition number, or its letter |
//! | `upgrade_available` | `1`: that slot is on trial and the other one is the primary |
//! | `bootcount` | boots that the trial has used |
//! | `os_bc_lim` | boots that it may use; absent: 3 |

use super::Environment;
use crate::model::{BootPlan, Slot};
use crate::{Error, Result};

/// The limit that the boot scripts use when the environment names none.
const DEFAULT_LIMIT: i16 = 3;

/// The highest `bootcount` with which balena-bootloader still boots the trial; it knows no `os_bc_lim`.
const LETTERS_LIMIT: i16 = 2;

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
}

/// How a bootloader writes slots and counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notation {
    /// GRUB's script: decimal partition numbers, counts of one digit.
    Decimal(Partitions),
    /// U-Boot: partition numbers and counts in hexadecimal, with or without `0x`.
    Hex(Partitions),
    /// balena-bootloader: the letters A and B; a limit that cannot be set, so the count starts where as many boots are
    /// left as the trial shall have, below zero if need be. It reads the count with the shell's arithmetic.
    Letters,
}

impl Notation {
    /// What stands for `slot` in `resin_root_part`.
    pub fn mark(self, slot: Slot) -> String {
        match self {
            Self::Decimal(partitions) => partitions.number(slot).to_string(),
            Self::Hex(partitions) => format!("{:x}", partitions.number(slot)),
            Self::Letters => slot.to_string(),
        }
    }

    fn slot(self, mark: &str) -> Option<Slot> {
        let same = |slot: &Slot| match self {
            Self::Hex(partitions) => hex(mark) == Some(partitions.number(*slot)),
            Self::Decimal(_) | Self::Letters => self.mark(*slot) == mark,
        };
        Slot::ALL.into_iter().find(same)
    }

    /// A count, if there is one.
    ///
    /// # Errors
    /// `Failed`, naming the variable, if it is no number.
    pub fn count(self, environment: &impl Environment, name: &str) -> Result<Option<i16>> {
        let Some(text) = environment.value(name) else { return Ok(None) };
        let (number, expected) = match self {
            // One digit is all that the script can count.
            Self::Decimal(_) => (text.parse().ok().filter(|_| text.len() == 1), "one digit"),
            Self::Hex(_) => (hex(&text).and_then(|n| i16::try_from(n).ok()), "a hexadecimal number"),
            Self::Letters => (text.parse().ok().filter(|n| (-9..=999).contains(n)), "a number"),
        };
        number.map(Some).ok_or_else(|| Error::failed(format!("{name} is {text:?}, expected {expected}")))
    }

    fn text(self, count: i16) -> String {
        match self {
            Self::Hex(_) => format!("{count:x}"),
            Self::Decimal(_) | Self::Letters => count.to_string(),
        }
    }

    fn limit(self, environment: &impl Environment) -> Result<i16> {
        match self {
            Self::Decimal(_) | Self::Hex(_) => {
                Ok(self.count(environment, "os_bc_lim")?.unwrap_or(DEFAULT_LIMIT))
            }
            Self::Letters => Ok(LETTERS_LIMIT),
        }
    }
}

/// A number as U-Boot writes it: `setexpr` gives `a` or, newer, `0xa`.
fn hex(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

/// What the boot script will do with these variables.
///
/// # Errors
/// `Failed`, naming the variable, its value and what was expected.
pub fn plan(environment: &impl Environment, notation: Notation) -> Result<BootPlan> {
    let mark = environment.value("resin_root_part").unwrap_or_default();
    let slot = notation.slot(&mark).ok_or_else(|| {
        let [a, b] = Slot::ALL.map(|s| notation.mark(s));
        Error::failed(format!("resin_root_part is {mark:?}, expected {a} (slot A) or {b} (slot B)"))
    })?;
    match environment.value("upgrade_available").as_deref() {
        Some("0") => Ok(BootPlan::settled(slot)),
        Some("1") => {
            let limit = notation.limit(environment)?;
            let used = notation
                .count(environment, "bootcount")?
                .ok_or_else(|| Error::failed("bootcount is missing during a trial"))?;
            let left = u8::try_from((limit - used).max(0)).unwrap_or(u8::MAX);
            Ok(BootPlan::on_trial(slot, left))
        }
        Some(other) => Err(Error::failed(format!("upgrade_available is {other:?}, expected 0 or 1"))),
        // The boot script takes this for settled. Here it may as well be the one bit that fell over in its name.
        None => Err(Error::failed("upgrade_available is missing, expected 0 or 1")),
    }
}

/// The `bootcount` with which a trial of `tries` boots begins.
pub fn first_count(notation: Notation, tries: u8) -> String {
    match notation {
        Notation::Decimal(_) | Notation::Hex(_) => "0".into(),
        Notation::Letters => (LETTERS_LIMIT - i16::from(tries)).to_string(),
    }
}

/// Makes `slot` the trial, with `tries` boots to use.
pub fn arm(environment: &mut impl Environment, notation: Notation, slot: Slot, tries: u8) {
    environment.set("resin_root_part", &notation.mark(slot));
    environment.set("upgrade_available", "1");
    environment.set("bootcount", &first_count(notation, tries));
    match notation {
        Notation::Decimal(_) | Notation::Hex(_) => environment.set("os_bc_lim", &tries.to_string()),
        Notation::Letters => {}
    }
}

/// Takes one boot off the count, which is that of a trial.
pub fn give_back(environment: &mut impl Environment, notation: Notation) {
    let count = notation.count(environment, "bootcount").ok().flatten();
    // Below zero only where a trial may begin there.
    if let Some(used) = count.filter(|count| *count > 0 || notation == Notation::Letters) {
        environment.set("bootcount", &notation.text(used - 1));
    }
}

/// Makes `slot` the primary, with no trial.
pub fn settle(environment: &mut impl Environment, notation: Notation, slot: Slot) {
    environment.set("resin_root_part", &notation.mark(slot));
    environment.set("upgrade_available", "0");
    environment.set("bootcount", "0");
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::boot::Variables;

    const NOTATION: Notation = Notation::Decimal(Partitions { a: 2, b: 3 });
    const JETSON: Notation = Notation::Hex(Partitions { a: 15, b: 16 });

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
        assert_eq!(plan(&v, NOTATION).unwrap(), BootPlan::settled(Slot::A));
    }

    #[test]
    fn a_trial_counts_down_to_nothing_left() {
        for (used, left) in [("0", 3), ("2", 1), ("3", 0), ("7", 0)] {
            let v = variables(&format!("resin_root_part=3 upgrade_available=1 os_bc_lim=3 bootcount={used}"));
            assert_eq!(plan(&v, NOTATION).unwrap(), BootPlan::on_trial(Slot::B, left));
        }
    }

    #[test]
    fn u_boot_counts_in_hexadecimal() {
        for (text, expected) in [
            ("resin_root_part=f upgrade_available=0", BootPlan::settled(Slot::A)),
            ("resin_root_part=10 upgrade_available=0", BootPlan::settled(Slot::B)),
            ("resin_root_part=0x10 upgrade_available=1 bootcount=0x1", BootPlan::on_trial(Slot::B, 2)),
            ("resin_root_part=F upgrade_available=1 bootcount=a os_bc_lim=3", BootPlan::on_trial(Slot::A, 0)),
            (
                "resin_root_part=f upgrade_available=1 bootcount=1f os_bc_lim=9",
                BootPlan::on_trial(Slot::A, 0),
            ),
        ] {
            assert_eq!(plan(&variables(text), JETSON).unwrap(), expected, "{text}");
        }
        for text in ["15", "+f", "0x", "ff0000000f", ""] {
            let e = plan(&variables(&format!("resin_root_part={text}")), JETSON).unwrap_err().to_string();
            assert!(e.ends_with("expected f (slot A) or 10 (slot B)"), "{e}");
        }
    }

    #[test]
    fn balena_bootloader_s_fixed_limit_still_gives_every_number_of_tries() {
        for tries in 1..=9 {
            let mut v = variables("resin_root_part=A upgrade_available=0 bootcount=0");
            arm(&mut v, Notation::Letters, Slot::B, tries);
            assert_eq!(plan(&v, Notation::Letters).unwrap(), BootPlan::on_trial(Slot::B, tries));
            // What its script does: adds one, then boots the other slot from 3 on.
            let mut booted = 0;
            let mut count: i32 = v.value("bootcount").unwrap().parse().unwrap();
            while count + 1 < 3 {
                count += 1;
                booted += 1;
            }
            assert_eq!(booted, tries);
        }
    }

    #[test]
    fn a_trial_starts_to_count_anew_whatever_an_older_count_says() {
        for older in
            ["bootcount=3 upgrade_available=0", "bootcount=2 upgrade_available=1 os_bc_lim=3", "bootcount=x"]
        {
            let mut v = variables(&format!("resin_root_part=2 {older}"));
            arm(&mut v, NOTATION, Slot::B, 3);
            assert_eq!(plan(&v, NOTATION).unwrap(), BootPlan::on_trial(Slot::B, 3), "{older}");
        }
    }

    #[test]
    fn nonsense_is_an_error_that_names_the_variable() {
        for (text, expected) in [
            ("", "resin_root_part is \"\", expected 2 (slot A) or 3 (slot B)"),
            ("resin_root_part=4", "resin_root_part is \"4\""),
            ("resin_root_part=2 upgrade_available=yes", "upgrade_available is \"yes\", expected 0 or 1"),
            ("resin_root_part=2", "upgrade_available is missing, expected 0 or 1"),
            ("resin_root_part=2 upgrade_available=", "upgrade_available is \"\", expected 0 or 1"),
            ("resin_root_part=2 upgrade_available=1", "bootcount is missing during a trial"),
            ("resin_root_part=2 upgrade_available=1 bootcount=1x", "bootcount is \"1x\", expected one digit"),
            ("resin_root_part=2 upgrade_available=1 bootcount=1 os_bc_lim=12", "os_bc_lim is \"12\""),
        ] {
            let e = plan(&variables(text), NOTATION).unwrap_err().to_string();
            assert!(e.starts_with(expected), "{text}: {e}");
        }
    }
}
