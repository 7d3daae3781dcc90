//! The boot partition in memory: what [`Store`] promises of real FAT, and no more.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::power::Power;
use crate::boot::efi::VariableStore;
use crate::boot::uboot_env::Copies;
use crate::boot::{Store, changed_sector};
use crate::{Error, Result};

/// Names and contents; they survive cuts.
pub type Files = Rc<RefCell<BTreeMap<String, Vec<u8>>>>;

/// The files of a device with a power switch.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    files: Files,
    power: Power,
}

impl MemoryStore {
    pub const fn new(files: Files, power: Power) -> Self {
        Self { files, power }
    }

    /// Files of a device whose power stays on.
    pub fn of(files: &[(&str, &[u8])]) -> Self {
        let files = files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect();
        Self::new(Rc::new(RefCell::new(files)), Power::default())
    }

    /// A power cut in the middle leaves what `torn` makes of the file, at every other moment.
    fn step(&self, name: &str, torn: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        self.power.step().inspect_err(|_| {
            if self.power.steps() % 2 == 1
                && let Some(content) = self.files.borrow_mut().get_mut(name)
            {
                torn(content);
            }
        })
    }
}

impl Store for MemoryStore {
    fn list(&self) -> Result<Vec<String>> {
        Ok(self.files.borrow().keys().cloned().collect())
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.files.borrow().get(name).cloned())
    }

    fn overwrite(&mut self, name: &str, new: &[u8]) -> Result<()> {
        let old = Store::read(self, name)?.ok_or_else(|| Error::failed("no such file"))?;
        if changed_sector(0, &old, new)?.is_some() {
            self.step(name, |_| ())?;
            self.files.borrow_mut().insert(name.into(), new.into());
        }
        Ok(())
    }

    fn pad(&mut self, name: &str, padding: &[u8]) -> Result<()> {
        // The new length may be on the medium before the new bytes are.
        self.step(name, |content| {
            let len = if content.is_empty() { 0 } else { content.len() + padding.len() };
            content.resize(len, 0);
        })?;
        self.files.borrow_mut().entry(name.into()).or_default().extend(padding);
        Ok(())
    }

    fn create(&mut self, name: &str, content: &[u8]) -> Result<()> {
        if Store::read(self, name)?.is_some_and(|found| !found.is_empty()) {
            return Err(Error::failed("is there already"));
        }
        self.step(name, |_| ())?;
        self.files.borrow_mut().insert(name.into(), Vec::new());
        self.step(name, |_| ())?;
        self.files.borrow_mut().insert(name.into(), content.into());
        Ok(())
    }

    fn check_room(&self, _names: u64, _letters: usize) -> Result<()> {
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        if self.files.borrow().contains_key(name) {
            self.step(name, |_| ())?;
            self.files.borrow_mut().remove(name);
        }
        Ok(())
    }

    fn finish_fatrw(&mut self, _name: &str) -> Result<()> {
        Ok(())
    }

    fn name(&self, name: &str) -> String {
        name.to_owned()
    }
}

/// EFI variables as files of their names: one call of the firmware is one step.
impl VariableStore for MemoryStore {
    fn list(&self) -> Result<Vec<String>> {
        Store::list(self)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        Store::read(self, name)
    }

    fn write(&mut self, name: &str, raw: &[u8]) -> Result<()> {
        self.step(name, |_| ())?;
        self.files.borrow_mut().insert(name.into(), raw.into());
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        Store::remove(self, name)
    }

    fn name(&self, name: &str) -> String {
        name.to_owned()
    }
}

fn copy_file(copy: usize) -> String {
    format!("env.{copy}")
}

/// The copies of a U-Boot environment as the files `env.0` and `env.1`.
impl Copies for MemoryStore {
    fn count(&self) -> usize {
        self.files.borrow().keys().filter(|name| name.starts_with("env.")).count()
    }

    fn name(&self, copy: usize) -> String {
        copy_file(copy)
    }

    fn read(&self, copy: usize) -> Result<Vec<u8>> {
        Store::read(self, &copy_file(copy))?.ok_or_else(|| Error::failed("no such file"))
    }

    fn write(&mut self, copy: usize, raw: &[u8]) -> Result<()> {
        // Half of it may have been written.
        self.step(&copy_file(copy), |old| {
            let half = raw.len() / 32;
            old[..half].copy_from_slice(&raw[..half]);
        })?;
        self.files.borrow_mut().insert(copy_file(copy), raw.into());
        Ok(())
    }

    fn overwrite(&mut self, copy: usize, old: &[u8], new: &[u8]) -> Result<()> {
        if changed_sector(0, old, new)?.is_some() {
            self.step(&copy_file(copy), |_| ())?;
            self.files.borrow_mut().insert(copy_file(copy), new.into());
        }
        Ok(())
    }
}
