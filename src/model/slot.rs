//! The two copies of the host OS.

use std::fmt;
use std::ops::Not;
use std::str::FromStr;

use crate::Error;

/// One of the two root partitions; `!slot` is the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Slot {
    /// The first root partition (`resin-rootA`).
    A,
    /// The second root partition (`resin-rootB`).
    B,
}

impl Slot {
    /// Both, in order.
    pub const ALL: [Self; 2] = [Self::A, Self::B];
}

impl Not for Slot {
    type Output = Self;

    fn not(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::B => "B",
        })
    }
}

impl FromStr for Slot {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        match s {
            "A" => Ok(Self::A),
            "B" => Ok(Self::B),
            _ => Err(Error::failed(format!("slot {s:?}: expected A or B"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_of_the_other_is_itself() {
        for slot in Slot::ALL {
            assert_ne!(!slot, slot);
            assert_eq!(!!slot, slot);
            assert_eq!(slot.to_string().parse::<Slot>().unwrap(), slot);
        }
    }
}
