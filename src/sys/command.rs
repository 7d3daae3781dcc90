//! Child processes, each with a deadline and with its output kept.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::clock::{BootClock, Clock};
use crate::{Doing, Error, Result};

/// What a child left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it exited with 0.
    pub success: bool,
    /// How it ended: `exit 3`, `signal 9`, `no answer within 30 s`.
    pub ending: String,
    /// Its output and error output together, the last 8 KiB, as text.
    pub output: String,
}

const SYSTEMD_RUN: &str = "/usr/bin/systemd-run";
/// How much of a child's output is kept, from the end.
const KEPT: usize = 8 * 1024;

/// Runs `program args…` without standard input; kills its whole process group after `deadline`.
///
/// # Errors
/// `Failed` if it cannot be started. A child that fails or is killed is an `Outcome`, not an error.
pub fn run(program: &Path, args: &[&str], deadline: Duration) -> Result<Outcome> {
    run_prepared(Command::new(program), program, args, deadline)
}

/// As [`run`], but where systemd can be asked, as a unit of its own: outside of the sandbox of the calling process.
///
/// # Errors
/// As [`run`].
pub fn run_outside(program: &Path, deadline: Duration) -> Result<Outcome> {
    let there = |path: &str| Path::new(path).exists();
    // It speaks with systemd by the bus alone.
    if !there("/run/systemd/system") || !there("/run/dbus/system_bus_socket") || !there(SYSTEMD_RUN) {
        return run(program, &[], deadline);
    }
    let (limit, name) =
        (format!("--property=RuntimeMaxSec={}", deadline.as_secs()), program.to_string_lossy());
    let args =
        ["--quiet", "--collect", "--wait", "--pipe", "--property=TimeoutStopSec=5", &limit, "--", &name];
    // systemd ends it at the deadline, with all that it has started.
    run(Path::new(SYSTEMD_RUN), &args, deadline + Duration::from_secs(30))
}

/// As [`run`], with `root` as the child's root directory: `program` is a path inside it.
///
/// # Errors
/// As [`run`].
pub fn run_in_root(root: &Path, program: &Path, args: &[&str], deadline: Duration) -> Result<Outcome> {
    use std::os::unix::ffi::OsStrExt;
    let mut command = Command::new(program);
    let root = std::ffi::CString::new(root.as_os_str().as_bytes())
        .map_err(|_| Error::failed(format!("run {}: NUL in its root", program.display())))?;
    let enter = move || {
        rustix::process::chroot(root.as_c_str())?;
        rustix::process::chdir(c"/")?;
        Ok(())
    };
    // SAFETY: between fork and exec only two system calls are made, on a string that was made before.
    unsafe { command.pre_exec(enter) };
    run_prepared(command, program, args, deadline)
}

fn run_prepared(mut command: Command, program: &Path, args: &[&str], deadline: Duration) -> Result<Outcome> {
    let name = program.display();
    let (reader, writer) = std::io::pipe().doing(|| format!("run {name}"))?;
    let copy = writer.try_clone().doing(|| format!("run {name}"))?;
    let mut child = command
        .args(args)
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(copy)
        .process_group(0)
        .spawn()
        .doing(|| format!("run {name}"))?;
    // It holds the writing ends of the pipe, whose end the collector waits for.
    drop(command);
    let collector = std::thread::spawn(move || collect(reader));
    let clock = BootClock;
    let end = clock.since_boot() + deadline;
    let ending = loop {
        if let Some(status) = child.try_wait().doing(|| format!("wait for {name}"))? {
            break Ok(status);
        }
        if clock.since_boot() >= end {
            break Err(());
        }
        clock.sleep(Duration::from_millis(20));
    };
    // Its own children may still hold the pipe open: end them, or the collector would wait for them.
    kill_group(child.id());
    if ending.is_err() {
        child.wait().doing(|| format!("wait for {name}"))?;
    }
    let output = collector.join().map_err(|_| Error::failed(format!("read the output of {name}")))?;
    Ok(match ending {
        Ok(status) => Outcome { success: status.success(), ending: describe(status), output },
        Err(()) => {
            Outcome { success: false, ending: format!("no answer within {} s", deadline.as_secs()), output }
        }
    })
}

fn describe(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown end".into(),
    }
}

fn collect(mut from: impl Read) -> String {
    let mut kept = Vec::new();
    let mut chunk = [0; 4096];
    // A read error ends the collection as the end of the pipe does: what came so far is still worth showing.
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        kept.extend(chunk.iter().take(n));
        if kept.len() > 2 * KEPT {
            kept.drain(..kept.len() - KEPT);
        }
    }
    kept.drain(..kept.len().saturating_sub(KEPT));
    String::from_utf8_lossy(&kept).into_owned()
}

fn kill_group(leader: u32) {
    if let Some(pid) = i32::try_from(leader).ok().and_then(rustix::process::Pid::from_raw) {
        // Nobody left in the group is the usual case, and no error.
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, deadline_s: u64) -> Outcome {
        run(Path::new("/bin/sh"), &["-c", script], Duration::from_secs(deadline_s)).unwrap()
    }

    #[test]
    fn keeps_output_and_exit_code() {
        let o = sh("echo out; echo err >&2; exit 3", 30);
        assert_eq!((o.success, o.ending.as_str(), o.output.as_str()), (false, "exit 3", "out\nerr\n"));
    }

    #[test]
    fn deadline_kills_the_whole_group() {
        let o = sh("echo before; sleep 1000 & wait", 1);
        assert_eq!(
            (o.success, o.ending.as_str(), o.output.as_str()),
            (false, "no answer within 1 s", "before\n")
        );
    }
}
