//! A TOML text, parsed once: what it holds can be looked at before it is read as a whole. Errors name it, and the line.

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use crate::{Error, Result};

/// A parsed text that knows its name.
#[derive(Debug)]
pub struct TomlText<'a> {
    name: String,
    text: &'a str,
    table: Spanned<DeTable<'a>>,
}

impl<'a> TomlText<'a> {
    /// Parses `text`. `name`: what errors call it.
    ///
    /// # Errors
    /// `Failed`, with the line, for anything that is no TOML.
    pub fn parse(name: impl Into<String>, text: &'a str) -> Result<Self> {
        let name = name.into();
        let table = DeTable::parse(text).map_err(|e| at_line(&name, text, &e))?;
        Ok(Self { name, text, table })
    }

    /// The integer under a key of the top level.
    #[must_use]
    pub fn integer(&self, key: &str) -> Option<i64> {
        match self.table.get_ref().get(key)?.get_ref() {
            DeValue::Integer(i) => i64::from_str_radix(i.as_str(), i.radix()).ok(),
            _ => None,
        }
    }

    /// All of it as a value.
    ///
    /// # Errors
    /// `Failed`, with the line, for what is not a `T`.
    pub fn read<T: Deserialize<'a>>(&self) -> Result<T> {
        T::deserialize(Deserializer::from(self.table.clone())).map_err(|e| at_line(&self.name, self.text, &e))
    }

    /// What was parsed.
    #[must_use]
    pub fn into_table(self) -> Spanned<DeTable<'a>> {
        self.table
    }
}

fn at_line(name: &str, text: &str, e: &toml::de::Error) -> Error {
    let line = e.span().map_or(0, |s| text.get(..s.start).unwrap_or("").matches('\n').count() + 1);
    Error::failed(format!("{name}, line {line}: {}", e.message().trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Small {
        format: u8,
        name: String,
    }

    #[test]
    fn a_text_is_looked_at_and_then_read() {
        let text = TomlText::parse("a.toml", "name = \"x\"\nformat = 0x1_0\n").unwrap();
        assert_eq!(
            (text.integer("format"), text.integer("name"), text.integer("else")),
            (Some(16), None, None)
        );
        assert_eq!(text.read::<Small>().unwrap(), Small { format: 16, name: "x".into() });
    }

    #[test]
    fn errors_name_text_and_line() {
        let e = TomlText::parse("a.toml", "format = 1\nname = \n").unwrap_err().to_string();
        assert!(e.starts_with("a.toml, line 2: "), "{e}");
        let text = TomlText::parse("a.toml", "format = 1\nname = \"x\"\nmore = 2\n").unwrap();
        let e = text.read::<Small>().unwrap_err().to_string();
        assert!(e.starts_with("a.toml, line 3: unknown field `more`"), "{e}");
    }
}
