//! `supervisor.conf`: which image is the supervisor's.

use std::path::Path;

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
                _ => {}
            }
        }
        if conf.image.is_empty() {
            return Err(Error::failed("no SUPERVISOR_IMAGE in it"));
        }
        if !conf.image.chars().all(|c| c.is_ascii_alphanumeric() || "._-/:@".contains(c)) {
            return Err(Error::failed(format!(
                "SUPERVISOR_IMAGE={:?}: not the name of an image",
                conf.image
            )));
        }
        Ok(conf)
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

    fn read(path: &Path) -> Result<Option<Self>> {
        let Some(bytes) = sys::file::read_if_exists(path, LIMIT_BYTES)? else { return Ok(None) };
        Self::parse(&String::from_utf8_lossy(&bytes)).map(Some).doing(|| path.display().to_string())
    }
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
