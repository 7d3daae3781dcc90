//! `twinhull supervisor`

use serde_json::json;

use super::supervisor_update::{self, Wanted};
use crate::cli::{Command, Context, usage};
use crate::config::Settings;
use crate::engine::supervisor::{self, Record, SupervisorHealth};
use crate::engine::{Container, Engine};
use crate::sys::termination::Termination;
use crate::{Error, Result, sys};

pub(super) const COMMAND: Command = Command {
    name: "supervisor",
    summary: "keep the supervisor container running, update or show it",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull supervisor: keep the supervisor container running, update or show it

Usage: twinhull supervisor run
       twinhull supervisor status [--json]
       twinhull supervisor update [IMAGE] [--from ARCHIVE] [--version V]
       twinhull supervisor rollback
       twinhull supervisor logs [--follow] [--lines N]

run       Stays, as a systemd service of Type=notify: waits for the container engine, loads the supervisor's
          image from the archives (supervisor.archives) if the engine lacks it, and keeps the container
          balena_supervisor as balenaOS would have made it: kept, started, or replaced where it differs. A
          container that ends is started again, ever more slowly in a crash loop (1 s to 60 s; ten good minutes
          end it). One that its image's HEALTHCHECK calls unhealthy for supervisor.unhealthy_s is started again.
          An engine that hangs or goes away is waited for, and asked to be started again (`twinhull engine --help`). READY=1 is sent when the container runs, WATCHDOG=1
          while it works, so the unit wants TimeoutStartSec=infinity and WatchdogSec=180. SIGTERM stops the
          container, killed after 10 s, and ends with 0.

status    Says whether the container runs, how healthy it is, from which image, how often it was started again
          since boot, how the last update ended, what keeps it from running, and what it last printed if
          something is wrong. Exit 0 if it runs and is not known to be unhealthy, else 1.

update    Another supervisor: IMAGE (NAME:TAG or NAME@sha256:..), by default the one that the OS image names
          (supervisor.default_conf). While the old one runs on, the image is taken from --from ARCHIVE (`docker
          save`, *.tar or *.tar.zst), from what the engine has, or is pulled; logins of registries are in the
          file engine.registry_auth (what `docker login` writes), and deviceApiKey is the one for
          registryEndpoint of config.json. Then `supervisor run` stops the old container, sets it aside and tries
          the new one. It is kept once it was healthy for supervisor.update_settle_s: then, and in one write,
          supervisor.conf names it. If it is unhealthy, ends three times, cannot be started, or is not healthy within
          supervisor.update_deadline_s, the old container returns; so it does after a power cut. Exit 0 if the
          new one is kept, 1 if not. --version is what supervisor.conf says of it (default: the tag, if it is a version).

rollback  The same, with the supervisor from before the last update, or else the OS image's own.

logs      What the container printed; --follow goes on until it ends, --lines N begins N lines before the end.

Which image: SUPERVISOR_IMAGE in the file that the setting supervisor.conf names, or in supervisor.default_conf if
that is missing or damaged or its image is nowhere to be had.

With --json, update and rollback print lines: {event: load|pull|trial|end, ..}; the last has outcome: kept, went-back or
unchanged, and why.

  twinhull supervisor update registry.example.com/supervisor:18.2.3
  twinhull supervisor update --from /mnt/data/supervisor-18.2.3.tar.zst
";

/// Of the container's own output, shown where something is wrong.
const LAST_LINES: u8 = 5;

/// What was typed.
#[derive(Default)]
struct Args {
    words: Vec<String>,
    wanted: Wanted,
    follow: bool,
    lines: Option<u32>,
    /// The first option; only some words take any.
    option: Option<String>,
}

impl Args {
    fn parse(mut parser: lexopt::Parser) -> Result<Self> {
        use lexopt::prelude::*;
        let wrong = usage("supervisor");
        let mut args = Self::default();
        while let Some(arg) = parser.next().map_err(&wrong)? {
            if let Long(name) = &arg {
                args.option.get_or_insert((*name).to_owned());
            }
            match arg {
                Value(word) => args.words.push(word.to_string_lossy().into_owned()),
                Long("from") => args.wanted.from = Some(parser.value().map_err(&wrong)?.into()),
                Long("version") => {
                    let version = parser.value().and_then(|v| v.string()).map_err(&wrong)?;
                    if !version.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c)) {
                        return Err(Error::usage(format!(
                            "supervisor update: --version {version:?}: no version"
                        )));
                    }
                    args.wanted.version = Some(version);
                }
                Long("follow") => args.follow = true,
                Long("lines") => args.lines = Some(parser.value().and_then(|v| v.parse()).map_err(&wrong)?),
                _ => return Err(wrong(arg.unexpected())),
            }
        }
        Ok(args)
    }
}

fn run(parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let mut args = Args::parse(parser)?;
    let words: Vec<_> = args.words.iter().map(String::as_str).collect();
    let is_its_option = |all: &[&str]| args.option.as_deref().is_none_or(|option| all.contains(&option));
    match words.as_slice() {
        ["run"] if is_its_option(&[]) => watch(context),
        ["status"] if is_its_option(&[]) => status(context),
        ["rollback"] if is_its_option(&[]) => supervisor_update::rollback(context),
        ["logs"] if is_its_option(&["follow", "lines"]) => {
            supervisor_update::logs(context, args.lines, args.follow)
        }
        ["update"] | ["update", _] if is_its_option(&["from", "version"]) => {
            args.wanted.image = words.get(1).map(|image| (*image).to_owned());
            supervisor_update::update(context, args.wanted)
        }
        [] => Err(Error::usage(
            "supervisor: run, status, update, rollback or logs? See `twinhull supervisor --help`",
        )),
        [first @ ("run" | "status" | "update" | "rollback" | "logs"), ..] => Err(Error::usage(format!(
            "supervisor {first}: a word or option that it does not take; see `twinhull supervisor --help`"
        ))),
        [first, ..] => {
            Err(Error::usage(format!("supervisor: no command {first:?}; see `twinhull supervisor --help`")))
        }
    }
}

fn watch(context: &Context) -> Result<u8> {
    // First of all, so that a request to end is never lost.
    let termination = Termination::catch()?;
    let settings = context.settings()?;
    if !settings.supervisor.enabled || !settings.engine.enabled {
        sys::notify::notify("READY=1");
        log::info!("supervisor: none belongs on this host (supervisor.enabled or engine.enabled is false)");
        return Ok(0);
    }
    supervisor::watch(&settings, &context.root, &termination)?;
    Ok(0)
}

/// The supervisor as it was found.
enum Found {
    /// None belongs on this host.
    Disabled,
    /// The engine does not tell.
    Unknown(Error, Record),
    /// The container, or that there is none.
    Container(Box<Looked>, Record),
}

struct Looked {
    engine: Engine,
    container: Option<Container>,
    health: SupervisorHealth,
    /// The container's last lines of output; empty if all is well.
    words: String,
}

fn is_well(health: &SupervisorHealth) -> bool {
    health.is_good() || *health == SupervisorHealth::Starting
}

const DISABLED: &str = "none belongs on this host (supervisor.enabled or engine.enabled is false)";

fn find(context: &Context, settings: &Settings) -> Result<Found> {
    if !settings.supervisor.enabled || !settings.engine.enabled {
        return Ok(Found::Disabled);
    }
    let record = Record::load(&context.root)?;
    let looked = Engine::connect(&settings.engine, &context.root).and_then(|engine| {
        let container = engine.container(supervisor::NAME)?;
        let health = SupervisorHealth::of(container.as_ref());
        // Only of use where something is wrong.
        let words =
            if is_well(&health) { String::new() } else { engine.last_words(supervisor::NAME, LAST_LINES)? };
        Ok(Box::new(Looked { engine, container, health, words }))
    });
    Ok(match looked {
        Ok(found) => Found::Container(found, record),
        Err(e) => Found::Unknown(e, record),
    })
}

impl Found {
    fn json(&self) -> serde_json::Value {
        match self {
            Self::Disabled => json!({ "enabled": false }),
            Self::Unknown(e, record) => {
                json!({ "enabled": true, "state": "unknown", "error": e.to_string(), "watcher": record })
            }
            Self::Container(looked, record) => looked.json(record),
        }
    }
}

/// One line and the JSON object for `twinhull status`.
pub(super) fn report(context: &Context, settings: &Settings) -> (String, serde_json::Value) {
    match find(context, settings) {
        Ok(found) => {
            let line = match &found {
                Found::Disabled => DISABLED.to_owned(),
                Found::Unknown(e, _) => format!("unknown: {e}"),
                Found::Container(looked, _) => looked.health.to_string(),
            };
            (line, found.json())
        }
        Err(e) => {
            (format!("unknown: {e}"), json!({ "enabled": true, "state": "unknown", "error": e.to_string() }))
        }
    }
}

fn status(context: &Context) -> Result<u8> {
    let found = find(context, &context.settings()?)?;
    if context.json {
        sys::out::line(&found.json().to_string());
    }
    match found {
        Found::Disabled if context.json => Ok(0),
        Found::Disabled => {
            sys::out::line(&format!("supervisor: {DISABLED}"));
            Ok(0)
        }
        Found::Unknown(..) if context.json => Ok(1),
        Found::Unknown(e, _) => Err(e.within("supervisor status")),
        Found::Container(looked, record) => {
            if !context.json {
                sys::out::line(&looked.text(&record));
            }
            Ok(u8::from(!is_well(&looked.health)))
        }
    }
}

impl Looked {
    fn json(&self, record: &Record) -> serde_json::Value {
        json!({
            "enabled": true,
            "state": self.health.word(),
            "detail": self.health.to_string(),
            "container": self.container.as_ref().map(|c| json!({
                "id": c.id,
                "image": c.config.image,
                "image_id": c.image,
                "started_at": c.state.started_at,
                "exit_code": c.state.exit_code,
                "oom_killed": c.state.oom_killed,
            })),
            "engine": {
                "version": self.engine.version(),
                "api": self.engine.api().to_string(),
                "socket": self.engine.socket().display().to_string(),
            },
            "watcher": record,
            "last_words": self.words,
        })
    }

    fn text(&self, record: &Record) -> String {
        let mut text = format!("supervisor:  {}\n", self.health);
        if let Some(c) = &self.container {
            let oom = if c.state.oom_killed { " (killed: out of memory)" } else { "" };
            text.push_str(&format!(
                "container:   {} {}{oom}\n",
                supervisor::NAME,
                c.id.get(..12).unwrap_or(&c.id)
            ));
            text.push_str(&format!("image:       {} ({})\n", c.config.image, c.image));
        }
        let (version, api, socket) =
            (self.engine.version(), self.engine.api(), self.engine.socket().display());
        text.push_str(&format!("engine:      {version} (API {api}) at {socket}\n"));
        text.push_str(&format!("restarts:    {} since boot", record.restarts));
        if let Some(why) = &record.last_restart {
            text.push_str(&format!(", the last: {why}"));
        }
        if record.engine_restarts > 0 {
            text.push_str(&format!(
                "\nengine:      asked to be started again {} times",
                record.engine_restarts
            ));
        }
        if let Some(update) = &record.update {
            let (tried, before) = (&update.tried.image, &update.before.image);
            text.push_str(&match &update.went_back {
                None => format!("\nupdate:      {tried} was kept; before it {before}"),
                Some(why) => format!("\nupdate:      {tried} failed: {why}; {before} runs again"),
            });
        }
        if let Some(trouble) = &record.trouble {
            text.push_str(&format!("\ntrouble:     {trouble}"));
        }
        if !self.words.is_empty() {
            text.push_str(&format!("\nlast words:  {}", self.words.replace('\n', "\n             ")));
        }
        text
    }
}
