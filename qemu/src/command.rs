//! What is asked on the command line: a board, a scenario, or a table.

use crate::boards::{self, Board};
use crate::images::{self, Lab};
use crate::recording::Writer;
use crate::tables::{self, Table};
use crate::{
    Outcome, boot_time, cuts, demo, first_boot_cuts, flash, power_cut, preload, shell, supervisor, switch,
    table, verity,
};

/// The board of the main job, which is also meant when none is named.
const NUC: &str = "nuc";

/// What is asked.
#[derive(Debug)]
pub enum Command {
    List,
    /// The main job on the NUC, the A/B switch on any other board.
    Demo(&'static Board),
    /// The A/B switch on every board.
    DemoAll,
    Shell(&'static Board),
    Scenario(&'static Scenario, &'static Board),
    Sweep {
        sweep: &'static Sweep,
        cuts: usize,
    },
    TruthTable(Vec<Table>),
    /// Power cuts in the writes to boot partitions.
    BlockLog(Vec<Writer>),
}

/// A story on a board.
#[derive(Debug)]
pub struct Scenario {
    name: &'static str,
    /// The boards that it is played on, first the one that is meant when none is named.
    boards: &'static [&'static str],
    /// What it needs beside its board, in words that `qemu/run` knows.
    needs: &'static [&'static str],
    play: fn(&Lab) -> Outcome,
}

const SCENARIOS: [Scenario; 5] = [
    // First boot with a preload archive and without a network.
    Scenario {
        name: "demo preload",
        boards: &[NUC, "nuc-sdboot", "jetson-tx2-systemd"],
        needs: &["engine"],
        play: preload::play,
    },
    // From an installer's medium to the internal disk.
    Scenario { name: "demo flash", boards: &[NUC], needs: &[], play: flash::play },
    Scenario { name: "supervisor", boards: &[NUC], needs: &[], play: supervisor::play },
    Scenario { name: "boot-time", boards: &[NUC], needs: &[], play: boot_time::measure },
    // A root that the kernel checks, on a board whose kernel can.
    Scenario { name: "verity", boards: &["jetson-tx2"], needs: &["verity"], play: verity::play },
];

/// The power goes at a number of moments, on the NUC.
#[derive(Debug)]
pub struct Sweep {
    name: &'static str,
    /// The number unless told.
    cuts: usize,
    needs: &'static [&'static str],
    play: fn(&Lab, usize) -> Outcome,
}

const SWEEPS: [Sweep; 2] = [
    Sweep { name: "power-cut", cuts: 20, needs: &[], play: power_cut::sweep },
    Sweep { name: "first-boot-cuts", cuts: 44, needs: &["engine"], play: first_boot_cuts::sweep },
];

impl Command {
    /// Reads the words of a command line; `--keep` is `qemu/run`'s own.
    pub fn parse(args: &[String]) -> Outcome<Self> {
        let words: Vec<&str> = args.iter().map(String::as_str).filter(|a| *a != "--keep").collect();
        let two = words.get(..2).map(|two| two.join(" "));
        let scenario = SCENARIOS.iter().find(|s| {
            words.first().is_some_and(|word| *word == s.name) || two.as_ref().is_some_and(|two| two == s.name)
        });
        if let Some(scenario) = scenario {
            let rest = words.get(scenario.name.split(' ').count()..).unwrap_or_default();
            let [first, ..] = scenario.boards else { return Err(format!("{}: no board", scenario.name)) };
            return match rest {
                [] => Ok(Self::Scenario(scenario, boards::named(first)?)),
                [board] if scenario.boards.contains(board) => {
                    Ok(Self::Scenario(scenario, boards::named(board)?))
                }
                _ => Err(format!(
                    "{} is played on {} and takes no more",
                    scenario.name,
                    scenario.boards.join(" or ")
                )),
            };
        }
        let (first, rest) = words.split_first().unwrap_or((&"", &[]));
        if let Some(sweep) = SWEEPS.iter().find(|s| s.name == *first) {
            return Ok(Self::Sweep { sweep, cuts: cuts_of(sweep, rest)? });
        }
        match (*first, rest) {
            ("list", []) => Ok(Self::List),
            ("demo", []) => Ok(Self::Demo(boards::named(NUC)?)),
            ("demo", ["all"]) => Ok(Self::DemoAll),
            ("demo", [name]) => Ok(Self::Demo(boards::named(name)?)),
            ("shell", []) => Ok(Self::Shell(boards::named(NUC)?)),
            ("shell", [name]) => with_login(boards::named(name)?).map(Self::Shell),
            ("truth-table", names) => {
                chosen(names, &Table::ALL, Table::find, Table::name).map(Self::TruthTable)
            }
            ("block-log", names) => {
                chosen(names, &Writer::ALL, Writer::find, |writer| writer.name()).map(Self::BlockLog)
            }
            ("list" | "demo" | "shell", _) => Err(format!("{first} does not take {:?}", rest.join(" "))),
            _ => Err(format!("no command {first:?}")),
        }
    }

    /// What must be there, in words that `qemu/run` knows.
    pub fn needs(&self) -> Vec<&'static str> {
        let on = |board: &Board, more: &[&'static str]| {
            board.needs().into_iter().chain(more.iter().copied()).collect()
        };
        let mut needs: Vec<_> = match self {
            Self::List => Vec::new(),
            Self::Demo(board) | Self::Shell(board) => board.needs().to_vec(),
            Self::DemoAll => boards::ALL.iter().flat_map(Board::needs).collect(),
            Self::Scenario(scenario, board) => on(board, scenario.needs),
            Self::Sweep { sweep, .. } => {
                boards::named(NUC).map_or_else(|_| Vec::new(), |nuc| on(nuc, sweep.needs))
            }
            Self::TruthTable(tables) => tables.iter().flat_map(|t| t.needs()).copied().collect(),
            Self::BlockLog(_) => vec!["grub", "recorder", "systemd-boot", "u-boot"],
        };
        needs.sort_unstable();
        needs.dedup();
        needs
    }

    /// Does it. The error says what was missing.
    pub fn play(self) -> Outcome {
        match self {
            Self::List => {
                println!("{}", table::list());
                Ok(())
            }
            Self::Demo(board) if board.name == NUC => Lab::open(board).and_then(|lab| demo::play(&lab)),
            Self::Demo(board) => Lab::open(board).and_then(|lab| switch::play(&lab).1),
            Self::DemoAll => table::play_all(),
            Self::Shell(board) => Lab::open(board).and_then(|lab| shell::open(&lab)),
            Self::Scenario(scenario, board) => Lab::open(board).and_then(|lab| (scenario.play)(&lab)),
            Self::Sweep { sweep, cuts } => {
                boards::named(NUC).and_then(Lab::open).and_then(|lab| (sweep.play)(&lab, cuts))
            }
            Self::TruthTable(tables) => tables::compare(&tables),
            Self::BlockLog(writers) => {
                images::work("block-log").and_then(|work| cuts::sweep(&work, &writers))
            }
        }
    }
}

/// What can be played on a board, for people.
pub fn playable_on(board: &Board) -> String {
    let mut names = vec!["demo"];
    if board.system.has_engine() {
        names.push("shell");
    }
    names.extend(SCENARIOS.iter().filter(|s| s.boards.contains(&board.name)).map(|s| s.name));
    if board.name == NUC {
        names.extend(SWEEPS.iter().map(|s| s.name));
    }
    names.join(", ")
}

fn cuts_of(sweep: &Sweep, words: &[&str]) -> Outcome<usize> {
    match words.strip_prefix(&[NUC]).unwrap_or(words) {
        [] => Ok(sweep.cuts),
        ["--cuts", number] => number
            .parse()
            .ok()
            .filter(|n| (1..=1000).contains(n))
            .ok_or_else(|| format!("--cuts {number}: a number from 1 to 1000 is expected")),
        other => Err(format!("{} takes --cuts N, not {:?}", sweep.name, other.join(" "))),
    }
}

/// What `names` name; all there is without any.
fn chosen<T: Copy>(
    names: &[&str],
    all: &[T],
    find: impl Fn(&str) -> Option<T>,
    name_of: impl Fn(T) -> &'static str,
) -> Outcome<Vec<T>> {
    if names.is_empty() {
        return Ok(all.to_vec());
    }
    let one = |name: &&str| {
        find(name).ok_or_else(|| {
            let known: Vec<_> = all.iter().map(|t| name_of(*t)).collect();
            format!("no {name:?}; there are: {}", known.join(", "))
        })
    };
    names.iter().map(one).collect()
}

fn with_login(board: &'static Board) -> Outcome<&'static Board> {
    match board.system.has_engine() {
        true => Ok(board),
        false => Err(format!("{} has no login on its console; boards with systemd have", board.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Outcome<Command> {
        Command::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn commands_boards_and_options() {
        assert!(matches!(parsed("demo --keep"), Ok(Command::Demo(b)) if b.name == NUC));
        assert!(matches!(parsed("demo nuc-sdboot"), Ok(Command::Demo(b)) if b.name == "nuc-sdboot"));
        assert!(matches!(parsed("demo all"), Ok(Command::DemoAll)));
        for (line, expected) in [
            ("supervisor nuc", ("supervisor", NUC)),
            ("demo flash", ("demo flash", NUC)),
            ("demo preload", ("demo preload", NUC)),
            ("demo preload nuc-sdboot", ("demo preload", "nuc-sdboot")),
            ("demo preload jetson-tx2-systemd", ("demo preload", "jetson-tx2-systemd")),
        ] {
            let Ok(Command::Scenario(scenario, board)) = parsed(line) else { panic!("{line}") };
            assert_eq!((scenario.name, board.name), expected);
        }
        assert!(matches!(parsed("truth-table"), Ok(Command::TruthTable(t)) if t == Table::ALL));
        assert!(matches!(parsed("block-log grub"), Ok(Command::BlockLog(w)) if w == [Writer::Grub]));
        for (line, expected) in
            [("power-cut --cuts 3", 3), ("power-cut nuc", 20), ("first-boot-cuts nuc --cuts 50", 50)]
        {
            assert!(matches!(parsed(line), Ok(Command::Sweep { cuts, .. }) if cuts == expected), "{line}");
        }
        for wrong in [
            "demo flash fincm3",
            "demo preload fincm3",
            "demo pdp11",
            "demo nuc fincm3",
            "power-cut --cuts",
            "power-cut --cuts 0",
            "list nuc",
            "shell --fast",
            "block-log lilo",
            "truth-table lilo",
            "shell jetson-tx2",
            "",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_what_a_board_needs_is_asked_for() {
        let needs = |line: &str| parsed(line).unwrap().needs();
        assert_eq!(needs("list"), [""; 0]);
        assert_eq!(needs("demo"), ["grub", "x86"]);
        assert_eq!(needs("demo preload"), ["engine", "grub", "x86"]);
        assert!(needs("demo all").len() > needs("demo nuc-sdboot").len());
    }
}
