//! Who asks a registry for an image: the login that a pull carries along.
//!
//! Two sources: a file in the format of docker's own `config.json` (`engine.registry_auth`), and the device's key for the
//! registry of its cloud, as balena's supervisor logs in there. The engine shows a login to the image's registry only.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::{Value, json};

use crate::config::{ConfigJson, Settings};
use crate::{Doing, Error, Result, Root, sys};

const LIMIT_BYTES: u64 = 256 * 1024;
/// The registry of names without one, and what docker's file calls it.
const DEFAULT: [&str; 2] = ["docker.io", "index.docker.io"];

/// The value of `X-Registry-Auth` for a pull of `image`; `None`: nobody has a login for its registry.
///
/// # Errors
/// `Failed`, naming the file, if the one with the logins cannot be read or understood.
pub fn login(image: &str, settings: &Settings, root: &Root) -> Result<Option<String>> {
    let host = host(image);
    let path = root.path(&settings.engine.registry_auth);
    let doing = || path.display().to_string();
    let of_file = match sys::file::read_if_exists(&path, LIMIT_BYTES)? {
        Some(bytes) => of_file(&bytes, host).doing(doing)?,
        None => None,
    };
    let login = match of_file {
        Some(login) => Some(login),
        None => of_device(settings, root, host),
    };
    Ok(login.map(|login| URL_SAFE.encode(login.to_string())))
}

/// The registry that an image's name begins with. A first part is a host if it could not be a user's name.
fn host(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => DEFAULT[0],
    }
}

/// Of docker's `{"auths": {"HOST": {"auth": BASE64 of USER:PASSWORD}}}`, or with `identitytoken`.
fn of_file(bytes: &[u8], host: &str) -> Result<Option<Value>> {
    let json: Value = serde_json::from_slice(bytes).map_err(|e| Error::failed(e.to_string()))?;
    let Some(all) = json.get("auths").and_then(Value::as_object) else {
        return Err(Error::failed("no object \"auths\"; expected what `docker login` writes"));
    };
    let is_it = |key: &str| {
        let key = key.trim_start_matches("https://").trim_start_matches("http://");
        let key = key.split('/').next().unwrap_or(key);
        key == host || (DEFAULT.contains(&key) && DEFAULT.contains(&host))
    };
    let Some((key, entry)) = all.iter().find(|(key, _)| is_it(key)) else { return Ok(None) };
    let text = |name| entry.get(name).and_then(Value::as_str).filter(|t| !t.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(json!({ "identitytoken": token, "serveraddress": host })));
    }
    let decoded = text("auth").and_then(|a| STANDARD.decode(a).ok()).and_then(|a| String::from_utf8(a).ok());
    match decoded.as_deref().and_then(|a| a.split_once(':')) {
        Some((user, password)) => Ok(Some(of(user, password, host))),
        None => Err(Error::failed(format!("auths[{key:?}]: no \"auth\" that is base64 of USER:PASSWORD"))),
    }
}

fn of_device(settings: &Settings, root: &Root, host: &str) -> Option<Value> {
    // What cannot be read is told by `status`; the registry will say that it wants a login.
    let config = ConfigJson::peek(root, &settings.provision.config_json).ok().flatten()?;
    let endpoint = config.string("registryEndpoint").ok().flatten()?;
    if endpoint != host {
        return None;
    }
    let (uuid, key) = (config.uuid().ok()??, config.device_api_key().ok()??);
    Some(of(&format!("d_{uuid}"), &key, host))
}

fn of(user: &str, password: &str, host: &str) -> Value {
    json!({ "username": user, "password": password, "serveraddress": host })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_of_a_name() {
        for (image, expected) in [
            ("alpine", "docker.io"),
            ("lab/app:1.0", "docker.io"),
            ("registry2.balena-cloud.com/v2/abc@sha256:0", "registry2.balena-cloud.com"),
            ("localhost/app", "localhost"),
            ("10.0.0.1:5000/app:2", "10.0.0.1:5000"),
        ] {
            assert_eq!(host(image), expected, "{image}");
        }
    }

    /// As `docker login` writes it, for two registries and docker's own.
    const FILE: &str = r#"{"auths": {
        "https://index.docker.io/v1/": {"auth": "bWU6c2VjcmV0"},
        "registry.example.com:5000": {"auth": "eW91OmE6Yg=="},
        "token.example.com": {"auth": "eDp5", "identitytoken": "t"},
        "broken.example.com": {"auth": "%%"}
    }, "credsStore": "none"}"#;

    #[test]
    fn logins_of_dockers_file() {
        let login = |host| of_file(FILE.as_bytes(), host);
        assert_eq!(login("docker.io").unwrap(), Some(of("me", "secret", "docker.io")));
        // Only the first colon parts the two.
        assert_eq!(login("registry.example.com:5000").unwrap().unwrap()["password"], "a:b");
        assert_eq!(login("token.example.com").unwrap().unwrap()["identitytoken"], "t");
        assert_eq!(login("example.com").unwrap(), None);
        let e = login("broken.example.com").unwrap_err().to_string();
        assert!(e.contains("broken.example.com") && e.contains("USER:PASSWORD"), "{e}");
        for wrong in ["", "{}", "[]", r#"{"auths": 1}"#] {
            assert!(of_file(wrong.as_bytes(), "x").is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_devices_key_is_for_the_registry_of_its_cloud_alone() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let settings = Settings::default();
        let path = root.path(&settings.provision.config_json);
        sys::durable::create_dir(path.parent().unwrap()).unwrap();
        let uuid = "0123456789abcdef0123456789abcdef";
        let text =
            format!(r#"{{"registryEndpoint":"registry2.example.com","uuid":"{uuid}","deviceApiKey":"k"}}"#);
        sys::durable::replace(&path, text.as_bytes(), 0o600).unwrap();
        let header = login("registry2.example.com/v2/x", &settings, &root).unwrap().unwrap();
        let json: Value = serde_json::from_slice(&URL_SAFE.decode(header).unwrap()).unwrap();
        assert_eq!(json, of(&format!("d_{uuid}"), "k", "registry2.example.com"));
        assert_eq!(login("alpine", &settings, &root).unwrap(), None);
        assert_eq!(login("registry3.example.com/x", &settings, &root).unwrap(), None);
    }
}
