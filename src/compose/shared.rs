//! Networks and volumes of a Compose file, in the words of the engine's `POST /networks/create` and `/volumes/create`.

use serde_json::{Map, Value, json};

use super::definition::{flag, pairs, text};
use super::yaml::Node;
use crate::{Doing, Result};

/// Something that the services of a file share: its name in the file, and the fields of the request that makes it.
pub type Shared = (String, Map<String, Value>);

/// The networks of a file.
///
/// # Errors
/// `Failed`, naming line and field, for what is not known or makes no sense.
pub fn networks(root: &Node) -> Result<Vec<Shared>> {
    each(root, "networks", |key, value, into| {
        let (name, value) = match key {
            "driver" => ("Driver", json!(text(value)?)),
            "driver_opts" => ("Options", object(value)?),
            "labels" => ("Labels", object(value)?),
            "internal" => ("Internal", json!(flag(value)?)),
            "enable_ipv6" => ("EnableIPv6", json!(flag(value)?)),
            "attachable" => ("Attachable", json!(flag(value)?)),
            "ipam" => ("IPAM", ipam(value)?),
            _ => return Ok(false),
        };
        into.insert(name.into(), value);
        Ok(true)
    })
}

/// The named volumes of a file.
///
/// # Errors
/// As [`networks`].
pub fn volumes(root: &Node) -> Result<Vec<Shared>> {
    each(root, "volumes", |key, value, into| {
        let (name, value) = match key {
            "driver" => ("Driver", json!(text(value)?)),
            "driver_opts" => ("DriverOpts", object(value)?),
            "labels" => ("Labels", object(value)?),
            _ => return Ok(false),
        };
        into.insert(name.into(), value);
        Ok(true)
    })
}

fn each(
    root: &Node,
    what: &str,
    field: impl Fn(&str, &Node, &mut Map<String, Value>) -> Result<bool>,
) -> Result<Vec<Shared>> {
    let Some(all) = root.get(what) else { return Ok(Vec::new()) };
    let one = |(name, node): &(String, Node)| {
        let mut fields = Map::new();
        for (key, value) in node.entries() {
            let known = key.starts_with("x-") || field(key, value, &mut fields).doing(|| key.clone())?;
            if !known {
                return Err(value.error(&format!("{key} is not supported")));
            }
        }
        Ok((name.clone(), fields))
    };
    all.entries().iter().map(|entry| one(entry).doing(|| format!("{what}: {}", entry.0))).collect()
}

fn object(node: &Node) -> Result<Value> {
    Ok(Value::Object(pairs(node)?.into_iter().map(|(k, v)| (k, json!(v))).collect()))
}

fn ipam(node: &Node) -> Result<Value> {
    let mut all = Map::new();
    for (key, value) in node.entries() {
        let (name, value) = match key.as_str() {
            "driver" => ("Driver", json!(text(value)?)),
            "options" => ("Options", object(value)?),
            "config" => ("Config", value.items().iter().map(pool).collect::<Result<_>>()?),
            _ => return Err(value.error(&format!("{key} is not supported"))),
        };
        all.insert(name.into(), value);
    }
    Ok(Value::Object(all))
}

fn pool(node: &Node) -> Result<Value> {
    let mut all = Map::new();
    for (key, value) in node.entries() {
        let (name, value) = match key.as_str() {
            "subnet" => ("Subnet", json!(text(value)?)),
            "gateway" => ("Gateway", json!(text(value)?)),
            "ip_range" => ("IPRange", json!(text(value)?)),
            "aux_addresses" => ("AuxiliaryAddresses", object(value)?),
            _ => return Err(value.error(&format!("{key} is not supported"))),
        };
        all.insert(name.into(), value);
    }
    Ok(Value::Object(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_volumes_become_the_engines() {
        let root = Node::parse(
            "
networks:
  plain:
  own:
    driver: bridge
    internal: true
    driver_opts: {com.docker.network.bridge.name: own0}
    ipam:
      driver: default
      config:
      - {subnet: 172.28.0.0/16, ip_range: 172.28.5.0/24, gateway: 172.28.5.254, aux_addresses: {host1: 172.28.1.5}}
volumes:
  data: {}
  other: {driver: local, driver_opts: {type: tmpfs}, labels: [a=b]}
",
        )
        .unwrap();
        let found: Vec<_> = networks(&root).unwrap().into_iter().map(|(n, m)| json!([n, m])).collect();
        assert_eq!(
            found,
            [
                json!(["plain", {}]),
                json!(["own", {
                    "Driver": "bridge", "Internal": true, "Options": { "com.docker.network.bridge.name": "own0" },
                    "IPAM": { "Driver": "default", "Config": [{
                        "Subnet": "172.28.0.0/16", "IPRange": "172.28.5.0/24", "Gateway": "172.28.5.254",
                        "AuxiliaryAddresses": { "host1": "172.28.1.5" },
                    }] },
                }]),
            ]
        );
        let found: Vec<_> = volumes(&root).unwrap().into_iter().map(|(n, m)| json!([n, m])).collect();
        let other = json!({ "Driver": "local", "DriverOpts": { "type": "tmpfs" }, "Labels": { "a": "b" } });
        assert_eq!(found, [json!(["data", {}]), json!(["other", other])]);
        let e = volumes(&Node::parse("volumes:\n  a: {external: true}").unwrap()).unwrap_err().to_string();
        assert_eq!(e, "volumes: a: line 2: external is not supported");
    }
}
