//! The codec of GRUB's environment block.

use crate::boot::{Environment, Variables};
use crate::{Error, Result};

/// The size of the block: GRUB never changes it.
pub const BLOCK_BYTES: usize = 1024;

const HEADER: &[u8] = b"# GRUB Environment Block\n";

/// What an environment block holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Block {
    /// Comment lines, each from `#` to its line end, as they stand; newer `grub-editenv` writes a warning.
    pub comments: Vec<Vec<u8>>,
    /// The variables.
    pub variables: Variables,
}

/// Decodes an environment block.
///
/// `raw` is the whole file of 1024 bytes: a header line, then `name=value` lines and comments, then `#` up to the
/// end. In a value a backslash stands before a backslash or a line feed that belongs to it.
///
/// # Errors
/// `Failed` if length or header are wrong, a line has no `=`, text is not UTF-8, or a name stands twice.
///
/// Source: GRUB manual, "Environment block"; checked with grub-editenv 2.06 (tests/fixtures/grub).
pub fn decode(raw: &[u8]) -> Result<Block> {
    if raw.len() != BLOCK_BYTES {
        return Err(Error::failed(format!("{} bytes, expected {BLOCK_BYTES}", raw.len())));
    }
    let Some(mut rest) = raw.strip_prefix(HEADER) else {
        return Err(Error::failed("no \"# GRUB Environment Block\" at the start"));
    };
    let mut block = Block::default();
    while let Some((line, after)) = split_line(rest) {
        // A comment stays as it stands: GRUB minds its escapes when it looks for its end.
        let as_it_stands = rest.get(..rest.len() - after.len() - 1).unwrap_or_default();
        rest = after;
        if line.first() == Some(&b'#') {
            block.comments.push(as_it_stands.to_vec());
            continue;
        }
        let (name, value) = entry(&line)?;
        if block.variables.find(&name).is_some() {
            return Err(Error::failed(format!("variable {name} stands twice")));
        }
        block.variables.set(&name, &value);
    }
    // What is left is the padding, which has no line end.
    if let Some(byte) = rest.iter().find(|b| **b != b'#') {
        return Err(Error::failed(format!("byte {byte:#04x} in the padding, expected '#'")));
    }
    Ok(block)
}

/// One line without its end and with its escapes resolved, and what follows.
fn split_line(raw: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut line = Vec::new();
    let mut bytes = raw.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'\n' => return Some((line, raw.get(at + 1..).unwrap_or_default())),
            b'\\' => line.push(*bytes.next()?.1),
            _ => line.push(*byte),
        }
    }
    None
}

fn entry(line: &[u8]) -> Result<(String, String)> {
    let text = str::from_utf8(line).map_err(|_| Error::failed("a variable is not UTF-8"))?;
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err(Error::failed(format!("line {text:?}: expected name=value"))),
    }
}

/// Encodes a block: comments first, then the variables in their order.
///
/// # Errors
/// `Failed` if they do not fit.
pub fn encode(block: &Block) -> Result<[u8; BLOCK_BYTES]> {
    let mut bytes = HEADER.to_vec();
    for comment in &block.comments {
        bytes.extend(comment);
        bytes.push(b'\n');
    }
    for (name, value) in block.variables.iter() {
        bytes.extend(name.as_bytes());
        bytes.push(b'=');
        for byte in value.bytes() {
            if matches!(byte, b'\\' | b'\n') {
                bytes.push(b'\\');
            }
            bytes.push(byte);
        }
        bytes.push(b'\n');
    }
    let needed = bytes.len();
    bytes.resize(BLOCK_BYTES.max(needed), b'#');
    bytes
        .try_into()
        .map_err(|_| Error::failed(format!("variables need {needed} bytes, at most {BLOCK_BYTES} fit")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Made by tests/fixtures/grub/make with grub-editenv 2.06.
    const SEED: &[u8] = include_bytes!("../../../tests/fixtures/grub/seed.grubenv");
    const ESCAPES: &[u8] = include_bytes!("../../../tests/fixtures/grub/escapes.grubenv");

    fn pairs(block: &Block) -> Vec<(&str, &str)> {
        block.variables.iter().collect()
    }

    #[test]
    fn reads_and_rewrites_what_grub_editenv_wrote() {
        let seed = decode(SEED).unwrap();
        let expected =
            [("resin_root_part", "2"), ("upgrade_available", "0"), ("bootcount", "0"), ("os_bc_lim", "3")];
        assert_eq!(pairs(&seed), expected);
        let escapes = decode(ESCAPES).unwrap();
        assert_eq!(pairs(&escapes), [("path", r"C:\new"), ("lines", "one\ntwo"), ("resin_root_part", "3")]);
        for raw in [SEED, ESCAPES] {
            assert_eq!(encode(&decode(raw).unwrap()).unwrap().as_slice(), raw);
        }
    }

    #[test]
    fn a_block_without_the_warning_is_fine() {
        let mut raw = b"# GRUB Environment Block\na=1\n".to_vec();
        raw.resize(BLOCK_BYTES, b'#');
        assert_eq!(pairs(&decode(&raw).unwrap()), [("a", "1")]);
    }

    /// Found by fuzzing: the escape was resolved and not put back, so the second line became a variable without '='.
    #[test]
    fn a_comment_over_two_lines_stays_one() {
        let mut raw = b"# GRUB Environment Block\n# one\\\ntwo \\n\na=1\n".to_vec();
        raw.resize(BLOCK_BYTES, b'#');
        let block = decode(&raw).unwrap();
        assert_eq!(pairs(&block), [("a", "1")]);
        assert_eq!(encode(&block).unwrap().as_slice(), raw);
    }

    #[test]
    fn every_truncation_is_an_error() {
        for n in 0..SEED.len() {
            assert!(decode(&SEED[..n]).is_err(), "{n} bytes");
        }
    }

    #[test]
    fn a_flipped_bit_is_an_error_or_another_value_never_a_panic() {
        for bit in 0..SEED.len() * 8 {
            let mut raw = SEED.to_vec();
            raw[bit / 8] ^= 1 << (bit % 8);
            if let Ok(v) = decode(&raw) {
                assert_ne!(v, decode(SEED).unwrap(), "bit {bit} was swallowed");
            }
        }
    }

    #[test]
    fn too_much_is_refused() {
        let mut v = Block::default();
        v.variables.set("a", &"x".repeat(BLOCK_BYTES));
        assert!(encode(&v).unwrap_err().to_string().contains("at most 1024 fit"));
    }

    proptest! {
        #[test]
        fn round_trip(vars in prop::collection::vec(("[a-z_]{1,12}", "[ -~\n]{0,30}"), 0..16)) {
            let mut v = Block::default();
            for (name, value) in &vars {
                v.variables.set(name, value);
            }
            let raw = encode(&v).unwrap();
            prop_assert_eq!(decode(&raw).unwrap(), v);
        }

        #[test]
        fn any_bytes_decode_without_panic(raw in prop::collection::vec(any::<u8>(), BLOCK_BYTES)) {
            let _ = decode(&raw);
        }
    }
}
