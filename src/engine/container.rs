//! Containers: look, create, start, stop, remove; and where their volumes are.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::Method;

use super::api::{Container, Summary};
use super::client::{CHANGE_DEADLINE, Engine, encode};
use super::spec::ContainerSpec;
use crate::{Doing, Error, Result};

impl Engine {
    /// Every container, running or not.
    ///
    /// # Errors
    /// `Failed` if the engine does not answer.
    pub fn containers(&self) -> Result<Vec<Summary>> {
        Ok(self.look("/containers/json?all=true")?.unwrap_or_default())
    }

    /// The container called `name` (or with that id), or `None`.
    ///
    /// # Errors
    /// `Failed` if the engine does not answer.
    pub fn container(&self, name: &str) -> Result<Option<Container>> {
        self.look(&format!("/containers/{}/json", encode(name)))
    }

    /// Where the volume called `name` is on the host, or `None`.
    ///
    /// # Errors
    /// `Failed` if the engine does not answer.
    pub fn volume_dir(&self, name: &str) -> Result<Option<PathBuf>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Volume {
            mountpoint: PathBuf,
        }
        Ok(self.look::<Volume>(&format!("/volumes/{}", encode(name)))?.map(|v| v.mountpoint))
    }

    /// Creates a container; gives its id.
    ///
    /// # Errors
    /// `Failed` with the engine's message: a name in use, an image that is not there, …
    pub fn create(&self, spec: &ContainerSpec) -> Result<String> {
        self.create_container(&spec.name, &spec.create_body())
    }

    /// Creates the container `name` of these fields of the API; gives its id.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_container(&self, name: &str, body: &Value) -> Result<String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Created {
            id: String,
        }
        let path = format!("/containers/create?name={}", encode(name));
        let answer = self.change(Method::POST, &path, Some(body), &[201], CHANGE_DEADLINE)?;
        let created: Created = serde_json::from_slice(&answer.body)
            .map_err(|e| Error::failed(e.to_string()))
            .doing(|| format!("create container {name}: the engine's answer"))?;
        Ok(created.id)
    }

    /// Starts a container; one that runs already is fine.
    ///
    /// # Errors
    /// `Failed` with the engine's message.
    pub fn start(&self, name: &str) -> Result<()> {
        let path = format!("/containers/{}/start", encode(name));
        self.change(Method::POST, &path, None, &[204, 304], CHANGE_DEADLINE).map(drop)
    }

    /// Asks a container to end and kills it after `kill_after` (whole seconds). One that does not run, or is not
    /// there, is fine.
    ///
    /// # Errors
    /// `Failed` if the engine does not answer 20 s after the kill.
    pub fn stop(&self, name: &str, kill_after: Duration) -> Result<()> {
        let path = format!("/containers/{}/stop?t={}", encode(name), kill_after.as_secs());
        let deadline = kill_after + Duration::from_secs(20);
        self.change(Method::POST, &path, None, &[204, 304, 404], deadline).map(drop)
    }

    /// Asks a container to end and kills it after the time that it was made with. One that does not run, or is not there,
    /// is fine.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub fn stop_as_made(&self, name: &str) -> Result<()> {
        let Some(container) = self.container(name)? else { return Ok(()) };
        self.stop(name, Duration::from_secs(container.config.stop_timeout.unwrap_or(10)))
    }

    /// Changes what the engine does when a container ends, to a `RestartPolicy` of the API.
    ///
    /// # Errors
    /// `Failed` with the engine's message.
    pub fn set_restart_policy(&self, name: &str, policy: &Value) -> Result<()> {
        let path = format!("/containers/{}/update", encode(name));
        let body = json!({ "RestartPolicy": policy });
        self.change(Method::POST, &path, Some(&body), &[200], CHANGE_DEADLINE).map(drop)
    }

    /// Stops a container as [`stop`](Self::stop) does, and starts it again.
    ///
    /// # Errors
    /// `Failed` with the engine's message.
    pub fn restart(&self, name: &str, kill_after: Duration) -> Result<()> {
        let path = format!("/containers/{}/restart?t={}", encode(name), kill_after.as_secs());
        self.change(Method::POST, &path, None, &[204], CHANGE_DEADLINE + kill_after).map(drop)
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// `Failed` with the engine's message: no such container, or the name is in use.
    pub fn rename(&self, name: &str, to: &str) -> Result<()> {
        let path = format!("/containers/{}/rename?name={}", encode(name), encode(to));
        self.change(Method::POST, &path, None, &[200, 204], CHANGE_DEADLINE).map(drop)
    }

    /// Removes a container, killed if it runs, and its anonymous volumes. One that is not there is fine.
    ///
    /// # Errors
    /// `Failed` with the engine's message.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = format!("/containers/{}?force=true&v=true", encode(name));
        self.change(Method::DELETE, &path, None, &[204, 404], CHANGE_DEADLINE).map(drop)
    }
}
