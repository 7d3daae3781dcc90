//! `twinhull contracts`

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cli::{Command, Context, usage};
use crate::compose::{self, Composition};
use crate::config::Settings;
use crate::contract::{Facts, Requirement, Service, Unmet, unmet};
use crate::engine::supervisor::Conf;
use crate::feature::label;
use crate::model::device::arch;
use crate::{Doing, Error, Kind, Result, Root, provision, sys};

pub(super) const COMMAND: Command = Command {
    name: "contracts",
    summary: "whether a device meets what the services of a release require",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull contracts: whether a device meets what the services of a release require

Usage: twinhull contracts check --compose FILE [--facts FILE]
       twinhull contracts facts

check  Judges every requirement of every service as the device's supervisor does, and tells all that are not met.
       Requirements are labels (io.balena.features.requires.sw.supervisor, sw.l4t, sw.balena-os, sw.linux: ranges of
       versions; hw.device-type; arch.sw), and contract.yml in the directory that a service is built from: types
       sw.supervisor, sw.l4t, sw.os, sw.kernel, hw.device-type, arch.sw, and `or`. Ranges follow node's semver:
       32.2 is any 32.2.x, build metadata counts for nothing, a pre-release is only in a range that names one.
       A service that is not met makes the device refuse the release, unless it has io.balena.features.optional:
       then it is left out.
       Exit 0 if the release would run, 3 if it would be refused. With --json: {rejected, unmet: [{service, optional,
       requirements: [{requires, found}]}], left_out: [SERVICE ..], facts}.

facts  What this device has, in the form that --facts reads (JSON or YAML), so that a release can be judged elsewhere.

  twinhull contracts facts > nano.json                                          on the device
  twinhull contracts check --compose docker-compose.yml --facts nano.json       at the desk
";

const LIMIT_BYTES: u64 = 256 * 1024;

#[derive(Default)]
struct Args {
    verb: Option<String>,
    compose: Option<PathBuf>,
    facts: Option<PathBuf>,
}

fn run(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    use lexopt::prelude::*;
    let mut args = Args::default();
    while let Some(arg) = parser.next().map_err(usage("contracts"))? {
        match arg {
            Value(word) if args.verb.is_none() => {
                args.verb = Some(word.string().map_err(usage("contracts"))?)
            }
            Long("compose") => args.compose = Some(parser.value().map_err(usage("contracts"))?.into()),
            Long("facts") => args.facts = Some(parser.value().map_err(usage("contracts"))?.into()),
            _ => return Err(usage("contracts")(arg.unexpected())),
        }
    }
    match (args.verb.as_deref(), &args.compose) {
        (Some("check"), Some(file)) => check(context, file, args.facts.as_deref()),
        (Some("check"), None) => Err(Error::usage("contracts check: which release? Give --compose FILE")),
        (Some("facts"), None) if args.facts.is_none() => facts(context),
        (Some("facts"), _) => {
            Err(Error::usage("contracts facts: takes no options; see `twinhull contracts --help`"))
        }
        (Some(other), _) => {
            Err(Error::usage(format!("contracts: no command {other:?}; see `twinhull contracts --help`")))
        }
        (None, _) => Err(Error::usage("contracts: check or facts? See `twinhull contracts --help`")),
    }
}

fn check(context: &Context, file: &Path, facts: Option<&Path>) -> Result<u8> {
    let services = services(file)?;
    let facts = match facts {
        Some(path) => {
            let json = compose::file::load_json(path)?;
            serde_json::from_value(json)
                .map_err(|e| Error::failed(format!("facts {}: {e}", path.display())))?
        }
        None => of_device(&context.root, &context.settings()?)?,
    };
    let unmet = unmet(&services, &facts);
    let rejected = unmet.iter().any(|u| !u.optional);
    if context.json {
        sys::out::line(&verdict_json(&unmet, rejected, &facts).to_string());
    } else {
        sys::out::line(&verdict_text(&services, &unmet, rejected));
    }
    Ok(if rejected { Kind::Refused.exit_code() } else { 0 })
}

/// The services of a Compose file with their requirements.
///
/// # Errors
/// `Failed`, naming the file and the service.
pub(super) fn services(file: &Path) -> Result<Vec<Service>> {
    let read = |service: &compose::Service| -> Result<Service> {
        let mut requires = Requirement::of_labels(&service.labels)?;
        if let Some(contract) = service.contract()? {
            requires.extend(Requirement::of_contract(&contract).doing(|| "contract.yml")?);
        }
        let labels = label::normalize(&service.labels);
        let optional = labels.get(label::OPTIONAL).is_some_and(|v| label::is_true(v));
        Ok(Service { name: service.name.clone(), requires, optional })
    };
    let composition = Composition::load(file)?;
    composition
        .services
        .iter()
        .map(|s| read(s).doing(|| format!("{}: service {}", file.display(), s.name)))
        .collect()
}

fn verdict_json(unmet: &[Unmet], rejected: bool, facts: &Facts) -> Value {
    let row = |u: &Unmet| {
        let lacks =
            u.lacks.iter().map(|l| json!({ "requires": l.requirement.to_string(), "found": l.found }));
        json!({ "service": u.service, "optional": u.optional, "requirements": lacks.collect::<Value>() })
    };
    let left_out: Vec<_> = unmet.iter().filter(|u| u.optional && !rejected).map(|u| &u.service).collect();
    json!({
        "rejected": rejected,
        "unmet": unmet.iter().map(row).collect::<Value>(),
        "left_out": left_out,
        "facts": facts,
    })
}

fn verdict_text(services: &[Service], unmet: &[Unmet], rejected: bool) -> String {
    let mut lines = Vec::new();
    for u in unmet {
        let optional = if u.optional { " (optional)" } else { "" };
        let lacks = u.lacks.iter().map(|l| l.describe("the device"));
        lines.extend(lacks.map(|l| format!("service {}{optional}: {l}", u.service)));
    }
    lines.push(match (rejected, unmet.len()) {
        (true, _) => "the release would be refused as a whole".into(),
        (false, 0) => format!("all {} services would run", services.len()),
        (false, n) => format!(
            "{} of {} services would run; the others are optional",
            services.len() - n,
            services.len()
        ),
    });
    lines.join("\n")
}

fn facts(context: &Context) -> Result<u8> {
    let facts = json!(of_device(&context.root, &context.settings()?)?);
    sys::out::line(&if context.json { facts.to_string() } else { format!("{facts:#}") });
    Ok(0)
}

/// What this device has.
///
/// # Errors
/// `Failed`, naming the file, if one is there and cannot be read. What cannot be told is `None`.
pub(super) fn of_device(root: &Root, settings: &Settings) -> Result<Facts> {
    let unknown = |e: Error| log::debug!("contracts: {e}");
    let conf = Conf::load(&settings.supervisor, root).map_err(unknown).ok();
    let version = conf.and_then(|(found, _)| found.into_iter().map(|c| c.version).find(|v| !v.is_empty()));
    Ok(Facts {
        supervisor: version.map(|v| v.trim_start_matches('v').to_owned()),
        device_type: provision::device_type(root, settings).map_err(unknown).ok(),
        arch: Some(told_arch(root, settings).unwrap_or_else(|| arch().to_owned())),
        ..Facts::of_host(root)?
    })
}

/// `arch` of device-type.json, which the supervisor believes.
fn told_arch(root: &Root, settings: &Settings) -> Option<String> {
    let path = root.path(&settings.provision.device_type_json);
    let json: Value = serde_json::from_slice(&sys::file::read_if_exists(&path, LIMIT_BYTES).ok()??).ok()?;
    json.get("arch")?.as_str().filter(|a| !a.is_empty()).map(str::to_owned)
}
