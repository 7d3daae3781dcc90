//! Numbers by a key that many of them may share, with a quick no to most questions.

/// Numbers, each with a key whose first bits are spread evenly. 8 bytes for each.
#[derive(Default)]
pub struct Lookup {
    /// A bit for each value of the first 20 bits of a key.
    bits: Vec<u64>,
    /// Key and number, in order.
    entries: Vec<u64>,
}

impl Lookup {
    /// Numbers by their keys.
    pub fn new(entries: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut entries: Vec<u64> =
            entries.map(|(key, number)| u64::from(key) << 32 | u64::from(number)).collect();
        entries.sort_unstable();
        entries.dedup();
        let mut bits = vec![0; 1 << 14];
        for entry in &entries {
            let (word, bit) = at(split(*entry).0);
            if let Some(word) = bits.get_mut(word) {
                *word |= bit;
            }
        }
        Self { bits, entries }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The numbers with this key, in order.
    pub fn with(&self, key: u32) -> impl Iterator<Item = u32> + '_ {
        let (word, bit) = at(key);
        let first = match self.bits.get(word).is_some_and(|w| w & bit != 0) {
            true => self.entries.partition_point(|entry| split(*entry).0 < key),
            false => self.entries.len(),
        };
        let rest = self.entries.get(first..).unwrap_or_default();
        rest.iter().map(|entry| split(*entry)).take_while(move |(k, _)| *k == key).map(|(_, number)| number)
    }

    /// All numbers, by key.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.entries.iter().map(|entry| split(*entry).1)
    }
}

/// Key and number.
const fn split(entry: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = entry.to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

const fn at(key: u32) -> (usize, u64) {
    let n = key >> 12;
    ((n >> 6) as usize, 1 << (n & 63))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_numbers_of_a_key_and_none_of_another() {
        let lookup = Lookup::new([(7, 3), (u32::MAX, 0), (7, 1), (8, 2), (7, 3)].into_iter());
        let with = |key| lookup.with(key).collect::<Vec<_>>();
        assert_eq!((with(7), with(8), with(u32::MAX)), (vec![1, 3], vec![2], vec![0]));
        // 6 has the first 20 bits of 7.
        assert_eq!((with(6), with(9), with(1 << 31)), (vec![], vec![], vec![]));
        assert_eq!(lookup.numbers().collect::<Vec<_>>(), [1, 3, 2, 0]);
        assert!(!lookup.is_empty() && Lookup::default().with(0).next().is_none());
    }
}
