//! An application: its name, and the names and labels of what belongs to it in the engine.

use std::path::Path;

use crate::engine::{Engine, Summary};
use crate::{Error, Result, sys};

/// Label: the application that something belongs to.
pub const APP: &str = "io.twinhull.app";
/// Label: the service that a container is of.
pub const SERVICE: &str = "io.twinhull.service";
/// Label: digest of the request that something was made by.
pub const SPEC: &str = "io.twinhull.spec";

/// An application's name: lower-case letters, digits, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App(String);

impl App {
    /// The application called `name`.
    ///
    /// # Errors
    /// `Usage` for what is no name.
    pub fn named(name: &str) -> Result<Self> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        let is_name =
            name.bytes().all(plain) && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        is_name.then(|| Self(name.to_owned())).ok_or_else(|| {
            Error::usage(format!(
                "{name:?}: an application's name has lower-case letters, digits, _ and - only"
            ))
        })
    }

    /// The application of a Compose file that names none: that of its directory, as docker-compose has it.
    ///
    /// # Errors
    /// `Usage` if nothing of the directory's name can be used.
    pub fn of_file(file: &Path) -> Result<Self> {
        let dir = sys::file::without_links(file);
        let name =
            dir.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().to_lowercase();
        let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "_-".contains(*c)).collect();
        Self::named(name.trim_start_matches(['_', '-'])).map_err(|_| {
            Error::usage(format!("{}: its directory gives no name; give one with --name", file.display()))
        })
    }

    /// The name itself.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The container of a service; also the name of a volume or network of the file.
    pub fn of(&self, name: &str) -> String {
        format!("{}_{name}", self.0)
    }

    /// A service's container that is made but has not taken its place yet.
    pub fn new_of(&self, service: &str) -> String {
        format!("{}.new", self.of(service))
    }

    /// A service's old container, in a hand-over.
    pub fn old_of(&self, service: &str) -> String {
        format!("{}.old", self.of(service))
    }

    /// Its containers.
    ///
    /// # Errors
    /// `Failed` if the engine does not answer.
    pub fn containers(&self, engine: &Engine) -> Result<Vec<Summary>> {
        let mut all = engine.containers()?;
        all.retain(|c| c.labels.get(APP) == Some(&self.0));
        Ok(all)
    }
}

/// The container of that name.
pub fn find<'a>(all: &'a [Summary], name: &str) -> Option<&'a Summary> {
    all.iter().find(|c| c.names.iter().any(|n| n.trim_start_matches('/') == name))
}

/// The service that a container is of.
pub fn service_of(container: &Summary) -> &str {
    container.labels.get(SERVICE).map_or("?", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, ok) in
            [("app", true), ("a_1-b", true), ("", false), ("App", false), ("-a", false), ("a.b", false)]
        {
            assert_eq!(App::named(name).is_ok(), ok, "{name:?}");
        }
        for (file, expected) in
            [("/none/My App.v2/docker-compose.yml", Some("myappv2")), ("/docker-compose.yml", None)]
        {
            let found = App::of_file(Path::new(file)).ok();
            assert_eq!(found.as_ref().map(App::name), expected, "{file}");
        }
        let app = App::named("a").unwrap();
        assert_eq!([app.of("x"), app.new_of("x"), app.old_of("x")], ["a_x", "a_x.new", "a_x.old"]);
    }
}
