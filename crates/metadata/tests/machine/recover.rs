//! Recovery from a log: whatever happened, everything comes back to one point, and every offset below it is in an object.

use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::recover::{Rebuild, RecoverError};
use isobar_metadata::*;
use std::collections::BTreeMap;

const ONE: StoreId = StoreId(1);
const RECORD_BYTES: i64 = 10;

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// Last offsets of the batches of each partition.
type Batches = BTreeMap<(TopicId, i32), Vec<i64>>;

fn sized(topic: TopicId, partition: i32, base: i64, last: i64) -> ObjectRun {
    let size_bytes = u32::try_from((last - base + 1) * RECORD_BYTES).unwrap();
    ObjectRun { size_bytes, ..run_of(topic, partition, base, last) }
}

fn clip(batches: &Batches, run: &ObjectRun, end: i64) -> Option<ObjectRun> {
    let lasts = batches.get(&(run.topic_id, run.partition))?;
    let last = lasts.iter().copied().filter(|last| *last < end && *last >= run.base_offset).max()?;
    Some(sized(run.topic_id, run.partition, run.base_offset, last))
}

/// Uploads some of what the WAL holds of a partition, from its oldest on.
fn upload(rig: &mut Rig, session: SessionId, rng: &mut Rng) {
    let waiting: Vec<_> = (0..rig.machine.view().shards())
        .flat_map(|shard| rig.machine.view().shard_in_wal(shard))
        .cloned()
        .collect();
    if waiting.is_empty() {
        return;
    }
    let runs = (0..1 + rng.below(2)).map(|_| {
        let view = &waiting[rng.below(waiting.len() as u64) as usize];
        let extents: Vec<_> = view.wal.values().collect();
        let last = extents[rng.below(extents.len() as u64) as usize].last_offset;
        sized(view.topic_id, view.partition, extents[0].base_offset, last)
    });
    let runs = runs.collect();
    let object = rig.objects(session, 1);
    rig.upload(session, object, ONE, runs);
}

fn history(seed: u64) -> (Rig, Batches) {
    let rng = &mut Rng(seed);
    let mut rig = Rig::new();
    let mut batches = Batches::new();
    let mut broker = rig.broker(1);
    let mut topics = vec![(rig.topic(broker.0, "a", 3), 3), (rig.topic(broker.0, "b", 1), 1)];
    for step in 0..150 {
        rig.time_ms += 1 + rng.below(500) as i64;
        let (topic, partitions) = topics[rng.below(topics.len() as u64) as usize];
        let partition = rng.below(partitions) as i32;
        let exists = rig.machine.view().topic(topic).is_some();
        match rng.below(100) {
            0..60 if exists => {
                let counts: Vec<u32> = (0..1 + rng.below(3)).map(|_| 1 + rng.below(4) as u32).collect();
                let new = counts.iter().zip(0..).map(|(count, ordinal)| plain(ordinal, *count)).collect();
                for (result, count) in rig.commit(broker, (topic, partition), new).iter().zip(counts) {
                    batches
                        .entry((topic, partition))
                        .or_default()
                        .push(result.base_offset + i64::from(count) - 1);
                }
            }
            60..85 => upload(&mut rig, broker.0, rng),
            85..90 => {
                rig.objects(broker.0, 1 + rng.below(2) as u32);
            }
            90..94 if exists => {
                let log_start = rig.view(topic, partition).high_watermark - rng.below(6) as i64;
                let partitions =
                    vec![NewLogStart { topic_id: topic, partition, log_start: log_start.max(0) }];
                let reason = LogStartReason::DeleteRecords as i32;
                rig.control(broker.0, Command::MoveLogStart(MoveLogStart { partitions, reason }));
            }
            94..96 => broker = rig.broker(1),
            96..98 if topics.len() < 5 => topics.push((rig.topic(broker.0, &format!("t{step}"), 2), 2)),
            98 if exists => {
                let topic_ids = vec![topic];
                rig.control(broker.0, Command::DeleteTopics(DeleteTopics { topic_ids }));
            }
            _ => {}
        }
    }
    (rig, batches)
}

fn entry(bytes: &[u8]) -> Entry {
    Entry::from_bytes(bytes.to_vec().into()).unwrap()
}

#[test]
fn whatever_happened_everything_comes_back_to_one_point_in_objects() {
    let (mut clipped, mut behind) = (0, 0);
    for seed in 0..60 {
        let (rig, batches) = history(seed);
        // Any prefix of the log may be what was archived.
        for upto in [rig.log.len() / 3, rig.log.len() / 2, rig.log.len()] {
            let log = &rig.log[..upto];
            let mut end = StateMachine::new(format());
            for (index, bytes) in log {
                end.apply(*index, &entry(bytes));
            }
            let cut = end.view().recovery_cut();
            behind += u64::from(cut < end.applied_index());
            let mut at_cut = StateMachine::new(format());
            for (index, bytes) in log.iter().filter(|(index, _)| *index <= cut) {
                at_cut.apply(*index, &entry(bytes));
            }
            let mut rebuild = Rebuild::new(StateMachine::new(format()), cut).unwrap();
            for (index, bytes) in log {
                let entry = entry(bytes);
                let needs = rebuild.needs(*index, Some(&entry));
                let mut clip = |object: ObjectId, run: &ObjectRun, end: i64| {
                    clipped += 1;
                    assert!(needs.contains(&object), "seed {seed}: a footer that was not asked for");
                    clip(&batches, run, end)
                };
                rebuild.entry(*index, Some(&entry), &mut clip).unwrap();
            }
            let (state, cut_time_ms) =
                rebuild.finish(1).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert_eq!(cut_time_ms, at_cut.time_ms());
            assert_eq!(state.view().incarnation(), 1);
            for topic in state.view().topics() {
                for partition in 0..topic.partitions {
                    let view = state.view().partition(topic.topic_id, partition).unwrap();
                    let then = at_cut.view().partition(topic.topic_id, partition).unwrap();
                    assert_eq!(view.high_watermark, then.high_watermark, "seed {seed}");
                    let log_start = end
                        .view()
                        .stored_view(PartitionKey::new(topic.topic_id, partition))
                        .map_or(then.log_start, |last| last.log_start.min(then.high_watermark));
                    assert_eq!(view.log_start, log_start, "seed {seed}");
                    for offset in view.log_start..view.high_watermark {
                        assert!(view.locate_in_store(ONE, offset).is_some(), "seed {seed}: {offset} is lost");
                    }
                    let last = view
                        .stores
                        .values()
                        .filter_map(|extents| extents.get_max())
                        .map(|(_, e)| e.last_offset);
                    assert!(last.max().is_none_or(|last| last < view.high_watermark), "seed {seed}");
                    assert_eq!(view.leader_epoch() >> 23, 1, "new batches are of the new incarnation");
                }
            }
            assert_eq!(state.view().groups().count(), at_cut.view().groups().count());
        }
    }
    assert!(clipped > 20 && behind > 100, "only {clipped} clipped runs, {behind} cuts behind the end");
}

#[test]
fn what_does_not_fit_together_is_an_error() {
    let (rig, _) = history(1);
    let last = rig.machine.applied_index();
    assert!(matches!(Rebuild::new(rig.machine.clone(), last - 1), Err(RecoverError::AboveCut { .. })));
    let mut rebuild = Rebuild::new(StateMachine::new(format()), 10).unwrap();
    let mut none = |_: ObjectId, _: &ObjectRun, _: i64| None;
    let gap = rebuild.entry(2, Some(&entry(&rig.log[1].1)), &mut none);
    assert_eq!(gap, Err(RecoverError::Gap { applied: 0, found: 2 }));
    rebuild.entry(1, Some(&entry(&rig.log[0].1)), &mut none).unwrap();
    assert_eq!(rebuild.finish(256).map(|_| ()), Err(RecoverError::Incarnation(256)));

    // A cut that says too much: what is in the WAL only is found.
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 1);
    rig.commit(broker, (topic, 0), vec![plain(0, 3)]);
    let rebuild = Rebuild::new(rig.machine.clone(), rig.index).unwrap();
    assert_eq!(rebuild.finish(1).map(|_| ()), Err(RecoverError::InWal { topic, partition: 0, offset: 0 }));
}
