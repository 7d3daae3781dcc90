//! An image from wherever it is to be had: the engine itself, archives, its registry.

use std::collections::VecDeque;
use std::path::PathBuf;

use super::image::with_tag;
use super::{Engine, Image, OnProgress, archive, login};
use crate::config::Settings;
use crate::{Doing, Error, Result, Root};

/// Where images may come from.
#[derive(Debug)]
pub struct Sources<'a> {
    /// The registries' logins are in them.
    pub settings: &'a Settings,
    /// The host.
    pub root: &'a Root,
    /// Archives that were not loaded yet. Each is loaded once, when an image is missing.
    pub archives: VecDeque<PathBuf>,
    /// What was loaded so far.
    pub loaded: Vec<String>,
    /// Registries may be asked.
    pub may_pull: bool,
    /// What the engine has under that name does not do: the name may mean another image by now.
    pub anew: bool,
}

impl<'a> Sources<'a> {
    /// The engine, these archives, and registries if none of them has an image.
    pub fn new(settings: &'a Settings, root: &'a Root, archives: Vec<PathBuf>) -> Self {
        Self { settings, root, archives: archives.into(), loaded: Vec::new(), may_pull: true, anew: false }
    }

    /// Podman says `docker.io/lab/app:1` of an image that was saved as `lab/app:1`.
    fn was_loaded(&self, name: &str) -> bool {
        let name = with_tag(name);
        let is_it =
            |loaded: &String| loaded.strip_suffix(&name).is_some_and(|at| at.is_empty() || at.ends_with('/'));
        self.loaded.iter().any(is_it)
    }

    /// The image called `name`, in the engine.
    ///
    /// # Errors
    /// `Failed`, naming the image: nobody has it, or the engine's own message.
    pub fn fetch(&mut self, engine: &Engine, name: &str, on_progress: &mut OnProgress<'_>) -> Result<Image> {
        let doing = || format!("image {name}");
        loop {
            if let Some(image) = engine.image(name).doing(doing)?
                && (!self.anew || self.was_loaded(name))
            {
                return Ok(image);
            }
            let Some(next) = self.archives.pop_front() else { break };
            self.loaded.extend(archive::load(engine, &next, on_progress).doing(doing)?);
        }
        if !self.may_pull {
            let held =
                if self.loaded.is_empty() { "no image with a name".into() } else { self.loaded.join(", ") };
            return Err(Error::failed(format!("the archive holds {held}")).within(doing()));
        }
        log::info!("pull {name}");
        let login = login(name, self.settings, self.root)?;
        engine.pull(name, login.as_deref(), on_progress)?;
        engine
            .image(name)
            .doing(doing)?
            .ok_or_else(|| Error::failed("pulled, and still not there"))
            .doing(doing)
    }
}
