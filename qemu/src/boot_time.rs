//! What PID 1 adds to a boot: the same kernel starts the same program from the same disk, once by itself and once through
//! twinhull, in turns.
//!
//! Times are QEMU's processor time. What comes before the kernel looks for its root is the same in both boots, takes most of
//! their time, and differs from boot to boot by more than what is looked for; so a boot counts from there to its end, and
//! the unpacking of the initramfs, which comes earlier, is added. Of several boots the medians count.

use std::path::Path;
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
/// The first boot's last program, after which the disk is in order.
const LAST_CLEAN: &str = "/usr/libexec/lab-off-clean";
/// That of the others, which change nothing for good.
const LAST: &str = "/usr/libexec/lab-off";
/// The last that the lab's kernel says before it mounts its root, or starts what is to do it.
const BEFORE_ROOT: &str = "RAS: Correctable Errors collector initialized";

/// What of a boot's time counts, in seconds.
struct Times {
    /// The whole boot, QEMU's own start and the firmware included.
    whole: f64,
    /// The initramfs is unpacked.
    unpacking: f64,
    /// PID 1 loads modules.
    modules: f64,
    /// From the root on, to the end.
    from_root: f64,
}

impl Times {
    fn counted(&self) -> f64 {
        self.unpacking + self.from_root
    }
}

/// Measures. The error says by how much it is too slow.
pub fn measure(lab: &Lab) -> Outcome {
    println!("images");
    lab.base()?;
    let cloud = lab.cloud()?;
    let os = lab.os(FIRST_VERSION, Fault::None)?;
    let disk = lab.disk(&os, &cloud)?;
    let first = boot(lab, &os, &disk, true, LAST_CLEAN)?;
    println!(
        "the first boot, in which PID 1 grows the data partition: {:.2} s of QEMU's processor time\n\
         \n\
         from the root on      kernel alone  through PID 1  added  whole boots",
        first.whole
    );
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for n in 1..=PAIRS {
        let pair = [boot(lab, &os, &disk, false, LAST)?, boot(lab, &os, &disk, true, LAST)?];
        let [alone, through] = pair.each_ref().map(Times::counted);
        let whole = format!("{:.2} s, {:.2} s", pair[0].whole, pair[1].whole);
        println!("{n:<20}  {alone:>10.2} s  {through:>11.2} s  {:>+5.2}  {whole}", through - alone);
        let [alone, through] = pair;
        without.push(alone);
        with.push(through);
    }
    let (alone, through) = (median(&without, Times::counted), median(&with, Times::counted));
    let [unpacking, modules] = [|t: &Times| t.unpacking, |t: &Times| t.modules].map(|of| median(&with, of));
    let added = through - alone;
    println!("{:<20}  {alone:>10.2} s  {through:>11.2} s  {added:>+5.2}  at most {BUDGET_S}", "medians");
    println!("of it {unpacking:.2} s to unpack the initramfs, {modules:.2} s to load modules");
    if added <= BUDGET_S { Ok(()) } else { Err(format!("PID 1 adds {added:.2} s, more than {BUDGET_S} s")) }
}

/// Boots until the last program.
fn boot(lab: &Lab, os: &Os, disk: &Path, with_initramfs: bool, last: &str) -> Outcome<Times> {
    let root = lab.board.layout.partuuid(Role::Root(0));
    let kernel = Kernel {
        files: os.boot_files.clone(),
        with_initramfs,
        command_line: format!(
            "root=PARTUUID={root} rootfstype=ext4 rootwait ro panic=5 initramfs_async=0 {} init={last}",
            lab.board.command_line
        ),
    };
    let setup = Setup { kernel: Some(kernel), forgetful: last == LAST, ..Setup::default() };
    let mut machine = Machine::start(lab.board, &Disk { file: disk, format: "raw" }, &lab.work, &setup)?;
    let texts = [
        "Trying to unpack rootfs image",
        "Freeing initrd memory",
        BEFORE_ROOT,
        "starts as PID 1",
        " modules loaded",
        "reboot: Power down",
    ];
    let (at, whole) = machine.cpu_at(texts, PATIENCE)?;
    let [unpacks, unpacked, before_root, starts, loaded, down] = at;
    let (Some(before_root), Some(_)) = (before_root, down) else {
        return Err(format!("the console does not say {BEFORE_ROOT:?}, or no end"));
    };
    let from_root = whole - before_root;
    match (with_initramfs, unpacks, unpacked, starts, loaded) {
        (true, Some(unpacks), Some(unpacked), Some(starts), Some(loaded)) => {
            Ok(Times { whole, unpacking: unpacked - unpacks, modules: loaded - starts, from_root })
        }
        (false, None, None, None, None) => Ok(Times { whole, unpacking: 0.0, modules: 0.0, from_root }),
        _ => Err(format!("not the boot that was meant: {at:?}")),
    }
}

fn median(boots: &[Times], of: impl Fn(&Times) -> f64) -> f64 {
    let mut values: Vec<f64> = boots.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
