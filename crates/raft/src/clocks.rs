//! The time of entries: the median of the voters' clocks, so that one wrong clock moves nothing (DESIGN.md, invariant 8).
//!
//! Every member tells its wall clock with each append and with each answer to one. Kept is how far another's is from this
//! process's monotonic clock, which no jump of this node's own wall clock moves, and which tells what the other's must be by now
//! while it is silent or dead. What the message took on its way makes it seem behind by so much.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What this member knows of the others' clocks.
pub(crate) struct Clocks {
    began: Instant,
    /// Wall clock less this process's monotonic one since it began, in ms.
    others: Mutex<BTreeMap<u64, i64>>,
}

impl Clocks {
    pub(crate) fn new(now: Instant) -> Self {
        Self { began: now, others: Mutex::default() }
    }

    /// A member told its clock; 0: its release tells none.
    pub(crate) fn heard(&self, node: u64, clock_ms: i64, now: Instant) {
        if clock_ms > 0 {
            self.others.lock().insert(node, clock_ms.saturating_sub(self.passed_ms(now)));
        }
    }

    /// The median of this member's clock and of what is known of the other `voters`'. Of two in the middle the earlier: time that
    /// stands still for a while lets nothing expire too early.
    pub(crate) fn median_ms(&self, voters: &[u64], me: u64, own_ms: i64, now: Instant) -> i64 {
        let passed_ms = self.passed_ms(now);
        let others = self.others.lock();
        let known = voters.iter().filter(|voter| **voter != me).filter_map(|voter| others.get(voter));
        let mut clocks: Vec<i64> = known.map(|apart| apart.saturating_add(passed_ms)).collect();
        drop(others);
        clocks.push(own_ms);
        clocks.sort_unstable();
        clocks[(clocks.len() - 1) / 2]
    }

    fn passed_ms(&self, now: Instant) -> i64 {
        i64::try_from(now.duration_since(self.began).as_millis()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOON_MS: i64 = 1_800_000_000_000;
    const HOUR_MS: i64 = 3_600_000;
    const VOTERS: [u64; 3] = [1, 2, 3];

    fn after(began: Instant, seconds: u64) -> Instant {
        began + Duration::from_secs(seconds)
    }

    #[test]
    fn alone_it_is_the_own_clock() {
        let began = Instant::now();
        let clocks = Clocks::new(began);
        assert_eq!(clocks.median_ms(&[1], 1, NOON_MS, began), NOON_MS);
        // Of somebody who votes no longer, of one that tells none, or its own from an earlier term as a follower: not counted.
        clocks.heard(7, NOON_MS - HOUR_MS, began);
        clocks.heard(2, 0, began);
        clocks.heard(1, NOON_MS - HOUR_MS, began);
        assert_eq!(clocks.median_ms(&VOTERS, 1, NOON_MS, began), NOON_MS);
    }

    #[test]
    fn one_wrong_clock_of_three_moves_nothing_whoevers_it_is_and_whoever_died() {
        let began = Instant::now();
        for wrong_ms in [-HOUR_MS, HOUR_MS] {
            // The own one jumps; the third was heard of long ago.
            let clocks = Clocks::new(began);
            clocks.heard(3, NOON_MS + 20, began);
            clocks.heard(2, NOON_MS + 60_000 - 20, after(began, 60));
            let own_ms = NOON_MS + 90_000 + wrong_ms;
            let median_ms = clocks.median_ms(&VOTERS, 1, own_ms, after(began, 90));
            assert!((median_ms - (NOON_MS + 90_000)).abs() <= 20, "{median_ms}");
            // Another's does.
            clocks.heard(2, NOON_MS + 91_000 + wrong_ms, after(began, 91));
            let median_ms = clocks.median_ms(&VOTERS, 1, NOON_MS + 92_000, after(began, 92));
            assert!((median_ms - (NOON_MS + 92_000)).abs() <= 20, "{median_ms}");
        }
    }

    #[test]
    fn of_two_the_earlier_counts() {
        let began = Instant::now();
        let clocks = Clocks::new(began);
        clocks.heard(2, NOON_MS - HOUR_MS, began);
        assert_eq!(clocks.median_ms(&VOTERS, 1, NOON_MS, began), NOON_MS - HOUR_MS);
        clocks.heard(2, NOON_MS + HOUR_MS, began);
        assert_eq!(clocks.median_ms(&VOTERS, 1, NOON_MS, began), NOON_MS);
    }
}
