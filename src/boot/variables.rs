//! A bootloader's variables, in the order in which they stand.

/// What the scheme needs of an environment, however its bytes are laid out.
pub trait Environment {
    /// The value of a variable, as text; what is not UTF-8 comes out as no value that any scheme accepts.
    fn value(&self, name: &str) -> Option<String>;

    /// Changes a variable where it stands, or adds it at the end.
    fn set(&mut self, name: &str, value: &str);
}

/// Names and values, in order. Names are unique: a file that repeats one is refused by its codec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables(Vec<(String, String)>);

impl Variables {
    /// The value of a variable.
    pub fn find(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }
}

impl Environment for Variables {
    fn value(&self, name: &str) -> Option<String> {
        self.find(name).map(str::to_owned)
    }

    fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, v)) => value.clone_into(v),
            None => self.0.push((name.into(), value.into())),
        }
    }
}

/// Entries as they stand, `name=value` or anything else, in order: what is not changed stays byte for byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entries(pub Vec<Vec<u8>>);

impl Entries {
    /// How often a variable stands there.
    pub fn count(&self, name: &str) -> usize {
        self.0.iter().filter(|e| is_named(e, name)).count()
    }
}

impl Environment for Entries {
    fn value(&self, name: &str) -> Option<String> {
        let entry = self.0.iter().find(|e| is_named(e, name))?;
        let value = entry.trim_ascii_start().get(name.len() + 1..).unwrap_or_default();
        Some(String::from_utf8_lossy(value).into_owned())
    }

    fn set(&mut self, name: &str, value: &str) {
        let entry = format!("{name}={value}").into_bytes();
        match self.0.iter_mut().find(|e| is_named(e, name)) {
            Some(old) => *old = entry,
            None => self.0.push(entry),
        }
    }
}

/// U-Boot skips blanks before a name.
fn is_named(entry: &[u8], name: &str) -> bool {
    entry.trim_ascii_start().strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'='))
}
