//! The board lab of twinhull: builds images, boots boards in QEMU, plays scenarios.
//!
//! Started by `qemu/run`, which installs and builds what it needs; `qemu/help.txt` says how it is used.
#![allow(clippy::disallowed_methods, clippy::disallowed_macros)]

mod cloud;
mod demo;
mod device;
mod images;
mod machine;
mod power_cut;
mod shell;
mod supervisor_image;
mod timeline;
mod truth_table;

use std::process::ExitCode;

/// What a scenario ends with if it fails: one sentence for people.
pub type Outcome<T = ()> = Result<T, String>;

const LIST: &str = "\
board  machine              bootloader  disk       scenarios
nuc    x86_64, q35 + OVMF   GRUB        NVMe, GPT  demo, shell, power-cut, truth-table";

/// What is asked on the command line.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    List,
    Demo,
    Shell,
    PowerCut { cuts: usize },
    TruthTable,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // Only looked at, before `qemu/run` installs anything.
    let only_check = args.first().is_some_and(|a| a == "check");
    let command = match parse(args.get(usize::from(only_check)..).unwrap_or_default()) {
        Ok(_) if only_check => return ExitCode::SUCCESS,
        Ok(command) => command,
        Err(e) => {
            eprintln!("qemu/run: {e}; see qemu/run --help");
            return ExitCode::from(2);
        }
    };
    let outcome = match command {
        Command::List => {
            println!("{LIST}");
            Ok(())
        }
        Command::Demo => images::Lab::open().and_then(|lab| demo::play(&lab)),
        Command::Shell => images::Lab::open().and_then(|lab| shell::open(&lab)),
        Command::PowerCut { cuts } => images::Lab::open().and_then(|lab| power_cut::sweep(&lab, cuts)),
        Command::TruthTable => images::Lab::open().and_then(|lab| truth_table::compare(&lab)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("qemu/run: {e}");
            ExitCode::FAILURE
        }
    }
}

fn parse(args: &[String]) -> Outcome<Command> {
    let mut words = args.iter().map(String::as_str).filter(|a| *a != "--keep");
    let mut command = match words.next() {
        Some("list") => Command::List,
        Some("demo") => Command::Demo,
        Some("shell") => Command::Shell,
        Some("power-cut") => Command::PowerCut { cuts: 20 },
        Some("truth-table") => Command::TruthTable,
        other => return Err(format!("no command {:?}", other.unwrap_or(""))),
    };
    while let Some(word) = words.next() {
        match (word, &mut command) {
            ("nuc", Command::Demo | Command::Shell | Command::PowerCut { .. }) => {}
            ("--cuts", Command::PowerCut { cuts }) => {
                let number = words.next().and_then(|n| n.parse().ok()).filter(|n| (1..=1000).contains(n));
                *cuts = number.ok_or("--cuts needs a number from 1 to 1000")?;
            }
            (other, Command::Demo | Command::Shell) if !other.starts_with('-') => {
                return Err(format!("no board {other:?}; there is: nuc"));
            }
            (other, _) => return Err(format!("{other:?} is not expected here")),
        }
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Outcome<Command> {
        parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn commands_boards_and_options() {
        assert_eq!(parsed("demo --keep"), Ok(Command::Demo));
        assert_eq!(parsed("demo nuc"), Ok(Command::Demo));
        assert_eq!(parsed("power-cut --cuts 3"), Ok(Command::PowerCut { cuts: 3 }));
        for wrong in ["demo pdp11", "power-cut --cuts", "power-cut --cuts 0", "list nuc", "shell --fast", ""]
        {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
