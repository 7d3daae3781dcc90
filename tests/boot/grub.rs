//! GRUB's environment block and balena-bootloader's, against grub-editenv.

use twinhull::boot::grub::{Block, Grub, decode, encode};
use twinhull::boot::resin::{Notation, Partitions};
use twinhull::boot::{BootChooser, Directory, Environment};
use twinhull::model::{BootPlan, Slot};

use crate::random::{Random, foreign, value};
use crate::{run, verified};

/// What `grub-editenv list` shows, if no value has a line end.
fn listed(file: &str) -> Vec<(String, String)> {
    let pair = |line: &str| line.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())).unwrap();
    run("grub-editenv", &[file, "list"]).lines().map(pair).collect()
}

/// The lines of foreign variables, byte for byte and in order; no value here has a line end.
fn foreign_lines(raw: &[u8]) -> Vec<&[u8]> {
    raw.split(|b| *b == b'\n').filter(|line| line.starts_with(b"x")).collect()
}

#[test]
fn a_thousand_environments_are_read_and_written_as_grub_editenv_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("grubenv");
    let file = path.to_str().unwrap();
    for seed in 0..1000 {
        let letters = seed % 2 == 1;
        let (marks, notation) = if letters {
            (["A", "B"], Notation::Letters)
        } else {
            (["2", "3"], Notation::Decimal(Partitions { a: 2, b: 3 }))
        };
        let mut random = Random::new(seed);
        let written = random.environment(marks, b"abc 01\\=#\"'$;,./~");
        // The tool writes, we read.
        if path.exists() {
            std::fs::remove_file(&path).unwrap();
        }
        let pairs: Vec<_> = written.iter().map(|(n, v)| format!("{n}={v}")).collect();
        let mut args = vec![file, "set"];
        args.extend(pairs.iter().map(String::as_str));
        run("grub-editenv", &[file, "create"]);
        run("grub-editenv", &args);
        let raw = std::fs::read(&path).unwrap();
        let block = decode(&raw).unwrap();
        let read: Vec<_> = block.variables.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        assert_eq!(read, written, "seed {seed}");
        // The bytes are the tool's own, too.
        let mut ours = Block { comments: block.comments, ..Block::default() };
        for (name, value) in &written {
            ours.variables.set(name, value);
        }
        assert_eq!(encode(&ours).unwrap().as_slice(), raw, "seed {seed}");
        // We write, the tool reads.
        let mut chooser = Grub::new(Directory::new(dir.path()), "grubenv", notation);
        let primary = if value(&written, "resin_root_part") == marks[0] { Slot::A } else { Slot::B };
        chooser.commit(!primary).unwrap();
        assert_eq!(chooser.plan().unwrap(), BootPlan::settled(!primary));
        let after = listed(file);
        assert_eq!(foreign(&after), foreign(&written), "seed {seed}");
        assert_eq!(value(&after, "resin_root_part"), marks[usize::from(primary == Slot::A)]);
        assert_eq!((value(&after, "upgrade_available"), value(&after, "bootcount")), ("0", "0"));
        let tries = u8::try_from(1 + random.below(9)).unwrap();
        chooser.arm(&verified(primary), tries).unwrap();
        assert_eq!(chooser.plan().unwrap(), BootPlan::on_trial(primary, tries));
        let armed = listed(file);
        let (count, limit) = match letters {
            true => ((2 - i16::from(tries)).to_string(), value(&written, "os_bc_lim").to_owned()),
            false => ("0".into(), tries.to_string()),
        };
        assert_eq!(value(&armed, "resin_root_part"), marks[usize::from(primary == Slot::B)], "seed {seed}");
        assert_eq!((value(&armed, "upgrade_available"), value(&armed, "bootcount")), ("1", count.as_str()));
        assert_eq!(value(&armed, "os_bc_lim"), limit);
        chooser.disarm(!primary).unwrap();
        assert_eq!(value(&listed(file), "upgrade_available"), "0");
        assert_eq!(foreign_lines(&std::fs::read(&path).unwrap()), foreign_lines(&raw), "seed {seed}");
    }
}
