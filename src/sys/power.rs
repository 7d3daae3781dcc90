//! Ending this boot.

use std::path::Path;
use std::time::Duration;

use crate::{Error, Result};

/// Asks systemd for an orderly end.
///
/// # Errors
/// `Failed` if systemd cannot be asked.
pub fn power_off() -> Result<()> {
    ask(&["poweroff"])
}

/// Asks systemd for an orderly reboot; `argument` goes to the firmware (Raspberry Pi: `0 tryboot`).
///
/// # Errors
/// `Failed` if systemd cannot be asked.
pub fn reboot(argument: Option<&str>) -> Result<()> {
    let mut args = vec!["reboot"];
    let option;
    if let Some(argument) = argument {
        option = format!("--reboot-argument={argument}");
        args.push(&option);
    }
    ask(&args)
}

fn ask(args: &[&str]) -> Result<()> {
    let outcome = super::command::run(Path::new("systemctl"), args, Duration::from_secs(60))?;
    if outcome.success {
        return Ok(());
    }
    let what = args.first().unwrap_or(&"");
    Err(Error::failed(format!("systemctl {what}: {}: {}", outcome.ending, outcome.output.trim_end())))
}

/// Whether systemd ends this boot with a reboot, not a power-off. `false` also if it cannot be asked.
pub fn reboot_is_under_way() -> bool {
    let asked = super::command::run(
        Path::new("systemctl"),
        &["list-jobs", "--no-legend", "--plain", "--no-pager"],
        Duration::from_secs(10),
    );
    asked.is_ok_and(|outcome| {
        outcome.success && outcome.output.split_whitespace().any(|word| word == "reboot.target")
    })
}

/// Gives the reboot that is under way an argument for the firmware.
///
/// # Errors
/// `Failed`, naming the file.
pub fn set_reboot_argument(argument: &str) -> Result<()> {
    super::durable::replace(Path::new("/run/systemd/reboot-param"), format!("{argument}\n").as_bytes(), 0o644)
}

/// Restarts the machine at once: file systems are synced, nothing is stopped. For PID 1.
pub fn reboot_now() -> ! {
    rustix::fs::sync();
    let e = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    // Only a missing right comes here. PID 1 that returns is a kernel panic, which restarts as well.
    log::error!("reboot: {e:?}");
    std::process::abort()
}
