//! `twinhull features`

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cli::{Command, Context, usage};
use crate::compose::{Composition, Service};
use crate::config::{ConfigJson, Settings};
use crate::engine::Engine;
use crate::feature::grant::Own;
use crate::feature::host::{Host, Part};
use crate::feature::{Facts, Feature, Labels, SupervisorApi, grant, label};
use crate::{Doing, Error, Result, sys};

pub(super) const COMMAND: Command = Command {
    name: "features",
    summary: "what containers can be given of this host by io.balena.features.* labels",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull features: what containers can be given of this host by io.balena.features.* labels

Usage: twinhull features list
       twinhull features check [--compose FILE [--service NAME]]
       twinhull features resolve --compose FILE [--service NAME]
       twinhull features resolve --label NAME=VALUE …

list     Every label: what it gives a container, and whether this host can give it, or why not.

check    What stands behind the labels on this host, part by part: sockets, directories, machine id, os-release,
         device-type.json. What is ours to make (the engine's names in /run) `twinhull supervisor run` makes.
         Exit 1 if something is missing that every host should have. With --compose: only what the services ask for,
         and exit 1 if this host cannot give it.

resolve  The fields of the engine's POST /containers/create that a service of a Compose file, or a container with these
         labels, gets on this host, in the engine API's own names. With one --service, or --label: the fields; else an
         object of them by service. NAME may be a feature's alone (dbus), and lack =VALUE (then 1).
         The image's own labels lie under those of the file, if the engine has the image. Old names
         (io.resin.features.*) count; true is 1, true or on, and nothing else. Bind mounts of a Compose file are not
         given, but for those that stand for a label (/run/dbus, /sys, …). Keys of APIs are shown as <…>: the
         supervisor makes them, or config.json holds them.

With --json, list: [{label, gives, available, detail}]; check: [{name, label, ok, expected, detail}], and with --compose
[{service, label, ok, detail}].

  twinhull features resolve --label dbus --label io.balena.features.sysfs=true
  twinhull features check --compose docker-compose.yml
";

/// Where the supervisor, and so each release, knows the engine.
const ENGINE_SOCKET: &str = "/var/run/balena-engine.sock";
const SUPERVISOR_PORT: &str = "48484";

#[derive(Default)]
struct Args {
    verb: Option<String>,
    labels: Labels,
    compose: Option<PathBuf>,
    service: Option<String>,
}

impl Args {
    fn parse(mut parser: lexopt::Parser) -> Result<Self> {
        use lexopt::prelude::*;
        let mut args = Self::default();
        while let Some(arg) = parser.next().map_err(usage("features"))? {
            match arg {
                Value(word) if args.verb.is_none() => {
                    args.verb = Some(word.string().map_err(usage("features"))?);
                }
                Long("compose") => args.compose = Some(parser.value().map_err(usage("features"))?.into()),
                Long("service") => {
                    args.service = Some(parser.value().and_then(|v| v.string()).map_err(usage("features"))?);
                }
                Long("label") => {
                    let text = parser.value().and_then(|v| v.string()).map_err(usage("features"))?;
                    let (name, value) = parse_label(&text)?;
                    args.labels.insert(name, value);
                }
                _ => return Err(usage("features")(arg.unexpected())),
            }
        }
        if args.service.is_some() && args.compose.is_none() {
            return Err(Error::usage("features: --service needs --compose FILE"));
        }
        Ok(args)
    }
}

fn run(parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let args = Args::parse(parser)?;
    match (args.verb.as_deref(), &args.compose, args.labels.is_empty()) {
        (Some("list"), None, true) => list(context),
        (Some("check"), None, true) => check(context),
        (Some("check"), Some(file), true) => check_services(context, file, args.service.as_deref()),
        (Some("resolve"), None, false) => resolve_labels(context, &args.labels),
        (Some("resolve"), Some(file), true) => resolve_services(context, file, args.service.as_deref()),
        (Some("resolve"), ..) => Err(Error::usage(
            "features resolve: either --compose FILE or --label NAME=VALUE; see `twinhull features --help`",
        )),
        (Some(verb @ ("list" | "check")), ..) => Err(Error::usage(format!(
            "features {verb}: an option that it does not take; see `twinhull features --help`"
        ))),
        (Some(other), ..) => {
            Err(Error::usage(format!("features: no command {other:?}; see `twinhull features --help`")))
        }
        (None, ..) => Err(Error::usage("features: list, check or resolve? See `twinhull features --help`")),
    }
}

/// `NAME=VALUE`; a feature's name stands for its label, and no value is 1.
fn parse_label(text: &str) -> Result<(String, String)> {
    let (name, value) = text.split_once('=').unwrap_or((text, "1"));
    let name = match Feature::ALL.iter().find(|f| f.name() == name) {
        Some(feature) => feature.label(),
        None if name.contains('.') => name.to_owned(),
        None => {
            return Err(Error::usage(format!(
                "features: no feature {name:?}; `twinhull features list` names them"
            )));
        }
    };
    Ok((name, value.to_owned()))
}

fn look(context: &Context, settings: &Settings) -> Vec<Part> {
    host(context, settings, cloud_api(context, settings).is_some()).look()
}

fn host<'a>(context: &'a Context, settings: &'a Settings, cloud_api: bool) -> Host<'a> {
    Host {
        root: &context.root,
        device_type_json: &settings.provision.device_type_json,
        supervisor: settings.supervisor.enabled && settings.engine.enabled,
        cloud_api,
    }
}

pub(super) fn config_json(context: &Context, settings: &Settings) -> Option<ConfigJson> {
    // What cannot be read is told by `status`; here it only means that nothing is known.
    ConfigJson::peek(&context.root, &settings.provision.config_json).ok().flatten()
}

/// Address and key of the cloud API.
fn cloud_api(context: &Context, settings: &Settings) -> Option<(String, String)> {
    let config = config_json(context, settings)?;
    Some((config.api_endpoint().ok()??, config.device_api_key().ok()??))
}

fn list(context: &Context) -> Result<u8> {
    let parts = look(context, &context.settings()?);
    let features = parts.iter().filter_map(|p| p.feature.map(|f| (f, p)));
    if context.json {
        let rows: Vec<_> = features
            .map(|(f, p)| json!({ "label": f.label(), "gives": f.gives(), "available": p.ok, "detail": p.text }))
            .collect();
        sys::out::line(&Value::Array(rows).to_string());
        return Ok(0);
    }
    let mut text = String::new();
    for (feature, part) in features {
        let state = if part.ok { "yes" } else { "no " };
        text.push_str(&format!("{state}  {}\n     gives: {}\n", feature.label(), feature.gives()));
        if !part.ok {
            text.push_str(&format!("     why not: {}\n", part.text));
        }
    }
    text.push_str("\nOther labels:\n");
    for (name, meaning) in label::OTHERS {
        text.push_str(&format!("     {name}: {meaning}\n"));
    }
    sys::out::line(&text);
    Ok(0)
}

fn check(context: &Context) -> Result<u8> {
    let parts = look(context, &context.settings()?);
    if context.json {
        let row = |p: &Part| {
            let label = p.feature.map(Feature::label);
            json!({ "name": p.name, "label": label, "ok": p.ok, "expected": p.expected, "detail": p.text })
        };
        sys::out::line(&parts.iter().map(row).collect::<Value>().to_string());
    } else {
        for p in &parts {
            let state = match (p.ok, p.expected) {
                (true, _) => "ok",
                (false, true) => "MISSING",
                (false, false) => "not here",
            };
            sys::out::line(&format!("{state:<9} {:<18} {}", p.name, p.text));
        }
    }
    Ok(u8::from(parts.iter().any(|p| p.expected && !p.ok)))
}

/// What of this device goes into the grants. Keys are not shown.
fn facts(context: &Context, settings: &Settings) -> Facts {
    let cloud_api = cloud_api(context, settings).map(|(url, _)| (url, "<deviceApiKey>".to_owned()));
    let host = host(context, settings, cloud_api.is_some());
    let [has_modules, has_firmware] = host.has_modules_and_firmware();
    let port = config_json(context, settings).and_then(|c| c.value("listenPort")).and_then(|v| match v {
        Value::String(s) => Some(s).filter(|s| !s.is_empty()),
        other => other.as_u64().map(|n| n.to_string()),
    });
    let supervisor_api = host.supervisor.then(|| SupervisorApi {
        port: port.unwrap_or_else(|| SUPERVISOR_PORT.into()),
        key: "<made by the supervisor>".into(),
    });
    Facts {
        engine_socket: ENGINE_SOCKET.into(),
        has_modules,
        has_firmware,
        supervisor_api,
        cloud_api,
        board_rev: host.os_release().board_rev().map(str::to_owned),
    }
}

/// What of this device goes into the grants of services that no supervisor looks after: its own keys, and no supervisor's.
pub(super) fn facts_of_services(context: &Context, settings: &Settings) -> Facts {
    Facts {
        engine_socket: context.root.path(ENGINE_SOCKET).display().to_string(),
        supervisor_api: None,
        cloud_api: cloud_api(context, settings),
        ..facts(context, settings)
    }
}

/// A service's labels, those of its image under them, with today's names.
fn labels_of(service: &Service, engine: Option<&Engine>) -> Result<Labels> {
    let image = match (&service.image, engine) {
        (Some(name), Some(engine)) => engine.image(name)?,
        _ => None,
    };
    if let (Some(name), None) = (&service.image, &image) {
        log::warn!(
            "service {}: the engine has no image {name}, so its own labels are not known",
            service.name
        );
    }
    let labels = label::of_container(&service.labels, &image.map_or_else(Labels::new, |i| i.config.labels));
    for name in label::unknown(&labels) {
        log::warn!("service {}: {name} is no feature; `twinhull features list` names them", service.name);
    }
    if !service.refused_binds.is_empty() {
        let all = service.refused_binds.join(", ");
        log::warn!(
            "service {}: bind mounts are not given: {all}; `twinhull features list` shows what is",
            service.name
        );
    }
    Ok(labels)
}

/// The engine, if it is there to be asked about images.
fn engine(context: &Context, settings: &Settings) -> Option<Engine> {
    if !settings.engine.enabled {
        return None;
    }
    Engine::connect(&settings.engine, &context.root).inspect_err(|e| log::debug!("{e}")).ok()
}

fn check_services(context: &Context, file: &Path, name: Option<&str>) -> Result<u8> {
    let settings = context.settings()?;
    let composition = Composition::load(file)?;
    let (parts, engine) = (look(context, &settings), engine(context, &settings));
    let (mut rows, mut missing) = (Vec::new(), false);
    for service in composition.select(name).doing(|| file.display().to_string())? {
        for feature in label::features(&labels_of(service, engine.as_ref())?) {
            let Some(part) = parts.iter().find(|p| p.feature == Some(feature)) else { continue };
            missing |= !part.ok;
            if !context.json {
                let state = if part.ok { "ok" } else { "MISSING" };
                sys::out::line(&format!("{state:<9} {:<18} {:<18} {}", service.name, part.name, part.text));
            }
            rows.push(json!({
                "service": service.name, "label": feature.label(), "ok": part.ok, "detail": part.text,
            }));
        }
    }
    if context.json {
        sys::out::line(&Value::Array(rows).to_string());
    }
    Ok(u8::from(missing))
}

fn resolve_services(context: &Context, file: &Path, name: Option<&str>) -> Result<u8> {
    let settings = context.settings()?;
    let composition = Composition::load(file)?;
    let (facts, engine) = (facts(context, &settings), engine(context, &settings));
    let mut all = serde_json::Map::new();
    for service in composition.select(name).doing(|| file.display().to_string())? {
        let labels = labels_of(service, engine.as_ref())?;
        let fields = grant(&labels, &service.own, &facts).create_fields();
        if name.is_some() {
            return Ok(show(context, &fields));
        }
        all.insert(service.name.clone(), fields);
    }
    Ok(show(context, &Value::Object(all)))
}

fn resolve_labels(context: &Context, labels: &Labels) -> Result<u8> {
    let labels = label::normalize(labels);
    for name in label::unknown(&labels) {
        log::warn!("{name} is no feature; `twinhull features list` names them");
    }
    let facts = facts(context, &context.settings()?);
    Ok(show(context, &grant(&labels, &Own::default(), &facts).create_fields()))
}

fn show(context: &Context, fields: &Value) -> u8 {
    sys::out::line(&if context.json { fields.to_string() } else { format!("{fields:#}") });
    0
}
