//! Writing what differs, and telling the units behind it.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::topics::{Action, Facts, File, HOST_NAME, Topic, UDEV_MARK, UDEV_RULES, UNITS, topics};
use crate::config::{ConfigJson, Settings};
use crate::sys::command;
use crate::{Doing, Error, Result, Root, sys};

const LIMIT_BYTES: u64 = 16 * 1024 * 1024;
const DEADLINE: Duration = Duration::from_secs(60);

/// One subject, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The key or keys.
    pub topic: &'static str,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was so already.
    Same,
    /// These files were written or removed, and these units told, in this order.
    Changed {
        /// Paths of the host.
        files: Vec<PathBuf>,
        /// Such as `restart systemd-journald.service`.
        told: Vec<String>,
        /// What could not be done.
        problems: Vec<String>,
    },
    /// The values make no sense, or a file cannot be written.
    Failed(String),
}

/// Makes the files of the host at `root`, and tells its daemons by `run`; `None`: nobody runs there to be told.
pub fn apply(root: &Root, settings: &Settings, config: &ConfigJson, run: Option<&Runner>) -> Vec<Applied> {
    let facts = gather(root, settings);
    let active = OnceCell::new();
    let daemons = run.map(|run| Daemons { run, active: &active });
    let each = topics(config, &facts).into_iter().map(|(name, topic)| {
        let outcome = topic.and_then(|topic| one(root, &topic, daemons.as_ref()));
        Applied { topic: name, outcome: outcome.unwrap_or_else(|e| Outcome::Failed(e.to_string())) }
    });
    each.collect()
}

fn gather(root: &Root, settings: &Settings) -> Facts {
    let bundle = root.path(&settings.provision.ca_bundle);
    let ca_bundle = sys::file::read_if_exists(&bundle, LIMIT_BYTES)
        .inspect_err(|e| log::warn!("{e}; the engine will trust the fleet's own certificates alone"))
        .ok()
        .flatten();
    Facts {
        has_data: root.path("/mnt/data").is_dir(),
        ca_bundle: ca_bundle.map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default(),
        engine_sockets: settings.engine.sockets.clone(),
        udev_rules: own_rules(root),
    }
}

/// The files of udev rules that begin with our mark.
fn own_rules(root: &Root) -> Vec<PathBuf> {
    let own = |path: &PathBuf| {
        let text = sys::file::read_if_exists(path, LIMIT_BYTES).ok().flatten();
        text.is_some_and(|t| t.starts_with(UDEV_MARK.as_bytes()))
    };
    let files = sys::file::list(&root.path(UDEV_RULES)).unwrap_or_default().into_iter().filter(own);
    files.filter_map(|p| Some(Path::new(UDEV_RULES).join(p.file_name()?))).collect()
}

fn one(root: &Root, topic: &Topic, daemons: Option<&Daemons>) -> Result<Outcome> {
    let mut changed = Vec::new();
    for file in &topic.files {
        if write(root, file)? {
            changed.push(file.path.clone());
        }
    }
    if changed.is_empty() {
        return Ok(Outcome::Same);
    }
    let (mut told, mut problems) = (Vec::new(), Vec::new());
    for action in &topic.then {
        let Some(daemons) = daemons else { break };
        match act(root, action, daemons) {
            Ok(said) => told.extend(said),
            Err(e) => problems.push(e.to_string()),
        }
    }
    Ok(Outcome::Changed { files: changed, told, problems })
}

/// Writes or removes a file; says whether that changed anything.
fn write(root: &Root, file: &File) -> Result<bool> {
    let path = root.path(&file.path);
    let found = sys::file::read_if_exists(&path, LIMIT_BYTES)?;
    match &file.content {
        None if found.is_none() => Ok(false),
        None => sys::durable::remove(&path).map(|()| true),
        Some(text) if found.as_deref() == Some(text.as_bytes()) => Ok(false),
        Some(text) => {
            sys::durable::create_dir(sys::durable::parent(&path)?)?;
            if file.path == Path::new(HOST_NAME) {
                // In place: the file is bound over /etc/hostname.
                sys::switch_root::note(&path, text)?;
            } else {
                sys::durable::replace(&path, text.as_bytes(), 0o644)?;
            }
            Ok(true)
        }
    }
}

/// Does it, if there is a need; the words for it if it was done.
fn act(root: &Root, action: &Action, daemons: &Daemons) -> Result<Option<String>> {
    let run = |command: &[&str]| daemons.must(command);
    let is_active = |unit: &str| daemons.is_active(unit);
    let job = |verb: &str, unit: &str| -> Result<Option<String>> {
        // Ours take as long to be ready as the network takes.
        let ours = verb == "restart" && unit.starts_with("twinhull-");
        let wait: &[&str] = if ours { &["--no-block"] } else { &[] };
        run(&[&["systemctl"], wait, &[verb, unit]].concat())?;
        Ok(Some(format!("{verb} {unit}")))
    };
    match action {
        Action::SetHostName(name) => {
            // Never that of the machine that another root is looked at from.
            if root.is_host() {
                sys::process::set_host_name(name).doing(|| format!("set the host name {name}"))?;
            }
            Ok(Some(format!("host name {name}")))
        }
        Action::MakeDir(dir) => sys::durable::create_dir(&root.path(dir)).map(|()| None),
        Action::DaemonReload => run(&["systemctl", "daemon-reload"]).map(|()| None),
        Action::Start(unit) => job("start", unit),
        Action::Stop(unit) if is_active(unit) => job("stop", unit),
        Action::Restart(unit) if is_active(unit) => job("restart", unit),
        Action::Reload(unit) if is_active(unit) => job("reload-or-restart", unit),
        Action::Run { if_active, command } if is_active(if_active) => {
            run(command)?;
            Ok(Some(command.join(" ")))
        }
        Action::Stop(_) | Action::Restart(_) | Action::Reload(_) | Action::Run { .. } => Ok(None),
    }
}

/// Runs a program with its arguments.
pub type Runner<'a> = dyn Fn(&[&str]) -> Result<command::Outcome> + 'a;

/// The service manager, asked once for what runs: at boot each question would cost as much as all of them.
struct Daemons<'a> {
    run: &'a Runner<'a>,
    active: &'a OnceCell<Vec<&'static str>>,
}

impl Daemons<'_> {
    fn must(&self, command: &[&str]) -> Result<()> {
        let outcome = (self.run)(command)?;
        if outcome.success {
            return Ok(());
        }
        let said = outcome.output.lines().next().unwrap_or("no output").to_owned();
        Err(Error::failed(format!("{}: {said}", outcome.ending)).within(command.join(" ")))
    }

    /// Whether a unit of [`UNITS`] runs. Nobody to ask is nobody to tell.
    fn is_active(&self, unit: &str) -> bool {
        self.active.get_or_init(|| self.ask().unwrap_or_default()).contains(&unit)
    }

    /// One line for each unit, in their order; the exit code is that of the worst.
    fn ask(&self) -> Result<Vec<&'static str>> {
        let states = (self.run)(&[&["systemctl", "is-active"], UNITS].concat())?.output;
        let each = UNITS.iter().zip(states.lines());
        Ok(each.filter(|(_, state)| *state == "active").map(|(unit, _)| *unit).collect())
    }
}

/// The [`Runner`] of the host itself. `None` for another root, or if systemd does not run.
pub fn runner(root: &Root) -> Option<impl Fn(&[&str]) -> Result<command::Outcome>> {
    let runs = root.is_host() && root.path("/run/systemd/system").is_dir();
    runs.then_some(|words: &[&str]| {
        let [program, args @ ..] = words else { return Err(Error::failed("no command")) };
        command::run(Path::new(program), args, DEADLINE)
    })
}
