//! A person at the console of a running device.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::Outcome;
use crate::device::Device;
use crate::images::{FIRST_VERSION, Fault, Lab, bundle_url};
use crate::machine::Disk;

/// Ctrl-], as telnet has it.
const ESCAPE: u8 = 0x1d;

/// The terminal without echo and line editing, until dropped.
struct Raw(Option<String>);

impl Raw {
    fn enter() -> Outcome<Self> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self(None));
        }
        let stty = |args: &[&str]| {
            let output = Command::new("stty").args(args).stdin(std::process::Stdio::inherit()).output();
            output
                .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
                .map_err(|e| format!("stty: {e}"))
        };
        let before = stty(&["-g"])?;
        stty(&["raw", "-echo"])?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Nothing else can be done for the terminal.
            let _ = Command::new("stty").arg(before).status();
        }
    }
}

/// Boots a device and connects its console with standard input and output until it is switched off or left.
pub fn open(lab: &Lab) -> Outcome {
    lab.base()?;
    let cloud = lab.cloud()?;
    let os = lab.os(FIRST_VERSION, Fault::None)?;
    let disk = lab.disk(&os, &cloud)?;
    let next = lab.os("2.0.0", Fault::None)?;
    lab.bundle(&next, "2.0.0")?;
    println!(
        "{} starts with OS 1.0.0. To update it:  twinhull install {}",
        lab.board.name,
        bundle_url(&cloud, "2.0.0")
    );
    println!("Ctrl-] or `poweroff` ends this.\n");

    let mut device = Device::switch_on(lab, &Disk { file: &disk, format: "raw" })?;
    let console = UnixStream::connect(&device.machine.serial).map_err(|e| format!("the console: {e}"))?;
    let mut from_device = console.try_clone().map_err(|e| format!("the console: {e}"))?;
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(n @ 1..) = from_device.read(&mut bytes) {
            let mut out = std::io::stdout();
            if out.write_all(&bytes[..n]).and_then(|()| out.flush()).is_err() {
                break;
            }
        }
    });
    if !std::io::stdin().is_terminal() {
        return type_input(device, console);
    }
    let raw = Raw::enter()?;
    let left = std::sync::Arc::new(AtomicBool::new(false));
    let leaving = std::sync::Arc::clone(&left);
    std::thread::spawn(move || {
        let mut byte = [0];
        let mut to_device = &console;
        while matches!(std::io::stdin().read(&mut byte), Ok(1)) && byte[0] != ESCAPE {
            if to_device.write_all(&byte).is_err() {
                break;
            }
        }
        leaving.store(true, Ordering::SeqCst);
    });
    while device.machine.runs() && !left.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(raw);
    println!();
    Ok(())
}

/// Types the lines of standard input when the shell is there, and then `poweroff`.
fn type_input(mut device: Device, mut console: UnixStream) -> Outcome {
    device.booted()?;
    device.console_shell()?;
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input).map_err(|e| format!("standard input: {e}"))?;
    let mut input = format!("{}\npoweroff\n", input.trim_end());
    // A login that ends (`exit`) throws away what was typed ahead, and another begins.
    for _ in 0..30 {
        console.write_all(input.as_bytes()).map_err(|e| format!("the console: {e}"))?;
        if device.machine.wait_off(Duration::from_secs(60)).is_ok() {
            return Ok(());
        }
        input = "poweroff\n".into();
    }
    Err("the machine did not switch off within 30 minutes".into())
}
