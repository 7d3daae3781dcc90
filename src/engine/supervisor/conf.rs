//! `supervisor.conf`: which image is the supervisor's.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config;
use crate::{Doing, Error, Result, Root, sys};

const LIMIT_BYTES: u64 = 64 * 1024;

/// What `supervisor.conf` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conf {
    /// `SUPERVISOR_IMAGE`: the image's name; never empty.
    pub image: String,
    /// `SUPERVISOR_VERSION`, such as `v18.2.2`; may be empty.
    pub version: String,
    /// `LED_FILE`: the file that blinks the board's LED; may be empty.
    pub led_file: String,
    /// `SUPERVISOR_PREVIOUS_IMAGE` and `SUPERVISOR_PREVIOUS_VERSION`, ours: what ran before the last update. May be empty.
    pub previous: Named,
}

/// A supervisor's image and what version that is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The image's name.
    pub image: String,
    /// Such as `v18.2.2`; may be empty.
    pub version: String,
}

impl Conf {
    /// Reads a `KEY=value` file as a shell or systemd would: comments, quotes, `export` and unknown keys are fine.
    ///
    /// # Errors
    /// `Failed` if it names no image, or one that cannot be a name: what a power cut leaves is empty or full of NULs.
    pub fn parse(text: &str) -> Result<Self> {
        let mut conf = Self::default();
        for line in text.lines() {
            let line = line.trim();
            let line = line.strip_prefix("export ").unwrap_or(line);
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = unquote(value.trim());
            match key.trim() {
                "SUPERVISOR_IMAGE" => conf.image = value.into(),
                "SUPERVISOR_VERSION" => conf.version = value.into(),
                "LED_FILE" => conf.led_file = value.into(),
                "SUPERVISOR_PREVIOUS_IMAGE" => conf.previous.image = value.into(),
                "SUPERVISOR_PREVIOUS_VERSION" => conf.previous.version = value.into(),
                _ => {}
            }
        }
        if conf.image.is_empty() {
            return Err(Error::failed("no SUPERVISOR_IMAGE in it"));
        }
        if !is_image_name(&conf.image) {
            return Err(Error::failed(format!(
                "SUPERVISOR_IMAGE={:?}: not the name of an image",
                conf.image
            )));
        }
        Ok(conf)
    }

    /// What it says of the supervisor that should run.
    pub fn named(&self) -> Named {
        Named { image: self.image.clone(), version: self.version.clone() }
    }

    /// Makes `named` the supervisor of this device, and the one that was so far the previous one. Everything else of the
    /// device's file (or else of the OS image's) stays as it is.
    ///
    /// One durable write: after a cut at any point the old file is there, or the new one.
    ///
    /// # Errors
    /// `Failed`, naming the file: a state partition that is full or read-only. Then the old file is there.
    pub fn store(settings: &config::Supervisor, root: &Root, named: &Named, previous: &Named) -> Result<()> {
        let path = root.path(&settings.conf);
        let is_of_use = |path: &Path| -> Option<String> {
            let bytes = sys::file::read_if_exists(path, LIMIT_BYTES).ok()??;
            String::from_utf8(bytes).ok().filter(|text| Self::parse(text).is_ok())
        };
        let old = is_of_use(&path).or_else(|| is_of_use(&root.path(&settings.default_conf)));
        let ours = [
            ("SUPERVISOR_IMAGE", &named.image),
            ("SUPERVISOR_VERSION", &named.version),
            ("SUPERVISOR_PREVIOUS_IMAGE", &previous.image),
            ("SUPERVISOR_PREVIOUS_VERSION", &previous.version),
        ];
        let is_ours = |line: &&str| {
            let key = line.trim().trim_start_matches("export ").split('=').next().unwrap_or_default().trim();
            ours.iter().any(|(name, _)| *name == key)
        };
        let mut text: String = ours.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        for line in old.as_deref().unwrap_or_default().lines().filter(|line| !is_ours(line)) {
            text.push_str(line);
            text.push('\n');
        }
        sys::durable::create_dir(sys::durable::parent(&path)?)?;
        sys::durable::replace(&path, text.as_bytes(), 0o644)?;
        match Self::read(&path)? {
            Some(found) if found.named() == *named => Ok(()),
            _ => Err(Error::failed(format!("{}: something else is there than was written", path.display()))),
        }
    }

    /// What can be read of the device's copy and of the image's own, in this order, and what is wrong with one that
    /// is there. That the device has no copy is the usual case, and nothing wrong.
    ///
    /// # Errors
    /// `Failed` if neither can be read, naming both.
    pub fn load(settings: &config::Supervisor, root: &Root) -> Result<(Vec<Self>, Vec<Error>)> {
        let (mut found, mut wrong, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        for path in [&settings.conf, &settings.default_conf] {
            let path = root.path(path);
            match Self::read(&path) {
                Ok(Some(conf)) if found.contains(&conf) => {}
                Ok(Some(conf)) => found.push(conf),
                Ok(None) => missing.push(format!("there is no {}", path.display())),
                Err(e) => wrong.push(e),
            }
        }
        if found.is_empty() {
            missing.extend(wrong.iter().map(ToString::to_string));
            return Err(Error::failed(format!(
                "which image is the supervisor's: {}; write SUPERVISOR_IMAGE=NAME there",
                missing.join("; ")
            )));
        }
        Ok((found, wrong))
    }

    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let Some(bytes) = sys::file::read_if_exists(path, LIMIT_BYTES)? else { return Ok(None) };
        Self::parse(&String::from_utf8_lossy(&bytes)).map(Some).doing(|| path.display().to_string())
    }
}

/// Whether it may be the name of an image; it may be another one's all the same.
pub(super) fn is_image_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/:@".contains(c))
}

fn unquote(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inner) = value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote)) {
            return inner;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As meta-balena's recipe writes it.
    const BALENA: &str = "\
SUPERVISOR_IMAGE=registry2.balena-cloud.com/v2/0af3a5e1c0e1b2d3a5d4c1b2a3f4e5d6
SUPERVISOR_VERSION=v18.2.2
LED_FILE=/sys/class/leds/led0/brightness
";

    fn image(text: &str) -> Result<String> {
        Conf::parse(text).map(|c| c.image)
    }

    #[test]
    fn reads_what_balena_writes() {
        let conf = Conf::parse(BALENA).unwrap();
        assert_eq!(conf.image, "registry2.balena-cloud.com/v2/0af3a5e1c0e1b2d3a5d4c1b2a3f4e5d6");
        assert_eq!(
            (conf.version.as_str(), conf.led_file.as_str()),
            ("v18.2.2", "/sys/class/leds/led0/brightness")
        );
    }

    #[test]
    fn is_tolerant_of_form() {
        for text in [
            "SUPERVISOR_IMAGE=a/b:1",
            "\r\n# comment\r\n SUPERVISOR_IMAGE = \"a/b:1\" \r\nOTHER=x\r\n",
            "export SUPERVISOR_IMAGE='a/b:1'\nnonsense\n",
            "SUPERVISOR_IMAGE=old\nSUPERVISOR_IMAGE=a/b:1\n",
        ] {
            assert_eq!(image(text).unwrap(), "a/b:1", "{text:?}");
        }
    }

    #[test]
    fn an_update_changes_its_own_lines_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let settings = config::Supervisor::default();
        let own = root.path(&settings.default_conf);
        sys::durable::create_dir(own.parent().unwrap()).unwrap();
        sys::durable::replace(&own, b"# of the image\nSUPERVISOR_IMAGE=a:1\nLED_FILE=/led\nX=y", 0o644)
            .unwrap();
        let named = |image: &str| Named { image: image.into(), version: String::new() };
        Conf::store(&settings, &root, &named("a:2"), &named("a:1")).unwrap();
        let text = sys::file::read_text(&root.path(&settings.conf), LIMIT_BYTES).unwrap();
        assert_eq!(
            text,
            "SUPERVISOR_IMAGE=a:2\nSUPERVISOR_VERSION=\nSUPERVISOR_PREVIOUS_IMAGE=a:1\n\
             SUPERVISOR_PREVIOUS_VERSION=\n# of the image\nLED_FILE=/led\nX=y"
        );
        Conf::store(&settings, &root, &named("a:3"), &named("a:2")).unwrap();
        let (found, _) = Conf::load(&settings, &root).unwrap();
        assert_eq!((found[0].image.as_str(), &found[0].previous, found.len()), ("a:3", &named("a:2"), 2));
        assert_eq!((found[0].led_file.as_str(), found[1].image.as_str()), ("/led", "a:1"));
    }

    #[test]
    fn what_a_power_cut_leaves_is_an_error() {
        for text in [
            "",
            "\0\0\0\0",
            "SUPERVISOR_IMAGE=",
            "SUPERVISOR_IM",
            "SUPERVISOR_IMAGE=a\0b",
            "SUPERVISOR_IMAGE=\"a b\"",
        ] {
            assert!(image(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_damaged_copy_falls_back_to_the_images_own() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let settings = config::Supervisor::default();
        let put = |path: &Path, text: &str| {
            let path = root.path(path);
            sys::durable::create_dir(path.parent().unwrap()).unwrap();
            sys::durable::replace(&path, text.as_bytes(), 0o644).unwrap();
        };
        let images = || {
            let (found, wrong) = Conf::load(&settings, &root)?;
            Ok::<_, Error>((found.into_iter().map(|c| c.image).collect::<Vec<_>>(), wrong.len()))
        };
        let e = images().unwrap_err().to_string();
        assert!(e.contains("there is no ") && e.contains("/etc/balena-supervisor/supervisor.conf"), "{e}");
        put(&settings.default_conf, "SUPERVISOR_IMAGE=own:1");
        assert_eq!(images().unwrap(), (vec!["own:1".into()], 0));
        put(&settings.conf, "SUPERVISOR_IMA");
        assert_eq!(images().unwrap(), (vec!["own:1".into()], 1));
        put(&settings.conf, "SUPERVISOR_IMAGE=new:2");
        assert_eq!(images().unwrap(), (vec!["new:2".into(), "own:1".into()], 0));
    }
}
