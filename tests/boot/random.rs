//! Random environments, the same in each run.

/// xorshift64: repeatable, which is all that is asked of it.
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % n
    }

    pub fn text(&mut self, letters: &[u8], at_least: usize, below: usize) -> String {
        let len = at_least + self.below(below - at_least);
        (0..len).map(|_| char::from(letters[self.below(letters.len())])).collect()
    }

    /// One foreign variable; its name cannot be one of ours.
    fn foreign(&mut self, values: &[u8]) -> (String, String) {
        (format!("x{}", self.text(b"abcXYZ019_", 1, 9)), self.text(values, 1, 40))
    }

    /// Ours and a few foreign ones, in any order, each once. `values` are the letters of foreign values.
    pub fn environment(&mut self, parts: [&str; 2], values: &[u8]) -> Vec<(String, String)> {
        let mut variables: Vec<(String, String)> = (0..self.below(7)).map(|_| self.foreign(values)).collect();
        let tries = self.below(9) + 1;
        for (name, value) in [
            ("resin_root_part", parts[self.below(2)].to_owned()),
            ("upgrade_available", self.below(2).to_string()),
            ("bootcount", self.below(10).to_string()),
            ("os_bc_lim", tries.to_string()),
        ] {
            let at = self.below(variables.len() + 1);
            variables.insert(at, (name.to_owned(), value));
        }
        let mut seen = std::collections::BTreeSet::new();
        variables.retain(|(name, _)| seen.insert(name.clone()));
        variables
    }
}

/// The value of a variable.
pub fn value<'a>(variables: &'a [(String, String)], name: &str) -> &'a str {
    variables.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
}

/// The same without what a boot plan changes.
pub fn foreign(variables: &[(String, String)]) -> Vec<(String, String)> {
    variables.iter().filter(|(name, _)| name.starts_with('x')).cloned().collect()
}
