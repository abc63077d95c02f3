//! Any log of commands: the same hash and state when replayed, the same image by effects, the same after a snapshot at any
//! point; offsets dense and never without a location; repeats answered (the rig checks after every entry).

use proptest::prelude::*;

use crate::world::{Done, World, step};

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() })]
    #[test]
    fn any_log_of_commands(steps in prop::collection::vec(step(), 1..200)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        let replayed = world.rig.replay();
        prop_assert_eq!(replayed.rolling_hash(), world.rig.machine.rolling_hash());
        prop_assert!(replayed == world.rig.machine, "a replay is another state");
        world.rig.restart();
    }
}

/// The generator must reach what the properties are about.
#[test]
fn random_logs_do_something() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut done, mut incarnations) = (Done::default(), 0);
    for _ in 0..40 {
        let steps = prop::collection::vec(step(), 100..120).new_tree(&mut runner).unwrap().current();
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        done.appended += world.done.appended;
        done.swapped += world.done.swapped;
        done.in_objects += world.done.in_objects;
        done.compacted += world.done.compacted;
        done.indexed += world.done.indexed;
        done.undeleted += world.done.undeleted;
        done.purged += world.done.purged;
        done.archived += world.done.archived;
        incarnations += world.rig.machine.view().incarnation();
    }
    println!("{done:?}, {incarnations} incarnations");
    assert!(done.appended > 500 && done.swapped > 60 && incarnations > 5, "{done:?} {incarnations}");
    assert!(done.in_objects > 30 && done.compacted > 20 && done.indexed > 10, "{done:?}");
    assert!(done.undeleted > 5 && done.purged > 2 && done.archived > 10, "{done:?}");
}
