//! Idempotent producers: the last five batches of each, per partition (KIP-98, KIP-360, and DESIGN.md section 4).
//!
//! Epochs of plain idempotent producers are per partition: clients bump them locally. A new epoch starts at sequence 0.
//! Without state the sequence must be 0, unless the id was granted so long ago that its state may have been forgotten.

use super::{StateMachine, done};
use crate::codes;
use crate::command::{CommitBatch, ExpireProducers, GrantProducerId};
use crate::config_table::broker_config;
use crate::ids::{PartitionKey, compose_id};
use crate::result::{CommandResult, Expired, ProducerIdsGranted};
use imbl::OrdMap;

/// Batches kept per producer and partition: as many as a client may have in flight.
pub(crate) const KEPT_BATCHES: usize = 5;
/// Ids granted by one command.
const MAX_GRANT: u32 = 1000;
/// Grant times are known to this.
const GRANT_STEP_MS: i64 = 60_000;
/// Beyond the greatest `producer.id.expiration.ms` (an INT) grant times are not asked for.
const MAX_EXPIRATION_MS: i64 = i32::MAX as i64;

/// Producers of one partition by id.
pub(crate) type Producers = OrdMap<i64, ProducerState>;

/// A batch that was sequenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct KeptBatch {
    pub(crate) base_sequence: i32,
    pub(crate) last_sequence: i32,
    pub(crate) base_offset: i64,
    pub(crate) append_time_ms: i64,
}

impl KeptBatch {
    pub(super) fn new(batch: &CommitBatch, base_offset: i64, append_time_ms: i64) -> Self {
        Self {
            base_sequence: batch.base_sequence,
            last_sequence: last_sequence(batch.base_sequence, batch.record_count),
            base_offset,
            append_time_ms,
        }
    }
}

/// One producer in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct ProducerState {
    pub(crate) epoch: i32,
    /// When it last wrote.
    pub(crate) last_ms: i64,
    pub(crate) kept: u8,
    /// The first `kept` of them, oldest first.
    pub(crate) batches: [KeptBatch; KEPT_BATCHES],
}

/// What a batch's producer fields say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Append,
    Duplicate(KeptBatch),
    Error(i32),
}

impl ProducerState {
    pub(crate) fn batches(&self) -> &[KeptBatch] {
        &self.batches[..usize::from(self.kept).min(KEPT_BATCHES)]
    }

    pub(crate) fn push(&mut self, batch: KeptBatch) {
        let kept = usize::from(self.kept);
        if kept < KEPT_BATCHES {
            self.batches[kept] = batch;
            self.kept += 1;
        } else {
            self.batches.copy_within(1.., 0);
            self.batches[KEPT_BATCHES - 1] = batch;
        }
    }

    fn judge(&self, batch: &CommitBatch) -> Verdict {
        if batch.producer_epoch < self.epoch {
            return Verdict::Error(codes::INVALID_PRODUCER_EPOCH);
        }
        if batch.producer_epoch > self.epoch {
            return if batch.base_sequence == 0 {
                Verdict::Append
            } else {
                Verdict::Error(codes::OUT_OF_ORDER_SEQUENCE_NUMBER)
            };
        }
        let last = last_sequence(batch.base_sequence, batch.record_count);
        let same =
            |kept: &&KeptBatch| kept.base_sequence == batch.base_sequence && kept.last_sequence == last;
        if let Some(first) = self.batches().iter().find(same) {
            return Verdict::Duplicate(*first);
        }
        let expected = self.batches().last().map_or(0, |newest| next_sequence(newest.last_sequence));
        if batch.base_sequence == expected {
            Verdict::Append
        } else {
            Verdict::Error(codes::OUT_OF_ORDER_SEQUENCE_NUMBER)
        }
    }
}

/// Sequences wrap from the greatest i32 to 0.
fn next_sequence(sequence: i32) -> i32 {
    sequence.wrapping_add(1) & i32::MAX
}

fn last_sequence(base_sequence: i32, record_count: u32) -> i32 {
    (base_sequence as u32).wrapping_add(record_count).wrapping_sub(1) as i32 & i32::MAX
}

impl StateMachine {
    pub(super) fn check_producer(&self, key: PartitionKey, batch: &CommitBatch) -> Verdict {
        let producers = self.producers[self.shard_index(key)].get(&key);
        if let Some(state) = producers.and_then(|producers| producers.get(&batch.producer_id)) {
            return state.judge(batch);
        }
        if batch.producer_id >= self.next_producer_id() {
            return Verdict::Error(codes::UNKNOWN_PRODUCER_ID);
        }
        if batch.base_sequence == 0 || self.may_be_forgotten(batch.producer_id) {
            Verdict::Append
        } else {
            Verdict::Error(codes::OUT_OF_ORDER_SEQUENCE_NUMBER)
        }
    }

    pub(super) fn remember_producer(
        &mut self,
        key: PartitionKey,
        batch: &CommitBatch,
        kept: KeptBatch,
        now_ms: i64,
    ) {
        let shard = self.shard_index(key);
        let producers = self.producers[shard].entry(key).or_default();
        let state = producers.entry(batch.producer_id).or_default();
        if state.epoch != batch.producer_epoch {
            *state = ProducerState { epoch: batch.producer_epoch, ..ProducerState::default() };
        }
        state.last_ms = now_ms;
        state.push(kept);
    }

    fn next_producer_id(&self) -> i64 {
        compose_id(self.image.incarnation(), self.counters.producer) as i64
    }

    /// Whether the id was surely granted longer ago than `producer.id.expiration.ms`. Never while expiry is held: nothing
    /// is forgotten then, and a clock that jumped must not open a way around the sequence check.
    fn may_be_forgotten(&self, producer_id: i64) -> bool {
        if self.expiry_held() {
            return false;
        }
        // Ids from a checkpoint on were granted within a step of it, or there would be another; those below the first (older
        // ones are dropped), before it.
        let latest = match self.grants.get_prev(&producer_id) {
            Some((_, time_ms)) => time_ms.saturating_add(GRANT_STEP_MS),
            None => match self.grants.get_min() {
                Some((_, time_ms)) => *time_ms,
                None => return true,
            },
        };
        latest.saturating_add(self.producer_expiration_ms()) < self.image.time_ms
    }

    fn producer_expiration_ms(&self) -> i64 {
        const NAME: &str = "producer.id.expiration.ms";
        let set = self.image.broker_configs("").and_then(|configs| configs.get(NAME)?.parse().ok());
        set.or_else(|| broker_config(NAME)?.default.parse().ok()).unwrap_or(MAX_EXPIRATION_MS)
    }

    pub(super) fn grant_producer_ids(&mut self, c: &GrantProducerId) -> CommandResult {
        let count = c.count.clamp(1, MAX_GRANT);
        let now_ms = self.image.time_ms;
        let first = self.next_producer_id();
        let due = self.grants.get_max().is_none_or(|(_, time_ms)| time_ms + GRANT_STEP_MS <= now_ms);
        if due {
            self.grants.insert(first, now_ms);
            self.prune_grants(now_ms);
        }
        self.counters.producer += u64::from(count);
        CommandResult::ProducerIds(ProducerIdsGranted { first, count })
    }

    /// Drops checkpoints that are old by any expiration that may be configured. An id below the first one left is taken as
    /// granted by that one's time, which only makes it look younger.
    fn prune_grants(&mut self, now_ms: i64) {
        while let Some((id, time_ms)) = self.grants.get_min() {
            let (id, second) = (*id, self.grants.range(id + 1..).next());
            let old = time_ms.saturating_add(MAX_EXPIRATION_MS) < now_ms;
            let next_old = second.is_some_and(|(_, t)| t.saturating_add(MAX_EXPIRATION_MS) < now_ms);
            if !(old && next_old) {
                return;
            }
            self.grants.remove(&id);
        }
    }

    pub(super) fn expire_producers(&mut self, c: &ExpireProducers) -> CommandResult {
        if self.expiry_held() {
            return CommandResult::Expired(Expired { held: true, ..Expired::default() });
        }
        let Some(shard) = self.producers.get(c.shard as usize) else { return done() };
        let before = self.image.time_ms.saturating_sub(self.producer_expiration_ms());
        let mut stale: Vec<(PartitionKey, i64)> = Vec::new();
        for (key, producers) in shard {
            let idle = producers.iter().filter(|(_, state)| state.last_ms < before);
            stale.extend(idle.map(|(id, _)| (*key, *id)));
        }
        let count = stale.len() as u64;
        for (key, id) in stale {
            let shard = &mut self.producers[c.shard as usize];
            if let Some(producers) = shard.get_mut(&key) {
                producers.remove(&id);
                if producers.is_empty() {
                    shard.remove(&key);
                }
            }
        }
        CommandResult::Expired(Expired { count, ..Expired::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_wrap() {
        assert_eq!(last_sequence(0, 1), 0);
        assert_eq!(last_sequence(i32::MAX, 1), i32::MAX);
        assert_eq!(last_sequence(i32::MAX, 2), 0);
        assert_eq!(last_sequence(i32::MAX - 4, 10), 4);
        assert_eq!(next_sequence(i32::MAX), 0);
        assert_eq!(next_sequence(4), 5);
    }
}
