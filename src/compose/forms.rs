//! Fields of a service with forms of their own: ports, devices, networks, volumes, health checks and the like.

use serde_json::{Map, Value, json};

use super::definition::{
    Condition, Definition, Mount, Network, command, flag, list, number, pairs, text, unexpected,
};
use super::values::{Port, bytes, duration_ns, ports};
use super::yaml::{Content, Node};
use crate::Result;

/// Reads one field. Those that are read elsewhere (image, build, labels) give nothing.
pub(super) fn read(all: &mut Definition, key: &str, node: &Node) -> Result<()> {
    match key {
        "cpus" => {
            let cpus = node.text().and_then(|t| t.parse::<f64>().ok()).filter(|n| (0.0..1e6).contains(n));
            let cpus = cpus.ok_or_else(|| unexpected(node, "a number of CPUs"))?;
            #[allow(clippy::cast_possible_truncation)] // Bounded above.
            let nano = (cpus * 1e9).round() as i64;
            all.host.insert("NanoCpus".into(), json!(nano));
        }
        "depends_on" => all.depends_on = depends_on(node)?,
        "devices" => drop(all.host.insert("Devices".into(), devices(node)?)),
        "environment" => all.env = pairs(node)?,
        "expose" => {
            for one in scalars(node)? {
                expose(all, &ports(&text(one)?).ok_or_else(|| unexpected(one, "a port"))?);
            }
        }
        "extra_hosts" => {
            let hosts: Vec<_> = match &node.content {
                Content::Map(_) => {
                    pairs(node)?.into_iter().map(|(name, ip)| format!("{name}:{ip}")).collect()
                }
                _ => list(node)?,
            };
            all.host.insert("ExtraHosts".into(), json!(hosts));
        }
        "healthcheck" => drop(all.config.insert("Healthcheck".into(), healthcheck(node)?)),
        "network_mode" => {
            all.network = match text(node)?.as_str() {
                mode @ ("bridge" | "host" | "none") => Network::Mode(mode.into()),
                other => match other.strip_prefix("service:").filter(|name| !name.is_empty()) {
                    Some(name) => Network::Service(name.into()),
                    None => return Err(unexpected(node, "bridge, host, none or service:NAME")),
                },
            };
        }
        "networks" => all.network = Network::Named(networks(node)?),
        "ports" => publish(all, node)?,
        "restart" => drop(all.host.insert("RestartPolicy".into(), restart(node)?)),
        "stop_grace_period" => {
            let ns =
                duration_ns(&text(node)?).ok_or_else(|| unexpected(node, "a duration, such as 1m30s"))?;
            all.stop_grace_s = u64::try_from(ns / 1_000_000_000).unwrap_or(0);
        }
        "tmpfs" => {
            let tmpfs = list(node)?.into_iter().map(|one| match one.split_once(':') {
                Some((path, options)) => (path.to_owned(), json!(options)),
                None => (one, json!("")),
            });
            all.host.insert("Tmpfs".into(), Value::Object(tmpfs.collect()));
        }
        "ulimits" => drop(all.host.insert("Ulimits".into(), ulimits(node)?)),
        "volumes" => volumes(all, node)?,
        _ => {}
    }
    Ok(())
}

/// What holds where the file says nothing: always started again, no core dumps, on the file's networks.
pub(super) fn complete(all: &mut Definition, service: &Node) -> Result<()> {
    let has = |key: &str| service.get(key).filter(|node| !node.is_null());
    if let (Some(_), Some(networks)) = (has("network_mode"), has("networks")) {
        return Err(networks.error("networks and network_mode exclude each other"));
    }
    all.host.entry("RestartPolicy").or_insert_with(|| json!({ "Name": "always" }));
    let core = json!({ "Name": "core", "Soft": 0, "Hard": 0 });
    let ulimits = all.host.entry("Ulimits").or_insert_with(|| json!([]));
    if let Some(list) = ulimits.as_array_mut()
        && !list.iter().any(|one| one.get("Name") == core.get("Name"))
    {
        list.push(core);
    }
    Ok(())
}

fn scalars(node: &Node) -> Result<Vec<&Node>> {
    match &node.content {
        Content::List(all) => Ok(all.iter().collect()),
        Content::Scalar { .. } => Ok(vec![node]),
        Content::Map(_) => Err(node.error("expected a list")),
    }
}

fn depends_on(node: &Node) -> Result<Vec<(String, Condition)>> {
    if !matches!(node.content, Content::Map(_)) {
        return Ok(list(node)?.into_iter().map(|name| (name, Condition::Started)).collect());
    }
    let one = |(name, how): &(String, Node)| {
        let condition = match how.get("condition") {
            None => Condition::Started,
            Some(condition) => match condition.text().unwrap_or_default() {
                "service_started" => Condition::Started,
                "service_healthy" => Condition::Healthy,
                _ => return Err(unexpected(condition, "service_started or service_healthy")),
            },
        };
        Ok((name.clone(), condition))
    };
    node.entries().iter().map(one).collect()
}

fn devices(node: &Node) -> Result<Value> {
    let one = |node: &&Node| {
        let text = text(node)?;
        let parts: Vec<_> = text.split(':').collect();
        let (host, container, rights) = match *parts.as_slice() {
            [host] => (host, host, "rwm"),
            [host, container] => (host, container, "rwm"),
            [host, container, rights] => (host, container, rights),
            _ => ("", "", ""),
        };
        let is_right = host.starts_with('/') && container.starts_with('/');
        if !is_right || rights.is_empty() || !rights.chars().all(|c| "rwm".contains(c)) {
            return Err(unexpected(node, "/dev/HOST[:/dev/CONTAINER[:rwm]]"));
        }
        Ok(json!({ "PathOnHost": host, "PathInContainer": container, "CgroupPermissions": rights }))
    };
    scalars(node)?.iter().map(one).collect()
}

fn expose(all: &mut Definition, ports: &[Port]) {
    let exposed = all.config.entry("ExposedPorts").or_insert_with(|| json!({}));
    if let Some(exposed) = exposed.as_object_mut() {
        exposed.extend(ports.iter().map(|p| (format!("{}/{}", p.container, p.protocol), json!({}))));
    }
}

fn publish(all: &mut Definition, node: &Node) -> Result<()> {
    let mut bindings: Map<String, Value> = Map::new();
    for one in scalars(node)? {
        let found = ports(&text(one)?).ok_or_else(|| unexpected(one, "[[IP:]HOST:]CONTAINER[/PROTOCOL]"))?;
        for port in &found {
            let host = port.host.map_or_else(String::new, |p| p.to_string());
            let list =
                bindings.entry(format!("{}/{}", port.container, port.protocol)).or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut() {
                list.push(json!({ "HostIp": port.ip, "HostPort": host }));
            }
        }
        expose(all, &found);
    }
    all.host.insert("PortBindings".into(), Value::Object(bindings));
    Ok(())
}

fn restart(node: &Node) -> Result<Value> {
    let text = text(node)?;
    match text.split_once(':').unwrap_or((text.as_str(), "")) {
        // YAML 1.2 reads no as text, but a quoted false is seen as well.
        ("no" | "false", "") => Ok(json!({ "Name": "no" })),
        ("always" | "unless-stopped" | "on-failure", "") => Ok(json!({ "Name": text })),
        ("on-failure", count) if count.parse::<u32>().is_ok() => {
            Ok(json!({ "Name": "on-failure", "MaximumRetryCount": count.parse::<u32>().unwrap_or(0) }))
        }
        _ => Err(unexpected(node, "no, always, unless-stopped or on-failure[:TIMES]")),
    }
}

fn ulimits(node: &Node) -> Result<Value> {
    let one = |(name, limit): &(String, Node)| {
        let (soft, hard) = match (limit.get("soft"), limit.get("hard")) {
            (Some(soft), Some(hard)) => (number(soft)?, number(hard)?),
            (None, None) => (number(limit)?, number(limit)?),
            _ => return Err(limit.error("expected soft and hard")),
        };
        Ok(json!({ "Name": name, "Soft": soft, "Hard": hard }))
    };
    match &node.content {
        Content::Map(all) => all.iter().map(one).collect(),
        _ => Err(node.error("expected a mapping")),
    }
}

fn healthcheck(node: &Node) -> Result<Value> {
    let mut all = Map::new();
    for (key, value) in node.entries() {
        let duration = |value: &Node| {
            let ns = duration_ns(&text(value)?);
            ns.ok_or_else(|| unexpected(value, "a duration, such as 1m30s")).map(|ns| json!(ns))
        };
        let (name, value) = match key.as_str() {
            "test" => match &value.content {
                Content::Scalar { .. } => ("Test", json!(["CMD-SHELL", text(value)?])),
                _ => ("Test", json!(command(value)?)),
            },
            "interval" => ("Interval", duration(value)?),
            "timeout" => ("Timeout", duration(value)?),
            "start_period" => ("StartPeriod", duration(value)?),
            "retries" => ("Retries", json!(number(value)?)),
            "disable" if flag(value)? => ("Test", json!(["NONE"])),
            "disable" => continue,
            _ => return Err(value.error(&format!("{key} is not known"))),
        };
        all.insert(name.into(), value);
    }
    match &node.content {
        Content::Map(_) => Ok(Value::Object(all)),
        _ => Err(node.error("expected a mapping")),
    }
}

fn networks(node: &Node) -> Result<Vec<(String, Map<String, Value>)>> {
    let Content::Map(entries) = &node.content else {
        return Ok(list(node)?.into_iter().map(|name| (name, Map::new())).collect());
    };
    let one = |(name, how): &(String, Node)| {
        let (mut endpoint, mut ipam) = (Map::new(), Map::new());
        for (key, value) in how.entries() {
            match key.as_str() {
                "aliases" => drop(endpoint.insert("Aliases".into(), json!(list(value)?))),
                "ipv4_address" => drop(ipam.insert("IPv4Address".into(), json!(text(value)?))),
                "ipv6_address" => drop(ipam.insert("IPv6Address".into(), json!(text(value)?))),
                "link_local_ips" => drop(ipam.insert("LinkLocalIPs".into(), json!(list(value)?))),
                _ => return Err(value.error(&format!("{key} is not known"))),
            }
        }
        if !ipam.is_empty() {
            endpoint.insert("IPAMConfig".into(), Value::Object(ipam));
        }
        Ok((name.clone(), endpoint))
    };
    entries.iter().map(one).collect()
}

/// Named volumes, anonymous ones and tmpfs. Bind mounts are not given, or stand for a label: the file's reader has them.
fn volumes(all: &mut Definition, node: &Node) -> Result<()> {
    for one in scalars(node)? {
        match &one.content {
            Content::Map(_) => long_volume(all, one)?,
            _ => short_volume(all, one)?,
        }
    }
    Ok(())
}

fn short_volume(all: &mut Definition, node: &Node) -> Result<()> {
    let text = text(node)?;
    match text.split_once(':') {
        None if text.starts_with('/') => {
            let anonymous = all.config.entry("Volumes").or_insert_with(|| json!({}));
            if let Some(anonymous) = anonymous.as_object_mut() {
                anonymous.insert(text.clone(), json!({}));
            }
        }
        Some((source, _)) if source.starts_with(['/', '.', '~']) => {}
        Some((volume, target)) if target.starts_with('/') && !volume.is_empty() => {
            all.volumes.push(Mount { volume: volume.into(), target: target.into() });
        }
        _ => return Err(unexpected(node, "VOLUME:/PATH[:ro]")),
    }
    Ok(())
}

fn long_volume(all: &mut Definition, node: &Node) -> Result<()> {
    let field = |key: &str| node.get(key).map(text).transpose().map(Option::unwrap_or_default);
    let (source, target) = (field("source")?, field("target")?);
    let read_only = node.get("read_only").map(flag).transpose()?.unwrap_or(false);
    match field("type")?.as_str() {
        "bind" => {}
        _ if !target.starts_with('/') => return Err(node.error("target: expected a path in the container")),
        "volume" if !source.is_empty() => {
            let target = if read_only { format!("{target}:ro") } else { target };
            all.volumes.push(Mount { volume: source, target });
        }
        "tmpfs" => {
            let size = node.get("tmpfs").and_then(|t| t.get("size")).map(text).transpose()?;
            let size = size.as_deref().map(|s| bytes(s).ok_or_else(|| node.error("tmpfs: expected a size")));
            let options = size.transpose()?.map_or_else(String::new, |s| format!("size={s}"));
            let tmpfs = all.host.entry("Tmpfs").or_insert_with(|| json!({}));
            if let Some(tmpfs) = tmpfs.as_object_mut() {
                tmpfs.insert(target, json!(options));
            }
        }
        _ => return Err(node.error("type: expected volume with a source, or tmpfs")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<(Definition, Vec<String>)> {
        Definition::of(&Node::parse(text).unwrap())
    }

    /// Golden: fields of the Compose reference and those of the engine's API that docker-compose 1.29 makes of them.
    #[test]
    fn every_field_becomes_the_engines() {
        let (all, ignored) = of(r#"
image: a/b:1
command: sh -c "echo $$HOME"
entrypoint: [/init, "a b"]
hostname: h
user: "1000:1000"
working_dir: /w
stop_signal: SIGINT
stop_grace_period: 1m30s
tty: true
cap_add: [NET_ADMIN]
cap_drop: ALL
cpus: 1.5
cpu_shares: 73
cpuset: 0,1
mem_limit: 512m
memswap_limit: -1
privileged: true
read_only: false
pid: host
init: true
security_opt: ["label:disable"]
sysctls: {net.core.somaxconn: 1024}
dns: 8.8.8.8
extra_hosts: {db: 10.0.0.1}
group_add: [dialout, 7]
devices: ["/dev/ttyS0:/dev/ttyS1:rw", /dev/i2c-1]
environment: {A: 1, B: "x=y", C: }
expose: ["3000"]
ports: ["8080:80", "127.0.0.1:53:53/udp", 90-91:90-91]
restart: on-failure:3
tmpfs: [/run, "/tmp:size=64m"]
ulimits: {nproc: 65535, nofile: {soft: 1, hard: 2}}
healthcheck: {test: curl -f localhost, interval: 10s, timeout: 1s, retries: 3, start_period: 1m}
networks: {front: {aliases: [web], ipv4_address: 172.16.238.10}, back: }
volumes: ["data:/data", "cfg:/etc/cfg:ro", /scratch, {type: tmpfs, target: /t, tmpfs: {size: 1k}}, {type: volume, source: d, target: /d, read_only: true}]
depends_on: {db: {condition: service_healthy}, cache: {condition: service_started}}
logging: {driver: none}
links: [db]
x-own: 1
"#)
        .unwrap();
        assert_eq!(
            Value::Object(all.config),
            json!({
                "Cmd": ["sh", "-c", "echo $HOME"], "Entrypoint": ["/init", "a b"], "Hostname": "h", "User": "1000:1000",
                "WorkingDir": "/w", "StopSignal": "SIGINT", "Tty": true,
                "ExposedPorts": { "3000/tcp": {}, "80/tcp": {}, "53/udp": {}, "90/tcp": {}, "91/tcp": {} },
                "Healthcheck": { "Test": ["CMD-SHELL", "curl -f localhost"], "Interval": 10_000_000_000_i64,
                    "Timeout": 1_000_000_000, "Retries": 3, "StartPeriod": 60_000_000_000_i64 },
                "Volumes": { "/scratch": {} },
            })
        );
        assert_eq!(
            Value::Object(all.host),
            json!({
                "CapAdd": ["NET_ADMIN"], "CapDrop": ["ALL"], "NanoCpus": 1_500_000_000, "CpuShares": 73,
                "CpusetCpus": "0,1", "Memory": 536_870_912, "MemorySwap": -1, "Privileged": true,
                "ReadonlyRootfs": false, "PidMode": "host", "Init": true, "SecurityOpt": ["label:disable"],
                "Sysctls": { "net.core.somaxconn": "1024" }, "Dns": ["8.8.8.8"], "ExtraHosts": ["db:10.0.0.1"],
                "GroupAdd": ["dialout", "7"],
                "Devices": [
                    { "PathOnHost": "/dev/ttyS0", "PathInContainer": "/dev/ttyS1", "CgroupPermissions": "rw" },
                    { "PathOnHost": "/dev/i2c-1", "PathInContainer": "/dev/i2c-1", "CgroupPermissions": "rwm" },
                ],
                "PortBindings": {
                    "80/tcp": [{ "HostIp": "", "HostPort": "8080" }],
                    "53/udp": [{ "HostIp": "127.0.0.1", "HostPort": "53" }],
                    "90/tcp": [{ "HostIp": "", "HostPort": "90" }],
                    "91/tcp": [{ "HostIp": "", "HostPort": "91" }],
                },
                "RestartPolicy": { "Name": "on-failure", "MaximumRetryCount": 3 },
                "Tmpfs": { "/run": "", "/tmp": "size=64m", "/t": "size=1024" },
                "Ulimits": [
                    { "Name": "nproc", "Soft": 65535, "Hard": 65535 }, { "Name": "nofile", "Soft": 1, "Hard": 2 },
                    { "Name": "core", "Soft": 0, "Hard": 0 },
                ],
            })
        );
        let text = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        assert_eq!(all.env, text(&[("A", "1"), ("B", "x=y"), ("C", "")]));
        let front = json!({ "Aliases": ["web"], "IPAMConfig": { "IPv4Address": "172.16.238.10" } });
        let expected =
            vec![("front".to_owned(), front.as_object().unwrap().clone()), ("back".into(), Map::new())];
        assert_eq!(all.network, Network::Named(expected));
        let mounts: Vec<_> = all.volumes.iter().map(|m| format!("{}:{}", m.volume, m.target)).collect();
        assert_eq!(mounts, ["data:/data", "cfg:/etc/cfg:ro", "d:/d:ro"]);
        assert_eq!(all.depends_on, [("db".into(), Condition::Healthy), ("cache".into(), Condition::Started)]);
        assert_eq!(
            (all.stop_grace_s, ignored),
            (90, vec!["logging (line 38)".to_owned(), "links (line 39)".into()])
        );
    }

    #[test]
    fn nothing_said_is_always_restarted_and_dumps_no_core() {
        let (all, ignored) = of("image: x").unwrap();
        let core = json!([{ "Name": "core", "Soft": 0, "Hard": 0 }]);
        assert_eq!(
            Value::Object(all.host),
            json!({ "RestartPolicy": { "Name": "always" }, "Ulimits": core })
        );
        assert_eq!((all.network, all.stop_grace_s, ignored.len()), (Network::Default, 10, 0));
        let (all, _) = of("ulimits: {core: 1}\nnetwork_mode: service:a\nrestart: 'no'").unwrap();
        assert_eq!(all.host["Ulimits"], json!([{ "Name": "core", "Soft": 1, "Hard": 1 }]));
        assert_eq!(
            (all.network, &all.host["RestartPolicy"]["Name"]),
            (Network::Service("a".into()), &json!("no"))
        );
    }

    #[test]
    fn mistakes_name_field_and_line() {
        for (text, expected) in [
            ("\nprivileged: yes", "privileged: line 2: expected true or false"),
            ("mem_limit: lots", "mem_limit: line 1: expected a size"),
            ("pids_limit: 1.5", "pids_limit: line 1: expected a whole number"),
            ("command: \"a 'b\"", "command: line 1: a quote is not closed"),
            ("ports: [a]", "ports: line 1: \"a\": expected [[IP:]HOST:]"),
            ("ports: [{target: 80}]", "ports: line 1: expected text"),
            ("devices: [tty]", "devices: line 1: \"tty\": expected /dev/HOST"),
            ("restart: often", "restart: line 1: \"often\": expected no, always"),
            ("network_mode: container:x", "network_mode: line 1: \"container:x\": expected bridge, host"),
            ("network_mode: host\nnetworks: [a]", "networks and network_mode exclude each other"),
            ("volumes: ['a:b']", "volumes: line 1: \"a:b\": expected VOLUME:/PATH"),
            ("healthcheck: {every: 1s}", "healthcheck: line 1: every is not known"),
            ("depends_on: {a: {condition: service_gone}}", "depends_on: line 1: \"service_gone\": expected"),
            ("ulimits: {a: {soft: 1}}", "ulimits: line 1: expected soft and hard"),
            ("environment: {A: '${B}'}", "environment: line 1: variables are not replaced here"),
            ("cpus: many", "cpus: line 1: \"many\": expected a number of CPUs"),
            ("stop_grace_period: 10", "stop_grace_period: line 1: \"10\": expected a duration"),
        ] {
            let e = of(text).unwrap_err().to_string();
            assert!(e.contains(expected), "{text:?}: {e}");
        }
    }
}
