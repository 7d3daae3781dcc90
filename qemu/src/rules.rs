//! What each bootloader makes of the files of its boot partition: its own rules, written down once more, apart from twinhull's
//! code and models. `boot/README.md` has them as tables, which the tests here go through.

use md5::{Digest, Md5};

use crate::Outcome;
use crate::fat::Tree;
use crate::recording::{Action, CONFIG_FILE, ENVIRONMENT_FILES, Step, Writer, config_content};

/// What a bootloader does with a boot partition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decision {
    /// The slot that boots.
    pub slot: char,
    /// What it saves before that, if it counts: the count, or the entry's new name.
    pub counted: Option<String>,
    /// The slot that boots if the restart asks for a try, where it can.
    pub asked: Option<char>,
}

impl std::fmt::Display for Decision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.slot)?;
        if let Some(counted) = &self.counted {
            write!(f, ", saved {counted}")?;
        }
        self.asked.map_or(Ok(()), |slot| write!(f, ", a try boots {slot}"))
    }
}

/// The file that a writer's bootloader reads, or the directory.
pub const fn place(writer: Writer) -> &'static str {
    match writer {
        Writer::Grub | Writer::GrubEditenv => "EFI/BOOT/grubenv",
        Writer::Bootenv => "bootenv",
        Writer::UbootText => "resinOS_uEnv.txt",
        Writer::UbootEnv | Writer::FwSetenv | Writer::UbootEnvRedundant | Writer::FwSetenvRedundant => {
            ENVIRONMENT_FILES[0]
        }
        Writer::Initramfs => "initramfs.env",
        Writer::SystemdBoot => "loader/entries",
        Writer::Tryboot => "autoboot.txt",
        Writer::Fatrw => CONFIG_FILE,
    }
}

/// Whether a file may change while a writer works.
pub fn is_written(writer: Writer, path: &str) -> bool {
    let begins_and_ends = |begin: &str, end: &str| path.starts_with(begin) && path.ends_with(end);
    match writer {
        // A new file is there with its short name first if the long one is in another sector: no entry for systemd-boot.
        Writer::SystemdBoot => {
            begins_and_ends("loader/entries/twinhull-", ".conf")
                || begins_and_ends("loader/entries/TWINHU~", ".CON")
        }
        Writer::UbootText => [place(writer), "bootcount.env", "BOOTCO~1.ENV"].contains(&path),
        Writer::UbootEnvRedundant | Writer::FwSetenvRedundant => ENVIRONMENT_FILES.contains(&path),
        Writer::Fatrw => {
            [CONFIG_FILE, "CONFIG.NEW"].contains(&path) || begins_and_ends(".config.json.", ".md5sum")
        }
        _ => path == place(writer),
    }
}

/// What must come of a plan: a primary, and whether the other slot is on trial.
pub fn expected(writer: Writer, step: Step) -> Decision {
    let other = if step.slot == 'A' { 'B' } else { 'A' };
    let armed = step.action == Action::Arm;
    let counted = match writer {
        Writer::Tryboot => None,
        // It begins at -1, as balena-bootloader's limit is always three.
        Writer::Bootenv => Some("0".to_owned()),
        Writer::SystemdBoot => Some(format!("twinhull-{}+2-1.conf", step.slot.to_ascii_lowercase())),
        _ => Some("1".to_owned()),
    };
    match writer {
        Writer::Tryboot => {
            Decision { slot: if armed { other } else { step.slot }, counted: None, asked: Some(step.slot) }
        }
        _ => Decision { slot: step.slot, counted: counted.filter(|_| armed), asked: None },
    }
}

/// What a writer's bootloader does.
///
/// # Errors
/// If it cannot read what it should: whatever boots then, nobody has chosen it.
pub fn decide(writer: Writer, tree: &Tree) -> Outcome<Decision> {
    let file = |path: &str| tree.get(path).ok_or_else(|| format!("{path}: is not there"));
    let first = place(writer);
    match writer {
        Writer::Grub | Writer::GrubEditenv => {
            let block = block(file(first)?)?;
            Ok(script(|name| value(&block, name), |root| root == "3"))
        }
        Writer::Bootenv => abroot(&block(file(first)?)?),
        Writer::UbootText => {
            let plan = import(file(first)?);
            let count = tree.get("bootcount.env").map(|raw| import(raw)).unwrap_or_default();
            let of = |name: &str| value(if name == "bootcount" { &count } else { &plan }, name);
            if of("resin_root_part").is_empty() {
                return Err(format!("{first}: no resin_root_part"));
            }
            Ok(script(of, |root| root == "3"))
        }
        Writer::UbootEnv | Writer::FwSetenv => environment(&[file(first)?]),
        Writer::UbootEnvRedundant | Writer::FwSetenvRedundant => {
            environment(&[file(ENVIRONMENT_FILES[0])?, file(ENVIRONMENT_FILES[1])?])
        }
        Writer::Initramfs => {
            let (a, b) = file(first)?.split_at_checked(512).ok_or("initramfs.env: too short")?;
            environment(&[a, b])
        }
        Writer::SystemdBoot => entries(tree),
        Writer::Fatrw => fatrw(tree, file(first)?),
        Writer::Tryboot => {
            let text = file(first)?;
            let chosen = |asked| firmware(text, asked);
            Ok(Decision { slot: chosen(false)?, counted: None, asked: Some(chosen(true)?) })
        }
    }
}

type Pairs = Vec<(String, String)>;

/// Later lines win; what is not there is empty.
fn value(pairs: &Pairs, name: &str) -> String {
    pairs.iter().rev().find(|(n, _)| n == name).map_or_else(String::new, |(_, v)| v.clone())
}

/// GRUB's environment block; escapes do not matter to names and numbers.
fn block(raw: &[u8]) -> Outcome<Pairs> {
    let text = raw.strip_prefix(b"# GRUB Environment Block\n").filter(|_| raw.len() == 1024);
    let text = text.ok_or_else(|| format!("{} bytes that are no environment block", raw.len()))?;
    Ok(lines(text))
}

fn lines(text: &[u8]) -> Pairs {
    let text = String::from_utf8_lossy(text).into_owned();
    let pairs = text.split('\n').filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once('='));
    pairs.map(|(name, value)| (name.trim_start().to_owned(), value.to_owned())).collect()
}

/// `env import -t` ends at a NUL.
fn import(raw: &[u8]) -> Pairs {
    lines(raw.split(|b| *b == 0).next().unwrap_or_default())
}

/// `grub.cfg` and both `boot.cmd` decide alike.
fn script(value: impl Fn(&str) -> String, is_b: impl Fn(&str) -> bool) -> Decision {
    let slot = if is_b(&value("resin_root_part")) { 'B' } else { 'A' };
    let other = if slot == 'A' { 'B' } else { 'A' };
    let settled = |slot| Decision { slot, counted: None, asked: None };
    if value("upgrade_available") != "1" {
        return settled(slot);
    }
    let limit = Some(value("os_bc_lim")).filter(|l| !l.is_empty()).unwrap_or_else(|| "3".into());
    let count = value("bootcount");
    match count.as_bytes() {
        [digit @ b'0'..=b'8'] if count != limit => {
            Decision { slot, counted: Some((digit - b'0' + 1).to_string()), asked: None }
        }
        _ => settled(other),
    }
}

/// balena-bootloader's own script: it counts while `upgrade_available` is 1, and from 3 on it boots the other slot.
fn abroot(pairs: &Pairs) -> Outcome<Decision> {
    let slot = match value(pairs, "resin_root_part").as_str() {
        "A" => 'A',
        "B" => 'B',
        other => return Err(format!("resin_root_part is {other:?}")),
    };
    let mut count: i32 = value(pairs, "bootcount").parse().map_err(|e| format!("bootcount: {e}"))?;
    let counts = value(pairs, "upgrade_available") == "1";
    count += i32::from(counts);
    let slot = match (count >= 3, slot) {
        (false, slot) => slot,
        (true, 'A') => 'B',
        (true, _) => 'A',
    };
    Ok(Decision { slot, counted: counts.then(|| count.to_string()), asked: None })
}

/// U-Boot's environment, of one copy or two.
fn environment(copies: &[&[u8]]) -> Outcome<Decision> {
    let redundant = copies.len() > 1;
    let data_at = 4 + usize::from(redundant);
    let whole = |raw: &&[u8]| raw.len() > data_at && raw[..4] == crc32(&raw[data_at..]).to_le_bytes();
    let mut valid: Vec<&[u8]> = copies.iter().copied().filter(|raw| whole(raw)).collect();
    // 255 is followed by 0. Of two that are the same age, the first counts.
    if let [first, second] = valid.as_slice() {
        let (a, b) = (first[4], second[4]);
        if (a, b) == (255, 0) || (b > a && (a, b) != (0, 255)) {
            valid.swap(0, 1);
        }
    }
    let raw = valid.first().ok_or("no copy of the environment has the right CRC")?;
    let end = raw[data_at..].windows(2).position(|w| w == [0, 0]).unwrap_or(raw.len() - data_at);
    let text: Vec<u8> =
        raw[data_at..data_at + end].iter().map(|b| if *b == 0 { b'\n' } else { *b }).collect();
    let pairs = lines(&text);
    Ok(script(|name| value(&pairs, name), |root| root == "3"))
}

/// CRC-32 as in zip, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// systemd-boot: entries whose tries are used up go last; then the highest version, then the most tries left.
fn entries(tree: &Tree) -> Outcome<Decision> {
    let mut found = Vec::new();
    for (path, content) in tree {
        let Some(name) = path.strip_prefix("loader/entries/").and_then(|n| n.strip_suffix(".conf")) else {
            continue;
        };
        let (id, counter) = name.split_once('+').map_or((name, None), |(id, c)| (id, Some(c)));
        let number = |text: &str| text.parse::<u32>().map_err(|e| format!("{path}: {e}"));
        let counter = match counter.map(|c| c.split_once('-').unwrap_or((c, "0"))) {
            Some((left, done)) => Some((number(left)?, number(done)?)),
            None => None,
        };
        let text = String::from_utf8_lossy(content).into_owned();
        let line = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).map(str::trim);
        // An entry that names nothing to start is passed over.
        let Some(options) = line("options ").filter(|_| line("linux ").is_some()) else { continue };
        let version = number(line("version ").unwrap_or("0"))?;
        let slot = options.chars().next_back().ok_or("no slot")?;
        let left = counter.map_or(0, |(left, _)| left);
        found.push((counter.is_none_or(|(left, _)| left > 0), version, left, id.to_owned(), counter, slot));
    }
    found.sort();
    let (.., id, counter, slot) = found.pop().ok_or("no entry at all")?;
    let counted = counter.filter(|(left, _)| *left > 0);
    let counted = counted.map(|(left, done)| format!("{id}+{}-{}.conf", left - 1, done + 1));
    Ok(Decision { slot, counted, asked: None })
}

/// The name of fatrw's journal file of this content.
pub fn journal_name(content: &[u8]) -> String {
    let md5: String = Md5::digest(content).iter().map(|b| format!("{b:02x}")).collect();
    format!(".config.json.0badcafe.{md5}.md5sum")
}

/// fatrw: a journal file whose content has the MD5 of its name counts, else the file itself.
fn fatrw(tree: &Tree, file: &[u8]) -> Outcome<Decision> {
    let whole = |(path, content): &(&String, &Vec<u8>)| **path == journal_name(content);
    let journals: Vec<&Vec<u8>> = tree.iter().filter(whole).map(|(_, content)| content).collect();
    let content = match journals.as_slice() {
        [] => file,
        [journal] => journal,
        _ => return Err(format!("{} whole journal files", journals.len())),
    };
    let slots = ['A', 'B'].into_iter();
    let mut steps = slots
        .flat_map(|slot| [Action::Arm, Action::Commit, Action::Disarm].map(|action| Step { action, slot }));
    let step = steps.find(|step| config_content(*step) == content);
    step.map(|step| expected(Writer::Fatrw, step)).ok_or_else(|| "what nobody has written".to_owned())
}

/// The Raspberry Pi's firmware.
fn firmware(raw: &[u8], asked: bool) -> Outcome<char> {
    let text = String::from_utf8_lossy(raw.get(..512).unwrap_or(raw)).into_owned();
    let (mut counts, mut chosen) = (true, None);
    for line in text.lines() {
        match line.trim() {
            "[all]" => counts = true,
            "[tryboot]" => counts = asked,
            other if other.starts_with('[') => counts = false,
            other if counts => {
                chosen = other.strip_prefix("boot_partition=").or(chosen.as_deref()).map(str::to_owned)
            }
            _ => {}
        }
    }
    match chosen.as_deref() {
        Some("2") => Ok('A'),
        Some("3") => Ok('B'),
        other => Err(format!("boot_partition is {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_crc_32() {
        // The check value of CRC-32/ISO-HDLC in every catalogue.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    fn tree(files: &[(&str, &[u8])]) -> Tree {
        files.iter().map(|(path, content)| ((*path).to_owned(), content.to_vec())).collect()
    }

    #[test]
    fn entries_are_sorted_as_the_table_says() {
        let entry = |slot: char, version: u32| {
            format!("linux /x\noptions lab-slot={slot}\nsort-key 0-twinhull\nversion {version}\n")
                .into_bytes()
        };
        let (a, b) = (entry('A', 1), entry('B', 2));
        for (names, expected) in [
            (vec!["a"], "A"),
            (vec!["a", "b+3"], "B, saved twinhull-b+2-1.conf"),
            (vec!["a", "b+1-2"], "B, saved twinhull-b+0-3.conf"),
            (vec!["a", "b+0-3"], "A"),
            (vec!["a", "b"], "B"),
            (vec!["a", "b+2-1", "b+3"], "B, saved twinhull-b+2-1.conf"),
        ] {
            let files: Vec<(String, &[u8])> = names
                .iter()
                .map(|n| (format!("loader/entries/twinhull-{n}.conf"), if *n == "a" { &a[..] } else { &b }))
                .collect();
            let files: Vec<(&str, &[u8])> = files.iter().map(|(n, c)| (n.as_str(), *c)).collect();
            let decision = decide(Writer::SystemdBoot, &tree(&files)).unwrap();
            assert_eq!(decision.to_string(), expected, "{names:?}");
        }
        assert!(decide(Writer::SystemdBoot, &tree(&[])).is_err());
    }

    #[test]
    fn what_cannot_be_read_is_no_decision() {
        for (writer, files) in [
            (Writer::GrubEditenv, tree(&[("EFI/BOOT/grubenv", b"")])),
            (Writer::Grub, tree(&[])),
            (Writer::UbootText, tree(&[("resinOS_uEnv.txt", b"\0\0\0")])),
            (Writer::FwSetenv, tree(&[("uboot.env", &[1; 512])])),
            (Writer::Tryboot, tree(&[("autoboot.txt", b"[all]\n")])),
        ] {
            assert!(decide(writer, &files).is_err(), "{writer:?}");
        }
    }
}
