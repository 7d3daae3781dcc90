//! The host's root directory: every absolute path of the host goes through it.

use std::path::{Path, PathBuf};

/// Where the host's `/` is: `/` on a device, a temporary directory in tests, the mounted root in the initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// The host that has its `/` at `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    /// The real path of the host's absolute path `path`.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Whether this is the running host itself.
    pub fn is_host(&self) -> bool {
        self.0 == Path::new("/")
    }
}

impl Default for Root {
    fn default() -> Self {
        Self::new("/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_paths_stay_inside() {
        assert_eq!(Root::new("/tmp/x").path("/mnt/boot"), Path::new("/tmp/x/mnt/boot"));
        assert_eq!(Root::default().path("/mnt/boot"), Path::new("/mnt/boot"));
    }
}
