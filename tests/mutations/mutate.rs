//! Ways to damage or forge a bundle.

use twinhull::bundle::archive;
use twinhull::bundle::sign::Signer;
use twinhull::model::Manifest;

use crate::lab::{self, Lab, Member, fix_checksum, join, split};

/// Numbers that look random and are the same in every run (splitmix64).
pub struct Dice(u64);

impl Dice {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..end`; 0 if there is none.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..=self.below(most)).map(|_| self.next() as u8).collect()
    }
}

/// The bundle that all are made from, and the key that signed it.
pub struct Original {
    pub bundle: Vec<u8>,
    members: Vec<Member>,
    manifest: String,
    signer: Signer,
    stranger: Signer,
}

impl Original {
    pub fn new(lab: &Lab, bundle: Vec<u8>) -> Self {
        let made = lab.run(&["bundle", "keygen", "--public", "other/x.pub", "--secret", "x.key"]);
        assert_eq!(made.code, 0, "{}", made.stderr);
        let members = split(&bundle);
        let manifest = String::from_utf8(members[0].1.clone()).unwrap();
        let [signer, stranger] = ["a.key", "x.key"].map(|k| Signer::load(&lab.path(k), None).unwrap());
        Self { bundle, members, manifest, signer, stranger }
    }

    /// A bundle whose maker has the key and signs whatever `members` are.
    fn signed(&self, mut members: Vec<Member>, manifest: &str) -> Vec<u8> {
        // What a maker's own tool would refuse is signed all the same.
        if Manifest::parse(manifest).is_ok() {
            lab::sign_with(&self.signer, &mut members, manifest);
        } else {
            members[0].1 = manifest.as_bytes().to_vec();
            let sane = Manifest::parse(&self.manifest).unwrap();
            members[1].1 = self.signer.sign(&sane, manifest.as_bytes()).unwrap().text().as_bytes().to_vec();
        }
        join(&members)
    }
}

type Mutation = fn(&Original, &mut Dice) -> Vec<u8>;

/// Every way, with its name.
pub const KINDS: &[(&str, Mutation)] = &[
    ("flipped bits", |o, dice| {
        let mut bad = o.bundle.clone();
        for _ in 0..=dice.below(8) {
            let at = dice.below(bad.len());
            bad[at] ^= 1 << dice.below(8);
        }
        bad
    }),
    ("one flipped bit of a header or the manifest", |o, dice| {
        let mut bad = o.bundle.clone();
        bad[dice.below(2048)] ^= 1 << dice.below(8);
        bad
    }),
    ("truncated", |o, dice| o.bundle[..dice.below(o.bundle.len())].to_vec()),
    ("longer", |o, dice| {
        let more = if dice.below(2) == 0 { dice.bytes(2000) } else { o.bundle.clone() };
        [&o.bundle[..], &more].concat()
    }),
    ("bytes cut out, put in, overwritten or copied", |o, dice| scramble(o.bundle.clone(), dice)),
    ("members swapped", |o, dice| {
        let mut members = o.members.clone();
        let (a, b) = (dice.below(members.len()), dice.below(members.len()));
        members.swap(a, b);
        join(&members)
    }),
    ("a member doubled", |o, dice| {
        let mut members = o.members.clone();
        let member = dice.pick(&members);
        members.insert(dice.below(members.len() + 1), member);
        join(&members)
    }),
    ("a member missing", |o, dice| {
        let mut members = o.members.clone();
        members.remove(dice.below(members.len()));
        join(&members)
    }),
    ("a member with a trick in its name", |o, dice| {
        let mut members = o.members.clone();
        let at = dice.below(members.len());
        let name = &members[at].0;
        let trick = dice.pick(&[
            format!("../{name}"),
            format!("./{name}"),
            format!("/{name}"),
            format!("{name}/"),
            format!("a/../{name}"),
            format!("{name}\0x"),
            format!("{name}\n"),
            format!(" {name}"),
            name.to_uppercase(),
            format!("{name}{name}"),
            "/etc/passwd".into(),
            "../../../../dev/sda".into(),
            "..".into(),
            String::new(),
            "x".repeat(100),
        ]);
        if dice.below(2) == 0 {
            members[at].0 = trick;
        } else {
            members.insert(at, (trick, dice.bytes(600)));
        }
        join(&members)
    }),
    ("a header field with another value and a right checksum", |o, dice| {
        let mut bad = o.bundle.clone();
        let at = dice.pick(&o.headers());
        // Fields of ustar: where they begin, and how long they are.
        let fields =
            [(100, 8), (108, 8), (116, 8), (136, 12), (156, 1), (157, 100), (257, 8), (265, 80), (345, 155)];
        let (field, len) = dice.pick(&fields);
        let value = dice.pick(&[b'7', b'0', b' ', 0, 0xff, b'5', b'1', b'x', b'L']);
        let some = dice.below(len) + 1;
        bad[at + field..at + field + some].fill(value);
        fix_checksum(&mut bad, at);
        bad
    }),
    ("a huge or odd length and a right checksum", |o, dice| {
        let mut bad = o.bundle.clone();
        let at = dice.pick(&o.headers());
        let text = dice.pick(&[
            *b"77777777777\0",
            *b"00000000000\0",
            *b"00000000001\0",
            *b"99999999999\0",
            *b"-0000000001\0",
            *b"            ",
            *b"777777777777",
            *b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
            *b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ]);
        bad[at + 124..at + 136].copy_from_slice(&text);
        fix_checksum(&mut bad, at);
        bad
    }),
    ("a pax header in front of a member", |o, dice| {
        let at = dice.pick(&o.headers());
        let record = dice.pick(&[
            "size=99999999999999999999",
            "size=0",
            "size=18446744073709551615",
            "size=8589934592",
            "path=/etc/passwd",
            "linkpath=../x",
            "size=-1",
            "x",
            "",
        ]);
        let mut pax = archive::header("p.pax", 0).unwrap();
        let length = record.len() + 5;
        let content = format!("{length} {record}\n");
        pax[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        pax[156] = dice.pick(b"xgLK");
        fix_checksum(&mut pax, 0);
        pax.extend(content.as_bytes());
        pax.resize(1024, 0);
        [&o.bundle[..at], &pax, &o.bundle[at..]].concat()
    }),
    ("another signature", |o, dice| {
        let mut members = o.members.clone();
        match dice.below(4) {
            0 => members[1].1 = scramble(members[1].1.clone(), dice),
            1 => {
                let sane = Manifest::parse(&o.manifest).unwrap();
                let theirs = o.stranger.sign(&sane, o.manifest.as_bytes()).unwrap();
                members[1].1 = theirs.text().as_bytes().to_vec();
            }
            2 => {
                let text = String::from_utf8(members[1].1.clone()).unwrap();
                let mut lines: Vec<&str> = text.lines().collect();
                let (a, b) = (dice.below(4), dice.below(4));
                lines.swap(a, b);
                members[1].1 = (lines.join("\n") + "\n").into_bytes();
            }
            _ => members[1].0 = format!("manifest.toml.{:016X}.minisig", dice.next()),
        }
        join(&members)
    }),
    ("another manifest under the old signature", |o, dice| {
        let mut members = o.members.clone();
        members[0].1 = manifest(&o.manifest, dice).into_bytes();
        join(&members)
    }),
    ("a nonsensical manifest, signed", |o, dice| {
        let text = manifest(&o.manifest, dice);
        o.signed(o.members.clone(), &text)
    }),
    ("a nonsensical index, signed", |o, dice| {
        let mut members = o.members.clone();
        members[2].1 = if dice.below(2) == 0 {
            scramble(members[2].1.clone(), dice)
        } else {
            numbers(members[2].1.clone(), dice)
        };
        let text = lab::describe_again(&o.manifest, &members);
        o.signed(members, &text)
    }),
    ("nonsensical frames, with the sizes that were signed", |o, dice| {
        let mut members = o.members.clone();
        members[3].1 = scramble(members[3].1.clone(), dice);
        let text = lab::describe_again(&o.manifest, &members);
        o.signed(members, &text)
    }),
];

impl Original {
    /// Where the headers of the members begin.
    fn headers(&self) -> Vec<usize> {
        let mut at = 0;
        let mut next = |content: &[u8]| {
            let header = at;
            at += 512 + content.len().next_multiple_of(512);
            header
        };
        self.members.iter().map(|(_, content)| next(content)).collect()
    }
}

fn scramble(mut bytes: Vec<u8>, dice: &mut Dice) -> Vec<u8> {
    for _ in 0..=dice.below(3) {
        let at = dice.below(bytes.len());
        let end = (at + dice.below(2000) + 1).min(bytes.len());
        match dice.below(5) {
            0 => drop(bytes.drain(at..end)),
            1 => drop(bytes.splice(at..at, dice.bytes(1500)).count()),
            2 => {
                let piece = bytes[at..end].to_vec();
                let to = dice.below(bytes.len() - piece.len());
                bytes[to..to + piece.len()].copy_from_slice(&piece);
            }
            3 => bytes[at..end].fill(dice.pick(&[0, 0xff])),
            _ => {
                let new = dice.bytes(9);
                let end = (at + new.len()).min(bytes.len());
                bytes.splice(at..end, new);
            }
        }
    }
    bytes
}

/// A manifest with other numbers, or with lines that are missing, doubled, or new.
fn manifest(text: &str, dice: &mut Dice) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let at = dice.below(lines.len());
    match dice.below(6) {
        0 => drop(lines.remove(at)),
        1 => lines.insert(at, dice.pick(&lines.clone())),
        2 => lines.insert(
            at,
            dice.pick(&["evil = true", "[[payload]]", "[x]", "format = 2", "\u{0}", "é = \"é\""]).into(),
        ),
        3 => {
            let piece = scramble(lines[at].clone().into_bytes(), dice);
            lines[at] = String::from_utf8_lossy(&piece).into_owned();
        }
        _ => {
            let numbers: Vec<usize> =
                (0..lines.len()).filter(|l| lines[*l].ends_with(|c: char| c.is_ascii_digit())).collect();
            let at = dice.pick(&numbers);
            let key = lines[at].split(" = ").next().unwrap().to_owned();
            let value = dice.pick(&[
                "0",
                "1",
                "-1",
                "1023",
                "1024",
                "4095",
                "4096",
                "57344",
                "57345",
                "1099511627776",
                "1099511627777",
                "9223372036854775807",
                "9223372036854775808",
                "1e9",
                "0x10",
                "\"1\"",
                "[]",
            ]);
            lines[at] = format!("{key} = {value}");
        }
    }
    lines.join("\n") + "\n"
}

/// One of the numbers of an index: of its head, of its extents or of its table.
fn numbers(mut index: Vec<u8>, dice: &mut Dice) -> Vec<u8> {
    let at = if dice.below(3) > 0 { 8 + 4 * dice.below(14) } else { 4 * dice.below(index.len() / 4) };
    let value =
        dice.pick(&[0, 1, 2, 13, 15, 1023, 1024, 1025, 2048, 4095, 4097, 1 << 31, u32::MAX - 1, u32::MAX]);
    if let Some(field) = index.get_mut(at..at + 4) {
        field.copy_from_slice(&value.to_le_bytes());
    }
    index
}
