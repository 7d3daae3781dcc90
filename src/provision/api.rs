//! The four requests of the cloud API that registration needs.
//!
//! Source: open-balena-api v49 `src/features/device-provisioning/register.ts`; balena-supervisor v19
//! `src/lib/api-helper.ts`.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Map, Value};

use super::about::About;
use super::failure::{Failure, Why};
use super::step::Registration;
use crate::sys::http::{self, HttpSettings};
use crate::{Doing, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const BODY_LIMIT_BYTES: u64 = 1024 * 1024;

type Asked<T> = std::result::Result<T, Failure>;

/// Who we are to the API.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub endpoint: String,
    pub uuid: String,
    pub device_key: String,
}

/// The API at one address.
pub(super) struct Api {
    agent: ureq::Agent,
    endpoint: String,
    timeout: Duration,
}

struct Answer {
    status: u16,
    retry_after: Option<String>,
    body: String,
}

impl Api {
    /// Sets up the client; `timeout` is for a whole request.
    pub fn new(
        endpoint: &str,
        ca_bundle: std::path::PathBuf,
        extra_ca_pem: Option<String>,
        timeout: Duration,
    ) -> Result<Self> {
        let settings = HttpSettings {
            ca_bundle,
            extra_ca_pem,
            connect_timeout: CONNECT_TIMEOUT.min(timeout),
            read_timeout: timeout,
            client: None,
        };
        let agent = http::agent(&settings).doing(|| "set up the connection to the cloud API")?;
        Ok(Self { agent, endpoint: endpoint.to_owned(), timeout })
    }

    /// `POST /device/register`, with the provisioning key.
    ///
    /// Any 2xx counts as created: the device key is tried afterwards in any case, and that decides.
    pub fn register(
        &self,
        key: &str,
        who: &Identity,
        application: u64,
        about: &About,
    ) -> Asked<Registration> {
        const DOING: &str = "register the device";
        let mut body = Map::new();
        let mut say = |name: &str, value: Value| body.insert(name.to_owned(), value);
        say("application", application.into());
        say("uuid", who.uuid.as_str().into());
        say("api_key", who.device_key.as_str().into());
        say("os_variant", about.os_variant.into());
        for (name, value) in [
            ("device_type", &about.device_type),
            ("os_version", &about.os_version),
            ("supervisor_version", &about.supervisor_version),
            ("mac_address", &about.mac_address),
        ] {
            if let Some(value) = value {
                say(name, value.as_str().into());
            }
        }
        let answer = self.post(DOING, "/device/register", key, &Value::Object(body))?;
        match answer.status {
            200..=299 => Ok(Registration::Created),
            // Also for a known key: whether it is this device is seen by asking with the device key.
            409 => Ok(Registration::Taken),
            _ => Err(answer.failure(DOING)),
        }
    }

    /// The number of our device as the device key sees it; `None` if that key opens nothing.
    pub fn try_device_key(&self, who: &Identity) -> Asked<Option<u64>> {
        const DOING: &str = "ask for the device with its own key";
        let answer = self.find(DOING, &who.device_key, &who.uuid)?;
        match answer.status {
            200 => answer.device_id(DOING),
            401 => Ok(None),
            _ => Err(answer.failure(DOING)),
        }
    }

    /// Makes our device key a key of the device that has our uuid, with the provisioning key.
    pub fn exchange_key(&self, key: &str, who: &Identity) -> Asked<()> {
        const DOING: &str = "ask for the device with the provisioning key";
        let answer = self.find(DOING, key, &who.uuid)?;
        if answer.status != 200 {
            return Err(answer.failure(DOING));
        }
        let Some(id) = answer.device_id(DOING)? else {
            return Err(Failure { doing: DOING, why: Why::Conflict409(String::new()) });
        };
        const EXCHANGE: &str = "hand over the device key";
        let body = serde_json::json!({"apiKey": who.device_key});
        let answer = self.post(EXCHANGE, &format!("/api-key/device/{id}/device-key"), key, &body)?;
        match answer.status {
            200..=299 => Ok(()),
            _ => Err(answer.failure(EXCHANGE)),
        }
    }

    fn find(&self, doing: &'static str, key: &str, uuid: &str) -> Asked<Answer> {
        // OData: a quote inside text is doubled.
        let filter = format!("uuid eq '{}'", uuid.replace('\'', "''"));
        let url = format!("{}/v7/device?$select=id&$filter={}", self.endpoint, encode(&filter));
        let request = self.agent.get(&url).header("Authorization", format!("Bearer {key}"));
        let request = request.config().timeout_global(Some(self.timeout)).build();
        read(doing, request.call())
    }

    fn post(&self, doing: &'static str, path: &str, key: &str, body: &Value) -> Asked<Answer> {
        let request = self
            .agent
            .post(format!("{}{path}", self.endpoint))
            .header("Authorization", format!("Bearer {key}"))
            .header("Content-Type", "application/json");
        let request = request.config().timeout_global(Some(self.timeout)).build();
        read(doing, request.send(body.to_string()))
    }
}

fn read(
    doing: &'static str,
    answer: std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Asked<Answer> {
    let network = |e: ureq::Error| Failure { doing, why: Why::of_error(&e) };
    let mut answer = answer.map_err(network)?;
    let retry_after = answer.headers().get("retry-after").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let bytes = answer.body_mut().with_config().limit(BODY_LIMIT_BYTES).read_to_vec().map_err(network)?;
    Ok(Answer {
        status: answer.status().as_u16(),
        retry_after,
        body: String::from_utf8_lossy(&bytes).into_owned(),
    })
}

impl Answer {
    fn failure(&self, doing: &'static str) -> Failure {
        Failure { doing, why: Why::of_answer(self.status, &self.body, self.retry_after.as_deref()) }
    }

    /// The number in `{"d":[{"id":N}]}`; `None` for an empty list.
    fn device_id(&self, doing: &'static str) -> Asked<Option<u64>> {
        let unreadable = |what: &str| Failure { doing, why: Why::Unreadable(what.to_owned()) };
        let json: Value = serde_json::from_str(&self.body).map_err(|_| unreadable("not JSON"))?;
        let list = json.get("d").and_then(Value::as_array).ok_or_else(|| unreadable("no list d in it"))?;
        let Some(first) = list.first() else { return Ok(None) };
        first.get("id").and_then(Value::as_u64).map(Some).ok_or_else(|| unreadable("no number id in it"))
    }
}

/// Percent-encodes a query value.
fn encode(text: &str) -> String {
    let mut out = String::new();
    for b in text.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'\'' => {
                out.push(char::from(b))
            }
            // Writing to a `String` cannot fail.
            _ => drop(write!(out, "%{b:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(encode("uuid eq 'a&b=ü'"), "uuid%20eq%20'a%26b%3D%C3%BC'");
    }

    #[test]
    fn an_answer_that_is_not_the_apis_is_told_as_such() {
        let id = |body: &str| {
            Answer { status: 200, retry_after: None, body: body.into() }
                .device_id("ask")
                .map_err(|f| f.to_string())
        };
        assert_eq!(id(r#"{"d":[{"id":5}]}"#), Ok(Some(5)));
        assert_eq!(id(r#"{"d":[]}"#), Ok(None));
        for body in ["<html>Please log in</html>", "{}", r#"{"d":[{"id":"x"}]}"#, ""] {
            assert!(id(body).unwrap_err().contains("the answer is not the API's"), "{body}");
        }
    }
}
