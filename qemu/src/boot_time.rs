//! What PID 1 adds to a boot: the same kernel starts the same program from the same disk, once by itself and once through
//! twinhull, in turns.
//!
//! Times are QEMU's processor time. What else this machine does can only add to it, so the least of several boots counts.

use std::time::Duration;

use crate::Outcome;
use crate::hardware::{Kernel, Setup};
use crate::images::{FIRST_VERSION, Fault, Lab, Os};
use crate::layout::Role;
use crate::machine::{Disk, Machine};

/// Pairs of boots.
const PAIRS: usize = 9;
/// What PID 1 may add, in seconds.
const BUDGET_S: f64 = 0.3;
const PATIENCE: Duration = Duration::from_secs(300);
/// It switches the machine off at once, as its name in `qemu/image/root` says.
const LAST: &str = "/usr/libexec/lab-off";

/// Measures. The error says by how much it is too slow.
pub fn measure(lab: &Lab) -> Outcome {
    println!("images");
    lab.base()?;
    let cloud = lab.cloud()?;
    let os = lab.os(FIRST_VERSION, Fault::None)?;
    let disk = lab.disk(&os, &cloud)?;
    let disk = Disk { file: &disk, format: "raw" };
    let first = boot(lab, &os, &disk, true)?;
    println!(
        "the first boot, in which PID 1 grows the data partition: {first:.2} s of QEMU's processor time"
    );
    println!("pair  kernel alone  through PID 1  added");
    let (mut alone, mut through) = (Vec::new(), Vec::new());
    for n in 1..=PAIRS {
        let (without, with) = (boot(lab, &os, &disk, false)?, boot(lab, &os, &disk, true)?);
        println!("{n:>4}  {without:>10.2} s  {with:>11.2} s  {:>+5.2} s", with - without);
        alone.push(without);
        through.push(with);
    }
    let (alone, through) = (least(alone), least(through));
    let added = through - alone;
    println!("least  {alone:>9.2} s  {through:>11.2} s  {added:>+5.2} s, at most {BUDGET_S} s");
    if added <= BUDGET_S { Ok(()) } else { Err(format!("PID 1 adds {added:.2} s, more than {BUDGET_S} s")) }
}

/// Boots until the last program; gives QEMU's processor time.
fn boot(lab: &Lab, os: &Os, disk: &Disk, with_initramfs: bool) -> Outcome<f64> {
    let root = lab.board.layout.partuuid(Role::Root(0));
    let kernel = Kernel {
        files: os.boot_files.clone(),
        with_initramfs,
        command_line: format!(
            "root=PARTUUID={root} rootfstype=ext4 rootwait ro panic=5 {} init={LAST}",
            lab.board.command_line
        ),
    };
    let setup = Setup { kernel: Some(kernel), ..Setup::default() };
    let mut machine = Machine::start(lab.board, disk, &lab.work, &setup)?;
    let seconds = machine.cpu_until_off(PATIENCE)?;
    let said = std::fs::read_to_string(&machine.console).map_err(|e| format!("the console: {e}"))?;
    let through_pid1 = said.contains("starts as PID 1");
    if !said.contains("reboot: Power down") || through_pid1 != with_initramfs {
        return Err(format!("not the boot that was meant; PID 1 was there: {through_pid1}"));
    }
    Ok(seconds)
}

fn least(values: Vec<f64>) -> f64 {
    values.into_iter().fold(f64::INFINITY, f64::min)
}
