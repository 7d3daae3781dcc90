//! A container as a value: what we ask an engine to make.

use serde_json::{Value, json};

/// What a container is made from and what of the host it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Its name, without a slash.
    pub name: String,
    /// The image's name, or its id.
    pub image: String,
    /// Environment, in this order, beside that of the image.
    pub env: Vec<(String, String)>,
    /// Paths of the host that it sees.
    pub binds: Vec<Bind>,
    /// All devices and capabilities of the host.
    pub privileged: bool,
    /// `host`: that of the host; else a network's name.
    pub network: String,
    /// balenaEngine alone: the variable that is to hold the container's own id. Others ignore it.
    pub id_env: Option<String>,
}

/// One path of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bind {
    /// On the host.
    pub source: String,
    /// In the container.
    pub target: String,
}

impl Bind {
    /// `source` of the host as `target` of the container, writable.
    pub fn new(source: impl Into<String>, target: impl Into<String>) -> Self {
        Self { source: source.into(), target: target.into() }
    }
}

impl ContainerSpec {
    /// The body of `POST /containers/create`.
    pub fn create_body(&self) -> Value {
        let env: Vec<_> = self.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let binds: Vec<_> = self.binds.iter().map(|b| format!("{}:{}", b.source, b.target)).collect();
        let mut host = json!({
            "Binds": binds,
            "NetworkMode": self.network,
            "Privileged": self.privileged,
            // We start it again ourselves: the engine's own policy would start it before the host is ready.
            "RestartPolicy": { "Name": "no" },
        });
        if let (Some(name), Some(host)) = (&self.id_env, host.as_object_mut()) {
            host.insert("ContainerIDEnv".into(), json!(name));
        }
        json!({ "Image": self.image, "Env": env, "HostConfig": host })
    }
}
