//! Every single, double and triple interruption of an update, in every world.

use super::loader::Loader;
use super::power::{How, Interruption};
use super::world::{Behaviour, End, TRIES, World};
use crate::model::record::{Outcome, State};
use crate::model::{BootPlan, GIVEN_BACK_MAX, Slot};

/// What the reason of a rollback must say.
fn reason(behaviour: Behaviour, end: &End) -> &'static str {
    match behaviour {
        Behaviour::Panics if end.panicked => "kernel panic: not syncing: no working init found",
        // Three cuts between the count and the boot: it was never started.
        Behaviour::Panics => "used up its tries",
        // A system that was never well for long enough to be judged.
        _ if end.failures >= usize::from(TRIES) => "",
        // Nothing can be kept while it runs.
        Behaviour::FillsState | Behaviour::LosesState => "",
        Behaviour::Unhealthy => "unhealthy",
        Behaviour::Good => "power was lost",
    }
}

/// What must hold when the device has come to rest, whatever happened on the way.
fn promises(behaviour: Behaviour, end: &End, world: &World) -> Result<(), String> {
    let (plan, state) = world.at_rest(end.booted)?;
    if plan != BootPlan::settled(end.booted) {
        return Err(format!("at rest, but the plan is {plan:?}"));
    }
    if state != State::Idle {
        return Err(format!("at rest, but the journal says {state:?}"));
    }
    let committed = end.last == Some(Outcome::Committed);
    if committed != (end.booted == Slot::B) {
        return Err(format!("slot {} runs, the journal says {:?}", end.booted, end.last));
    }
    if end.release_floor != if committed { 2 } else { 0 } {
        return Err(format!("the floor is {}, the journal says {:?}", end.release_floor, end.last));
    }
    if committed && behaviour != Behaviour::Good {
        return Err("a bad system was committed".into());
    }
    if !committed && behaviour == Behaviour::Good && end.failures < usize::from(TRIES) {
        return Err(format!(
            "{} interruptions and {} orderly reboots cost a good system its {TRIES} tries: {:?}, {}",
            end.failures,
            end.interrupted - end.failures,
            end.last,
            end.reason
        ));
    }
    if behaviour == Behaviour::LosesState {
        // What was recorded before is lost with the partition.
        return if committed { Err("committed by a journal that knew nothing of it".into()) } else { Ok(()) };
    }
    if end.last == Some(Outcome::RolledBack) && !end.reason.contains(reason(behaviour, end)) {
        return Err(format!("rolled back, and the reason is {:?}", end.reason));
    }
    if end.armed && end.last.is_none() {
        return Err("an update that was armed left no outcome".into());
    }
    if end.armed && behaviour != Behaviour::Good && end.last != Some(Outcome::RolledBack) {
        return Err(format!("a bad system was armed, and the journal says {:?}", end.last));
    }
    Ok(())
}

/// Plays every story that begins with `cuts` and has up to `depth` interruptions; returns how many.
fn sweep(
    loader: Loader,
    behaviour: Behaviour,
    impatient: bool,
    cuts: &mut Vec<Interruption>,
    depth: usize,
) -> u32 {
    let mut world = World::new(loader, behaviour, impatient);
    let story = |cuts: &[Interruption]| format!("{loader:?}, {behaviour:?}, interrupted at {cuts:?}");
    let end = world.play(cuts).unwrap_or_else(|e| panic!("{}: {e}", story(cuts)));
    if end.interrupted < cuts.len() {
        // The story was over before the last interruption: so it is for every later moment.
        return 0;
    }
    promises(behaviour, &end, &world).unwrap_or_else(|e| panic!("{}: {e}", story(cuts)));
    world.second_install(end.booted).unwrap_or_else(|e| panic!("{}: {e}", story(cuts)));
    let mut played = 1;
    if depth > 0 {
        for how in [How::Cut, How::Kill] {
            for after_steps in 0.. {
                cuts.push(Interruption { after_steps, how });
                let stories = sweep(loader, behaviour, impatient, cuts, depth - 1);
                cuts.pop();
                played += stories;
                if stories == 0 {
                    break;
                }
            }
        }
    }
    played
}

/// How many interruptions in a row: three for one bootloader and two for the others, or `SWEEP_DEPTH` for all (3 in
/// `tests/run --deep`, 2 in tests/defects).
fn depth(loader: Loader) -> usize {
    let usual = if loader == Loader::Grub { 3 } else { 2 };
    std::env::var("SWEEP_DEPTH").map_or(usual, |d| d.parse().unwrap())
}

fn sweep_all(behaviour: Behaviour) {
    for loader in Loader::ALL {
        // Installing over what is armed makes stories half as long again: one interruption less is enough there.
        let depth = match behaviour {
            Behaviour::Good | Behaviour::Unhealthy | Behaviour::Panics => depth(loader),
            Behaviour::FillsState => 2,
            // A device that forgot the update installs it again, which makes stories long.
            Behaviour::LosesState => 1,
        };
        let played = sweep(loader, behaviour, false, &mut Vec::new(), depth)
            + sweep(loader, behaviour, true, &mut Vec::new(), depth - 1);
        // Shown with --nocapture; a sweep that plays hardly anything proves nothing.
        crate::sys::out::line(&format!("sim: {loader:?}, {behaviour:?}: {played} stories"));
        assert!(played > [0, 20, 200, 3_000][depth], "{loader:?}: {played} stories");
    }
}

#[test]
fn every_triple_interruption_of_a_good_update() {
    sweep_all(Behaviour::Good);
}

#[test]
fn every_triple_interruption_of_an_unhealthy_update() {
    sweep_all(Behaviour::Unhealthy);
}

#[test]
fn every_triple_interruption_of_a_panicking_update() {
    sweep_all(Behaviour::Panics);
}

/// All sequences of up to `depth` orderly reboots, each at any moment, and one power cut after them.
fn sweep_reboots(loader: Loader, behaviour: Behaviour, before: &mut Vec<Interruption>, depth: usize) -> u32 {
    let mut played = 0;
    for how in [How::Reboot, How::Cut] {
        for after_steps in 0.. {
            before.push(Interruption { after_steps, how });
            let mut world = World::new(loader, behaviour, false);
            let story = format!("{loader:?}, {behaviour:?}, interrupted at {before:?}");
            let end = world.play(before).unwrap_or_else(|e| panic!("{story}: {e}"));
            let happened = end.interrupted == before.len();
            if happened {
                promises(behaviour, &end, &world).unwrap_or_else(|e| panic!("{story}: {e}"));
                world.second_install(end.booted).unwrap_or_else(|e| panic!("{story}: {e}"));
                played += 1;
                if how == How::Reboot && depth > 1 {
                    played += sweep_reboots(loader, behaviour, before, depth - 1);
                }
            }
            before.pop();
            if !happened {
                break;
            }
        }
    }
    played
}

#[test]
fn orderly_reboots_at_any_moment_cost_no_try_and_no_update() {
    for loader in Loader::ALL {
        for behaviour in [Behaviour::Good, Behaviour::Unhealthy, Behaviour::Panics] {
            let played = sweep_reboots(loader, behaviour, &mut Vec::new(), 2);
            crate::sys::out::line(&format!("sim: {loader:?}, {behaviour:?}: {played} stories with reboots"));
            assert!(played > 100, "{loader:?}: {played} stories");
        }
    }
}

#[test]
fn a_system_that_reboots_itself_in_order_each_time_is_left_in_the_end() {
    for loader in Loader::ALL {
        let mut world = World::new(loader, Behaviour::Good, false);
        let tries = world.reboot_each_boot_of_the_trial().unwrap_or_else(|e| panic!("{loader:?}: {e}"));
        assert_eq!(tries, u32::from(TRIES) + u32::from(GIVEN_BACK_MAX), "{loader:?}");
    }
}

#[test]
fn boot_files_that_are_not_on_the_medium_are_never_armed() {
    for loader in Loader::ALL.into_iter().filter(|l| l.has_boot_files()) {
        let mut world = World::new(loader, Behaviour::Good, false);
        world.wear_boot_partition_out();
        let e = world.play(&[]).unwrap_err();
        assert!(e.starts_with("read back files: the medium holds "), "{loader:?}: {e}");
        let (plan, state) = world.at_rest(Slot::A).unwrap();
        assert_eq!((plan, state), (BootPlan::settled(Slot::A), State::Idle), "{loader:?}");
    }
}

#[test]
fn interruptions_of_an_update_that_fills_or_loses_the_state_partition() {
    sweep_all(Behaviour::FillsState);
    sweep_all(Behaviour::LosesState);
}

#[test]
fn undisturbed_stories_end_as_they_should() {
    for (behaviour, booted, outcome) in [
        (Behaviour::Good, Slot::B, Outcome::Committed),
        (Behaviour::Unhealthy, Slot::A, Outcome::RolledBack),
        (Behaviour::Panics, Slot::A, Outcome::RolledBack),
        (Behaviour::FillsState, Slot::A, Outcome::RolledBack),
    ] {
        for loader in Loader::ALL {
            let end = World::new(loader, behaviour, false).play(&[]).unwrap();
            let found = (end.booted, end.last, end.release_floor, end.armed, end.interrupted);
            let release_floor = if booted == Slot::B { 2 } else { 0 };
            assert_eq!(found, (booted, Some(outcome), release_floor, true, 0), "{loader:?}");
        }
    }
}
