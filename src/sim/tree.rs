//! The boot partition's boot files in memory: what [`Tree`] promises of FAT behind a drive with a write cache, and no more.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::power::Power;
use crate::Result;
use crate::block::Tree;
use crate::sys::piecewise::Room;

/// What is on the medium, and what is only in the cache.
#[derive(Debug, Clone, Default)]
pub struct TreeMedia {
    files: BTreeMap<String, Vec<u8>>,
    cached: Vec<Change>,
    /// The medium is worn out: it holds other bytes than were written.
    pub worn: bool,
}

#[derive(Debug, Clone)]
enum Change {
    Write { path: String, offset: usize, bytes: Vec<u8> },
    SetLen { path: String, len: usize },
}

impl Change {
    fn path(&self) -> &str {
        match self {
            Self::Write { path, .. } | Self::SetLen { path, .. } => path,
        }
    }

    fn apply(&self, files: &mut BTreeMap<String, Vec<u8>>) {
        match self {
            Self::Write { path, offset, bytes } => {
                let file = files.entry(path.clone()).or_default();
                file.resize(file.len().max(offset + bytes.len()), 0);
                file[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            Self::SetLen { path, len } => files.entry(path.clone()).or_default().resize(*len, 0),
        }
    }
}

impl TreeMedia {
    /// With these files on it.
    pub fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
        Self { files, ..Self::default() }
    }

    /// Cached changes reach the medium, those that `lands` lets.
    pub fn land(&mut self, lands: impl Fn(usize) -> bool) {
        for (i, change) in std::mem::take(&mut self.cached).into_iter().enumerate() {
            if lands(i) {
                change.apply(&mut self.files);
                let first = self.files.get_mut(change.path()).and_then(|f| f.first_mut());
                first.into_iter().for_each(|b| *b ^= u8::from(self.worn));
            }
        }
    }

    /// What the bootloader finds.
    pub const fn files(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.files
    }

    fn now(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.files.clone();
        self.cached.iter().for_each(|c| c.apply(&mut files));
        files
    }
}

/// The files of a device with a power switch.
#[derive(Debug, Clone)]
pub struct MemoryTree {
    pub media: Rc<RefCell<TreeMedia>>,
    pub power: Power,
}

impl MemoryTree {
    /// A change that is durable when it is done; at every other cut `torn` of it is.
    fn durable(&self, done: impl FnOnce(&mut TreeMedia), torn: impl FnOnce(&mut TreeMedia)) -> Result<()> {
        let mut media = self.media.borrow_mut();
        if let Err(cut) = self.power.step() {
            if self.power.steps() % 2 == 1 {
                torn(&mut media);
            }
            return Err(cut);
        }
        done(&mut media);
        Ok(())
    }

    fn cached(&self, change: Change) -> Result<()> {
        self.power.step()?;
        self.media.borrow_mut().cached.push(change);
        Ok(())
    }
}

impl Tree for MemoryTree {
    fn len_bytes(&self, path: &str) -> Result<Option<u64>> {
        Ok(self.media.borrow().now().get(path).map(|f| f.len() as u64))
    }

    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        buffer.fill(0);
        let files = self.media.borrow().now();
        let rest = files
            .get(path)
            .map_or(&[][..], |f| f.get(usize::try_from(offset).unwrap()..).unwrap_or_default());
        buffer.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        Ok(())
    }

    fn write_at(&mut self, path: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let offset = usize::try_from(offset).unwrap();
        self.cached(Change::Write { path: path.into(), offset, bytes: bytes.into() })
    }

    fn set_len(&mut self, path: &str, len_bytes: u64) -> Result<()> {
        self.cached(Change::SetLen { path: path.into(), len: usize::try_from(len_bytes).unwrap() })
    }

    fn flush(&mut self, _paths: &[String]) -> Result<()> {
        self.power.step()?;
        self.media.borrow_mut().land(|_| true);
        Ok(())
    }

    fn replace(&mut self, path: &str, content: &[u8]) -> Result<()> {
        let beside = format!("{path}.new");
        self.durable(
            |media| {
                media.files.insert(path.into(), content.into());
                media.files.remove(&beside);
            },
            |media| {
                media.files.remove(path);
                media.files.insert(beside.clone(), content.into());
            },
        )
    }

    fn remove(&mut self, path: &str) -> Result<()> {
        if self.len_bytes(path)?.is_none() {
            return Ok(());
        }
        let gone = |media: &mut TreeMedia| {
            media.files.remove(path);
            media.cached.retain(|c| c.path() != path);
        };
        self.durable(gone, |_| ())
    }

    fn room(&self) -> Result<Room> {
        Ok(Room { free_bytes: u64::MAX, unit_bytes: 1 })
    }
}
