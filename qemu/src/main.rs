//! The board lab of twinhull: builds images, boots boards in QEMU, plays scenarios.
//!
//! Started by `qemu/run`, which installs and builds what it needs; `qemu/help.txt` says how it is used.
#![allow(clippy::disallowed_methods, clippy::disallowed_macros)]

mod boards;
mod boot_partition;
mod boot_rom;
mod bootloader;
mod cloud;
mod demo;
mod device;
mod disk;
mod hardware;
mod images;
mod layout;
mod machine;
mod power_cut;
mod shell;
mod supervisor_image;
mod switch;
mod table;
mod timeline;
mod truth_table;

use std::process::ExitCode;

use boards::Board;
use images::Lab;

/// What a scenario ends with if it fails: one sentence for people.
pub type Outcome<T = ()> = Result<T, String>;

/// What is asked on the command line.
#[derive(Debug)]
enum Command {
    List,
    /// The main job on the NUC, the A/B switch on any other board.
    Demo(&'static Board),
    /// The A/B switch on every board.
    DemoAll,
    Shell(&'static Board),
    PowerCut {
        cuts: usize,
    },
    TruthTable,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // Only looked at, before `qemu/run` installs anything.
    let only_check = args.first().is_some_and(|a| a == "check");
    let command = match parse(args.get(usize::from(only_check)..).unwrap_or_default()) {
        Ok(command) if only_check => {
            println!("{}", needs(&command).join("\n"));
            return ExitCode::SUCCESS;
        }
        Ok(command) => command,
        Err(e) => {
            eprintln!("qemu/run: {e}; see qemu/run --help");
            return ExitCode::from(2);
        }
    };
    let outcome = match command {
        Command::List => {
            println!("{}", table::list());
            Ok(())
        }
        Command::Demo(board) if board.name == NUC => Lab::open(board).and_then(|lab| demo::play(&lab)),
        Command::Demo(board) => Lab::open(board).and_then(|lab| switch::play(&lab).1),
        Command::DemoAll => table::play_all(),
        Command::Shell(board) => Lab::open(board).and_then(|lab| shell::open(&lab)),
        Command::PowerCut { cuts } => nuc().and_then(Lab::open).and_then(|lab| power_cut::sweep(&lab, cuts)),
        Command::TruthTable => nuc().and_then(Lab::open).and_then(|lab| truth_table::compare(&lab)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("qemu/run: {e}");
            ExitCode::FAILURE
        }
    }
}

/// The board of the main job, which is also meant when none is named.
const NUC: &str = "nuc";

fn nuc() -> Outcome<&'static Board> {
    board(NUC)
}

fn board(name: &str) -> Outcome<&'static Board> {
    boards::find(name).ok_or_else(|| {
        let names: Vec<_> = boards::ALL.iter().map(|b| b.name).collect();
        format!("no board {name:?}; there are: {}", names.join(", "))
    })
}

/// What must be there for a command, in words that `qemu/run` knows.
fn needs(command: &Command) -> Vec<&'static str> {
    let mut needs: Vec<_> = match command {
        Command::List => Vec::new(),
        Command::Demo(board) | Command::Shell(board) => board.needs().to_vec(),
        Command::DemoAll => boards::ALL.iter().flat_map(Board::needs).collect(),
        Command::PowerCut { .. } | Command::TruthTable => boards::ALL[0].needs().to_vec(),
    };
    needs.sort_unstable();
    needs.dedup();
    needs
}

fn parse(args: &[String]) -> Outcome<Command> {
    let mut words = args.iter().map(String::as_str).filter(|a| *a != "--keep");
    let mut command = match words.next() {
        Some("list") => Command::List,
        Some("demo") => Command::Demo(nuc()?),
        Some("shell") => Command::Shell(nuc()?),
        Some("power-cut") => Command::PowerCut { cuts: 20 },
        Some("truth-table") => Command::TruthTable,
        other => return Err(format!("no command {:?}", other.unwrap_or(""))),
    };
    while let Some(word) = words.next() {
        match (word, &mut command) {
            (NUC, Command::PowerCut { .. }) => {}
            ("--cuts", Command::PowerCut { cuts }) => {
                let number = words.next().and_then(|n| n.parse().ok()).filter(|n| (1..=1000).contains(n));
                *cuts = number.ok_or("--cuts needs a number from 1 to 1000")?;
            }
            ("all", Command::Demo(_)) => command = Command::DemoAll,
            (name, Command::Shell(chosen)) if !name.starts_with('-') => {
                *chosen = Some(board(name)?)
                    .filter(|board| board.system.has_engine())
                    .ok_or_else(|| format!("{name} has no login on its console; boards with systemd have"))?;
            }
            (name, Command::Demo(chosen)) if !name.starts_with('-') => *chosen = board(name)?,
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
        assert!(matches!(parsed("demo --keep"), Ok(Command::Demo(b)) if b.name == NUC));
        assert!(matches!(parsed("demo nuc-sdboot"), Ok(Command::Demo(b)) if b.name == "nuc-sdboot"));
        assert!(matches!(parsed("demo all"), Ok(Command::DemoAll)));
        assert!(matches!(parsed("power-cut --cuts 3"), Ok(Command::PowerCut { cuts: 3 })));
        for wrong in [
            "demo pdp11",
            "power-cut --cuts",
            "power-cut --cuts 0",
            "list nuc",
            "shell --fast",
            "shell jetson-tx2",
            "",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_what_a_board_needs_is_asked_for() {
        let needs = |line: &str| needs(&parsed(line).unwrap());
        assert_eq!(needs("list"), [""; 0]);
        assert_eq!(needs("demo"), ["grub", "x86"]);
        assert!(needs("demo all").len() > needs("demo nuc-sdboot").len());
    }
}
