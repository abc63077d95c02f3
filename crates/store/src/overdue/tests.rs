use std::time::Duration;

use tokio::time::Instant;

use super::{Overdue, PATIENCE_MAX, PATIENCE_MIN};
use crate::plan::Age;

const INTERVAL: Duration = Duration::from_secs(3);

fn at(start: Instant, intervals: u32) -> Instant {
    start + intervals * INTERVAL
}

/// Intervals after `from` at which bytes seen then are taken over.
fn waits(overdue: &mut Overdue, shard: u32, from: Instant) -> u32 {
    let oldest = age(1);
    (0..1000).find(|&passed| overdue.is_overdue(shard, oldest, at(from, passed))).unwrap()
}

fn age(chunk: u64) -> Age {
    (1, chunk)
}

#[test]
fn bytes_that_stay_are_overdue_after_two_intervals_and_those_that_move_never() {
    let start = Instant::now();
    let mut overdue = Overdue::new(INTERVAL, start);
    for passed in 0..50 {
        assert!(!overdue.is_overdue(1, age(u64::from(passed)), at(start, passed)));
        assert_eq!(overdue.is_overdue(2, age(7), at(start, passed)), passed >= PATIENCE_MIN);
    }
    overdue.forget(2);
    assert_eq!(waits(&mut overdue, 2, at(start, 50)), PATIENCE_MIN);
    overdue.forget_all();
    assert_eq!(waits(&mut overdue, 2, at(start, 60)), PATIENCE_MIN);
}

#[test]
fn patience_grows_with_needless_work_to_a_bound_and_is_gone_after_one_that_was_needed() {
    let start = Instant::now();
    let mut overdue = Overdue::new(INTERVAL, start);
    for expected in [4, 8, 16, 32, PATIENCE_MAX, PATIENCE_MAX] {
        overdue.taken_over(false, start);
        assert_eq!(overdue.patience(start), expected);
    }
    overdue.taken_over(true, start);
    assert_eq!(waits(&mut overdue, 3, start), PATIENCE_MIN);
}

#[test]
fn patience_wears_off() {
    let start = Instant::now();
    let mut overdue = Overdue::new(INTERVAL, start);
    for _ in 0..10 {
        overdue.taken_over(false, start);
    }
    let after = |passed: u32| {
        let mut overdue = Overdue { shards: overdue.shards.clone(), ..overdue };
        overdue.patience(at(start, passed))
    };
    for (passed, expected) in
        [(0, 64), (63, 64), (64, 32), (95, 32), (96, 16), (112, 8), (120, 4), (124, 2), (900, 2)]
    {
        assert_eq!(after(passed), expected, "after {passed} intervals");
    }
    // One that stopped uploading just then.
    assert!(waits(&mut overdue, 4, start) <= PATIENCE_MAX);
}
