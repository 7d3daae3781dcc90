//! A JSON object as text: its entries keep their order and spelling, and the file its layout.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::{Error, Result};

/// An object whose values stay as they are spelled.
#[derive(Clone, Default)]
pub(super) struct Object {
    entries: Vec<(String, Box<RawValue>)>,
    style: Style,
}

/// How the text is laid out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Style {
    /// White space before each key if every key has its own line.
    indent: Option<String>,
    /// White space before the closing brace, from the last line break on.
    close: String,
    /// What stands behind the closing brace.
    end: String,
}

impl Object {
    /// Reads the text of an object.
    pub fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        let Entries(entries) = serde_json::from_slice(bytes)?;
        Ok(Self { entries, style: Style::of(bytes) })
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(k, _)| k.as_str())
    }

    /// The value of `key`; `null` is absent.
    pub fn value(&self, key: &str) -> Option<Value> {
        serde_json::from_str(self.raw(key)?.get()).ok().filter(|v: &Value| !v.is_null())
    }

    fn raw(&self, key: &str) -> Option<&RawValue> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, raw)| &**raw)
    }

    /// The object as text.
    pub fn text(&self) -> String {
        let (before, between, colon) = match &self.style.indent {
            Some(indent) => (format!("\n{indent}"), format!(",\n{indent}"), ": "),
            None => (String::new(), ",".into(), ":"),
        };
        let mut text = String::from("{");
        for (i, (key, value)) in self.entries.iter().enumerate() {
            text.push_str(if i == 0 { &before } else { &between });
            // A `Value` prints the key with its quotes and escapes.
            text.push_str(&format!("{}{colon}{}", Value::from(key.as_str()), value.get()));
        }
        if !self.entries.is_empty() && self.style.indent.is_some() {
            text.push_str(&format!("\n{}", self.style.close));
        }
        text + "}" + &self.style.end
    }

    /// Sets the value at a path of keys: in its place if it is there, else at the end; objects on the way are made.
    ///
    /// # Errors
    /// `Failed` if something on the way is no object.
    pub fn set(&mut self, path: &[&str], value: &Value) -> Result<()> {
        let raw = |value: &Value| serde_json::value::to_raw_value(value);
        let (key, raw) = match path {
            [] => return Err(Error::failed("no key")),
            [key] => (*key, raw(value)),
            [key, rest @ ..] => {
                let mut inner = self.object(key)?.unwrap_or_else(|| self.child());
                inner.set(rest, value).map_err(|e| e.within((*key).to_owned()))?;
                (*key, RawValue::from_string(inner.text()))
            }
        };
        let raw = raw.map_err(|e| Error::failed(format!("{key}: {e}")))?;
        match self.entries.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = raw,
            None => self.entries.push((key.to_owned(), raw)),
        }
        Ok(())
    }

    /// Removes what is at a path of keys; says whether it was there.
    ///
    /// # Errors
    /// `Failed` if something on the way is no object.
    pub fn remove(&mut self, path: &[&str]) -> Result<bool> {
        match path {
            [] => Ok(false),
            [key] => {
                let before = self.entries.len();
                self.entries.retain(|(k, _)| k != key);
                Ok(self.entries.len() != before)
            }
            [key, rest @ ..] => {
                let Some(mut inner) = self.object(key)? else { return Ok(false) };
                let removed = inner.remove(rest).map_err(|e| e.within((*key).to_owned()))?;
                if let (true, Some((_, old))) = (removed, self.entries.iter_mut().find(|(k, _)| k == key)) {
                    *old = RawValue::from_string(inner.text())
                        .map_err(|e| Error::failed(format!("{key}: {e}")))?;
                }
                Ok(removed)
            }
        }
    }

    /// The object at `key`; `None` if there is nothing, or `null`.
    fn object(&self, key: &str) -> Result<Option<Self>> {
        match self.raw(key).map(RawValue::get) {
            None | Some("null") => Ok(None),
            Some(text) => Self::parse(text.as_bytes())
                .map(Some)
                .map_err(|_| Error::failed(format!("{key}: expected an object ({{…}})"))),
        }
    }

    /// An empty object laid out as one inside of this.
    fn child(&self) -> Self {
        let Style { indent, close, .. } = &self.style;
        let style = indent.as_ref().map_or_else(Style::default, |indent| {
            let step = indent.strip_prefix(close.as_str()).unwrap_or(indent);
            Style { indent: Some(format!("{indent}{step}")), close: indent.clone(), end: String::new() }
        });
        Self { entries: Vec::new(), style }
    }
}

impl Style {
    fn of(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let inside = text.trim_start().strip_prefix('{').unwrap_or_default();
        let white = inside.split(|c: char| !c.is_whitespace()).next().unwrap_or_default();
        let indent = white.rsplit_once('\n').map(|(_, indent)| indent.to_owned());
        let body = text.trim_end().strip_suffix('}').unwrap_or_default();
        let white = body.rsplit(|c: char| !c.is_whitespace()).next().unwrap_or_default();
        let close = white.rsplit_once('\n').map(|(_, close)| close.to_owned()).unwrap_or_default();
        let end = if text.ends_with('\n') { "\n".into() } else { String::new() };
        Self { indent, close, end }
    }
}

/// The entries of an object in their order. Of equal keys the last value counts, as for every other reader.
struct Entries(Vec<(String, Box<RawValue>)>);

impl<'de> serde::Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object ({…})")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries, A::Error> {
                let mut entries: Vec<(String, Box<RawValue>)> = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    match entries.iter_mut().find(|(k, _)| *k == key) {
                        Some((_, old)) => *old = value,
                        None => entries.push((key, value)),
                    }
                }
                Ok(Entries(entries))
            }
        }
        d.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(text: &str) -> Object {
        Object::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_path_changes_only_its_own_value() {
        let text = r#"{"a":1.10,"os":{"network":{"x":1e3,"uri":"u"},"y":[ 1 ]},"z":null}"#;
        let mut o = parse(text);
        o.set(&["os", "network", "uri"], &json!("v")).unwrap();
        assert_eq!(o.text(), text.replace("\"u\"", "\"v\""));
        assert!(o.remove(&["os", "network", "uri"]).unwrap());
        assert_eq!(o.text(), text.replace(",\"uri\":\"u\"", ""));
        assert!(!o.remove(&["os", "none", "uri"]).unwrap());
        o.set(&["z", "new"], &json!(1)).unwrap();
        assert!(o.text().ends_with(r#""z":{"new":1}}"#));
        let e = o.set(&["a", "b"], &json!(1)).unwrap_err().to_string();
        assert_eq!(e, "a: expected an object ({…})");
    }

    #[test]
    fn indented_objects_stay_indented_at_every_depth() {
        // As jq and serde_json write it.
        let text = "{\n  \"os\": {\n    \"a\": 1\n  }\n}\n";
        let mut o = parse(text);
        o.set(&["os", "b", "c"], &json!(2)).unwrap();
        let expected: Value = json!({"os": {"a": 1, "b": {"c": 2}}});
        assert_eq!(o.text(), format!("{}\n", serde_json::to_string_pretty(&expected).unwrap()));
        o.remove(&["os", "b"]).unwrap();
        assert_eq!(o.text(), text);
    }
}
