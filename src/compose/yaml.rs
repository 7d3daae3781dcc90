//! YAML 1.2 as a tree with line numbers.
//!
//! Scalars stay text, with the note whether they were quoted: `1.10` is not the number 1.1, and `yes` is not true.
//! Aliases are resolved and `<<` is merged. What a hostile file could blow up with is bounded: depth, and the number of
//! nodes after aliases.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};
use serde_json::Value;

use crate::{Error, Result};

const DEPTH_MAX: usize = 64;
/// Far more than any file of services has; some of what is done with them grows with the square.
const NODES_MAX: usize = 20_000;

/// A value and where it stands; by default nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Its line, from 1.
    pub line: usize,
    /// What it is.
    pub content: Content,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Text, a number, a truth value or null, as it was written.
    Scalar {
        /// Without quotes.
        text: String,
        /// It was quoted, or tagged as text: never a number or null.
        quoted: bool,
    },
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file; no key twice.
    Map(Vec<(String, Node)>),
}

impl Default for Content {
    fn default() -> Self {
        Self::Scalar { text: String::new(), quoted: false }
    }
}

impl Node {
    /// Reads one document.
    ///
    /// # Errors
    /// `Failed`, with the line, for what is not YAML, a key that stands twice, and more than one document.
    pub fn parse(text: &str) -> Result<Self> {
        let mut loader = Loader { parser: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0 };
        let mut document = None;
        loop {
            match loader.next()? {
                (Event::StreamEnd, _) => {
                    return Ok(document.unwrap_or(Self { line: 1, content: Content::default() }));
                }
                (Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing, _) => {}
                (_, span) if document.is_some() => {
                    return Err(at(span.start.line(), "a second document; expected one"));
                }
                (event, span) => document = Some(loader.node(event, span, 0)?),
            }
        }
    }

    /// A failure that stands at this node.
    pub fn error(&self, text: &str) -> Error {
        at(self.line, text)
    }

    /// The value of `key`, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.entries().iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// The entries of a mapping; none of anything else.
    pub fn entries(&self) -> &[(String, Self)] {
        match &self.content {
            Content::Map(entries) => entries,
            Content::Scalar { .. } | Content::List(_) => &[],
        }
    }

    /// The values of a list; of anything else none.
    pub fn items(&self) -> &[Self] {
        match &self.content {
            Content::List(list) => list,
            Content::Scalar { .. } | Content::Map(_) => &[],
        }
    }

    /// Whether it is null: nothing, `~` or `null`.
    pub fn is_null(&self) -> bool {
        matches!(&self.content, Content::Scalar { text, quoted: false }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// A scalar as it was written; null is empty.
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Scalar { .. } if self.is_null() => Some(""),
            Content::Scalar { text, .. } => Some(text),
            Content::List(_) | Content::Map(_) => None,
        }
    }

    /// The same as JSON, with the core schema's truth values and numbers.
    pub fn to_json(&self) -> Value {
        match &self.content {
            Content::Scalar { .. } if self.is_null() => Value::Null,
            Content::Scalar { text, quoted: true } => Value::from(text.as_str()),
            Content::Scalar { text, .. } => match text.as_str() {
                "true" | "True" | "TRUE" => Value::Bool(true),
                "false" | "False" | "FALSE" => Value::Bool(false),
                other => number(other).unwrap_or_else(|| Value::from(other)),
            },
            Content::List(list) => list.iter().map(Self::to_json).collect(),
            Content::Map(entries) => {
                Value::Object(entries.iter().map(|(k, v)| (k.clone(), v.to_json())).collect())
            }
        }
    }

    fn size(&self) -> usize {
        match &self.content {
            Content::Scalar { .. } => 1,
            Content::List(list) => 1 + list.iter().map(Self::size).sum::<usize>(),
            Content::Map(entries) => 1 + entries.iter().map(|(_, v)| v.size()).sum::<usize>(),
        }
    }
}

fn number(text: &str) -> Option<Value> {
    if let Ok(n) = text.strip_prefix('+').unwrap_or(text).parse::<i64>() {
        return Some(n.into());
    }
    // Rust reads more words as numbers (inf, nan) than the schema does.
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    text.parse::<f64>().ok().filter(|_| plain).map(Value::from)
}

struct Loader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// By the parser's number.
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl<'a> Loader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span)> {
        match self.parser.next_event() {
            Some(event) => event.map_err(|e: ScanError| at(e.marker().line(), e.info())),
            None => Err(Error::failed("the text ends too early")),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node> {
        let line = span.start.line();
        if depth > DEPTH_MAX {
            return Err(at(line, &format!("nested deeper than {DEPTH_MAX}")));
        }
        self.count(1, line)?;
        let (anchor, content) = match event {
            Event::Alias(id) => {
                // An alias inside of its own anchor is not there yet.
                let node = self.anchors.get(&id).cloned().ok_or_else(|| at(line, "an alias of itself"))?;
                self.count(node.size(), line)?;
                return Ok(Node { line, ..node });
            }
            Event::Scalar(text, style, anchor, tag) => {
                let quoted = style != ScalarStyle::Plain || is_text(tag.as_deref(), line)?;
                (anchor, Content::Scalar { text: text.into_owned(), quoted })
            }
            Event::SequenceStart(anchor, tag) => {
                is_text(tag.as_deref(), line)?;
                (anchor, Content::List(self.list(depth)?))
            }
            Event::MappingStart(anchor, tag) => {
                is_text(tag.as_deref(), line)?;
                (anchor, Content::Map(self.map(depth)?))
            }
            _ => return Err(at(line, "expected a value")),
        };
        let node = Node { line, content };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>> {
        let mut list = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(list),
                (event, span) => list.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<(String, Node)>> {
        let mut entries: Vec<(String, Node)> = Vec::new();
        let mut merged = Vec::new();
        loop {
            let key = match self.next()? {
                (Event::MappingEnd, _) => break,
                (event, span) => self.node(event, span, depth + 1)?,
            };
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            match key.content {
                Content::Scalar { text, quoted: false } if text == "<<" => merged.push(value),
                Content::Scalar { text, .. } if entries.iter().any(|(k, _)| *k == text) => {
                    return Err(at(key.line, &format!("the key {text:?} stands twice")));
                }
                Content::Scalar { text, .. } => entries.push((text, value)),
                Content::List(_) | Content::Map(_) => return Err(at(key.line, "a key that is no text")),
            }
        }
        merged.into_iter().try_for_each(|from| merge(&mut entries, from))?;
        Ok(entries)
    }

    fn count(&mut self, more: usize, line: usize) -> Result<()> {
        self.nodes += more;
        if self.nodes > NODES_MAX {
            return Err(at(line, &format!("more than {NODES_MAX} values, aliases counted")));
        }
        Ok(())
    }
}

/// Adds what is not there yet: a mapping's own keys win, and earlier ones of a list.
fn merge(entries: &mut Vec<(String, Node)>, from: Node) -> Result<()> {
    match from.content {
        Content::Map(more) => {
            for (key, value) in more {
                if !entries.iter().any(|(k, _)| *k == key) {
                    entries.push((key, value));
                }
            }
            Ok(())
        }
        Content::List(list) => list.into_iter().try_for_each(|one| match one.content {
            Content::Map(_) => merge(entries, one),
            Content::Scalar { .. } | Content::List(_) => Err(at(one.line, "<<: expected a mapping")),
        }),
        Content::Scalar { .. } => Err(at(from.line, "<<: expected a mapping, or a list of them")),
    }
}

/// Whether a tag says that it is text. Tags that are not of YAML itself change what a file means: refused.
fn is_text(tag: Option<&Tag>, line: usize) -> Result<bool> {
    match tag {
        None => Ok(false),
        Some(tag) if tag.is_yaml_core_schema() => Ok(tag.suffix == "str"),
        Some(tag) => Err(at(line, &format!("the tag {tag} is not known here"))),
    }
}

fn at(line: usize, text: &str) -> Error {
    Error::failed(format!("line {line}: {text}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn json_of(text: &str) -> Value {
        Node::parse(text).unwrap().to_json()
    }

    #[test]
    fn scalars_mean_what_yaml_1_2_says() {
        let text = "a: yes\nb: 0755\nc: 1.10\nd: '1'\ne: true\nf: ~\ng:\nh: 1e3\ni: on\nj: !!str 12\nk: nan\nl: -3\n\
                    m: |\n  two\n  lines\nn: >-\n  one\n  line\no: 2022.01.0\np: \"\"\n";
        assert_eq!(
            json_of(text),
            json!({ "a": "yes", "b": 755, "c": 1.1, "d": "1", "e": true, "f": null, "g": null, "h": 1000.0, "i": "on",
                "j": "12", "k": "nan", "l": -3, "m": "two\nlines\n", "n": "one line", "o": "2022.01.0", "p": "" })
        );
        // As text they stay as they were written.
        let node = Node::parse(text).unwrap();
        for (key, expected) in
            [("b", "0755"), ("c", "1.10"), ("h", "1e3"), ("g", ""), ("f", ""), ("e", "true")]
        {
            assert_eq!(node.get(key).unwrap().text(), Some(expected), "{key}");
        }
        assert_eq!(node.get("i").unwrap().line, 9);
    }

    #[test]
    fn aliases_and_merges_are_resolved() {
        let text = "base: &b {x: 1, y: 2}\nmore: &m {y: 3, z: 4}\none: {<<: *b, y: 9}\ntwo:\n  <<: [*b, *m]\nthree: *b\n";
        let all = json_of(text);
        assert_eq!(all["one"], json!({ "y": 9, "x": 1 }));
        assert_eq!(all["two"], json!({ "x": 1, "y": 2, "z": 4 }));
        assert_eq!(all["three"], json!({ "x": 1, "y": 2 }));
    }

    #[test]
    fn json_is_yaml() {
        let text = r#"{"sw.os": {"slug": "balena-os", "version": "6.4.0"}, "list": [1, "a"], "none": null}"#;
        assert_eq!(json_of(text), serde_json::from_str::<Value>(text).unwrap());
        assert!(Node::parse("").unwrap().is_null());
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, expected) in [
            ("a: 1\na: 2\n", "line 2: the key \"a\" stands twice"),
            ("a: 1\nb: [1\n", "line 3"),
            ("a: b: c\n", "line 1"),
            ("a: 1\n\tb: 2\n", "found a tab"),
            ("a: *none\n", "line 1"),
            ("a: &a [*a]\n", "line 1: an alias of itself"),
            ("a: 1\n---\nb: 2\n", "line 3: a second document"),
            ("<<: 3\n", "line 1: <<: expected a mapping"),
            ("<<: [3]\n", "line 1: <<: expected a mapping"),
            ("[a]: 1\n", "line 1: a key that is no text"),
            ("a: !reset 1\n", "line 1: the tag !reset is not known here"),
        ] {
            let e = Node::parse(text).unwrap_err().to_string();
            assert!(e.contains(expected), "{text:?}: {e}");
        }
    }

    #[test]
    fn what_would_blow_up_is_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..9 {
            let before = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{before}]\n"));
        }
        assert!(Node::parse(&bomb).unwrap_err().to_string().contains("more than 20000 values"));
        let wide: String = (0..60_000).map(|n| format!("k{n}:\n")).collect();
        assert!(Node::parse(&wide).unwrap_err().to_string().contains("more than 20000 values"));
        let deep = "[".repeat(10_000);
        assert!(Node::parse(&deep).is_err());
        let deep = format!("{}{}", "[".repeat(70), "]".repeat(70));
        assert!(Node::parse(&deep).unwrap_err().to_string().contains("nested deeper than 64"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_odd(text in "[a-z0-9:{}&*<!|>#'\"\\[\\], \\n\\t-]{0,80}", any in ".*") {
            for text in [text, any] {
                if let Ok(node) = Node::parse(&text) {
                    node.to_json();
                }
            }
        }
    }

    #[test]
    fn every_truncation_and_flipped_bit_is_survived() {
        let text = "services:\n  a: &a\n    labels: {io.balena.features.dbus: '1', x: \"é\"}\n  b:\n    <<: *a\n    list:\n    - |\n      x\n";
        for end in 0..text.len() {
            if let Some(part) = text.get(..end) {
                let _ = Node::parse(part);
            }
        }
        for bit in 0..text.len() * 8 {
            let mut bytes = text.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let _ = Node::parse(&String::from_utf8_lossy(&bytes));
        }
    }
}
