//! When an uploader takes over shards that metadata hints at another: their bytes have lain in the WAL, the same ones the oldest,
//! for longer than its patience.
//!
//! Patience is two intervals. It doubles with each take-over that was for nothing, because the other did its work after all and
//! two uploaders in each other's way are slower than one (after an outage of the store all are late). It halves with each time
//! as long as itself that passes without one, so that a broker which lives but cannot reach its store is not waited for long.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::plan::Age;

/// Patience at first, in intervals.
const PATIENCE_MIN: u32 = 2;
/// Longest patience, in intervals.
const PATIENCE_MAX: u32 = 64;

/// The shards of other brokers, as one uploader sees them. Time is an argument.
pub(crate) struct Overdue {
    interval: Duration,
    /// The oldest bytes in the WAL, and since when they have been.
    shards: BTreeMap<u32, (Age, Instant)>,
    patience: u32,
    patient_since: Instant,
}

impl Overdue {
    pub(crate) fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, shards: BTreeMap::new(), patience: PATIENCE_MIN, patient_since: now }
    }

    /// The shard is this uploader's own, or nothing of it lies in the WAL.
    pub(crate) fn forget(&mut self, shard: u32) {
        self.shards.remove(&shard);
    }

    /// Its own uploads fail, so the others' may as well: the wait begins anew.
    pub(crate) fn forget_all(&mut self) {
        self.shards.clear();
    }

    /// Whether to take over another's shard, of which these bytes are the oldest in the WAL.
    pub(crate) fn is_overdue(&mut self, shard: u32, oldest: Age, now: Instant) -> bool {
        let patience = self.patience(now);
        let (seen, since) = self.shards.entry(shard).or_insert((oldest, now));
        if *seen != oldest {
            (*seen, *since) = (oldest, now);
        }
        now.duration_since(*since) >= patience * self.interval
    }

    /// What came of taking over: whether all that was uploaded was still wanted.
    pub(crate) fn taken_over(&mut self, was_needed: bool, now: Instant) {
        let patience = self.patience(now);
        self.patience = if was_needed { PATIENCE_MIN } else { (2 * patience).min(PATIENCE_MAX) };
        self.patient_since = now;
    }

    /// In intervals.
    fn patience(&mut self, now: Instant) -> u32 {
        while self.patience > PATIENCE_MIN && now - self.patient_since >= self.patience * self.interval {
            self.patient_since += self.patience * self.interval;
            self.patience /= 2;
        }
        self.patience
    }
}

#[cfg(test)]
mod tests;
