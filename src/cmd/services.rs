//! `twinhull services`

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::fetching::Fetching;
use super::{contracts, features, services_show};
use crate::cli::{Command, Context, usage};
use crate::compose::{Composition, Definition};
use crate::config::Settings;
use crate::contract::unmet;
use crate::engine::{Engine, Sources, archive};
use crate::feature::host;
use crate::services::record::{Entry, Record};
use crate::services::{App, Application, Report, down, up};
use crate::sys::lock::{Lock, try_lock};
use crate::{Doing, Error, Kind, Result, sys};

pub(super) const COMMAND: Command = Command {
    name: "services",
    summary: "run a Compose application on a device without a cloud",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull services: run a Compose application on a device without a cloud

Usage: twinhull services up -f FILE [--name APP] [--images DIR] [--pull] [--force]
       twinhull services up --all
       twinhull services down -f FILE | --name APP [--force]
       twinhull services ps -f FILE | --name APP
       twinhull services logs -f FILE | --name APP [SERVICE ..] [--follow] [--lines N]

up     Makes the engine hold what FILE (docker-compose.yml, version 2.1 to 2.4) says. A service that did not change is
       not touched: its container keeps its id. The others are created, started or replaced, each after those that
       it needs; services that are not in the file any more are removed, and images that nothing uses. The file is
       remembered: twinhull-services.service runs `up --all` at boot.
       Exit 3, with nothing touched, if the device does not meet what a service requires (`twinhull contracts
       --help`; optional services are left out), or a service holds an update lock, unless --force.
       Images come from the engine, from the archives (`docker save`: *.tar, *.tar.zst) in --images DIR (default:
       the directory `images` beside FILE), or by pull; --pull asks anew for those that the engine has.

down   Removes containers and networks. Volumes stay, always.
ps     Which container each service has, and how it does.
logs   What the services print; with more than one, the service's name comes before each line.

APP is by default the name of the directory that FILE is in; containers, volumes and networks are called APP_NAME. A
service that is alone has the volume APP_resin-data in /data. io.balena.features.* labels give what they give on
balenaOS (`twinhull features --help`), but for supervisor-api; bind mounts are refused, but for those that stand for
a label. Fields that are not known are ignored, and named; `build` is ignored: images are built elsewhere.

How a container is replaced says the label io.balena.update.strategy:
  download-then-kill     the image first, then the old container ends and the new one starts (default)
  kill-then-download     the old container is removed first
  delete-then-download   and so is its image
  hand-over              the new one starts beside the old one, which ends when the new one makes the file
                         /tmp/balena/handover-complete, or after io.balena.update.handover-timeout ms (60000)
A service that makes the file /tmp/balena/updates.lock is not replaced while it is there.

With --json, up prints lines {event: load|pull|end, ..}; the last has services: [{service, action}], with action kept,
started, created or replaced, and removed, left_out. ps: [{service, container, image, state, status}].

  twinhull services up -f /mnt/data/weather/docker-compose.yml
  twinhull services logs --name weather --follow
";

#[derive(Default)]
struct Args {
    verb: String,
    file: Option<PathBuf>,
    name: Option<String>,
    images: Option<PathBuf>,
    services: Vec<String>,
    lines: Option<u32>,
    flags: BTreeSet<&'static str>,
}

/// Which options each verb takes, besides `-f` and `--name`.
const TAKES: [(&str, &[&str]); 4] = [
    ("up", &["all", "images", "pull", "force"]),
    ("down", &["force"]),
    ("ps", &[]),
    ("logs", &["follow", "lines", "service"]),
];

impl Args {
    fn parse(mut parser: lexopt::Parser) -> Result<Self> {
        use lexopt::prelude::*;
        let wrong = usage("services");
        let mut args = Self::default();
        let mut given = BTreeSet::new();
        while let Some(arg) = parser.next().map_err(&wrong)? {
            match arg {
                Value(word) if args.verb.is_empty() => args.verb = word.string().map_err(&wrong)?,
                Value(word) => {
                    given.insert("service");
                    args.services.push(word.string().map_err(&wrong)?);
                }
                Short('f') | Long("file") => args.file = Some(parser.value().map_err(&wrong)?.into()),
                Long("name") => args.name = Some(parser.value().and_then(|v| v.string()).map_err(&wrong)?),
                Long("images") => {
                    given.insert("images");
                    args.images = Some(parser.value().map_err(&wrong)?.into());
                }
                Long("lines") => {
                    given.insert("lines");
                    args.lines = Some(parser.value().and_then(|v| v.parse()).map_err(&wrong)?);
                }
                Long(flag) => match ["all", "pull", "force", "follow"].into_iter().find(|f| *f == flag) {
                    Some(flag) => {
                        given.insert(flag);
                        args.flags.insert(flag);
                    }
                    None => return Err(wrong(Long(flag).unexpected())),
                },
                _ => return Err(wrong(arg.unexpected())),
            }
        }
        args.check(&given)?;
        Ok(args)
    }

    fn check(&self, given: &BTreeSet<&str>) -> Result<()> {
        let verb = self.verb.as_str();
        if verb.is_empty() {
            return Err(Error::usage("services: up, down, ps or logs? See `twinhull services --help`"));
        }
        let Some((_, takes)) = TAKES.iter().find(|(name, _)| *name == verb) else {
            return Err(Error::usage(format!(
                "services: no command {verb:?}; see `twinhull services --help`"
            )));
        };
        if let Some(odd) = given.iter().find(|option| !takes.contains(option)) {
            return Err(Error::usage(format!(
                "services {verb}: takes no {odd}; see `twinhull services --help`"
            )));
        }
        let (has_file, has_name) = (self.file.is_some(), self.name.is_some());
        let all = self.flags.contains("all");
        let wrong = match verb {
            "up" if all && (has_file || has_name || self.images.is_some()) => "--all takes no application",
            "up" if !all && !has_file => "which application? Give -f FILE",
            "down" | "ps" | "logs" if !has_file && !has_name => {
                "which application? Give -f FILE or --name APP"
            }
            _ => return Ok(()),
        };
        Err(Error::usage(format!("services {verb}: {wrong}")))
    }

    fn app(&self) -> Result<App> {
        match (&self.name, &self.file) {
            (Some(name), _) => App::named(name),
            (None, Some(file)) => App::of_file(file),
            (None, None) => Err(Error::usage("services: which application? Give -f FILE or --name APP")),
        }
    }
}

fn run(parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let args = Args::parse(parser)?;
    let settings = context.settings()?;
    if !settings.engine.enabled {
        return Err(Error::refused("services: this host runs no containers (engine.enabled is false)"));
    }
    let _lock = match args.verb.as_str() {
        "up" | "down" => Some(one_at_a_time(context)?),
        _ => None,
    };
    match args.verb.as_str() {
        "up" if args.flags.contains("all") => up_all(context, &settings),
        "up" => {
            let file = args.file.clone().unwrap_or_default();
            // Remembered for the boot, where no working directory is the same.
            let entry = Entry { file: sys::file::without_links(&file), images: args.images.clone() };
            up_one(context, &settings, &args, args.app()?, entry)
        }
        "down" => {
            let app = args.app()?;
            let engine = Engine::connect(&settings.engine, &context.root)?;
            // First, so that a cut leaves nothing that the boot would start again.
            Record::remove(&context.root, &app)?;
            let removed = down(&app, &engine, &context.root, args.flags.contains("force"))?;
            if context.json {
                sys::out::line(&json!({ "event": "end", "removed": removed }).to_string());
            } else if removed.is_empty() {
                sys::out::line(&format!("{}: nothing runs", app.name()));
            } else {
                sys::out::line(&format!("{}: {} removed; its volumes stay", app.name(), removed.join(", ")));
            }
            Ok(0)
        }
        "ps" => services_show::ps(context, &settings, &args.app()?),
        _ => {
            let follow = args.flags.contains("follow");
            services_show::logs(context, &settings, &args.app()?, &args.services, args.lines, follow)
        }
    }
}

/// What is left of a lock or a change belongs to nobody only while nobody else is at work.
fn one_at_a_time(context: &Context) -> Result<Lock> {
    try_lock(&context.root.path("/run/twinhull/services.lock"))?
        .ok_or_else(|| Error::refused("services: another up or down is at work; wait for its end"))
}

/// Every application that was brought up. One that fails does not keep the others.
fn up_all(context: &Context, settings: &Settings) -> Result<u8> {
    let mut failed = Vec::new();
    for (name, entry) in Record::load(&context.root)?.iter() {
        let done = App::named(name).and_then(|app| {
            let args = Args { verb: "up".into(), ..Args::default() };
            up_one(context, settings, &args, app, entry.clone())
        });
        if let Err(e) = done {
            log::error!("{e}");
            failed.push(name.to_owned());
        }
    }
    if failed.is_empty() { Ok(0) } else { Err(Error::failed(format!("services up: {}", failed.join(", ")))) }
}

fn up_one(context: &Context, settings: &Settings, args: &Args, app: App, entry: Entry) -> Result<u8> {
    let doing = || entry.file.display().to_string();
    let composition = Composition::load(&entry.file)?;
    let left_out = contracts_met(context, settings, &entry.file)?;
    let services = definitions(&composition, &left_out).doing(doing)?;
    let application = Application {
        app,
        services,
        left_out,
        networks: composition.networks.clone(),
        volumes: composition.volumes.clone(),
        facts: features::facts_of_services(context, settings),
        device: device(context, settings)?,
        force: args.flags.contains("force"),
    };
    let engine = Engine::connect(&settings.engine, &context.root)?;
    host::make(&context.root, engine.socket())?;

    let beside = entry.file.parent().map(|dir| dir.join("images"));
    let archives = match entry.images.as_ref().or(beside.as_ref()) {
        Some(dir) => archive::list(dir)?,
        None => Vec::new(),
    };
    let mut sources = Sources::new(settings, &context.root, archives);
    sources.anew = args.flags.contains("pull");
    let mut fetching: Option<(String, Fetching)> = None;
    let report = up(&application, &engine, &context.root, &mut sources, &mut |image, progress| {
        if fetching.as_ref().is_none_or(|(name, _)| name != image) {
            fetching = Some((image.to_owned(), Fetching::new(context.json, image)));
        }
        if let Some((_, fetching)) = &mut fetching {
            fetching.show(progress);
        }
    });
    drop(fetching);
    let report = report.doing(doing)?;
    Record::set(&context.root, &application.app, entry)?;
    show(context, &application, &report);
    Ok(0)
}

/// The optional services that this device cannot run.
fn contracts_met(context: &Context, settings: &Settings, file: &Path) -> Result<BTreeSet<String>> {
    let services = contracts::services(file)?;
    let unmet = unmet(&services, &contracts::of_device(&context.root, settings)?);
    let told = |u: &crate::contract::Unmet| {
        let lacks: Vec<_> = u.lacks.iter().map(|l| l.describe("this device")).collect();
        format!("service {} {}", u.service, lacks.join(" and "))
    };
    let refused: Vec<_> = unmet.iter().filter(|u| !u.optional).map(told).collect();
    if !refused.is_empty() {
        return Err(Error::new(Kind::Refused, refused.join("; ")).within(file.display().to_string()));
    }
    for left_out in &unmet {
        log::warn!("{}; it is optional, and left out", told(left_out));
    }
    Ok(unmet.into_iter().map(|u| u.service).collect())
}

/// What each service runs as.
fn definitions<'a>(
    composition: &'a Composition,
    left_out: &BTreeSet<String>,
) -> Result<Vec<(&'a crate::compose::Service, Definition)>> {
    let mut all = Vec::new();
    for service in composition.services.iter().filter(|s| !left_out.contains(&s.name)) {
        let doing = || format!("service {}", service.name);
        let (definition, ignored) = Definition::of(&service.node).doing(doing)?;
        if !ignored.is_empty() {
            log::warn!("service {}: not supported here, and ignored: {}", service.name, ignored.join(", "));
        }
        if !service.refused_binds.is_empty() {
            return Err(Error::refused(format!(
                "service {}: bind mounts are not given: {}; use a named volume, or a label (`twinhull features list`)",
                service.name,
                service.refused_binds.join(", ")
            )));
        }
        all.push((service, definition));
    }
    Ok(all)
}

/// What every service is told of its device.
fn device(context: &Context, settings: &Settings) -> Result<Vec<(String, String)>> {
    let facts = contracts::of_device(&context.root, settings)?;
    let uuid = features::config_json(context, settings).and_then(|c| c.uuid().ok().flatten());
    let os = facts.os.map(|os| format!("{} {}", os.slug, os.version));
    let all = [
        ("DEVICE_UUID", uuid),
        ("DEVICE_TYPE", facts.device_type),
        ("DEVICE_ARCH", facts.arch),
        ("HOST_OS_VERSION", os),
    ];
    Ok(all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect())
}

fn show(context: &Context, application: &Application<'_>, report: &Report) {
    if context.json {
        let services = report.services.iter().map(|(s, a)| json!({ "service": s, "action": a.word() }));
        let line = json!({ "event": "end", "app": application.app.name(),
            "services": services.collect::<serde_json::Value>(), "removed": report.removed,
            "left_out": application.left_out });
        return sys::out::line(&line.to_string());
    }
    let words: Vec<_> = report.services.iter().map(|(s, a)| format!("{s} {}", a.word())).collect();
    sys::out::line(&format!("{}: {}", application.app.name(), words.join(", ")));
}
