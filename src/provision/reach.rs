//! Reaching the outside with what this device was given: the certificates it trusts, the API's address, its type.

use std::time::Duration;

use crate::config::{ConfigJson, Settings};
use crate::sys::http::{self, HttpSettings};
use crate::{Doing, Error, Result, Root};

const CONNECT: Duration = Duration::from_secs(20);

/// How this device makes HTTP requests: trusting the image's certificates and the fleet's own CA of `config.json`.
///
/// # Errors
/// `Failed` if `config.json` cannot be read or its `balenaRootCA` is no certificate. Without `config.json` the image's
/// certificates alone count.
pub fn http_settings(root: &Root, settings: &Settings) -> Result<HttpSettings> {
    let config = ConfigJson::peek(root, &settings.provision.config_json)?;
    Ok(HttpSettings {
        ca_bundle: root.path(&settings.provision.ca_bundle),
        extra_ca_pem: config.map(|c| c.root_ca_pem()).transpose()?.flatten(),
        connect_timeout: CONNECT,
        read_timeout: Duration::from_secs(settings.provision.timeout_s),
        client: None,
    })
}

/// Whether this device belongs to a cloud: `config.json` names an `apiEndpoint`. A file that cannot be read counts as
/// no cloud.
pub fn is_managed(root: &Root, settings: &Settings) -> bool {
    endpoint(root, settings).is_ok_and(|e| e.is_some())
}

/// Asks the cloud API whether it is there.
///
/// # Errors
/// `Failed`, naming the address, if it does not answer 200.
pub fn ping(root: &Root, settings: &Settings) -> Result<()> {
    let endpoint =
        endpoint(root, settings)?.ok_or_else(|| Error::failed("config.json names no apiEndpoint"))?;
    let url = format!("{}/ping", endpoint.trim_end_matches('/'));
    let agent = http::agent(&http_settings(root, settings)?)?;
    let answer = agent.get(&url).call().map_err(|e| Error::failed(http::reason(&e))).doing(|| url.clone())?;
    match answer.status().as_u16() {
        200 => Ok(()),
        other => Err(Error::failed(format!("{url}: the server says {other}, expected 200"))),
    }
}

fn endpoint(root: &Root, settings: &Settings) -> Result<Option<String>> {
    ConfigJson::peek(root, &settings.provision.config_json)?.map_or(Ok(None), |c| c.api_endpoint())
}

/// What this device is: `slug` of `device-type.json`, else `deviceType` of `config.json`.
///
/// # Errors
/// `Failed`, naming both files, if neither says.
pub fn device_type(root: &Root, settings: &Settings) -> Result<String> {
    let path = root.path(&settings.provision.device_type_json);
    if let Some(slug) = super::about::slug(&path) {
        return Ok(slug);
    }
    let config = ConfigJson::peek(root, &settings.provision.config_json)?;
    config.map_or(Ok(None), |c| c.device_type())?.ok_or_else(|| {
        Error::failed(format!(
            "device type: {} has no \"slug\" and {} no \"deviceType\"; write one of them",
            path.display(),
            root.path(&settings.provision.config_json).display()
        ))
    })
}
