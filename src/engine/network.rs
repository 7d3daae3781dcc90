//! Networks and volumes: look, make, connect, remove. No call here removes a volume.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::Method;

use super::api::or_default;
use super::client::{CHANGE_DEADLINE, Engine, encode};
use crate::Result;

/// A network, as far as it is looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkInfo {
    /// Its name.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// Labels that it was made with.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

impl Engine {
    /// Every network.
    ///
    /// # Errors
    /// `Failed` if the engine does not answer.
    pub fn networks(&self) -> Result<Vec<NetworkInfo>> {
        Ok(self.look("/networks")?.unwrap_or_default())
    }

    /// Makes a network of these fields of the API.
    ///
    /// # Errors
    /// `Failed` with the engine's message: addresses that are taken, a driver that it lacks.
    pub fn create_network(&self, body: &Value) -> Result<()> {
        self.change(Method::POST, "/networks/create", Some(body), &[200, 201], CHANGE_DEADLINE).map(drop)
    }

    /// Removes a network that no container uses. One that is not there is fine.
    ///
    /// # Errors
    /// `Failed` with the engine's message.
    pub fn remove_network(&self, name: &str) -> Result<()> {
        let path = format!("/networks/{}", encode(name));
        self.change(Method::DELETE, &path, None, &[200, 204, 404], CHANGE_DEADLINE).map(drop)
    }

    /// Connects a container to one more network.
    ///
    /// # Errors
    /// `Failed` with the engine's message.
    pub fn connect_to(&self, network: &str, container: &str, endpoint: &Value) -> Result<()> {
        let path = format!("/networks/{}/connect", encode(network));
        let body = json!({ "Container": container, "EndpointConfig": endpoint });
        self.change(Method::POST, &path, Some(&body), &[200], CHANGE_DEADLINE).map(drop)
    }

    /// Makes a volume of these fields of the API; one of that name that is there is fine.
    ///
    /// # Errors
    /// `Failed` with the engine's message.
    pub fn create_volume(&self, body: &Value) -> Result<()> {
        self.change(Method::POST, "/volumes/create", Some(body), &[200, 201], CHANGE_DEADLINE).map(drop)
    }
}
