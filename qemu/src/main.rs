//! The board lab of twinhull: builds images, boots boards in QEMU, plays scenarios.
//!
//! Started by `qemu/run`, which installs and builds what it needs; `qemu/help.txt` says how it is used.
#![allow(clippy::disallowed_methods, clippy::disallowed_macros)]

mod block_log;
mod boards;
mod boot_partition;
mod boot_rom;
mod boot_time;
mod bootloader;
mod cloud;
mod command;
mod cuts;
mod delivered;
mod demo;
mod device;
mod disk;
mod fat;
mod first_boot_cuts;
mod flash;
mod hardware;
mod images;
mod jury;
mod layout;
mod machine;
mod moments;
mod power_cut;
mod preload;
mod recorder;
mod recording;
mod replay;
mod rules;
mod shell;
mod supervisor;
mod supervisor_image;
mod switch;
mod table;
mod tables;
mod tables_real;
mod timeline;
mod truth_table;
mod verity;

use std::process::ExitCode;

use command::Command;

/// What a scenario ends with if it fails: one sentence for people.
pub type Outcome<T = ()> = Result<T, String>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // Only looked at, before `qemu/run` installs anything.
    let only_check = args.first().is_some_and(|a| a == "check");
    let command = match Command::parse(args.get(usize::from(only_check)..).unwrap_or_default()) {
        Ok(command) if only_check => {
            println!("{}", command.needs().join("\n"));
            return ExitCode::SUCCESS;
        }
        Ok(command) => command,
        Err(e) => {
            eprintln!("qemu/run: {e}; see qemu/run --help");
            return ExitCode::from(2);
        }
    };
    match command.play() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("qemu/run: {e}");
            ExitCode::FAILURE
        }
    }
}
