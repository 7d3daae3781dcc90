//! What PID 1 adds to a boot: the same kernel starts the same program from the same disk, once by itself and once through
//! twinhull, in turns.
//!
//! Times are QEMU's processor time, which does not depend on what else this machine does as much as the clock on the wall does.

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
    let (mut alone, mut added) = (Vec::new(), Vec::new());
    for n in 1..=PAIRS {
        let (without, with) = (boot(lab, &os, &disk, false)?, boot(lab, &os, &disk, true)?);
        println!("{n:>4}  {without:>10.2} s  {with:>11.2} s  {:>+5.2} s", with - without);
        alone.push(without);
        added.push(with - without);
    }
    let (alone, added) = (median(alone), median(added));
    println!("median: PID 1 adds {added:.2} s to {alone:.2} s; at most {BUDGET_S} s");
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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
