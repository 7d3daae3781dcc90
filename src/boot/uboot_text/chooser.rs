//! The two files as a boot chooser.

use super::text::{Text, decode};
use crate::block::Verified;
use crate::boot::resin::{self, Notation, Partitions};
use crate::boot::{BootChooser, Environment, Store, changed_sector};
use crate::model::{BootPlan, Slot};
use crate::{Doing, Error, Result};

/// Which slot boots, and whether it is on trial: written by twinhull alone.
pub const PLAN_FILE: &str = "resinOS_uEnv.txt";
/// The boots that the trial has used: written by U-Boot, and set back here.
pub const COUNT_FILE: &str = "bootcount.env";

/// The limit while there is no trial. balenaOS's own U-Boot compares the count with it even then, so between the
/// commit and the clearing of the count, two writes, the old count must stay below it.
const NO_LIMIT: &str = "99";

/// U-Boot's text files as a boot chooser.
///
/// Both are overwritten in place, within one sector: U-Boot knows nothing of fatrw's files beside them, and reads a
/// missing `resinOS_uEnv.txt` as "slot A". `resinOS_uEnv.txt` is the one commit point. The count means something only
/// during a trial, so it is cleared before one is armed and after one has ended.
///
/// To arm a trial other than the one that is armed already, that one is ended first.
#[derive(Debug)]
pub struct UbootText<S> {
    store: S,
    notation: Notation,
}

impl<S: Store> UbootText<S> {
    /// The chooser whose files are in `store`, on a disk where the slots have these partition numbers.
    pub const fn new(store: S, partitions: Partitions) -> Self {
        Self { store, notation: Notation::Hex(partitions) }
    }

    fn doing(&self, file: &str) -> String {
        format!("boot plan: {}", self.store.name(file))
    }

    fn read(&self, file: &str) -> Result<Option<Text>> {
        self.store.read(file)?.map(|raw| decode(&raw)).transpose()
    }

    fn settle(&mut self, primary: Slot) -> Result<()> {
        let notation = self.notation;
        self.change(PLAN_FILE, |text| {
            text.set("resin_root_part", &notation.mark(primary));
            text.set("upgrade_available", "0");
            text.set("os_bc_lim", NO_LIMIT);
        })?;
        if self.store.read(COUNT_FILE)?.is_some() {
            self.clear_count()?;
        }
        Ok(())
    }

    fn clear_count(&mut self) -> Result<()> {
        let fresh = || {
            let mut text = Text::exported();
            text.set("bootcount", "0");
            text
        };
        match self.store.read(COUNT_FILE)? {
            // Empty after a cut, it stands for nothing: no trial is armed.
            None => self
                .store
                .check_room(1, COUNT_FILE.len())
                .and_then(|()| self.store.create(COUNT_FILE, &fresh().encode(COUNT_BYTES))),
            Some(raw) => {
                let text = match decode(&raw) {
                    Ok(mut text) => {
                        text.set("bootcount", "0");
                        text
                    }
                    Err(_) => fresh(),
                };
                self.write(COUNT_FILE, raw, &text)
            }
        }
        .doing(|| self.doing(COUNT_FILE))
    }

    fn change(&mut self, file: &str, change: impl FnOnce(&mut Text)) -> Result<()> {
        let doing = self.doing(file);
        // The order matters: what fatrw finishes is the file that is changed.
        let changed = self.store.finish_fatrw(file).and_then(|()| {
            let raw = self.store.read(file)?.ok_or_else(missing)?;
            let mut text = decode(&raw)?;
            change(&mut text);
            self.write(file, raw, &text)
        });
        changed.doing(|| doing)
    }

    /// Overwrites a file that holds `old`. If `text` needs more room, the file is first made longer by padding, which
    /// changes nothing for U-Boot: only then can the change itself be one sector.
    fn write(&mut self, file: &str, mut old: Vec<u8>, text: &Text) -> Result<()> {
        let new = text.encode(old.len());
        let padding = vec![text.padding(); new.len() - old.len()];
        old.extend(&padding);
        changed_sector(0, &old, &new)?;
        if !padding.is_empty() {
            self.store.pad(file, &padding)?;
        }
        self.store.overwrite(file, &new)
    }
}

/// `bootcount=N`, line end, NUL: what balenaOS's U-Boot writes, and over what it writes.
const COUNT_BYTES: usize = 13;

fn missing() -> Error {
    Error::failed("No such file or directory")
}

impl<S: Store> BootChooser for UbootText<S> {
    fn plan(&self) -> Result<BootPlan> {
        let mut text =
            self.read(PLAN_FILE).and_then(|t| t.ok_or_else(missing)).doing(|| self.doing(PLAN_FILE))?;
        if text.value("upgrade_available").as_deref() == Some("1") {
            let count = self
                .read(COUNT_FILE)
                .and_then(|t| t.ok_or_else(missing))
                .and_then(|count| {
                    // A count that makes no sense is this file's fault, so it is named here.
                    self.notation.count(&count, "bootcount")?;
                    count
                        .value("bootcount")
                        .ok_or_else(|| Error::failed("bootcount is missing during a trial"))
                })
                .doing(|| self.doing(COUNT_FILE))?;
            text.set("bootcount", &count);
        }
        resin::plan(&text, self.notation).doing(|| self.doing(PLAN_FILE))
    }

    fn arm(&mut self, slot: &Verified, tries: u8) -> Result<()> {
        let plan = self.plan()?;
        if plan == BootPlan::on_trial(slot.slot(), tries) {
            return Ok(());
        }
        if plan.trial.is_some() {
            self.settle(plan.primary)?;
        }
        self.clear_count()?;
        let notation = self.notation;
        self.change(PLAN_FILE, |text| {
            text.set("resin_root_part", &notation.mark(slot.slot()));
            text.set("upgrade_available", "1");
            text.set("os_bc_lim", &tries.to_string());
        })
    }

    fn commit(&mut self, booted: Slot) -> Result<()> {
        self.settle(booted)
    }

    fn disarm(&mut self, primary: Slot) -> Result<()> {
        self.settle(primary)
    }

    fn give_back(&mut self) -> Result<()> {
        let notation = self.notation;
        match self.plan()?.trial {
            Some(_) => self.change(COUNT_FILE, |count| resin::give_back(count, notation)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{Directory, conformance};
    use crate::sim::files::MemoryStore;
    use crate::sys;

    /// Made by tests/fixtures/uboot/make with U-Boot 2023.01.
    const TRIAL: &[u8] = include_bytes!("../../../tests/fixtures/uboot/resinOS_uEnv.txt");
    const COUNT: &[u8] = include_bytes!("../../../tests/fixtures/uboot/bootcount.env");
    const SETTLED: &str = "resin_root_part=2\nupgrade_available=0\n";

    fn files(plan: &[u8], count: Option<&[u8]>) -> (tempfile::TempDir, UbootText<Directory>) {
        let dir = tempfile::tempdir().unwrap();
        sys::durable::replace(&dir.path().join(PLAN_FILE), plan, 0o644).unwrap();
        if let Some(count) = count {
            sys::durable::replace(&dir.path().join(COUNT_FILE), count, 0o644).unwrap();
        }
        let chooser = UbootText::new(Directory::new(dir.path()), Partitions { a: 2, b: 3 });
        (dir, chooser)
    }

    fn content(dir: &tempfile::TempDir, file: &str) -> String {
        String::from_utf8_lossy(&sys::file::read(&dir.path().join(file), 4096).unwrap()).into_owned()
    }

    #[test]
    fn keeps_the_laws_from_whatever_the_files_are() {
        for count in
            [None, Some(COUNT), Some(b"".as_slice()), Some(b"bootcount=\xff\xff\xff"), Some(b"\0\0\0")]
        {
            let (_dir, mut chooser) = files(SETTLED.as_bytes(), count);
            conformance::check(&mut chooser);
        }
    }

    #[test]
    fn keeps_the_laws_with_a_jetson_s_numbers() {
        let (_dir, mut chooser) = files(b"upgrade_available=0\nresin_root_part=f\n", None);
        chooser.notation = Notation::Hex(Partitions { a: 15, b: 16 });
        conformance::check(&mut chooser);
    }

    #[test]
    fn reads_what_u_boot_wrote() {
        let (_dir, chooser) = files(TRIAL, Some(COUNT));
        assert_eq!(chooser.plan().unwrap(), BootPlan::on_trial(Slot::B, 2));
    }

    #[test]
    fn foreign_lines_survive_byte_for_byte_and_in_order() {
        let plan = b"# kept\n\nfoo=\xff\\\nresin_root_part=2\n  odd line\nupgrade_available=0\nlast=1\n";
        let (dir, mut chooser) = files(plan, Some(b"before=1\nbootcount=3\nafter=2\n"));
        chooser.arm(&Verified::for_test(Slot::B), 3).unwrap();
        chooser.commit(Slot::B).unwrap();
        chooser.arm(&Verified::for_test(Slot::A), 3).unwrap();
        chooser.disarm(Slot::B).unwrap();
        let raw = sys::file::read(&dir.path().join(PLAN_FILE), 4096).unwrap();
        let expected =
            b"# kept\n\nfoo=\xff\\\nresin_root_part=3\n  odd line\nupgrade_available=0\nlast=1\nos_bc_lim=99\n";
        assert_eq!(raw, expected);
        assert_eq!(content(&dir, COUNT_FILE), "before=1\nbootcount=0\nafter=2\n");
    }

    #[test]
    fn a_value_that_needs_more_room_gets_it_from_padding() {
        let (dir, mut chooser) = files(b"upgrade_available=0\nresin_root_part=f\n", None);
        chooser.notation = Notation::Hex(Partitions { a: 15, b: 16 });
        chooser.commit(Slot::B).unwrap();
        assert_eq!(content(&dir, PLAN_FILE), "upgrade_available=0\nresin_root_part=10\nos_bc_lim=99\n");
        chooser.commit(Slot::A).unwrap();
        assert_eq!(content(&dir, PLAN_FILE), "upgrade_available=0\nresin_root_part=f\nos_bc_lim=99\n\n");
    }

    #[test]
    fn a_change_across_two_sectors_is_refused_and_nothing_is_written() {
        let plan = format!("resin_root_part=2\nfoo={}\nupgrade_available=0\n", "x".repeat(600));
        let (dir, mut chooser) = files(plan.as_bytes(), None);
        let e = chooser.arm(&Verified::for_test(Slot::B), 3).unwrap_err().to_string();
        assert!(e.contains("resinOS_uEnv.txt: the change would touch two sectors"), "{e}");
        assert_eq!(content(&dir, PLAN_FILE), plan);
    }

    #[test]
    fn a_write_that_fatrw_began_is_finished_before_ours() {
        let (dir, mut chooser) = files(SETTLED.as_bytes(), None);
        // md5sum of "resin_root_part=3\nupgrade_available=0\n"
        let pending = format!(".{PLAN_FILE}.0badcafe.d286e175bb9aa1dbcec6ed2d428f5faf.md5sum");
        sys::durable::replace(&dir.path().join(&pending), b"resin_root_part=3\nupgrade_available=0\n", 0o644)
            .unwrap();
        assert_eq!(chooser.plan().unwrap(), BootPlan::settled(Slot::A), "the bootloader does not see it");
        chooser.commit(Slot::A).unwrap();
        assert!(!dir.path().join(&pending).exists(), "left alone it would undo our write");
        assert_eq!(chooser.plan().unwrap(), BootPlan::settled(Slot::A));
    }

    #[test]
    fn no_bit_and_no_byte_may_turn_into_a_default() {
        for (file, whole) in [(PLAN_FILE, TRIAL), (COUNT_FILE, COUNT)] {
            let flips = (0..whole.len() * 8).map(|bit| {
                let mut raw = whole.to_vec();
                raw[bit / 8] ^= 1 << (bit % 8);
                raw
            });
            for harmed in flips.chain((0..whole.len()).map(|n| whole[..n].to_vec())) {
                let plan = if file == PLAN_FILE { &harmed } else { TRIAL };
                let count = if file == COUNT_FILE { &harmed } else { COUNT };
                let store = MemoryStore::of(&[(PLAN_FILE, plan), (COUNT_FILE, count)]);
                match UbootText::new(store, Partitions { a: 2, b: 3 }).plan() {
                    Err(e) => assert!(e.to_string().starts_with(&format!("boot plan: {file}: ")), "{e}"),
                    // The format has no checksum: what the plan says must then stand in the files, word for word.
                    Ok(found) => {
                        let text = format!("\n{}", String::from_utf8_lossy(plan));
                        let root =
                            if found.trial.map_or(found.primary, |t| t.slot) == Slot::A { 2 } else { 3 };
                        assert!(text.contains(&format!("\nresin_root_part={root}\n")), "{text}");
                        let trial = u8::from(found.trial.is_some());
                        assert!(text.contains(&format!("\nupgrade_available={trial}\n")), "{text}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_missing_file_is_an_error_that_names_it() {
        let (dir, chooser) = files(TRIAL, None);
        let e = chooser.plan().unwrap_err().to_string();
        assert!(
            e.starts_with("boot plan: /") && e.ends_with("/bootcount.env: No such file or directory"),
            "{e}"
        );
        sys::durable::remove(&dir.path().join(PLAN_FILE)).unwrap();
        let e = chooser.plan().unwrap_err().to_string();
        assert!(e.ends_with("/resinOS_uEnv.txt: No such file or directory"), "{e}");
    }
}
