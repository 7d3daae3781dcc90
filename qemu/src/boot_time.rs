//! What PID 1 adds to a boot: the same kernel starts the same program from the same disk, once by itself, once after a small
//! program has loaded the same modules and made the same mounts, and once through twinhull, in turns.
//!
//! Times are QEMU's processor time. What comes before the kernel looks for its root is the same in all boots, takes most of
//! their time, and differs from boot to boot by more than what is looked for; so a boot counts from there to its end, and
//! the unpacking of the initramfs, which comes earlier, is added. Of several boots the medians count.
//!
//! The budget is for what PID 1 adds to the kernel alone. What it adds to the same modules and mounts, which whatever comes up
//! without an initramfs has to load and make too, stands beside it.

use std::path::Path;
use std::time::Duration;

use crate::Outcome;
use crate::hardware::{Kernel, Setup};
use crate::images::{FIRST_VERSION, Fault, Lab, Os};
use crate::layout::Role;
use crate::machine::{Disk, Machine};

/// Boots of each kind.
const ROUNDS: usize = 9;
/// What PID 1 may add to the kernel alone, in seconds.
const BUDGET_S: f64 = 0.3;
const PATIENCE: Duration = Duration::from_secs(300);
/// The first boot's last program, after which the disk is in order.
const LAST_CLEAN: &str = "/usr/libexec/lab-off-clean";
/// That of the others, which change nothing for good.
const LAST: &str = "/usr/libexec/lab-off";
/// Loads PID 1's modules and makes its mounts before that.
const MOUNTS: &str = "/usr/libexec/lab-mounts";
/// The last that the lab's kernel says before it mounts its root, or starts what is to do it.
const BEFORE_ROOT: &str = "RAS: Correctable Errors collector initialized";
/// The kernel has mounted a partition.
const ROOT: &str = "nvme0n1p2): mounted";
const STATE: &str = "nvme0n1p4): mounted";
const DATA: &str = "nvme0n1p5): mounted";
/// `MOUNTS` has done all that it should.
const MOUNTED: &str = "lab-mounts: done";
const DOWN: &str = "reboot: Power down";
/// The kernel tests its cryptography in threads of its own: they would count for whichever boot is still there to be counted.
const QUIET: &str = "cryptomgr.notests";

/// What the console shows: in boots through PID 1 all but the second last, in this order.
const SIGNS: [&str; 13] = [
    "Trying to unpack rootfs image",
    "Freeing initrd memory",
    BEFORE_ROOT,
    "Run /init as init process",
    "starts as PID 1",
    " modules loaded",
    ": slot A",
    ROOT,
    STATE,
    DATA,
    "twinhull: starting /",
    MOUNTED,
    DOWN,
];
/// What is done from one of `SIGNS` to the next, by the number of the latter.
const STEPS: [(usize, &str); 8] = [
    (1, "unpack the initramfs"),
    (4, "start /init, mount the kernel's own file systems"),
    (5, "load modules"),
    (6, "find the disk"),
    (7, "look whether to grow, mount the root"),
    (8, "read the settings, mount state"),
    (9, "mount boot and data"),
    (10, "machine id, binds, host name, hand over"),
];

/// How the last program is started.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The kernel mounts the root and starts it.
    Alone,
    /// The kernel mounts the root, and a small program all that PID 1 mounts.
    Mounts,
    /// Through the initramfs.
    Pid1,
}

/// What of a boot's time counts, in seconds.
struct Times {
    /// The whole boot, QEMU's own start and the firmware included.
    whole: f64,
    /// When each of `SIGNS` was seen; 0 if it was not.
    at: [f64; SIGNS.len()],
}

impl Times {
    const fn counted(&self) -> f64 {
        let [unpacks, unpacked, before_root, ..] = self.at;
        unpacked - unpacks + self.whole - before_root
    }
}

/// Measures. The error says by how much it is too slow.
pub fn measure(lab: &Lab) -> Outcome {
    println!("images");
    lab.base()?;
    let cloud = lab.cloud()?;
    let os = lab.os(FIRST_VERSION, Fault::None)?;
    let disk = lab.disk(&os, &cloud)?;
    let first = boot(lab, &os, &disk, Way::Pid1, LAST_CLEAN)?;
    println!(
        "the first boot, in which PID 1 grows the data partition: {:.2} s of QEMU's processor time\n\
         \n\
         from the root on      kernel alone  mounts as well  through PID 1  added to these  whole boots",
        first.whole
    );
    let mut boots = [Vec::new(), Vec::new(), Vec::new()];
    for n in 1..=ROUNDS {
        let mut round = Vec::new();
        for (way, boots) in [Way::Alone, Way::Mounts, Way::Pid1].into_iter().zip(&mut boots) {
            let times = boot(lab, &os, &disk, way, LAST)?;
            round.push((times.counted(), times.whole));
            boots.push(times);
        }
        let whole: Vec<String> = round.iter().map(|(_, whole)| format!("{whole:.2} s")).collect();
        if let [(alone, _), (mounts, _), (through, _)] = round.as_slice() {
            print_row(&n.to_string(), *alone, *mounts, *through, &whole.join(", "));
        }
    }
    let [alone, mounts, through] = boots.each_ref().map(|boots| median(boots, Times::counted));
    print_row("medians", alone, mounts, through, &format!("at most {BUDGET_S} more than the kernel alone"));
    println!("\nits steps, by medians");
    for (end, done) in STEPS {
        println!("{:>6.2} s  {done}", median(&boots[2], |t| t.at[end] - t.at[end - 1]));
    }
    println!(
        "The same modules and mounts without PID 1 take {:.2} s; it adds {:.2} s to that.",
        mounts - alone,
        through - mounts
    );
    let added = through - alone;
    if added <= BUDGET_S { Ok(()) } else { Err(format!("PID 1 adds {added:.2} s, more than {BUDGET_S} s")) }
}

fn print_row(name: &str, alone: f64, mounts: f64, through: f64, more: &str) {
    let added = format!("{:+.2}, {:+.2}", through - alone, through - mounts);
    println!("{name:<20}  {alone:>10.2} s  {mounts:>12.2} s  {through:>11.2} s  {added:>14}  {more}");
}

/// Boots until the last program.
fn boot(lab: &Lab, os: &Os, disk: &Path, way: Way, last: &str) -> Outcome<Times> {
    let root = lab.board.layout.partuuid(Role::Root(0));
    let init = if way == Way::Mounts { MOUNTS } else { last };
    let kernel = Kernel {
        files: os.boot_files.clone(),
        with_initramfs: way == Way::Pid1,
        command_line: format!(
            "root=PARTUUID={root} rootfstype=ext4 rootwait ro panic=5 initramfs_async=0 {QUIET} {} init={init}",
            lab.board.command_line
        ),
    };
    let setup = Setup { kernel: Some(kernel), forgetful: last == LAST, ..Setup::default() };
    let mut machine = Machine::start(lab.board, &Disk { file: disk, format: "raw" }, &lab.work, &setup)?;
    let (seen, whole) = machine.cpu_at(SIGNS, PATIENCE)?;
    let expected = SIGNS.map(|sign| match sign {
        BEFORE_ROOT | ROOT | DOWN => true,
        MOUNTED => way == Way::Mounts,
        STATE | DATA => way != Way::Alone,
        _ => way == Way::Pid1,
    });
    match seen.map(|at| at.is_some()) == expected {
        true => Ok(Times { whole, at: seen.map(|at| at.unwrap_or_default()) }),
        false => Err(format!("not the boot that was meant: {seen:?}")),
    }
}

fn median(boots: &[Times], of: impl Fn(&Times) -> f64) -> f64 {
    let mut values: Vec<f64> = boots.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
