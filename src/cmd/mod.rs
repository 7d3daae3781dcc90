//! One file per subcommand: what was typed, what it means, what is shown. The work is done below.

mod boot;
mod bundle;
mod chooser;
mod commit;
mod config;
mod contracts;
mod engine;
mod evidence;
mod features;
mod feed;
mod fetching;
mod file_sets;
mod flash;
mod health;
mod hooks;
mod host;
pub mod init;
mod install;
mod preload;
mod progress;
mod provision;
mod reach;
mod reset;
mod resume;
mod rollback;
mod services;
mod services_show;
mod status;
mod stranded;
mod supervisor;
mod supervisor_update;
mod turn;
mod version;

use crate::cli::Command;

/// Every command, in the order of `twinhull --help`.
pub const COMMANDS: &[Command] = &[
    status::COMMAND,
    install::COMMAND,
    resume::COMMAND,
    boot::COMMAND,
    health::COMMAND,
    commit::COMMAND,
    rollback::COMMAND,
    reset::COMMAND,
    init::COMMAND,
    flash::COMMAND,
    preload::COMMAND,
    provision::COMMAND,
    config::COMMAND,
    engine::COMMAND,
    supervisor::COMMAND,
    services::COMMAND,
    features::COMMAND,
    contracts::COMMAND,
    bundle::COMMAND,
    version::COMMAND,
];
