//! A quick no to most questions whether something is in a set.

/// A bit for each value of the first 20 bits of a key.
pub struct Filter {
    bits: Vec<u64>,
}

impl Filter {
    /// A filter for a set of keys whose first bits are spread evenly.
    pub fn new(keys: impl Iterator<Item = u32>) -> Self {
        let mut bits = vec![0; 1 << 14];
        for key in keys {
            let (word, bit) = Self::at(key);
            if let Some(word) = bits.get_mut(word) {
                *word |= bit;
            }
        }
        Self { bits }
    }

    /// `false`: the key is not in the set.
    pub fn may_hold(&self, key: u32) -> bool {
        let (word, bit) = Self::at(key);
        self.bits.get(word).is_some_and(|w| w & bit != 0)
    }

    const fn at(key: u32) -> (usize, u64) {
        let n = key >> 12;
        ((n >> 6) as usize, 1 << (n & 63))
    }
}
