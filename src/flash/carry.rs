//! What the new system takes over from the installer's boot partition: `config.json` without its `installer` section, and the
//! network's settings.

use std::path::{Path, PathBuf};

use crate::config::ConfigJson;
use crate::{Doing, Result, Root, sys};

/// Directories of balenaOS's boot partition that belong to a device or a site, not to an image.
const DIRECTORIES: [&str; 4] = ["system-connections", "system-proxy", "dispatcher.d", "splash"];

/// What is carried over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// `config.json` as the new system gets it, if the installer has one.
    config: Option<String>,
    directories: Vec<PathBuf>,
}

impl Carried {
    /// Reads it; writes nothing.
    ///
    /// # Errors
    /// `Failed` if `config.json` is there and no JSON object.
    pub fn read(root: &Root, config_json: &Path) -> Result<Self> {
        let config = match ConfigJson::peek(root, config_json)? {
            Some(mut config) => {
                config.remove("installer")?;
                Some(config.text())
            }
            None => None,
        };
        let boot = root.path("/mnt/boot");
        let directories = DIRECTORIES.iter().map(|d| boot.join(d)).filter(|d| d.is_dir()).collect();
        Ok(Self { config, directories })
    }

    /// Writes it to the new system's boot partition, mounted on `boot`, and flushes that.
    ///
    /// # Errors
    /// `Failed`, naming the path.
    pub fn write(&self, boot: &Path) -> Result<()> {
        if let Some(text) = &self.config {
            sys::fatrw::write(&boot.join("config.json"), text.as_bytes())?;
        }
        for from in &self.directories {
            let to = boot.join(from.file_name().unwrap_or_default());
            // The image's own examples would be settings as well.
            sys::tree::remove(&to)?;
            sys::tree::copy(from, &to)?;
        }
        sys::tree::sync(boot).doing(|| "carry settings over")
    }

    /// What it is, for people.
    pub fn names(&self) -> Vec<String> {
        let config = self.config.as_ref().map(|_| "config.json".to_owned());
        let names = self.directories.iter().filter_map(|d| d.file_name()?.to_str().map(str::to_owned));
        config.into_iter().chain(names).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(path: &Path, text: &str) {
        sys::durable::create_dir(path.parent().unwrap()).unwrap();
        sys::durable::replace(path, text.as_bytes(), 0o600).unwrap();
    }

    #[test]
    fn settings_go_over_and_the_installer_s_own_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path().join("installer"));
        let boot = dir.path().join("boot");
        let config = r#"{"apiKey":"k","installer":{"target_devices":"sda"},"odd":1.0}"#;
        put(&root.path("/mnt/boot/config.json"), config);
        put(&root.path("/mnt/boot/system-connections/wifi"), "[wifi]");
        put(&root.path("/mnt/boot/EFI/BOOT/grub.cfg"), "the installer's");
        put(&boot.join("system-connections/resin-sample"), "sample");
        put(&boot.join("EFI/BOOT/grub.cfg"), "the device's");
        put(&boot.join("config.json"), "{}");
        let carried = Carried::read(&root, Path::new("/mnt/boot/config.json")).unwrap();
        assert_eq!(carried.names(), ["config.json", "system-connections"]);
        for _twice in 0..2 {
            carried.write(&boot).unwrap();
            let text = |p: &str| sys::file::read_text(&boot.join(p), 100).unwrap();
            let config: serde_json::Value = serde_json::from_str(&text("config.json")).unwrap();
            assert_eq!(config, serde_json::json!({ "apiKey": "k", "odd": 1.0 }));
            assert!(text("config.json").contains("1.0"), "as it was spelled");
            assert_eq!(text("system-connections/wifi"), "[wifi]");
            assert!(!boot.join("system-connections/resin-sample").exists());
            assert_eq!(text("EFI/BOOT/grub.cfg"), "the device's");
        }
        // The installer serves the next device too.
        assert_eq!(sys::file::read_text(&root.path("/mnt/boot/config.json"), 100).unwrap(), config);
    }

    #[test]
    fn a_damaged_config_json_ends_it_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        put(&root.path("/mnt/boot/config.json"), "{\"apiKey\":");
        assert!(Carried::read(&root, Path::new("/mnt/boot/config.json")).is_err());
    }
}
