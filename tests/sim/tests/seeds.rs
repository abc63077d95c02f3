//! A few seeds, and that a seed can be repeated.

#![allow(clippy::unwrap_used, reason = "tests")]

use isobar_sim::{Plan, run};
use isobar_testkit::history::Kind;

/// Two runs of one seed are the same to the byte, with another seed run in between, and another seed is not the same.
#[test]
fn a_seed_is_the_same_twice() {
    for seed in [3, 7, 8] {
        let one = run(&Plan::of(seed), false);
        let other = run(&Plan::of(seed + 1000), false);
        let two = run(&Plan::of(seed), false);
        assert_eq!(one.trace, two.trace, "seed {seed}: another trace; isobar-sim twice {seed} shows where");
        let bytes = |events: &[isobar_testkit::history::Event]| -> String {
            events.iter().map(|event| event.to_line() + "\n").collect()
        };
        assert_eq!(bytes(&one.events), bytes(&two.events), "seed {seed}: another history");
        assert_eq!(one.counters, two.counters, "seed {seed}");
        assert_ne!(one.trace, other.trace, "the trace tells seeds apart");
    }
}

/// The same of three nodes, each with a runtime of its own.
#[test]
fn a_seed_of_a_cluster_is_the_same_twice() {
    let mut plan = Plan::of_cluster(2);
    plan.load_ms = 6_000;
    let (one, two) = (run(&plan, false), run(&plan, false));
    assert_eq!(one.trace, two.trace, "another trace; isobar-sim twice --cluster 2 shows where");
    assert!(one.events == two.events, "another history");
    assert!(one.is_clean(), "{:#?}", one.complaints());
    assert!(one.report.summary.acks_checked > 0);
}

#[test]
fn some_seeds_are_clean() {
    for seed in 1..=4 {
        let outcome = run(&Plan::of(seed), false);
        assert!(outcome.is_clean(), "seed {seed}: {:#?}", outcome.complaints());
        assert!(outcome.report.summary.acks_checked > 0, "seed {seed} acknowledged nothing");
        assert!(outcome.report.summary.reads > 0, "seed {seed} read nothing");
    }
}

/// The judge is not blind: a node that forgets its producers' sequences doubles records.
#[test]
fn a_broken_promise_is_caught() {
    let mut plan = Plan::of(1).sabotaged("ack-before-commit");
    plan.load_ms = 2_000;
    let outcome = run(&plan, false);
    let caught = [Kind::InconsistentOffsets, Kind::LostWrite];
    assert!(caught.iter().any(|kind| outcome.report.count(*kind) > 0), "{:#?}", outcome.complaints());
}
