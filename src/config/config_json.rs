//! The device's `config.json`: what the image's maker, the supervisor and we know about this device.
//!
//! Keys that are not ours stay as they are spelled, in their order; the file's style (compact as the supervisor
//! writes it, or indented) stays too. A file that is not a JSON object is an error and is never written over.
//! Every change is one read, change and write under a lock between our own processes, through fatrw's journal.
//!
//! Types are lenient where balena's own writers differ: `deviceId`, `applicationId` and `registered_at` may be
//! numbers or numeric strings, flags may be `"true"`, and `null` or `""` is the same as absent.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use serde::de::{MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::sys::clock::{BootClock, Clock};
use crate::sys::fatrw::Observer;
use crate::{Doing, Error, Result, Root, sys};

const LOCK: &str = "/run/twinhull/config.json.lock";
const LOCK_DEADLINE: Duration = Duration::from_secs(30);
const LIMIT_BYTES: u64 = 1024 * 1024;

/// A `config.json` in memory.
#[derive(Clone)]
pub struct ConfigJson {
    path: PathBuf,
    entries: Vec<(String, Box<RawValue>)>,
    style: Style,
    changed: bool,
}

/// How the file is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Style {
    /// White space before each key if every key has its own line.
    indent: Option<String>,
    /// What stands behind the closing brace.
    end: String,
}

impl ConfigJson {
    /// Reads the file, after finishing a write that a power cut interrupted. `None`: there is none.
    ///
    /// # Errors
    /// `Failed`, naming the file, and line and column if it is not a JSON object.
    pub fn load(root: &Root, path: &Path) -> Result<Option<Self>> {
        let _lock = lock(root)?;
        sys::fatrw::read(&root.path(path), LIMIT_BYTES)?
            .map(|bytes| Self::parse(root.path(path), &bytes))
            .transpose()
    }

    /// What [`ConfigJson::load`] would give, without a lock and without writing.
    ///
    /// # Errors
    /// As [`ConfigJson::load`].
    pub fn peek(root: &Root, path: &Path) -> Result<Option<Self>> {
        sys::fatrw::peek(&root.path(path), LIMIT_BYTES)?
            .map(|bytes| Self::parse(root.path(path), &bytes))
            .transpose()
    }

    /// Changes the file: reads it, lets `change` work on it, and writes it if anything changed, all under the lock.
    ///
    /// After `Ok` the new content survives a power cut; after a cut it is the old or the new one. `observer` is
    /// told of each operation of the write.
    ///
    /// # Errors
    /// `Failed` as [`ConfigJson::load`], if there is no file, from `change`, or if it cannot be written.
    pub fn edit<T>(
        root: &Root,
        path: &Path,
        observer: &Observer,
        change: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let _lock = lock(root)?;
        let file = root.path(path);
        let bytes = sys::fatrw::read_observed(&file, LIMIT_BYTES, observer)?.ok_or_else(|| {
            Error::failed("No such file or directory").within(format!("read {}", file.display()))
        })?;
        let mut config = Self::parse(file, &bytes)?;
        let result = change(&mut config)?;
        if config.changed {
            sys::fatrw::write_observed(&config.path, config.text().as_bytes(), observer)?;
        }
        Ok(result)
    }

    /// Reads the text of a file; `path` is only for messages and for writing.
    ///
    /// # Errors
    /// `Failed`, naming file, line and column, if it is not a JSON object.
    pub fn parse(path: PathBuf, bytes: &[u8]) -> Result<Self> {
        let Entries(entries) = serde_json::from_slice(bytes).map_err(|e| {
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
        Ok(Self { path, entries, style: Style::of(bytes), changed: false })
    }

    /// The file as it would be written.
    pub fn text(&self) -> String {
        let (open, between, colon, close) = match &self.style.indent {
            Some(indent) => (format!("{{\n{indent}"), format!(",\n{indent}"), ": ", "\n}"),
            None => ("{".into(), ",".into(), ":", "}"),
        };
        let mut text = String::from("{");
        for (i, (key, value)) in self.entries.iter().enumerate() {
            let before = if i == 0 { open.get(1..).unwrap_or_default() } else { &between };
            // A `Value` prints the key with its quotes and escapes.
            text.push_str(&format!("{before}{}{colon}{}", Value::from(key.as_str()), value.get()));
        }
        text.push_str(if self.entries.is_empty() { "}" } else { close });
        text + &self.style.end
    }

    /// Sets `key`: in its place if it is there, else at the end. The same value again is no change.
    ///
    /// # Errors
    /// `Failed` if the value cannot be written as JSON.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        if self.value(key).as_ref() == Some(&value) {
            return Ok(());
        }
        let raw =
            serde_json::value::to_raw_value(&value).map_err(|e| Error::failed(format!("{key}: {e}")))?;
        match self.entries.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = raw,
            None => self.entries.push((key.to_owned(), raw)),
        }
        self.changed = true;
        Ok(())
    }

    /// Removes `key`; the others keep their order. A key that is not there is fine.
    pub fn remove(&mut self, key: &str) {
        let before = self.entries.len();
        self.entries.retain(|(k, _)| k != key);
        self.changed |= self.entries.len() != before;
    }

    /// `uuid`: 32 hex digits, but any text is taken, as balenaOS does.
    ///
    /// # Errors
    /// `Failed`, naming file and key, if it is of another type. So for all that follow.
    pub fn uuid(&self) -> Result<Option<String>> {
        self.string("uuid")
    }

    /// `apiEndpoint`, without slashes at the end. Absent: the device is not managed.
    ///
    /// # Errors
    /// As [`ConfigJson::uuid`], or if it is no `http://` or `https://` address.
    pub fn api_endpoint(&self) -> Result<Option<String>> {
        let Some(url) = self.string("apiEndpoint")? else { return Ok(None) };
        let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        if host.is_none_or(|h| h.is_empty() || h.starts_with('/') || h.contains(char::is_whitespace)) {
            return Err(self.wrong("apiEndpoint", "expected an address such as https://api.example.com"));
        }
        Ok(Some(url.trim_end_matches('/').to_owned()))
    }

    /// `apiKey`: the fleet's provisioning key; gone once the device is registered.
    ///
    /// # Errors
    /// As [`ConfigJson::uuid`].
    pub fn api_key(&self) -> Result<Option<String>> {
        self.string("apiKey")
    }

    /// `deviceApiKey`: the device's own key.
    ///
    /// # Errors
    /// As [`ConfigJson::uuid`].
    pub fn device_api_key(&self) -> Result<Option<String>> {
        self.string("deviceApiKey")
    }

    /// `deviceId`: the device's number in the cloud.
    ///
    /// # Errors
    /// As [`ConfigJson::uuid`].
    pub fn device_id(&self) -> Result<Option<u64>> {
        self.number("deviceId")
    }

    /// `registered_at`: only that it is there means anything. Milliseconds since 1970 if the supervisor or we wrote
    /// it, seconds in a string if balenaOS's script did.
    ///
    /// # Errors
    /// As [`ConfigJson::uuid`].
    pub fn registered_at(&self) -> Result<Option<u64>> {
        self.number("registered_at")
    }

    /// `applicationId`: the fleet.
    ///
    /// # Errors
    /// As [`ConfigJson::uuid`].
    pub fn application_id(&self) -> Result<Option<u64>> {
        self.number("applicationId")
    }

    /// `deviceType`: a slug such as `intel-nuc`; `device-type.json` goes before it.
    ///
    /// # Errors
    /// As [`ConfigJson::uuid`].
    pub fn device_type(&self) -> Result<Option<String>> {
        self.string("deviceType")
    }

    /// `developmentMode`; absent is false.
    ///
    /// # Errors
    /// As [`ConfigJson::uuid`].
    pub fn development_mode(&self) -> Result<bool> {
        self.flag("developmentMode")
    }

    /// `balenaRootCA`, decoded from base64: one or more certificates as PEM text.
    ///
    /// # Errors
    /// As [`ConfigJson::uuid`], or if it is not the base64 of PEM.
    pub fn root_ca_pem(&self) -> Result<Option<String>> {
        const KEY: &str = "balenaRootCA";
        let Some(text) = self.string(KEY)? else { return Ok(None) };
        let packed: String = text.split_whitespace().collect();
        let pem = base64::engine::general_purpose::STANDARD
            .decode(packed)
            .ok()
            .and_then(|b| String::from_utf8(b).ok());
        match pem {
            Some(pem) if pem.contains("-----BEGIN CERTIFICATE-----") => Ok(Some(pem)),
            _ => Err(self.wrong(KEY, "expected certificates in PEM format, encoded as base64")),
        }
    }

    /// The value of `key`; `null` is absent.
    pub fn value(&self, key: &str) -> Option<Value> {
        let (_, raw) = self.entries.iter().find(|(k, _)| k == key)?;
        serde_json::from_str(raw.get()).ok().filter(|v: &Value| !v.is_null())
    }

    /// `key` as text; empty text is absent.
    fn string(&self, key: &str) -> Result<Option<String>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s).filter(|s| !s.is_empty())),
            Some(other) => Err(self.wrong(key, &format!("expected text, found {}", type_of(&other)))),
        }
    }

    /// `key` as a whole number above 0, also in a string; 0 is absent, as it is for the supervisor.
    fn number(&self, key: &str) -> Result<Option<u64>> {
        let found = match self.value(key) {
            None => return Ok(None),
            Some(Value::String(s)) if s.is_empty() => return Ok(None),
            Some(Value::String(s)) => s.trim().parse().ok(),
            Some(v) => v.as_u64(),
        };
        match found {
            Some(n) => Ok(Some(n).filter(|n| *n != 0)),
            None => Err(self.wrong(key, "expected a whole number, or one in a string")),
        }
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.value(key) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(b),
            Some(Value::String(s)) if matches!(s.as_str(), "true" | "1") => Ok(true),
            Some(Value::String(s)) if matches!(s.as_str(), "" | "false" | "0") => Ok(false),
            Some(_) => Err(self.wrong(key, "expected true or false")),
        }
    }

    /// The value itself is never in the text: it may be a key.
    fn wrong(&self, key: &str, text: &str) -> Error {
        Error::failed(format!("{}: {key}: {text}", self.path.display()))
    }
}

/// Keys only: values may be secret.
impl fmt::Debug for ConfigJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|(k, _)| k)).finish()
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Waits for our own other writers. The supervisor and os-config know no lock; against them only fatrw helps.
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

impl Style {
    fn of(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let inside = text.trim_start().strip_prefix('{').unwrap_or_default();
        let white = inside.split(|c: char| !c.is_whitespace()).next().unwrap_or_default();
        let indent = white.rsplit_once('\n').map(|(_, indent)| indent.to_owned());
        let end = if text.ends_with('\n') { "\n".into() } else { String::new() };
        Self { indent, end }
    }
}

/// The entries of an object in their order. Of equal keys the last value counts, as for every other reader.
struct Entries(Vec<(String, Box<RawValue>)>);

impl<'de> serde::Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object ({…})")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries, A::Error> {
                let mut entries: Vec<(String, Box<RawValue>)> = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    match entries.iter_mut().find(|(k, _)| *k == key) {
                        Some((_, old)) => *old = value,
                        None => entries.push((key, value)),
                    }
                }
                Ok(Entries(entries))
            }
        }
        d.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As generated by balena for a new device, with some keys that nobody knows and odd spellings.
    const REAL: &str = r#"{"applicationName":"fleet","applicationId":1234,"deviceType":"intel-nuc","userId":"56","appUpdatePollInterval":900000,"listenPort":48484,"apiEndpoint":"https://api.balena-cloud.com/","apiKey":"secret","version":"1.10","files":{"a":[1.10,1e3,123456789012345678901234]},"odd\u0041\n":null,"developmentMode":"false"}"#;

    fn parse(text: &str) -> ConfigJson {
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
        config.remove("apiKey");
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
    fn types_are_lenient_where_writers_differ() {
        let config = parse(
            r#"{"deviceId":"12","applicationId":34,"registered_at":"1700000000","uuid":"","apiKey":null,
                "apiEndpoint":"https://a/","developmentMode":"true"}"#,
        );
        assert_eq!(config.device_id().unwrap(), Some(12));
        assert_eq!(config.application_id().unwrap(), Some(34));
        assert_eq!(config.registered_at().unwrap(), Some(1_700_000_000));
        assert_eq!((config.uuid().unwrap(), config.api_key().unwrap()), (None, None));
        assert_eq!(config.api_endpoint().unwrap().as_deref(), Some("https://a"));
        assert!(config.development_mode().unwrap());
    }

    #[test]
    fn wrong_types_name_the_key_and_never_the_value() {
        let config = parse(
            r#"{"apiKey":77777,"applicationId":"77777x","developmentMode":77777,"apiEndpoint":"77777","balenaRootCA":"77777"}"#,
        );
        for (e, key) in [
            (config.api_key().unwrap_err(), "apiKey: expected text, found a number"),
            (config.application_id().unwrap_err(), "applicationId: expected a whole number"),
            (config.development_mode().unwrap_err(), "developmentMode: expected true or false"),
            (config.api_endpoint().unwrap_err(), "apiEndpoint: expected an address"),
            (config.root_ca_pem().unwrap_err(), "balenaRootCA: expected certificates"),
        ] {
            let e = e.to_string();
            assert!(e.starts_with(&format!("/mnt/boot/config.json: {key}")) && !e.contains("77777"), "{e}");
        }
        assert!(!format!("{config:?}").contains("77777"));
    }

    #[test]
    fn root_ca_is_decoded() {
        // printf -- '-----BEGIN CERTIFICATE-----\nx\n' | base64
        let config = parse(r#"{"balenaRootCA":"LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0t\nLS0tCngK"}"#);
        assert_eq!(config.root_ca_pem().unwrap().as_deref(), Some("-----BEGIN CERTIFICATE-----\nx\n"));
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
                        let key = format!("{writer}.{n}");
                        ConfigJson::edit(root, path, &|_| Ok(()), |c| c.set(&key, n)).unwrap();
                    }
                });
            }
        });
        assert_eq!(ConfigJson::load(&root, path).unwrap().unwrap().entries.len(), 20);
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
