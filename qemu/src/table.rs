//! All boards at once: the list of them, and one row for what was seen on each.

use crate::boards::{ALL, Board};
use crate::bootloader::TRIES;
use crate::images::Lab;
use crate::switch::{self, Seen};
use crate::{Outcome, command};

/// The boards, for people.
pub fn list() -> String {
    let mut rows = vec![["board", "machine", "bootloader", "disk", "scenarios"].map(str::to_owned).to_vec()];
    for board in ALL {
        let scenarios = command::playable_on(board);
        let [machine, bootloader, disk] = board.words();
        rows.push([board.name, machine, bootloader, disk, &scenarios].map(str::to_owned).to_vec());
    }
    aligned(&rows)
}

/// Plays the A/B switch with each bootloader of each device, and prints the table. The error says how many boards failed.
pub fn play_all() -> Outcome {
    let mut rows = vec![
        ["board", "bootloader", "tries seen", "rollback seen", "hang seen", "seconds"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut failed = Vec::new();
    let boards = each_bootloader_once();
    for board in &boards {
        let (seen, outcome) = match Lab::open(board) {
            Ok(lab) => switch::play(&lab),
            Err(e) => (Seen::default(), Err(e)),
        };
        if let Err(e) = outcome {
            eprintln!("qemu/run: {}: {e}", board.name);
            failed.push(board.name);
        }
        rows.push(row(board, seen));
    }
    println!("\n{}", aligned(&rows));
    match failed.as_slice() {
        [] => Ok(()),
        failed => Err(format!("{} of {} boards failed: {}", failed.len(), boards.len(), failed.join(", "))),
    }
}

/// All boards but those that differ from one before them in the user space only: they switch in the same way, with a whole
/// systemd in each of their boots.
fn each_bootloader_once() -> Vec<&'static Board> {
    let same = |a: &Board, b: &Board| a.device_type == b.device_type && a.bootloader == b.bootloader;
    let is_first = |(n, board): &(usize, &Board)| !ALL.iter().take(*n).any(|before| same(before, board));
    ALL.iter().enumerate().filter(is_first).map(|(_, board)| board).collect()
}

fn row(board: &Board, seen: Seen) -> Vec<String> {
    let yes = |seen: bool| if seen { "yes" } else { "NO" };
    vec![
        board.name.to_owned(),
        board.bootloader.words().to_owned(),
        format!("{} of {TRIES}", seen.tries),
        yes(seen.rollback).to_owned(),
        if board.has_watchdog { yes(seen.hang) } else { "no watchdog" }.to_owned(),
        seen.seconds.to_string(),
    ]
}

/// Columns as wide as their widest cell.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |n: usize| rows.iter().filter_map(|r| r.get(n)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_means_each_bootloader_of_each_device() {
        let names: Vec<&str> = each_bootloader_once().iter().map(|b| b.name).collect();
        let expected =
            ["nuc", "nuc-sdboot", "raspberrypi3", "fincm3", "raspberrypi4", "jetson-tx2", "jetson-orin"];
        assert_eq!(names, expected);
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["a".to_owned(), "bb".to_owned()], vec!["ccc".to_owned(), "d".to_owned()]];
        assert_eq!(aligned(&rows), "a    bb\nccc  d");
    }

    #[test]
    fn what_was_not_seen_is_told() {
        let board = |name| crate::boards::named(name).unwrap();
        let seen = Seen { tries: 3, rollback: true, hang: false, seconds: 9 };
        assert_eq!(row(board("nuc"), seen)[2..], ["3 of 3", "yes", "NO", "9"]);
        assert_eq!(row(board("fincm3"), seen)[4], "no watchdog");
    }
}
