//! The keys of `config.json` that balenaOS's host, its supervisor or we know: type, default, meaning.
//!
//! Source: balena's documentation of config.json, and what meta-balena v8.0.2, os-config v1.4.1, balena-supervisor
//! v19.0.5 and open-balena-api v49.0.12 read and write. Nobody refuses other keys, so neither do we.

use std::net::IpAddr;

use serde_json::Value;

use super::ConfigJson;
use super::config_json::type_of;

/// What a value may be. `null` and, but for lists, `""` are the same as absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Any text.
    Text,
    /// A host name: letters, digits and dashes, at most 63.
    HostName,
    /// `http://…` or `https://…`.
    Url,
    /// A whole number, or one in a string.
    Number,
    /// `true`, `false`, or either in a string.
    Flag,
    /// A number or text: writers differ.
    TextOrNumber,
    /// Servers' names or addresses in one string, separated by spaces; `"null"` for none.
    Servers,
    /// Addresses of DNS servers in one string, separated by spaces; `"null"` for none.
    Addresses,
    /// Certificates as PEM, encoded as base64.
    Certificates,
    /// A list of texts of one line.
    Lines,
    /// An object of texts, by name.
    Texts,
    /// An object.
    Object,
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its path, such as `os.network.connectivity.uri`.
    pub name: &'static str,
    /// What its value may be.
    pub kind: Type,
    /// What it is when it is absent, in words or as it would be written; `""`: nothing.
    pub default: &'static str,
    /// Whether it must not be shown unless asked for by its name.
    pub secret: bool,
    /// What it is for.
    pub about: &'static str,
}

const fn key(name: &'static str, kind: Type, default: &'static str, about: &'static str) -> Key {
    Key { name, kind, default, secret: false, about }
}

const fn secret(name: &'static str, kind: Type, about: &'static str) -> Key {
    Key { name, kind, default: "", secret: true, about }
}

/// Every known key, by subject.
pub const KEYS: &[Key] = &[
    key("apiEndpoint", Type::Url, "", "address of the cloud API; without it the device is unmanaged"),
    secret("apiKey", Type::Text, "provisioning key of the fleet; removed once the device is registered"),
    key("applicationId", Type::Number, "", "number of the fleet; needed to register"),
    key("uuid", Type::Text, "made on the first boot", "identity of the device, 32 hex digits"),
    secret("deviceApiKey", Type::Text, "key of the device; made on the first boot"),
    secret("deviceApiKeys", Type::Texts, "keys by API host, kept by os-config for a return to that cloud"),
    key("deviceId", Type::Number, "", "number of the device in the cloud; written when registered"),
    key("registered_at", Type::Number, "", "time of registration; that it is there is what counts"),
    key("deviceType", Type::Text, "", "slug of the device type; device-type.json goes before it"),
    key("initialDeviceName", Type::Text, "", "name that the cloud is to give the device"),
    key("balenaRootCA", Type::Certificates, "", "more certificates to trust, base64 of PEM"),
    key("hostname", Type::HostName, "the first 7 digits of uuid", "name of this host"),
    key("persistentLogging", Type::Flag, "false", "keep the journal on the data partition"),
    key("developmentMode", Type::Flag, "false", "root consoles without password, engine on TCP port 2375"),
    key("country", Type::Text, "", "two letters for the WLAN regulations"),
    key("ntpServers", Type::Servers, "the image's own", "time servers"),
    key("dnsServers", Type::Addresses, "8.8.8.8", "DNS servers beside those of DHCP"),
    key("os.network.connectivity.uri", Type::Url, "{apiEndpoint}/connectivity-check", "page to look for"),
    key("os.network.connectivity.interval", Type::Number, "3600", "seconds between two looks"),
    key("os.network.connectivity.response", Type::Text, "", "text that the page must begin with"),
    key("os.network.wifi.randomMacAddressScan", Type::Flag, "false", "random MAC addresses in WLAN scans"),
    key("os.udevRules", Type::Texts, "", "udev rules by file name"),
    key("os.sshKeys", Type::Lines, "", "public keys that may log in as root"),
    key("os.fan.profile", Type::Text, "", "fan profile (Jetson Orin)"),
    key("os.power.mode", Type::Text, "", "power mode (Jetson Orin)"),
    key("os.kernel.extraFirmwareVol", Type::Text, "extra-firmware", "volume with more firmware"),
    key("installer.secureboot", Type::Flag, "false", "installer: set up secure boot"),
    key("installer.migrate.force", Type::Flag, "false", "installer: run from RAM"),
    key("installer.target_devices", Type::Text, "the image's own", "installer: where to, in order"),
    key("installer.whitelist_pcr2", Type::Text, "", "installer: PCR 2 values that are fine"),
    key("listenPort", Type::Number, "48484", "port of the supervisor's API"),
    key("appUpdatePollInterval", Type::Number, "900000", "supervisor: milliseconds between two polls"),
    key("apiTimeout", Type::Number, "900000", "supervisor: milliseconds that the API may take"),
    key("bootstrapRetryDelay", Type::Number, "30000", "supervisor: milliseconds between registrations"),
    key("deltaEndpoint", Type::Url, "https://delta.balena-cloud.com", "supervisor: where image deltas are"),
    key("logsEndpoint", Type::Url, "", "supervisor: where logs go"),
    secret("mixpanelToken", Type::Text, "supervisor: token for statistics"),
    key("pinDevice", Type::Object, "", "supervisor: release that a preloaded device stays on"),
    key("debug", Type::TextOrNumber, "", "balenaOS's scripts show what they do"),
    key("applicationName", Type::Text, "", "name of the fleet; not read"),
    key("userId", Type::TextOrNumber, "", "not read"),
    key("username", Type::Text, "", "not read"),
    key("vpnEndpoint", Type::Text, "", "not read: the VPN's settings come from the API"),
    key("vpnPort", Type::TextOrNumber, "", "not read"),
    key("registryEndpoint", Type::Text, "", "registry of the cloud; the device's key is its login there"),
    secret("pubnubPublishKey", Type::Text, "not read"),
    secret("pubnubSubscribeKey", Type::Text, "not read"),
    key("files", Type::Object, "", "not read"),
    key("wifiSsid", Type::Text, "", "not read: connections are in system-connections/"),
    secret("wifiKey", Type::Text, "not read"),
    key("version", Type::TextOrNumber, "", "not read"),
];

/// The key of that name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.name == name)
}

/// A value that is not what its key wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The key.
    pub key: &'static str,
    /// What is wrong with it, without the value: it may be secret.
    pub problem: String,
}

/// Everything that is wrong with the known keys of a `config.json`.
pub fn check(config: &ConfigJson) -> Vec<Finding> {
    let wrong = |key: &'static Key| {
        let problem = key.kind.check(&config.value(key.name)?).err()?;
        Some(Finding { key: key.name, problem })
    };
    KEYS.iter().filter_map(wrong).collect()
}

impl Type {
    /// Says what is wrong with a value, never the value itself.
    ///
    /// # Errors
    /// What was expected, and the type that was found.
    pub fn check(self, value: &Value) -> Result<(), String> {
        let text = value.as_str();
        let fits = match self {
            _ if value.is_null() => true,
            Self::Text
            | Self::HostName
            | Self::Url
            | Self::Servers
            | Self::Addresses
            | Self::Certificates => text.is_some_and(|t| t.is_empty() || self.fits(t)),
            Self::Number => {
                value.is_u64() || text.is_some_and(|t| t.is_empty() || t.trim().parse::<u64>().is_ok())
            }
            Self::Flag => value.is_boolean() || matches!(text, Some("true" | "false" | "1" | "0" | "")),
            Self::TextOrNumber => value.is_string() || value.is_number(),
            Self::Lines => value.as_array().is_some_and(|list| list.iter().all(is_line)),
            Self::Texts => value.as_object().is_some_and(|o| o.values().all(Value::is_string)),
            Self::Object => value.is_object(),
        };
        if fits { Ok(()) } else { Err(format!("expected {}, found {}", self.words(), type_of(value))) }
    }

    fn fits(self, text: &str) -> bool {
        match self {
            Self::HostName => is_host_name(text),
            Self::Url => is_url(text),
            Self::Servers => words(text).all(|w| w == "null" || is_server(w)),
            Self::Addresses => words(text).all(|w| w == "null" || w.parse::<IpAddr>().is_ok()),
            Self::Certificates => ConfigJson::decode_certificates(text).is_some(),
            Self::Text
            | Self::Number
            | Self::Flag
            | Self::TextOrNumber
            | Self::Lines
            | Self::Texts
            | Self::Object => true,
        }
    }

    /// What is expected, in words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::HostName => "a host name (letters, digits, dashes)",
            Self::Url => "an address such as https://example.com",
            Self::Number => "a whole number",
            Self::Flag => "true or false",
            Self::TextOrNumber => "text or a number",
            Self::Servers => "host names or addresses, separated by spaces, or \"null\"",
            Self::Addresses => "IP addresses, separated by spaces, or \"null\"",
            Self::Certificates => "certificates in PEM format, encoded as base64",
            Self::Lines => "a list of texts of one line each",
            Self::Texts => "an object of texts",
            Self::Object => "an object",
        }
    }

    /// What was typed, as the value of such a key: JSON where the type is none that a word can be.
    ///
    /// # Errors
    /// What was expected.
    pub fn value_of(self, typed: &str) -> Result<Value, String> {
        let expected = || format!("expected {}", self.words());
        let json = || serde_json::from_str(typed).map_err(|e| format!("{}: {e}", expected()));
        let value = match self {
            Self::Number => Value::from(typed.trim().parse::<u64>().map_err(|_| expected())?),
            Self::Flag => match typed {
                "true" | "1" => Value::Bool(true),
                "false" | "0" => Value::Bool(false),
                _ => return Err(expected()),
            },
            Self::Lines | Self::Texts | Self::Object => json()?,
            Self::Text
            | Self::HostName
            | Self::Url
            | Self::TextOrNumber
            | Self::Servers
            | Self::Addresses
            | Self::Certificates => Value::from(typed),
        };
        self.check(&value).map_err(|_| expected())?;
        Ok(value)
    }
}

/// The words of a list that is written as one text.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace()
}

fn is_line(value: &Value) -> bool {
    value.as_str().is_some_and(|t| !t.chars().any(char::is_control))
}

/// Source: RFC 1123, section 2.1.
fn is_host_name(text: &str) -> bool {
    let inside = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    inside && (1..=63).contains(&text.len()) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_server(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || text.trim_end_matches('.').split('.').all(is_host_name)
}

fn is_url(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let odd = |c: char| c.is_whitespace() || c.is_control();
    host.is_some_and(|h| !h.is_empty() && !h.starts_with('/') && !h.contains(odd))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_there_once() {
        let mut names: Vec<_> = KEYS.iter().map(|k| k.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    /// The table of balena's documentation and sources, see above: name, type, and default where there is one.
    #[test]
    fn every_documented_key_is_known_with_its_type_and_default() {
        use Type::*;
        let url = "{apiEndpoint}/connectivity-check";
        let documented: &[(&str, Type, &str)] = &[
            ("apiEndpoint", Url, ""),
            ("apiKey", Text, ""),
            ("apiTimeout", Number, "900000"),
            ("applicationId", Number, ""),
            ("applicationName", Text, ""),
            ("appUpdatePollInterval", Number, "900000"),
            ("balenaRootCA", Certificates, ""),
            ("bootstrapRetryDelay", Number, "30000"),
            ("country", Text, ""),
            ("debug", TextOrNumber, ""),
            ("deltaEndpoint", Url, "https://delta.balena-cloud.com"),
            ("developmentMode", Flag, "false"),
            ("deviceApiKey", Text, ""),
            ("deviceApiKeys", Texts, ""),
            ("deviceId", Number, ""),
            ("deviceType", Text, ""),
            ("dnsServers", Addresses, "8.8.8.8"),
            ("files", Object, ""),
            ("hostname", HostName, "the first 7 digits of uuid"),
            ("initialDeviceName", Text, ""),
            ("installer.migrate.force", Flag, "false"),
            ("installer.secureboot", Flag, "false"),
            ("installer.target_devices", Text, "the image's own"),
            ("installer.whitelist_pcr2", Text, ""),
            ("listenPort", Number, "48484"),
            ("logsEndpoint", Url, ""),
            ("mixpanelToken", Text, ""),
            ("ntpServers", Servers, "the image's own"),
            ("os.fan.profile", Text, ""),
            ("os.kernel.extraFirmwareVol", Text, "extra-firmware"),
            ("os.network.connectivity.interval", Number, "3600"),
            ("os.network.connectivity.response", Text, ""),
            ("os.network.connectivity.uri", Url, url),
            ("os.network.wifi.randomMacAddressScan", Flag, "false"),
            ("os.power.mode", Text, ""),
            ("os.sshKeys", Lines, ""),
            ("os.udevRules", Texts, ""),
            ("persistentLogging", Flag, "false"),
            ("pinDevice", Object, ""),
            ("pubnubPublishKey", Text, ""),
            ("pubnubSubscribeKey", Text, ""),
            ("registered_at", Number, ""),
            ("registryEndpoint", Text, ""),
            ("userId", TextOrNumber, ""),
            ("username", Text, ""),
            ("uuid", Text, "made on the first boot"),
            ("version", TextOrNumber, ""),
            ("vpnEndpoint", Text, ""),
            ("vpnPort", TextOrNumber, ""),
            ("wifiKey", Text, ""),
            ("wifiSsid", Text, ""),
        ];
        let mut known: Vec<_> = KEYS.iter().map(|k| (k.name, k.kind, k.default)).collect();
        known.sort_by_key(|(name, ..)| name.to_lowercase());
        assert_eq!(known, documented);
    }

    #[test]
    fn values_as_balenas_own_writers_leave_them_are_fine() {
        // The API's generator, the supervisor, the flasher's script and the documentation's example.
        let text = r#"{"applicationName":"fleet","applicationId":"1234","deviceType":"intel-nuc","userId":56,
            "appUpdatePollInterval":900000,"listenPort":"48484","apiEndpoint":"https://api.balena-cloud.com",
            "vpnPort":443,"pubnubPublishKey":"","registered_at":"1700000000","deviceId":"17","files":{},
            "persistentLogging":"false","developmentMode":true,"ntpServers":"ntp-wwv.nist.gov resinio.pool.ntp.org",
            "dnsServers":"208.67.222.222 8.8.8.8","country":"GB","hostname":"my-new-hostname","apiKey":null,
            "os":{"network":{"connectivity":{"uri":"https://api.balena-cloud.com/connectivity-check","interval":"300",
            "response":"optional value"},"wifi":{"randomMacAddressScan":false}},
            "udevRules":{"56":"ACTION!=\"add|change\", GOTO=\"x\"\nLABEL=\"x\""},"sshKeys":["ssh-rsa AAAAB3Nza user@host"]}}"#;
        assert_eq!(check(&ConfigJson::parse("c".into(), text.as_bytes()).unwrap()), []);
    }

    #[test]
    fn what_does_not_fit_is_named_without_its_value() {
        for (name, value) in [
            ("hostname", json!("a b")),
            ("hostname", json!("-a")),
            ("hostname", json!("x".repeat(64))),
            ("apiEndpoint", json!("api.example.com")),
            ("os.network.connectivity.uri", json!("http://x\n[main]")),
            ("ntpServers", json!("ok.example bad_name")),
            ("dnsServers", json!("8.8.8")),
            ("developmentMode", json!("yes")),
            ("listenPort", json!(-1)),
            ("os.sshKeys", json!(["a\nb"])),
            ("os.sshKeys", json!("ssh-rsa x")),
            ("os.udevRules", json!({"a": 1})),
            ("balenaRootCA", json!("77777")),
            ("uuid", json!(77777)),
        ] {
            let mut config = ConfigJson::parse("c".into(), b"{}").unwrap();
            config.set(name, value.clone()).unwrap();
            let found = check(&config);
            assert_eq!(found.len(), 1, "{name} {value}");
            assert!(found[0].key == name && found[0].problem.starts_with("expected "), "{found:?}");
            assert!(!found[0].problem.contains("77777"));
        }
    }

    #[test]
    fn words_become_values_of_the_keys_type() {
        for (kind, typed, expected) in [
            (Type::Number, "5", Some(json!(5))),
            (Type::Number, "x", None),
            (Type::Flag, "true", Some(json!(true))),
            (Type::Flag, "yes", None),
            (Type::Text, "true", Some(json!("true"))),
            (Type::Addresses, "null", Some(json!("null"))),
            (Type::Lines, r#"["a"]"#, Some(json!(["a"]))),
            (Type::Lines, "a", None),
            (Type::HostName, "a_b", None),
        ] {
            assert_eq!(kind.value_of(typed).ok(), expected, "{kind:?} {typed}");
        }
    }
}
