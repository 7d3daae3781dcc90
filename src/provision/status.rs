//! How far provisioning got, for people and programs. Reads only.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::about::About;
use super::failure::Failure;
use super::run::found;
use super::step::{Learnt, State, Step, next_step};
use crate::config::{ConfigJson, Settings};
use crate::{Doing, Error, Result, Root, sys};

/// The last failed attempt of this boot; there is no such file once the device is registered.
const RECORD: &str = "/run/twinhull/provision.json";

/// How far provisioning got.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// `apiEndpoint` is set: the device is to be in a cloud.
    pub managed: bool,
    /// The device is registered, as far as this device knows.
    pub registered: bool,
    /// The device's uuid.
    pub uuid: Option<String>,
    /// The device's number in the cloud.
    pub device_id: Option<u64>,
    /// The cloud's address.
    pub api_endpoint: Option<String>,
    /// What somebody must put there before registration can go on, each with what to do.
    pub missing: Vec<String>,
    /// `config.json` cannot be read or used, and why.
    pub problem: Option<String>,
    /// The last failed attempt of this boot, if the device is not registered since.
    pub last_try: Option<LastTry>,
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastTry {
    /// How many attempts failed in a row.
    pub failures: u32,
    /// A word for programs: [`super::Why::kind`].
    pub kind: String,
    /// One line for people.
    pub text: String,
    /// When, in seconds since 1970 by a clock that may be wrong.
    pub at_unix_s: u64,
    /// The wait before the next attempt, in seconds. `None`: there is none by itself.
    pub next_try_in_s: Option<u64>,
}

impl LastTry {
    pub(super) fn failed(failures: u32, failure: &Failure, wait: Option<Duration>) -> Self {
        Self {
            failures,
            kind: failure.why.kind().to_owned(),
            text: failure.to_string(),
            at_unix_s: sys::clock::unix_time().as_secs(),
            next_try_in_s: wait.map(|w| w.as_secs()),
        }
    }
}

/// Looks at the host. Whatever is wrong with its files is part of the answer.
pub fn status(root: &Root, settings: &Settings) -> Status {
    let mut status = Status::default();
    if let Err(e) = look(root, settings, &mut status) {
        status.problem = Some(e.to_string());
    }
    status
}

fn look(root: &Root, settings: &Settings, status: &mut Status) -> Result<()> {
    let Some(config) = ConfigJson::peek(root, &settings.provision.config_json)? else {
        status.missing.push(no_config_json(root, settings).to_string());
        return Ok(());
    };
    status.uuid = config.uuid()?;
    status.device_id = config.device_id()?;
    status.api_endpoint = config.api_endpoint()?;
    status.managed = status.api_endpoint.is_some();
    let about = About::read(root, settings, &config)?;
    let state = State { found: found(root, &config, &about)?, learnt: Learnt::default() };
    // What is lacking shows only behind the steps that this device can do by itself.
    let made = State { found: super::Found { uuid: true, device_key: true, ..state.found }, ..state };
    match next_step(&made) {
        Step::Registered => status.registered = next_step(&state) == Step::Registered,
        Step::Lacks(key) => status.missing.push(lacks(root, settings, key)),
        // The API decides whether the device key is known; unless something says so, it will not be.
        Step::TryDeviceKey
            if !(state.found.provisioning_key || state.found.device_id || state.found.registered_at) =>
        {
            status.missing.push(lacks(root, settings, "apiKey"));
        }
        Step::TryDeviceKey
        | Step::MakeIdentity
        | Step::Register
        | Step::ExchangeKey
        | Step::Settle { .. }
        | Step::Unmanaged
        | Step::NotAccepted => {}
    }
    if status.managed && !status.registered {
        status.last_try = last_try(root)?;
    }
    Ok(())
}

fn last_try(root: &Root) -> Result<Option<LastTry>> {
    sys::json_file::read(&root.path(RECORD))
}

/// Notes the last failed attempt, or that there is none any more.
pub(super) fn record(root: &Root, last: Option<&LastTry>) -> Result<()> {
    let path = root.path(RECORD);
    let Some(last) = last else { return sys::durable::remove(&path) };
    sys::json_file::replace(&path, last).doing(|| "note the failed attempt")
}

pub(super) fn no_config_json(root: &Root, settings: &Settings) -> Error {
    let path = root.path(&settings.provision.config_json);
    Error::failed(format!(
        "{} is missing; is the boot partition mounted? Put a file there with {{\"deviceType\": \"…\"}}, and for a device \
         in a cloud also apiEndpoint, apiKey and applicationId",
        path.display()
    ))
}

pub(super) fn lacks(root: &Root, settings: &Settings, key: &str) -> String {
    let config = root.path(&settings.provision.config_json);
    let what = match key {
        "apiKey" => "a provisioning key of the fleet".to_owned(),
        "applicationId" => "the number of the fleet".to_owned(),
        "deviceType" => {
            let file = root.path(&settings.provision.device_type_json);
            format!("the slug of the device type, or install {}", file.display())
        }
        _ => "a value".to_owned(),
    };
    format!("{} lacks {key}; put {what} there", config.display())
}

/// One line for people.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(problem) = &self.problem {
            return write!(f, "unknown: {problem}");
        }
        if let Some(missing) = self.missing.first() {
            return write!(f, "not registered: {missing}");
        }
        match (self.registered, self.managed, self.device_id, &self.last_try) {
            (true, _, Some(id), _) => write!(f, "registered as device {id}"),
            (true, _, None, _) => f.write_str("registered"),
            (false, false, _, _) => f.write_str("unmanaged: config.json has no apiEndpoint"),
            (false, true, _, Some(last)) => {
                write!(f, "not registered: {} (failed {} times", last.text, last.failures)?;
                match last.next_try_in_s {
                    Some(s) => write!(f, ", waits {s} s)"),
                    None => f.write_str("; `twinhull provision` tries again)"),
                }
            }
            (false, true, _, None) => f.write_str("not registered yet; `twinhull provision` does it"),
        }
    }
}
