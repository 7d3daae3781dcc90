//! What PID 1 had to do that somebody should know of: on the console, and for `status`.
//!
//! What holds for this boot only (data is not there, a reset did not work) is in `/run`; what stays true (state was made
//! anew, a factory reset was carried out) is on the state partition.

use std::path::Path;

use super::doctor::Health;
use crate::model::{BOOT_NOTES, LASTING_NOTES};
use crate::{Result, Root, sys};

/// Lines for this boot, and lines that stay.
#[derive(Default)]
pub(super) struct Notes {
    boot: Vec<String>,
    lasting: Vec<String>,
}

impl Notes {
    pub fn add(&mut self, label: &str, health: &Health) {
        match health {
            Health::Sound => {}
            Health::Repaired(why) => log::warn!("{label} was repaired: {why}"),
            Health::Remade(why) => {
                self.lasting.push(format!("{label} could not be repaired and was made anew: {why}"))
            }
            Health::Lost(why) => self.problem(&format!("{label} is not mounted: {why}")),
        }
    }

    pub fn emptied(&mut self, what: &[&str]) {
        if !what.is_empty() {
            self.lasting.push(format!("factory reset: emptied {}", what.join(" and ")));
        }
    }

    pub fn problem(&mut self, text: &str) {
        self.boot.push(text.to_owned());
    }

    /// The lines for this boot.
    #[cfg(test)]
    pub fn problems(&self) -> &[String] {
        &self.boot
    }

    /// Writes them down. That it does not work is no reason to fail a boot.
    pub fn keep(&self, sysroot: &Root) {
        for line in self.boot.iter().chain(&self.lasting) {
            sys::kmsg::alert(line);
        }
        if let Err(e) = self.write(sysroot) {
            log::warn!("keep notes of this boot: {e}");
        }
    }

    fn write(&self, sysroot: &Root) -> Result<()> {
        if !self.boot.is_empty() {
            // /run is not under the new root yet.
            let path = Path::new(BOOT_NOTES);
            sys::switch_root::make_dir(path.parent().unwrap_or(path))?;
            sys::switch_root::note(path, &lines(&self.boot))?;
        }
        if !self.lasting.is_empty() {
            let path = sysroot.path(LASTING_NOTES);
            let before = sys::file::read_if_exists(&path, 64 * 1024)?.unwrap_or_default();
            let text = String::from_utf8_lossy(&before).into_owned() + &lines(&self.lasting);
            sys::durable::create_dir(sys::durable::parent(&path)?)?;
            sys::durable::replace(&path, text.as_bytes(), 0o644)?;
        }
        Ok(())
    }
}

fn lines(list: &[String]) -> String {
    list.iter().map(|l| format!("{}\n", l.replace('\n', " "))).collect()
}
