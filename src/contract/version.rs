//! Versions as node's semver reads them.

use std::cmp::Ordering;

/// The largest whole number that JavaScript counts exactly; larger ones are no version there.
const MAX_NUMBER: u64 = 9_007_199_254_740_991;
/// The longest version, in characters.
const MAX_LEN: usize = 256;
/// The longest identifier of build metadata or pre-release, as far as its letters go.
pub(super) const MAX_IDENTIFIER: usize = MAX_LEN - 6;

/// `MAJOR.MINOR.PATCH`, with pre-release identifiers or none. Build metadata was read and means nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeVersion {
    /// Major, minor, patch.
    pub numbers: [u64; 3],
    /// `-a.1` gives `a` and `1`.
    pub pre: Vec<String>,
}

impl NodeVersion {
    /// What `semver.parse(text)` gives; `None` is not valid.
    pub fn parse(text: &str) -> Option<Self> {
        // The length counts UTF-16 code units; whatever is not ASCII is invalid anyway.
        if text.len() > MAX_LEN {
            return None;
        }
        Self::parse_plain(trim(text))
    }

    /// The same without white space around it: `v?MAIN(-PRE)?(+BUILD)?`.
    fn parse_plain(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let (text, build) = text.split_once('+').map_or((text, None), |(t, b)| (t, Some(b)));
        if build.is_some_and(|b| !b.split('.').all(is_build)) {
            return None;
        }
        let (main, pre) = text.split_once('-').map_or((text, None), |(m, p)| (m, Some(p)));
        let mut numbers = main.split('.').map(number);
        let numbers =
            [numbers.next()??, numbers.next()??, numbers.next()??].map(Some).into_iter().chain(numbers);
        let numbers: Vec<u64> = numbers.collect::<Option<_>>()?;
        let pre: Vec<_> = pre.map_or(Vec::new(), |p| p.split('.').map(str::to_owned).collect());
        if !pre.iter().all(|p| is_pre(p)) {
            return None;
        }
        Some(Self { numbers: numbers.try_into().ok()?, pre })
    }

    /// How the two stand in order; build metadata counts for nothing.
    pub fn compare(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| compare_pre(&self.pre, &other.pre))
    }
}

/// A number as a whole: no sign, no leading zero, at most JavaScript's largest.
fn number(text: &str) -> Option<u64> {
    is_number(text).then(|| text.parse().ok()).flatten().filter(|n| *n <= MAX_NUMBER)
}

/// `0|[1-9]\d*`
pub(super) fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'))
}

fn is_identifier(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// A pre-release identifier: a number without leading zeros, or anything with a letter or hyphen in it.
pub(super) fn is_pre(text: &str) -> bool {
    is_number(text) || (is_identifier(text) && !text.bytes().all(|b| b.is_ascii_digit()))
}

fn is_build(text: &str) -> bool {
    is_identifier(text) && text.len() <= MAX_IDENTIFIER
}

fn compare_pre(a: &[String], b: &[String]) -> Ordering {
    // A version without a pre-release comes after all of its pre-releases.
    match (a.is_empty(), b.is_empty()) {
        (true, true) => return Ordering::Equal,
        (true, false) => return Ordering::Greater,
        (false, true) => return Ordering::Less,
        (false, false) => {}
    }
    let first = a.iter().zip(b).map(|(a, b)| compare_identifiers(a, b)).find(|o| o.is_ne());
    first.unwrap_or_else(|| a.len().cmp(&b.len()))
}

fn compare_identifiers(a: &str, b: &str) -> Ordering {
    let as_number =
        |t: &str| if t.bytes().all(|b| b.is_ascii_digit()) { t.parse::<f64>().ok() } else { None };
    match (as_number(a), as_number(b)) {
        // As JavaScript: beyond 2^53 not every number is its own.
        (Some(a), Some(b)) => a.total_cmp(&b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

/// What `\s` matches in JavaScript.
pub(super) fn is_space(c: char) -> bool {
    c == '\u{feff}' || (c.is_whitespace() && c != '\u{85}')
}

pub(super) fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}
