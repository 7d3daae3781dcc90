//! What a service shares with its host in `/tmp/balena`: update locks and the sign that a hand-over is complete.
//!
//! It lies in `/tmp`, so locks end with a reboot, as on balenaOS.

use std::path::PathBuf;

use super::App;
use crate::{Error, Result, Root, sys};

const DIR: &str = "/tmp/balena-supervisor/services";
const LOCKS: [&str; 2] = ["updates.lock", "resin-updates.lock"];
const COMPLETE: [&str; 2] = ["handover-complete", "resin-kill-me"];
/// Whose locks are ours: `nobody`, as the supervisor's.
const OWNER: u32 = 65534;

/// A service's directory on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder(PathBuf);

impl Folder {
    /// That of a service.
    pub fn of(root: &Root, app: &App, service: &str) -> Self {
        Self(root.path(DIR).join(app.name()).join(service))
    }

    /// Its path, as the engine sees it.
    pub fn path(&self) -> String {
        self.0.display().to_string()
    }

    /// Makes it, for everybody to write into: whatever user the service runs as, it may lock.
    ///
    /// # Errors
    /// `Failed`, naming the path.
    pub fn make(&self) -> Result<()> {
        sys::durable::create_dir(&self.0)?;
        sys::lock_file::open_to_all(&self.0)
    }

    /// Locks the service against others' updates, as it may itself against ours. With `force`, locks that stand are
    /// removed. Ours from before a crash are.
    ///
    /// # Errors
    /// `Refused`, naming the lock, if somebody holds it.
    pub fn lock(&self, force: bool) -> Result<Locked> {
        self.make()?;
        let mut locked = Locked(Vec::new());
        for name in LOCKS {
            let file = self.0.join(name);
            if force || sys::lock_file::is_owned_by(&file, OWNER) {
                sys::durable::remove(&file)?;
            }
            if !sys::lock_file::create(&file, OWNER)? {
                return Err(Error::refused(format!(
                    "it holds the update lock {}; wait until it is gone, or override it with --force",
                    file.display()
                )));
            }
            locked.0.push(file);
        }
        Ok(locked)
    }

    /// Whether the service says that it has taken over.
    pub fn is_complete(&self) -> bool {
        COMPLETE.iter().any(|name| self.0.join(name).exists())
    }

    /// Forgets what it said.
    ///
    /// # Errors
    /// `Failed`, naming the file.
    pub fn forget(&self) -> Result<()> {
        COMPLETE.iter().try_for_each(|name| sys::durable::remove(&self.0.join(name)))
    }
}

/// The locks of a service, until it is dropped.
#[derive(Debug)]
pub struct Locked(Vec<PathBuf>);

impl Drop for Locked {
    fn drop(&mut self) {
        for file in &self.0 {
            if let Err(e) = sys::durable::remove(file) {
                log::warn!("{e}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn a_lock_of_the_service_holds_and_ours_do_not_outlive_us() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::of(&Root::new(dir.path()), &App::named("a").unwrap(), "s");
        let locked = folder.lock(false).unwrap();
        assert!(folder.0.join("updates.lock").exists());
        drop(locked);
        assert_eq!(sys::file::list(&folder.0).unwrap(), [] as [PathBuf; 0]);

        let own = folder.0.join("resin-updates.lock");
        sys::durable::replace(&own, b"", 0o644).unwrap();
        let e = folder.lock(false).unwrap_err();
        assert!(e.kind() == Kind::Refused && e.to_string().contains("resin-updates.lock"), "{e}");
        // The one that we took before is given back.
        assert_eq!(sys::file::list(&folder.0).unwrap(), [own]);
        drop(folder.lock(true).unwrap());
        assert_eq!(sys::file::list(&folder.0).unwrap().len(), 0);
    }

    #[test]
    fn either_sign_completes_a_hand_over() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::of(&Root::new(dir.path()), &App::named("a").unwrap(), "s");
        folder.make().unwrap();
        for name in COMPLETE {
            assert!(!folder.is_complete());
            sys::durable::replace(&folder.0.join(name), b"", 0o644).unwrap();
            assert!(folder.is_complete());
            folder.forget().unwrap();
        }
    }
}
