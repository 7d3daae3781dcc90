//! A board in QEMU: started, killed, its processor time taken.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::boards::{Board, Bootloader};
use crate::boot_rom::BootRom;
use crate::hardware::{self, Setup, words};

/// A running QEMU; killed when dropped.
pub struct Machine {
    process: Child,
    arguments: Vec<String>,
    rom: Option<BootRom>,
    /// What QEMU itself complains of.
    errors: PathBuf,
    /// What the serial console said since this machine was switched on.
    pub console: PathBuf,
    /// Socket of the serial console, for input.
    pub serial: PathBuf,
    /// Socket of the virtual console hvc0, where the lab's agent listens.
    pub agent: PathBuf,
}

/// The disk of a board, by its format in QEMU's words.
pub struct Disk<'a> {
    /// The image.
    pub file: &'a Path,
    /// `raw` or `qcow2`.
    pub format: &'static str,
}

impl Machine {
    /// Switches a board on. `work` is where its console log, sockets and firmware variables are.
    pub fn start(board: &Board, disk: &Disk, work: &Path, setup: &Setup) -> Outcome<Self> {
        let (console, serial, agent) =
            (work.join("console.log"), work.join("serial.sock"), work.join("agent.sock"));
        for stale in [&console, &serial, &agent] {
            match std::fs::remove_file(stale) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(format!("{}: {e}", stale.display()));
                }
                Ok(()) | Err(_) => {}
            }
        }
        let socket =
            |id: &str, path: &Path| format!("socket,id={id},path={},server=on,wait=off", path.display());
        let mut arguments = hardware::arguments(board, disk, work, setup)?;
        arguments.extend(words(&format!(
            "-nodefaults -display none -action watchdog=reset -chardev {} \
             -chardev {},logfile={},logappend=on",
            socket("agent", &agent),
            socket("serial", &serial),
            console.display()
        )));
        let rom = match board.bootloader {
            Bootloader::Tryboot => Some(BootRom::new(disk.file, board.layout, work)),
            _ => None,
        };
        let errors = work.join("qemu.log");
        let process = power_on(&arguments, rom.as_ref(), &console, &errors)?;
        Ok(Self { process, arguments, rom, errors, console, serial, agent })
    }

    /// Starts it again if it has ended where a boot ROM would go on; whether it did.
    pub fn restart(&mut self) -> Outcome<bool> {
        // A QEMU that could not start would not start again.
        let ended_well = matches!(self.process.try_wait(), Ok(Some(status)) if status.success());
        if self.rom.is_none() || !ended_well {
            return Ok(false);
        }
        let ended = read_console(&self.console)?.contains("reboot: Power down");
        if !ended {
            self.process = power_on(&self.arguments, self.rom.as_ref(), &self.console, &self.errors)?;
        }
        Ok(!ended)
    }

    /// Pulls the plug.
    pub fn power_off(&mut self) -> Outcome {
        self.process
            .kill()
            .and_then(|()| self.process.wait())
            .map(drop)
            .map_err(|e| format!("kill QEMU: {e}"))
    }

    /// Puts the plug in again.
    pub fn power_on(&mut self) -> Outcome {
        self.process = power_on(&self.arguments, self.rom.as_ref(), &self.console, &self.errors)?;
        Ok(())
    }

    /// Processor time that it used so far, in seconds.
    pub fn cpu_seconds(&self) -> Outcome<f64> {
        let path = format!("/proc/{}/stat", self.process.id());
        let stat = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        cpu_ticks(&stat).map(|ticks| ticks as f64 / 100.0).ok_or_else(|| format!("{path}: cannot be read"))
    }

    /// Waits until the machine has switched itself off; gives the processor time that it used in all, in seconds.
    pub fn cpu_until_off(&mut self, patience: Duration) -> Outcome<f64> {
        self.cpu_at([], patience).map(|(_, end)| end)
    }

    /// Waits until the machine has switched itself off; gives the processor time that it had used when each of `texts`
    /// was on its console, if it was, and in all; in seconds.
    pub fn cpu_at<const N: usize>(
        &mut self,
        texts: [&str; N],
        patience: Duration,
    ) -> Outcome<([Option<f64>; N], f64)> {
        let deadline = Instant::now() + patience;
        let path = format!("/proc/{}/stat", self.process.id());
        let mut at = [None; N];
        // What has ended keeps its times until it is waited for.
        loop {
            let now = self.cpu_seconds()?;
            let ended = std::fs::read_to_string(&path).is_ok_and(|stat| has_ended(&stat));
            let said = if at.contains(&None) { read_console(&self.console)? } else { String::new() };
            for (at, text) in at.iter_mut().zip(texts) {
                if at.is_none() && said.contains(text) {
                    *at = Some(now);
                }
            }
            if ended {
                let whole = self.cpu_seconds()?;
                return self.ended_well().map(|()| (at, whole));
            }
            if Instant::now() > deadline {
                return Err(format!("the machine did not switch off within {} s", patience.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(if N == 0 { 50 } else { 5 }));
        }
    }

    /// Takes leave of a QEMU that has ended; the error is what it complained of.
    fn ended_well(&mut self) -> Outcome {
        let status = self.process.wait().map_err(|e| format!("wait for QEMU: {e}"))?;
        let errors = std::fs::read_to_string(&self.errors).unwrap_or_else(|e| e.to_string());
        if status.success() { Ok(()) } else { Err(format!("QEMU: {status}: {}", errors.trim())) }
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Pulls the plug for good.
    pub fn cut(mut self) -> Outcome {
        self.power_off()
    }

    /// Waits until the machine has switched itself off.
    pub fn wait_off(&mut self, patience: Duration) -> Outcome {
        let deadline = Instant::now() + patience;
        while self.runs() {
            if Instant::now() > deadline {
                return Err(format!("the machine did not switch off within {} s", patience.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts QEMU; where there is a boot ROM, with what it loads.
fn power_on(arguments: &[String], rom: Option<&BootRom>, console: &Path, errors: &Path) -> Outcome<Child> {
    let mut arguments = arguments.to_vec();
    if let Some(rom) = rom {
        let said = read_console(console)?;
        let start = rom.power_on(BootRom::is_asked_to_try(&said))?;
        let mut log = File::options().create(true).append(true).open(console);
        let told = log
            .as_mut()
            .map_err(|e| e.to_string())
            .and_then(|log| writeln!(log, "{}", start.said).map_err(|e| e.to_string()));
        told.map_err(|e| format!("{}: {e}", console.display()))?;
        arguments.extend(start.kernel);
    }
    let errors =
        File::options().create(true).append(true).open(errors).map_err(|e| format!("qemu.log: {e}"))?;
    // setpriv: whichever way this program ends, QEMU ends with it.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .map_err(|e| format!("start QEMU: {e}"))
}

/// What the console has said; nothing if it is not there yet.
fn read_console(console: &Path) -> Outcome<String> {
    match std::fs::read(console) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).replace('\r', "")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(format!("{}: {e}", console.display())),
    }
}

/// Whether a line of /proc/PID/stat is of a process that has ended; proc(5).
fn has_ended(stat: &str) -> bool {
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// `utime` and `stime` of a line of /proc/PID/stat, in ticks of 1/100 s; proc(5).
fn cpu_ticks(stat: &str) -> Option<u64> {
    // The name, field 2, may hold anything but ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "12 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert!(!has_ended(stat) && has_ended("12 (a) S) Z 1"));
    }
}
