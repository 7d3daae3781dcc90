//! `twinhull config`

use std::io::Read;

use serde_json::{Map, Value, json};

use crate::cli::{Command, Context, usage};
use crate::config::apply::{Applied, Outcome, Runner, apply, runner};
use crate::config::keys::{self, Key};
use crate::config::{ConfigJson, Origin, Settings, damaged_texts};
use crate::{Doing, Error, Result, sys};

pub(super) const COMMAND: Command = Command {
    name: "config",
    summary: "read, change, check and apply the device's config.json",
    help: HELP,
    run,
};

const HELP: &str = "\
twinhull config: read, change, check and apply the device's config.json

Usage: twinhull config get [KEY] [--json]
       twinhull config set KEY VALUE [--unknown]
       twinhull config unset KEY
       twinhull config check [--json]
       twinhull config apply [--json]

config.json is on the boot partition (/mnt/boot/config.json). A KEY may be a path: os.network.connectivity.uri.

get     Without KEY: every key that is set, and what the known ones are for. Secrets are shown only if asked for by name.
        With KEY: its value as it is (--json: as JSON, with type and default). Exit 1 if it is not set.
set     Numbers, true and false are typed as such; lists and objects as JSON: os.sshKeys '[\"ssh-ed25519 AAAA… me\"]'.
        VALUE - reads standard input, so that a secret is in no list of processes; secrets are taken only in this way:
          twinhull config set apiKey - < key.txt
        A key that nobody knows is refused without --unknown; with it VALUE is JSON, or else text.
unset   Removes KEY; the known ones have their default again.
check   Says what is wrong with the file. Exit 1 if anything is.
apply   Tells the daemons of this host what changed: host name, journal, time and DNS servers, ssh keys, udev rules,
        NetworkManager, development mode, certificates. Only units behind a value that changed are restarted, and the
        container engine never is. Runs at boot and whenever the file changes (twinhull-config.service and .path).
        It also repairs: a file that is no JSON object is kept as damaged-config-HASH.json beside config.json, and
        the last good copy takes its place.

Keys that are not ours, their order and their spelling are left as they are. Every write survives a power cut, and
balenaOS's own tools (fatrw, os-config, the supervisor) can finish it. The supervisor keeps the file in memory and may
write its own values back: restart it (systemctl restart twinhull-supervisor) after a change to a key that it writes.
";

fn run(mut parser: lexopt::Parser, context: &Context) -> Result<u8> {
    let mut words = Vec::new();
    let mut unknown = false;
    while let Some(arg) = parser.next().map_err(usage("config"))? {
        match arg {
            lexopt::Arg::Long("unknown") => unknown = true,
            // A value may be a dash, for standard input.
            lexopt::Arg::Value(word) => words.push(word.to_string_lossy().into_owned()),
            lexopt::Arg::Long(_) | lexopt::Arg::Short(_) => return Err(usage("config")(arg.unexpected())),
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["get"] => list(context),
        ["get", key] => get(context, key),
        ["set", key, value] => set(context, key, value, unknown),
        ["unset", key] => unset(context, key),
        ["check"] => check(context),
        ["apply"] => apply_all(context),
        _ => Err(Error::usage(
            "config: expected get [KEY], set KEY VALUE, unset KEY, check or apply; see `twinhull config --help`",
        )),
    }
}

/// The file, or the last good copy, which is said to be that.
fn peek(context: &Context, settings: &Settings) -> Result<ConfigJson> {
    let path = &settings.provision.config_json;
    let config = ConfigJson::peek(&context.root, path)?.ok_or_else(|| missing(context, settings))?;
    if let Origin::LastGood { why } = config.origin() {
        log::warn!("{why}; what follows is the last good copy");
    }
    Ok(config)
}

fn missing(context: &Context, settings: &Settings) -> Error {
    let path = context.root.path(&settings.provision.config_json);
    Error::failed(format!("{} is missing; is the boot partition mounted?", path.display()))
}

fn list(context: &Context) -> Result<u8> {
    let config = peek(context, &context.settings()?)?;
    let shown = |key: &Key, value: &Value| if key.secret { json!("(set)") } else { value.clone() };
    let set = keys::KEYS.iter().filter_map(|k| Some((k, shown(k, &config.value(k.name)?))));
    let known_top = |name: &str| keys::KEYS.iter().any(|k| k.name.split('.').next() == Some(name));
    let unknown: Vec<_> = config.keys().filter(|k| !known_top(k)).collect();
    if context.json {
        let set: Map<String, Value> = set.map(|(k, v)| (k.name.to_owned(), v)).collect();
        sys::out::line(&json!({"set": set, "unknown": unknown}).to_string());
        return Ok(0);
    }
    let mut lines: Vec<_> = set.map(|(k, v)| format!("{} = {v}\n    {}", k.name, k.about)).collect();
    let unset = keys::KEYS.iter().filter(|k| config.value(k.name).is_none());
    lines.extend(unset.map(|k| {
        let default = if k.default.is_empty() { String::new() } else { format!(": {}", k.default) };
        format!("{} is not set{default}\n    {}", k.name, k.about)
    }));
    lines.extend(unknown.iter().map(|k| format!("{k} is set; nobody here knows it")));
    sys::out::line(&lines.join("\n"));
    Ok(0)
}

fn get(context: &Context, key: &str) -> Result<u8> {
    let config = peek(context, &context.settings()?)?;
    let value = config.value(key);
    let known = keys::find(key);
    if context.json {
        let text = json!({
            "key": key,
            "value": value,
            "type": known.map(|k| k.kind.words()),
            "default": known.map(|k| k.default).filter(|d| !d.is_empty()),
        });
        sys::out::line(&text.to_string());
        return Ok(u8::from(value.is_none()));
    }
    match (value, known) {
        (Some(Value::String(text)), _) => sys::out::line(&text),
        (Some(value), _) => sys::out::line(&value.to_string()),
        (None, Some(known)) if !known.default.is_empty() => {
            return Err(Error::failed(format!("config: {key} is not set; its default: {}", known.default)));
        }
        (None, Some(_)) => return Err(Error::failed(format!("config: {key} is not set"))),
        (None, None) => {
            return Err(Error::failed(format!("config: {key} is not set, and no key that is known here")));
        }
    }
    Ok(0)
}

fn set(context: &Context, key: &str, typed: &str, unknown: bool) -> Result<u8> {
    if key.is_empty() {
        return Err(Error::usage("config: the name of the key is empty"));
    }
    let known = keys::find(key);
    if let (Some(Key { secret: true, .. }), true) = (known, typed != "-") {
        return Err(Error::refused(format!(
            "config: {key} is a secret, and everybody can read the list of processes; give it on standard input: \
             `twinhull config set {key} - < FILE`"
        )));
    }
    let text = if typed == "-" { standard_input()? } else { typed.to_owned() };
    let value = match known {
        Some(known) => known.kind.value_of(&text).map_err(|e| Error::usage(format!("config: {key}: {e}")))?,
        None if unknown => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        None => {
            return Err(Error::usage(format!(
                "config: nobody here knows the key {key}; `twinhull config get` lists them, --unknown sets it all the same"
            )));
        }
    };
    edit(context, |config| config.set(key, value))
}

fn standard_input() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().take(1024 * 1024).read_to_string(&mut text).doing(|| "config: read standard input")?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn unset(context: &Context, key: &str) -> Result<u8> {
    edit(context, |config| config.remove(key))
}

fn edit(context: &Context, change: impl FnOnce(&mut ConfigJson) -> Result<()>) -> Result<u8> {
    let settings = context.settings()?;
    ConfigJson::edit(&context.root, &settings.provision.config_json, &|_| Ok(()), change)
        .doing(|| "config")
        .map(|()| 0)
}

fn check(context: &Context) -> Result<u8> {
    let settings = context.settings()?;
    let path = &settings.provision.config_json;
    let file = context.root.path(path);
    let mut problems = Vec::new();
    let config =
        ConfigJson::peek(&context.root, path).and_then(|c| c.ok_or_else(|| missing(context, &settings)));
    match &config {
        Err(e) => problems.push(e.to_string()),
        Ok(config) => {
            if let Origin::LastGood { why } = config.origin() {
                problems.push(format!(
                    "{why}; the last good copy is used, `twinhull config apply` puts it in place"
                ));
            }
            let found = keys::check(config);
            problems
                .extend(found.into_iter().map(|f| format!("{}: {}: {}", file.display(), f.key, f.problem)));
        }
    }
    let damaged = damaged_texts(&context.root, path)?;
    if context.json {
        sys::out::line(&json!({"file": file, "problems": problems, "damaged_texts": damaged}).to_string());
    } else {
        let mut lines = problems.clone();
        lines.extend(damaged.iter().map(|d| format!("{}: what a damaged config.json held", d.display())));
        if problems.is_empty() {
            lines.push(format!("{}: no fault found", file.display()));
        }
        sys::out::line(&lines.join("\n"));
    }
    Ok(u8::from(!problems.is_empty()))
}

fn apply_all(context: &Context) -> Result<u8> {
    let (root, settings) = (&context.root, context.settings()?);
    let config = ConfigJson::settle(root, &settings.provision.config_json)?
        .ok_or_else(|| missing(context, &settings))?;
    let repaired = match config.origin() {
        Origin::File => None,
        Origin::LastGood { why } => Some(why.as_str()),
    };
    let run = runner(root);
    let applied = apply(root, &settings, &config, run.as_ref().map(|r| r as &Runner));
    if context.json {
        let topics: Map<String, Value> = applied.iter().map(|a| (a.topic.to_owned(), as_json(a))).collect();
        sys::out::line(&json!({"repaired": repaired, "topics": topics}).to_string());
    } else {
        let mut lines: Vec<_> = repaired.map(|why| format!("repaired: {why}")).into_iter().collect();
        lines.extend(applied.iter().filter_map(as_text));
        if lines.is_empty() {
            lines.push("nothing changed".into());
        }
        sys::out::line(&lines.join("\n"));
    }
    Ok(u8::from(applied.iter().any(failed)))
}

fn failed(applied: &Applied) -> bool {
    match &applied.outcome {
        Outcome::Same => false,
        Outcome::Changed { problems, .. } => !problems.is_empty(),
        Outcome::Failed(_) => true,
    }
}

fn as_json(applied: &Applied) -> Value {
    match &applied.outcome {
        Outcome::Same => json!({"result": "same"}),
        Outcome::Changed { files, told, problems } => {
            json!({"result": "changed", "files": files, "told": told, "problems": problems})
        }
        Outcome::Failed(why) => json!({"result": "failed", "problems": [why]}),
    }
}

fn as_text(applied: &Applied) -> Option<String> {
    let name = applied.topic;
    match &applied.outcome {
        Outcome::Same => None,
        Outcome::Changed { told, problems, .. } => {
            let told = if told.is_empty() { "changed".to_owned() } else { told.join(", ") };
            let problems: String = problems.iter().map(|p| format!("; {p}")).collect();
            Some(format!("{name}: {told}{problems}"))
        }
        Outcome::Failed(why) => Some(format!("{name}: left as it is: {why}")),
    }
}
