//! A board in QEMU: started, killed, its processor time taken.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;

const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const FIRMWARE_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// A running QEMU; killed when dropped.
pub struct Machine {
    process: Child,
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
    /// Switches a NUC on. `work` is where its console log, sockets and firmware variables are.
    pub fn nuc(disk: &Disk, work: &Path) -> Outcome<Self> {
        let variables = work.join("firmware-variables.fd");
        if !variables.exists() {
            std::fs::copy(FIRMWARE_VARIABLES, &variables)
                .map_err(|e| format!("{FIRMWARE_VARIABLES}: {e}"))?;
        }
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
        let errors = File::create(work.join("qemu.log")).map_err(|e| format!("qemu.log: {e}"))?;
        // setpriv: whichever way this program ends, QEMU ends with it.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-display", "none"])
            .args([
                "-machine",
                "q35",
                "-accel",
                "tcg,thread=multi,tb-size=512",
                "-cpu",
                "Nehalem",
                "-smp",
                "2",
                "-m",
                "1024",
            ])
            .args(["-drive", &format!("if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE}")])
            .args(["-drive", &format!("if=pflash,format=raw,unit=1,file={}", variables.display())])
            .args(["-drive", &format!("if=none,id=d0,format={},file={}", disk.format, disk.file.display())])
            .args(["-device", "nvme,drive=d0,serial=s0,bootindex=1"])
            .args(["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="])
            .args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"])
            .args(["-chardev", &format!("socket,id=agent,path={},server=on,wait=off", agent.display())])
            .args(["-device", "virtconsole,chardev=agent"])
            .args(["-device", "i6300esb", "-action", "watchdog=reset"])
            .args([
                "-chardev",
                &format!(
                    "socket,id=serial,path={},server=on,wait=off,logfile={}",
                    serial.display(),
                    console.display()
                ),
            ])
            .args(["-serial", "chardev:serial"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .map_err(|e| format!("start QEMU: {e}"))?;
        Ok(Self { process, console, serial, agent })
    }

    /// Processor time that it used so far, in seconds.
    pub fn cpu_seconds(&self) -> Outcome<f64> {
        let path = format!("/proc/{}/stat", self.process.id());
        let stat = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        cpu_ticks(&stat).map(|ticks| ticks as f64 / 100.0).ok_or_else(|| format!("{path}: cannot be read"))
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Pulls the plug.
    pub fn cut(mut self) -> Outcome {
        self.process
            .kill()
            .and_then(|()| self.process.wait())
            .map(drop)
            .map_err(|e| format!("kill QEMU: {e}"))
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
    }
}
