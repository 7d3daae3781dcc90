//! The command line: options that every command knows, the table of commands, and the way out.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::Settings;
use crate::{Error, Kind, Result, Root, cmd, sys};

/// What every command is given: the options that stand before or after any command.
#[derive(Debug, Clone)]
pub struct Context {
    /// The host (`--root`).
    pub root: Root,
    /// One settings file instead of the usual places (`--config`).
    pub config: Option<PathBuf>,
    /// Machine-readable output (`--json`).
    pub json: bool,
    /// -1 quiet, 0 normal, 1 and more verbose.
    pub verbosity: i8,
}

impl Context {
    /// The validated settings of this host.
    ///
    /// # Errors
    /// `Failed`, naming file and line, if a settings file cannot be read or has an unknown key.
    pub fn settings(&self) -> Result<Settings> {
        Settings::load(&self.root, self.config.as_deref())
    }
}

/// One subcommand: what the table of commands says of it.
pub struct Command {
    /// The word on the command line.
    pub name: &'static str,
    /// One line for `twinhull --help`.
    pub summary: &'static str,
    /// The whole text of `twinhull NAME --help`.
    pub help: &'static str,
    /// Parses the rest of the line and does it. The result is the exit code.
    pub run: fn(lexopt::Parser, &Context) -> Result<u8>,
}

const OPTIONS: &str = "\
Options that every command takes:
  --root DIR      the host's root directory (default /); what systemd is asked for, as a reboot, is asked of this machine's
  --config FILE   read settings from FILE alone, not from /usr/lib, /run and /etc/twinhull/*.toml
  --json          machine-readable output, one JSON document (or one per line where it goes on)
  -v, --verbose   log more (twice: debug)        -q, --quiet   log only what went wrong
  -h, --help      this text

Exit codes: 0 done, 1 failed, 2 usage, 3 refused by policy, 4 inconsistent, 5 reboot needed
";

/// Runs the program with `args` (the first is the program's own name).
pub fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let called_as = PathBuf::from(args.next().unwrap_or_default());
    // As PID 1 there is no command line of ours: the kernel passes on what it does not know.
    if sys::process::is_pid1() && called_as.file_name().is_some_and(|n| n == "init") {
        return cmd::init::as_pid1();
    }
    match dispatch(args.collect()) {
        Ok(0) if sys::out::lost() => ExitCode::from(Kind::Failed.exit_code()),
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            sys::out::error(&format!("twinhull: {e}"));
            ExitCode::from(e.kind().exit_code())
        }
    }
}

fn dispatch(args: Vec<OsString>) -> Result<u8> {
    let (context, rest, wants) = split_globals(args)?;
    sys::log::start(context.verbosity);
    let mut words = rest.into_iter();
    let Some(word) = words.next() else {
        sys::out::line(&overview());
        return Ok(if wants == Wants::Run { Kind::Usage.exit_code() } else { 0 });
    };
    let word = word.to_string_lossy().into_owned();
    let Some(command) = cmd::COMMANDS.iter().find(|c| c.name == word) else {
        return Err(Error::usage(format!("no command {word:?}; `twinhull --help` lists them")));
    };
    match wants {
        Wants::Help => {
            sys::out::line(&format!("{}\n{OPTIONS}", command.help));
            Ok(0)
        }
        Wants::Run => (command.run)(lexopt::Parser::from_args(words), &context),
    }
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Wants {
    Run,
    Help,
}

/// Takes the options that stand anywhere on the line out of it.
fn split_globals(args: Vec<OsString>) -> Result<(Context, Vec<OsString>, Wants)> {
    let mut context = Context { root: Root::default(), config: None, json: false, verbosity: 0 };
    let mut rest = Vec::new();
    let mut wants = Wants::Run;
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        // `--name value` or `--name=value`. An empty one is a script's unset variable, not the directory where we are.
        let mut value = |name: &str, given: Option<&str>| {
            let value = given.map(OsString::from).or_else(|| args.next()).filter(|value| !value.is_empty());
            value.ok_or_else(|| Error::usage(format!("{name} needs a value; see `twinhull --help`")))
        };
        match arg.to_str() {
            Some("--root") => context.root = Root::new(value("--root", None)?),
            Some("--config") => context.config = Some(value("--config", None)?.into()),
            Some("--json") => context.json = true,
            Some("-v" | "--verbose") => context.verbosity = context.verbosity.saturating_add(1),
            Some("-vv") => context.verbosity = 2,
            Some("-q" | "--quiet") => context.verbosity = -1,
            Some("-h" | "--help") => wants = Wants::Help,
            Some("-V" | "--version") if rest.is_empty() => {
                rest.push("version".into());
            }
            Some("help") if rest.is_empty() => wants = Wants::Help,
            Some("--") => {
                rest.push(arg);
                rest.extend(args.by_ref());
            }
            Some(s) if s.starts_with("--root=") => {
                context.root = Root::new(value("--root", s.strip_prefix("--root="))?);
            }
            Some(s) if s.starts_with("--config=") => {
                context.config = Some(value("--config", s.strip_prefix("--config="))?.into());
            }
            _ => rest.push(arg),
        }
    }
    Ok((context, rest, wants))
}

fn overview() -> String {
    let mut text = String::from(
        "twinhull: the host-OS agent of a device that runs containers\n\nUsage: twinhull COMMAND [OPTIONS]\n\n",
    );
    for c in cmd::COMMANDS {
        text.push_str(&format!("  {:<12} {}\n", c.name, c.summary));
    }
    text.push_str("\n`twinhull COMMAND --help` explains a command, `twinhull --version` says which twinhull this is.\n\n");
    text.push_str(OPTIONS);
    text
}

/// Turns a mistake in a command's own options into one that says where the help is.
pub fn usage(command: &str) -> impl Fn(lexopt::Error) -> Error + '_ {
    move |e| Error::usage(format!("{command}: {e}; see `twinhull {command} --help`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(args: &[&str]) -> (Context, Vec<OsString>, Wants) {
        split_globals(args.iter().map(OsString::from).collect()).unwrap()
    }

    #[test]
    fn global_options_may_stand_anywhere() {
        let (c, rest, wants) = split(&["install", "--root", "/x", "a.bundle", "--json", "--force"]);
        assert_eq!((c.root, c.json, wants), (Root::new("/x"), true, Wants::Run));
        assert_eq!(rest, ["install", "a.bundle", "--force"]);
    }

    #[test]
    fn an_option_without_its_value_is_a_usage_error() {
        for wrong in [&["--root"] as &[_], &["--root="], &["--root", ""], &["--config="]] {
            let args = ["status"].iter().chain(wrong).map(OsString::from).collect();
            assert_eq!(split_globals(args).unwrap_err().kind(), Kind::Usage, "{wrong:?}");
        }
    }

    #[test]
    fn every_command_has_help_that_names_it() {
        for c in cmd::COMMANDS {
            assert!(c.help.starts_with(&format!("twinhull {}", c.name)), "{}", c.name);
        }
    }
}
