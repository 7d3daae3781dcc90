//! Ranges of versions by the rules of node's semver: what `semver.satisfies(version, range)` says, without options.
//!
//! Written by hand, because contracts were written against npm's verdicts and no crate gives all of them: `semver` has
//! rules of its own (`32.2` means `^32.2` there), `node-semver` panics on `~x`, and `nodejs-semver` 7 is wrong on
//! degenerate ranges and costs four times the bytes. The steps are those of `classes/range.js` of npm's semver 7.7.4, in
//! its order, from text to text, so that even what is half broken there means the same here. Held against the package
//! itself by `tests/fixtures/semver`.

use std::cmp::Ordering;

use super::version::{self, NodeVersion, is_number, is_pre, is_space, trim};

/// A set of alternatives; each holds if all of its comparators do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range(Vec<Vec<Comparator>>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Comparator {
    Any,
    Is(Operator, NodeVersion),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Range {
    /// What `new semver.Range(text)` gives; `None` is not valid.
    pub fn parse(text: &str) -> Option<Self> {
        let text = trim(text).split(is_space).filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ");
        let mut set = text.split("||").map(alternative).collect::<Option<Vec<_>>>()?;
        if set.len() > 1 {
            let first = set.first().cloned().unwrap_or_default();
            set.retain(|c| !c.first().is_some_and(Comparator::is_never));
            if set.is_empty() {
                set = vec![first];
            } else if set.len() > 1 && set.iter().any(|c| *c == [Comparator::Any]) {
                set = vec![vec![Comparator::Any]];
            }
        }
        Some(Self(set))
    }

    /// Whether `version` is in it.
    ///
    /// A pre-release is in it only if an alternative that holds names a pre-release of the same three numbers.
    pub fn contains(&self, version: &NodeVersion) -> bool {
        self.0.iter().any(|all| {
            all.iter().all(|c| c.holds(version))
                && (version.pre.is_empty() || all.iter().any(|c| c.names_pre_release_of(version)))
        })
    }
}

/// Whether `version` satisfies `range`, as contrato decides it: by node's rules if both are valid, else they must be
/// the same text (dates, say, are no versions).
pub fn satisfies(version: &str, range: &str) -> bool {
    match (NodeVersion::parse(version), Range::parse(range)) {
        (Some(version), Some(range)) => range.contains(&version),
        _ => version == range,
    }
}

impl Comparator {
    /// `((?:<|>)?=?)\s*(VERSION)`, or nothing at all.
    fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::Any);
        }
        let (operator, rest) = operator(text);
        Some(Self::Is(operator, NodeVersion::parse(rest)?))
    }

    /// `<0.0.0-0`, which stands for a range that nothing is in.
    fn is_never(&self) -> bool {
        matches!(self, Self::Is(Operator::Less, v) if v.numbers == [0; 3] && v.pre == ["0"])
    }

    fn holds(&self, version: &NodeVersion) -> bool {
        let Self::Is(operator, bound) = self else { return true };
        let order = version.compare(bound);
        match operator {
            Operator::Equal => order == Ordering::Equal,
            Operator::Less => order == Ordering::Less,
            Operator::LessOrEqual => order != Ordering::Greater,
            Operator::Greater => order == Ordering::Greater,
            Operator::GreaterOrEqual => order != Ordering::Less,
        }
    }

    fn names_pre_release_of(&self, version: &NodeVersion) -> bool {
        matches!(self, Self::Is(_, v) if !v.pre.is_empty() && v.numbers == version.numbers)
    }
}

/// `((?:<|>)?=?)` at the start, and what follows it.
fn operator(text: &str) -> (Operator, &str) {
    for (sign, operator) in [
        ("<=", Operator::LessOrEqual),
        (">=", Operator::GreaterOrEqual),
        ("<", Operator::Less),
        (">", Operator::Greater),
        ("=", Operator::Equal),
    ] {
        if let Some(rest) = text.strip_prefix(sign) {
            return (operator, rest);
        }
    }
    (Operator::Equal, text)
}

/// `parseRange`: one of the parts between `||`.
fn alternative(text: &str) -> Option<Vec<Comparator>> {
    let text = hyphen_range(trim(text)).unwrap_or_else(|| trim(text).to_owned());
    let text = close_up(&close_up(&trim_comparators(&text), &["~>", "~"], "~"), &["^"], "^");
    let text = text.split(' ').map(simplify).collect::<Vec<_>>().join(" ");
    let mut all: Vec<Comparator> = Vec::new();
    for part in text.split(' ') {
        let comparator = Comparator::parse(if part == ">=0.0.0" { "" } else { part })?;
        if !all.contains(&comparator) {
            all.push(comparator);
        }
    }
    if let Some(never) = all.iter().find(|c| c.is_never()) {
        return Some(vec![never.clone()]);
    }
    if all.len() > 1 {
        all.retain(|c| *c != Comparator::Any);
    }
    Some(all)
}

/// `1.2 - 3.4` as `>=1.2.0 <3.5.0-0`.
fn hyphen_range(text: &str) -> Option<String> {
    // White space is single by now, and a pre-release has none in it.
    let (low, high) = text.split_once(" - ")?;
    let (from, to) = (Partial::parse(low)?, Partial::parse(high)?);
    let lower = match &from {
        Partial { major: None, .. } => String::new(),
        Partial { major: Some(major), minor: None, .. } => format!(">={major}.0.0"),
        Partial { major: Some(major), minor: Some(minor), patch: None, .. } => format!(">={major}.{minor}.0"),
        Partial { .. } => format!(">={low}"),
    };
    let upper = match &to {
        Partial { major: None, .. } => String::new(),
        Partial { major: Some(major), minor: None, .. } => format!("<{}.0.0-0", next(major)),
        Partial { major: Some(major), minor: Some(minor), patch: None, .. } => {
            format!("<{major}.{}.0-0", next(minor))
        }
        Partial { major: Some(major), minor: Some(minor), patch: Some(patch), pre: Some(pre) } => {
            format!("<={major}.{minor}.{patch}-{pre}")
        }
        Partial { .. } => format!("<={high}"),
    };
    Some(trim(&format!("{lower} {upper}")).to_owned())
}

/// Takes out the space between an operator and its version.
fn trim_comparators(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let sign = ["<=", ">=", "<", ">", "="].into_iter().find(|s| rest.starts_with(s));
        if let Some(sign) = sign {
            let behind = rest.get(sign.len()..).unwrap_or("");
            let version = behind.trim_start_matches([' ', 'v', '=']);
            if version.starts_with(|c: char| c.is_ascii_digit() || "xX*".contains(c)) {
                out.push_str(sign);
                rest = behind.strip_prefix(' ').unwrap_or(behind);
                // What belongs to the version is no operator of its own.
                let taken = rest.len() - version.len();
                out.push_str(rest.get(..taken).unwrap_or(""));
                rest = version;
                continue;
            }
        }
        out.push(c);
        rest = rest.get(c.len_utf8()..).unwrap_or("");
    }
    out
}

/// Takes out the space behind each of `signs`, and the sign becomes `to`.
fn close_up(text: &str, signs: &[&str], to: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let found = signs.iter().find_map(|s| rest.strip_prefix(s)?.strip_prefix(' '));
        if let Some(behind) = found {
            out.push_str(to);
            rest = behind;
        } else {
            out.push(c);
            rest = rest.get(c.len_utf8()..).unwrap_or("");
        }
    }
    out
}

/// `parseComparator`: one word as plain comparators.
fn simplify(word: &str) -> String {
    let word = without_build(word);
    let word = caret(&word).or_else(|| tilde(&word)).or_else(|| x_range(&word)).unwrap_or(word);
    trim(&without_star(&word)).to_owned()
}

/// Cuts out the first piece that looks like build metadata.
fn without_build(word: &str) -> String {
    let is_letter = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let bytes = word.as_bytes();
    let identifier = |from: usize| {
        bytes.iter().skip(from).take(version::MAX_IDENTIFIER).take_while(|b| is_letter(**b)).count()
    };
    for (start, _) in word.match_indices('+') {
        let mut end = start + 1;
        let mut len = identifier(end);
        if len == 0 {
            continue;
        }
        while len > 0 {
            end += len;
            len = if bytes.get(end) == Some(&b'.') { identifier(end + 1) } else { 0 };
            end += usize::from(len > 0);
        }
        return format!("{}{}", word.get(..start).unwrap_or(""), word.get(end..).unwrap_or(""));
    }
    word.to_owned()
}

/// `^1.2.3`: no change of the first number that is not 0.
fn caret(word: &str) -> Option<String> {
    let p = Partial::parse(word.strip_prefix('^')?)?;
    let (Some(major), minor, patch) = (&p.major, &p.minor, &p.patch) else { return Some(String::new()) };
    let Some(minor) = minor else { return Some(format!(">={major}.0.0 <{}.0.0-0", next(major))) };
    let upper = match (major.as_str(), minor.as_str(), patch) {
        ("0", "0", Some(patch)) => format!("<0.0.{}-0", next(patch)),
        ("0", ..) => format!("<0.{}.0-0", next(minor)),
        _ => format!("<{}.0.0-0", next(major)),
    };
    Some(format!(">={} {upper}", p.lowest(major, minor)))
}

/// `~1.2.3` and `~>1.2.3`: no change but of the patch.
fn tilde(word: &str) -> Option<String> {
    let word = word.strip_prefix('~')?;
    let p = Partial::parse(word.strip_prefix('>').unwrap_or(word))?;
    let (Some(major), minor) = (&p.major, &p.minor) else { return Some(String::new()) };
    let Some(minor) = minor else { return Some(format!(">={major}.0.0 <{}.0.0-0", next(major))) };
    Some(format!(">={} <{major}.{}.0-0", p.lowest(major, minor), next(minor)))
}

/// `1.2`, `1.x`, `>=1.2.*`: whatever has an `x` in it, or lacks a number.
fn x_range(word: &str) -> Option<String> {
    let sign = ["<=", ">=", "<", ">", "="].into_iter().find(|s| word.starts_with(s)).unwrap_or("");
    let p = Partial::parse(word.strip_prefix(sign)?)?;
    let never = matches!(sign, "<" | ">");
    let (major, minor) = match (p.major, p.minor, p.patch) {
        (None, ..) => return Some(if never { "<0.0.0-0".into() } else { "*".into() }),
        (Some(_), Some(_), Some(_)) => return None,
        (Some(major), minor, _) => (major, minor),
    };
    // The version behind all that the word may mean.
    let behind = match &minor {
        Some(minor) => format!("{major}.{}.0", next(minor)),
        None => format!("{}.0.0", next(&major)),
    };
    let first = format!("{major}.{}.0", minor.as_deref().unwrap_or("0"));
    Some(match sign {
        ">" => format!(">={behind}"),
        "<=" => format!("<{behind}-0"),
        "<" => format!("<{first}-0"),
        ">=" => format!(">={first}"),
        _ => format!(">={first} <{behind}-0"),
    })
}

/// `*` with an operator or none means anything; node's semver cuts out the first, wherever it stands.
fn without_star(word: &str) -> String {
    let Some(star) = word.find('*') else { return word.to_owned() };
    let (before, after) = (word.get(..star).unwrap_or(""), word.get(star + 1..).unwrap_or(""));
    let before = before.strip_suffix('=').unwrap_or(before);
    let before = before.strip_suffix(['<', '>']).unwrap_or(before);
    format!("{before}{after}")
}

/// A version that may lack numbers or have `x` in their place (`None`).
struct Partial {
    major: Option<String>,
    minor: Option<String>,
    patch: Option<String>,
    pre: Option<String>,
}

impl Partial {
    /// `[v=\s]*ID(.ID(.ID(-PRE)?(+BUILD)?)?)?`
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim_start_matches(|c| c == 'v' || c == '=' || is_space(c));
        let (text, build) = text.split_once('+').map_or((text, None), |(t, b)| (t, Some(b)));
        let (main, pre) = text.split_once('-').map_or((text, None), |(m, p)| (m, Some(p)));
        let ids: Vec<&str> = main.split('.').collect();
        if !ids.iter().all(|id| is_number(id) || matches!(*id, "x" | "X" | "*")) || ids.len() > 3 {
            return None;
        }
        let is_identifier =
            |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let well = pre.is_none_or(|p| p.split('.').all(is_pre))
            && build.is_none_or(|b| b.split('.').all(is_identifier));
        if !well || (ids.len() < 3 && (pre.is_some() || build.is_some())) {
            return None;
        }
        let number = |at: usize| ids.get(at).filter(|id| is_number(id)).map(|id| (*id).to_owned());
        // Behind an x there are only x.
        let major = number(0);
        let minor = major.as_ref().and_then(|_| number(1));
        let patch = minor.as_ref().and_then(|_| number(2));
        Some(Self { major, minor, patch, pre: pre.map(str::to_owned) })
    }

    /// The first version that is meant.
    fn lowest(&self, major: &str, minor: &str) -> String {
        match (&self.patch, &self.pre) {
            (None, _) => format!("{major}.{minor}.0"),
            (Some(patch), None) => format!("{major}.{minor}.{patch}"),
            (Some(patch), Some(pre)) => format!("{major}.{minor}.{patch}-{pre}"),
        }
    }
}

/// The next number; of one that is too large for a version, something that is none.
fn next(number: &str) -> String {
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_add(1))
        .map_or_else(|| "too-large".into(), |n| n.to_string())
}
