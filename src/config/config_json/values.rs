//! What single keys of a `config.json` say, as the types that they have.
//!
//! Types are lenient where balena's own writers differ: `deviceId`, `applicationId` and `registered_at` may be
//! numbers or numeric strings, flags may be `"true"`, and `null` or `""` is the same as absent.

use base64::Engine;
use serde_json::Value;

use super::ConfigJson;
use crate::Result;

impl ConfigJson {
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
        Ok(self.flag("developmentMode")?.unwrap_or(false))
    }

    /// `balenaRootCA`, decoded from base64: one or more certificates as PEM text.
    ///
    /// # Errors
    /// As [`ConfigJson::uuid`], or if it is not the base64 of PEM.
    pub fn root_ca_pem(&self) -> Result<Option<String>> {
        const KEY: &str = "balenaRootCA";
        let Some(text) = self.string(KEY)? else { return Ok(None) };
        let wrong = || self.wrong(KEY, "expected certificates in PEM format, encoded as base64");
        Self::decode_certificates(&text).map(Some).ok_or_else(wrong)
    }

    /// The PEM text that is packed in base64, if it is that.
    pub(in crate::config) fn decode_certificates(text: &str) -> Option<String> {
        let packed: String = text.split_whitespace().collect();
        let pem = base64::engine::general_purpose::STANDARD.decode(packed).ok()?;
        String::from_utf8(pem).ok().filter(|pem| pem.contains("-----BEGIN CERTIFICATE-----"))
    }

    /// The value of `key`, which may be a path; `null` is absent.
    pub fn value(&self, key: &str) -> Option<Value> {
        let mut path = self.path_of(key).into_iter();
        let mut value = self.object.value(path.next()?)?;
        for key in path {
            value = value.as_object_mut()?.shift_remove(key)?;
        }
        Some(value).filter(|v| !v.is_null())
    }

    /// `key` as text; empty text is absent.
    ///
    /// # Errors
    /// As [`ConfigJson::uuid`].
    pub fn string(&self, key: &str) -> Result<Option<String>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s).filter(|s| !s.is_empty())),
            Some(other) => Err(self.wrong(key, &format!("expected text, found {}", type_of(&other)))),
        }
    }

    /// `key` as a whole number above 0, also in a string; 0 is absent, as it is for the supervisor.
    ///
    /// # Errors
    /// As [`ConfigJson::uuid`].
    pub fn number(&self, key: &str) -> Result<Option<u64>> {
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

    /// `key` as a flag, also in a string.
    ///
    /// # Errors
    /// As [`ConfigJson::uuid`].
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(b)),
            Some(Value::String(s)) if s.is_empty() => Ok(None),
            Some(Value::String(s)) if matches!(s.as_str(), "true" | "1") => Ok(Some(true)),
            Some(Value::String(s)) if matches!(s.as_str(), "false" | "0") => Ok(Some(false)),
            Some(_) => Err(self.wrong(key, "expected true or false")),
        }
    }
}

/// What a value is, in words.
pub(in crate::config) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;

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
}
