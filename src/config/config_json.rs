//! The device's `config.json`: what the image's maker, the supervisor and we know about this device.
//!
//! Keys that are not ours stay as they are spelled, in their order; the file's style (compact as the supervisor
//! writes it, or indented) stays too. Every change is one read, change and write under a lock between our own
//! processes, and finishes what another program's fatrw had begun.
//!
//! A file that is not a JSON object is never written over: its text is kept beside it first, and the last good copy
//! (see `last_good`) is used and put in its place. Without such a copy it is an error, and nothing is changed.

mod values;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

pub(super) use values::type_of;

use super::json_text::Object;
use super::last_good;
use crate::sys::clock::{BootClock, Clock};
use crate::sys::fatrw::Observer;
use crate::{Doing, Error, Result, Root, sys};

const LOCK: &str = "/run/twinhull/config.json.lock";
const LOCK_DEADLINE: Duration = Duration::from_secs(30);
const LIMIT_BYTES: u64 = 1024 * 1024;
/// A script that writes the file in place is in the middle of it for less than this.
const WRITER_S_MOMENT: Duration = Duration::from_millis(200);

/// A `config.json` in memory.
#[derive(Clone)]
pub struct ConfigJson {
    path: PathBuf,
    object: Object,
    origin: Origin,
    changed: bool,
}

/// Where what is in memory came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The file itself.
    File,
    /// The last good copy, because of what is wrong with the file.
    LastGood {
        /// What is wrong with the file; one line.
        why: String,
    },
}

impl ConfigJson {
    /// Reads the file, after finishing a write that a power cut interrupted, or the last good copy if it is damaged
    /// or gone. `None`: there is neither. A good file becomes the last good copy.
    ///
    /// # Errors
    /// `Failed`, naming the file, and line and column if it is not a JSON object and there is no good copy.
    pub fn load(root: &Root, path: &Path) -> Result<Option<Self>> {
        let _lock = lock(root)?;
        let bytes = sys::fatrw::read(&root.path(path), LIMIT_BYTES)?;
        let config = Self::choose(root, path, bytes.as_deref())?;
        if let (Some(Self { origin: Origin::File, .. }), Some(bytes)) = (&config, &bytes) {
            last_good::keep(root, bytes);
        }
        Ok(config)
    }

    /// What [`ConfigJson::load`] would give, without a lock and without writing.
    ///
    /// # Errors
    /// As [`ConfigJson::load`].
    pub fn peek(root: &Root, path: &Path) -> Result<Option<Self>> {
        let bytes = sys::fatrw::peek(&root.path(path), LIMIT_BYTES)?;
        Self::choose(root, path, bytes.as_deref())
    }

    /// Changes the file: reads it, lets `change` work on it, and writes it if anything changed, all under the lock.
    /// A damaged file is kept beside it and replaced by the last good copy with the change in it.
    ///
    /// After `Ok` the new content survives a power cut; after a cut it is the old or the new one. `observer` is
    /// told of each operation of the write.
    ///
    /// # Errors
    /// `Failed` as [`ConfigJson::load`], if there is no file and no good copy, from `change`, or if it cannot be
    /// written.
    pub fn edit<T>(
        root: &Root,
        path: &Path,
        observer: &Observer,
        change: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let _lock = lock(root)?;
        let file = root.path(path);
        let missing =
            || Error::failed("No such file or directory").within(format!("read {}", file.display()));
        let read = || sys::fatrw::read_observed(&file, LIMIT_BYTES, observer);
        let mut bytes = read()?;
        let mut config = Self::choose(root, path, bytes.as_deref())?.ok_or_else(missing)?;
        if config.origin != Origin::File {
            BootClock.sleep(WRITER_S_MOMENT);
            bytes = read()?;
            config = Self::choose(root, path, bytes.as_deref())?.ok_or_else(missing)?;
        }
        if let Origin::LastGood { why } = &config.origin {
            log::warn!("{why}; the last good copy takes its place");
            match &bytes {
                Some(damaged) => last_good::set_aside(&file, damaged, observer)?,
                // Nothing there: then the partition itself must be.
                None if root.is_host() && !on_a_mount(&file)? => return Err(missing()),
                None => {}
            }
            config.changed = true;
        }
        let result = change(&mut config)?;
        if config.changed {
            sys::fatrw::write_observed(&config.path, config.text().as_bytes(), observer)?;
        }
        last_good::keep(root, config.text().as_bytes());
        Ok(result)
    }

    /// Puts the last good copy in the place of a damaged file, whose text is kept beside it. A good file is left as
    /// it is. `None`: there is neither a file nor a copy. The origin of the result says whether there was a need.
    ///
    /// # Errors
    /// As [`ConfigJson::edit`].
    pub fn settle(root: &Root, path: &Path) -> Result<Option<Self>> {
        match Self::load(root, path)? {
            Some(Self { origin: Origin::LastGood { .. }, .. }) => {
                Self::edit(root, path, &|_| Ok(()), |config| Ok(Some(config.clone())))
            }
            other => Ok(other),
        }
    }

    /// The file if it is good, else the last good copy; an error if the file is bad and there is none.
    fn choose(root: &Root, path: &Path, bytes: Option<&[u8]>) -> Result<Option<Self>> {
        let file = root.path(path);
        let why = match bytes.map(|b| Self::parse(file.clone(), b)) {
            // What a script leaves that could not read it: as long as something better is known it is no good.
            Some(Ok(config)) if config.object.is_empty() => {
                Error::failed(format!("{}: nothing but {{}}", file.display()))
            }
            Some(Ok(config)) => return Ok(Some(config)),
            Some(Err(e)) => e,
            None => Error::failed(format!("{} is missing", file.display())),
        };
        let good = last_good::read(root).and_then(|good| Object::parse(&good).ok()).filter(|o| !o.is_empty());
        match (good, bytes) {
            (Some(object), _) => {
                let origin = Origin::LastGood { why: why.to_string() };
                Ok(Some(Self { path: file, object, origin, changed: false }))
            }
            (None, None) => Ok(None),
            (None, Some(bytes)) => Self::parse(file, bytes).map(Some),
        }
    }

    /// Reads the text of a file; `path` is only for messages and for writing.
    ///
    /// # Errors
    /// `Failed`, naming file, line and column, if it is not a JSON object.
    pub fn parse(path: PathBuf, bytes: &[u8]) -> Result<Self> {
        let object = Object::parse(bytes).map_err(|e| {
            let text = e.to_string();
            // serde_json puts the place last; people look for it first.
            let why = text.split(" at line ").next().unwrap_or_default();
            Error::failed(format!(
                "{}, line {}, column {}: {why}; nothing was changed: correct the file",
                path.display(),
                e.line(),
                e.column()
            ))
        })?;
        Ok(Self { path, object, origin: Origin::File, changed: false })
    }

    /// Where this came from.
    pub const fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The file as it would be written.
    pub fn text(&self) -> String {
        self.object.text()
    }

    /// The keys at the top, in their order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.object.keys()
    }

    /// Sets `key`, which may be a path such as `os.network.connectivity.uri`: in its place if it is there, else at
    /// the end. The same value again is no change.
    ///
    /// # Errors
    /// `Failed` if something on the path is no object, or the value cannot be written as JSON.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        if self.value(key).as_ref() == Some(&value) {
            return Ok(());
        }
        let path = self.path_of(key);
        self.object.set(&path, &value).map_err(|e| self.wrong(key, &e.to_string()))?;
        self.changed = true;
        Ok(())
    }

    /// Removes `key`, which may be a path; the others keep their order. A key that is not there is fine.
    ///
    /// # Errors
    /// `Failed` if something on the path is no object.
    pub fn remove(&mut self, key: &str) -> Result<()> {
        let path = self.path_of(key);
        self.changed |= self.object.remove(&path).map_err(|e| self.wrong(key, &e.to_string()))?;
        Ok(())
    }

    /// `key` itself if it is at the top, else a path of keys.
    fn path_of<'a>(&self, key: &'a str) -> Vec<&'a str> {
        if self.object.keys().any(|k| k == key) { vec![key] } else { key.split('.').collect() }
    }

    /// The value itself is never in the text: it may be a key.
    fn wrong(&self, key: &str, text: &str) -> Error {
        Error::failed(format!("{}: {key}: {text}", self.path.display()))
    }
}

/// Keys only: values may be secret.
impl fmt::Debug for ConfigJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys()).finish()
    }
}

fn on_a_mount(file: &Path) -> Result<bool> {
    sys::file::is_mount_point(sys::durable::parent(file)?)
}

/// Waits for our own other writers. The supervisor and os-config know no lock; what they leave of fatrw is finished.
fn lock(root: &Root) -> Result<sys::lock::Lock> {
    let path = root.path(LOCK);
    let end = BootClock.since_boot() + LOCK_DEADLINE;
    loop {
        if let Some(lock) = sys::lock::try_lock(&path)? {
            return Ok(lock);
        }
        if BootClock.since_boot() >= end {
            let text = format!("held by another process for {} s", LOCK_DEADLINE.as_secs());
            return Err(Error::failed(text)).doing(|| format!("lock {}", path.display()));
        }
        BootClock.sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As generated by balena for a new device, with some keys that nobody knows and odd spellings.
    const REAL: &str = r#"{"applicationName":"fleet","applicationId":1234,"deviceType":"intel-nuc","userId":"56","appUpdatePollInterval":900000,"listenPort":48484,"apiEndpoint":"https://api.balena-cloud.com/","apiKey":"secret","version":"1.10","files":{"a":[1.10,1e3,123456789012345678901234]},"odd\u0041\n":null,"developmentMode":"false"}"#;

    pub(super) fn parse(text: &str) -> ConfigJson {
        ConfigJson::parse("/mnt/boot/config.json".into(), text.as_bytes()).unwrap()
    }

    fn error(text: &str) -> String {
        ConfigJson::parse("/mnt/boot/config.json".into(), text.as_bytes()).unwrap_err().to_string()
    }

    fn host(text: &str) -> (tempfile::TempDir, Root, &'static Path) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let path = Path::new("/mnt/boot/config.json");
        sys::durable::create_dir(&root.path("/mnt/boot")).unwrap();
        sys::durable::replace(&root.path(path), text.as_bytes(), 0o600).unwrap();
        (dir, root, path)
    }

    #[test]
    fn what_is_not_ours_stays_as_it_is_spelled() {
        let mut config = parse(REAL);
        config.remove("apiKey").unwrap();
        config.set("deviceId", 7).unwrap();
        config.set("applicationId", 1234).unwrap();
        let expected = REAL.replace(r#""apiKey":"secret","#, "");
        let expected = format!("{},\"deviceId\":7}}", expected.strip_suffix('}').unwrap());
        // A key is written in its shortest spelling; its value is not touched.
        assert_eq!(config.text(), expected.replace(r"odd\u0041\n", r"oddA\n"));
    }

    #[test]
    fn indented_files_stay_indented() {
        // As os-config (serde_json's pretty printer) and jq write it.
        let text =
            "{\n  \"deviceType\": \"x\",\n  \"os\": {\n    \"sshKeys\": [\n      \"a\"\n    ]\n  }\n}\n";
        let mut config = parse(text);
        assert_eq!(config.text(), text);
        config.set("uuid", "u").unwrap();
        assert_eq!(config.text(), text.replace("\n  }\n}\n", "\n  },\n  \"uuid\": \"u\"\n}\n"));
        assert_eq!(parse("{}").text(), "{}");
    }

    #[test]
    fn mistakes_name_file_line_and_column() {
        for (text, expected) in [
            ("", "line 1, column 0: EOF while parsing a value"),
            ("{\n \"a\": 1\n \"b\": 2}", "line 3, column 2: expected `,` or `}`"),
            ("[1]", "line 1, column 0: invalid type: sequence, expected an object ({…})"),
            ("{} x", "line 1, column 4: trailing characters"),
        ] {
            let e = error(text);
            assert!(e.starts_with(&format!("/mnt/boot/config.json, {expected}; nothing was changed")), "{e}");
        }
    }

    #[test]
    fn no_truncation_is_taken_for_a_file_or_written_over() {
        for n in 0..REAL.len() {
            let cut = REAL.get(..n).unwrap();
            assert!(error(cut).contains("nothing was changed"), "{n}");
            if n % 25 != 0 {
                continue;
            }
            let (_dir, root, path) = host(cut);
            ConfigJson::edit(&root, path, &|_| Ok(()), |c| c.set("uuid", "u")).unwrap_err();
            assert_eq!(sys::file::read(&root.path(path), 9999).unwrap(), cut.as_bytes(), "{n}");
        }
    }

    /// A host with a state partition, on which `text` was good and `damaged` is now.
    fn damaged_host(text: &str, damaged: Option<&str>) -> (tempfile::TempDir, Root, &'static Path) {
        let (dir, root, path) = host(text);
        sys::durable::create_dir(&root.path("/mnt/state")).unwrap();
        ConfigJson::load(&root, path).unwrap();
        match damaged {
            Some(text) => sys::durable::replace(&root.path(path), text.as_bytes(), 0o600).unwrap(),
            None => sys::durable::remove(&root.path(path)).unwrap(),
        }
        (dir, root, path)
    }

    fn asides(root: &Root, path: &Path) -> Vec<String> {
        let found = last_good::damaged_texts(root, path).unwrap();
        found.iter().map(|p| String::from_utf8(sys::file::read(p, 9999).unwrap()).unwrap()).collect()
    }

    #[test]
    fn each_truncation_is_kept_aside_and_the_last_good_copy_goes_on() {
        let one = |n: usize| {
            let cut = REAL.get(..n).unwrap();
            let (_dir, root, path) = damaged_host(REAL, Some(cut));
            let seen = ConfigJson::peek(&root, path).unwrap().unwrap();
            assert_eq!(seen.text(), parse(REAL).text(), "{n}");
            let Origin::LastGood { why } = seen.origin() else { panic!("{n}") };
            assert!(why.contains("config.json, line 1, column"), "{why}");
            // Looking changes nothing.
            assert_eq!(sys::file::read(&root.path(path), 9999).unwrap(), cut.as_bytes());
            ConfigJson::edit(&root, path, &|_| Ok(()), |c| c.set("uuid", "u")).unwrap();
            let now = ConfigJson::load(&root, path).unwrap().unwrap();
            assert_eq!(now.origin(), &Origin::File);
            let mut expected = parse(REAL);
            expected.set("uuid", "u").unwrap();
            assert_eq!(now.text(), expected.text());
            assert_eq!(asides(&root, path), [cut], "{n}");
        };
        // Each waits for a moment, in which a script might end its write.
        std::thread::scope(|s| {
            for worker in 0..32 {
                s.spawn(move || (worker..REAL.len()).step_by(32).for_each(one));
            }
        });
    }

    #[test]
    fn an_empty_object_or_no_file_at_all_is_not_taken_for_the_devices_wish() {
        for damaged in [Some("{}"), Some("{ }\n"), Some(""), Some("null"), None] {
            let (_dir, root, path) = damaged_host(REAL, damaged);
            let config = ConfigJson::settle(&root, path).unwrap().unwrap();
            assert_eq!(config.api_key().unwrap().as_deref(), Some("secret"), "{damaged:?}");
            assert_eq!(sys::file::read(&root.path(path), 9999).unwrap(), config.text().as_bytes());
            assert_eq!(asides(&root, path), damaged.into_iter().collect::<Vec<_>>());
        }
        // Without a copy there is nothing better.
        let (_dir, root, path) = damaged_host("{}", Some("{}"));
        assert_eq!(ConfigJson::settle(&root, path).unwrap().unwrap().origin(), &Origin::File);
    }

    #[test]
    fn no_cut_of_the_repair_loses_either_text() {
        const BAD: &str = "{\"hostname\": \"mine\" \"typo\": 1}";
        let mut cuts = 0;
        for at in 0.. {
            let (_dir, root, path) = damaged_host(REAL, Some(BAD));
            let seen = std::cell::Cell::new(0);
            let cut = |_| match seen.replace(seen.get() + 1) {
                n if n >= at => Err(Error::failed("cut")),
                _ => Ok(()),
            };
            if ConfigJson::edit(&root, path, &cut, |c| c.set("uuid", "u")).is_ok() {
                break;
            }
            assert!(ConfigJson::peek(&root, path).unwrap().unwrap().api_key().unwrap().is_some(), "{at}");
            ConfigJson::settle(&root, path).unwrap();
            let now = ConfigJson::load(&root, path).unwrap().unwrap();
            assert_eq!((now.origin(), asides(&root, path)), (&Origin::File, vec![BAD.to_owned()]), "{at}");
            cuts += 1;
        }
        assert_eq!(cuts, 2, "two writes");
    }

    #[test]
    fn the_copy_is_for_root_only_and_follows_each_change() {
        use std::os::unix::fs::PermissionsExt;
        let (_dir, root, path) = damaged_host(REAL, Some(REAL));
        ConfigJson::edit(&root, path, &|_| Ok(()), |c| c.remove("apiKey")).unwrap();
        let copy = root.path("/mnt/state/twinhull/config.json.last-good");
        assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!String::from_utf8(sys::file::read(&copy, 9999).unwrap()).unwrap().contains("secret"));
    }

    #[test]
    fn paths_reach_into_objects_and_a_key_with_dots_goes_before_them() {
        let mut config = parse(r#"{"os":{"network":{"connectivity":{"uri":"u"}}},"a.b":1}"#);
        assert_eq!(config.string("os.network.connectivity.uri").unwrap().as_deref(), Some("u"));
        assert_eq!(
            (config.value("os.network.none"), config.value("os.network.connectivity.uri.x")),
            (None, None)
        );
        config.set("a.b", 2).unwrap();
        config.set("os.sshKeys", vec!["k"]).unwrap();
        assert_eq!(
            config.text(),
            r#"{"os":{"network":{"connectivity":{"uri":"u"}},"sshKeys":["k"]},"a.b":2}"#
        );
        let e = config.set("os.sshKeys.x", 1).unwrap_err().to_string();
        assert!(e.contains("config.json: os.sshKeys.x: os: sshKeys: expected an object"), "{e}");
    }

    #[test]
    fn an_edit_is_seen_by_the_next_reader_and_no_change_writes_nothing() {
        let (_dir, root, path) = host(REAL);
        ConfigJson::edit(&root, path, &|_| Ok(()), |c| c.set("uuid", "u")).unwrap();
        let seen = ConfigJson::load(&root, path).unwrap().unwrap();
        assert_eq!(seen.uuid().unwrap().as_deref(), Some("u"));
        assert_eq!(ConfigJson::peek(&root, path).unwrap().unwrap().text(), seen.text());
        let never = |op| Err(Error::failed(format!("{op:?}")));
        ConfigJson::edit(&root, path, &never, |c| c.set("uuid", "u")).unwrap();
    }

    #[test]
    fn writers_do_not_lose_each_others_changes() {
        let (_dir, root, path) = host("{}");
        std::thread::scope(|s| {
            for writer in 0..4 {
                let root = &root;
                s.spawn(move || {
                    for n in 0..5 {
                        let key = format!("{writer}-{n}");
                        ConfigJson::edit(root, path, &|_| Ok(()), |c| c.set(&key, n)).unwrap();
                    }
                });
            }
        });
        assert_eq!(ConfigJson::load(&root, path).unwrap().unwrap().keys().count(), 20);
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..5)
                    .prop_map(|v| Value::Object(v.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn random_documents_come_back(
            keys in prop::collection::vec((any::<String>(), json()), 0..8),
            pretty in any::<bool>(),
        ) {
            let document = Value::Object(keys.into_iter().collect());
            let text = if pretty { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) };
            let text = text.unwrap();
            prop_assert_eq!(parse(&text).text(), text.as_str());
            let mut config = parse(&text);
            config.set("deviceId", 7).unwrap();
            // serde_json's own reading of a float may differ in the last bit from what was written.
            let mut expected: Value = serde_json::from_str(&text).unwrap();
            expected["deviceId"] = 7.into();
            prop_assert_eq!(serde_json::from_str::<Value>(&config.text()).unwrap(), expected);
        }
    }
}
