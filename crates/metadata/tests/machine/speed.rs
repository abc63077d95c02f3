//! How long apply takes; run with `--ignored --nocapture` for the numbers.

use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::*;
use std::time::Duration;

/// CPU time of this thread: the machine is shared.
#[expect(clippy::disallowed_methods, reason = "it measures")]
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split_whitespace().next().unwrap().parse().unwrap())
}

#[test]
#[ignore = "a measurement"]
fn apply_is_fast() {
    for (partitions, producers) in [(1, false), (1, true), (100, false), (100, true)] {
        let mut rig = Rig::new();
        rig.checked = false;
        let (session, stream) = rig.broker(1);
        let topics: Vec<TopicId> = (0..10).map(|n| rig.topic(session, &format!("t{n}"), 100)).collect();
        rig.topic(session, "many", 9000);
        let CommandResult::ProducerIds(ids) =
            rig.control(session, Command::GrantProducerId(GrantProducerId { count: 1 }))
        else {
            panic!()
        };
        let rounds: u64 = if partitions == 1 { 20_000 } else { 2000 };
        let entries: Vec<Entry> = (0..rounds)
            .map(|n| {
                let part = |p: u64| CommitPartition {
                    topic_id: topics[(p % 10) as usize],
                    partition: (p / 10) as i32,
                    class_epoch: 0,
                    position: 0,
                    batches: vec![if producers {
                        CommitBatch { ordinal: p as u32, ..idempotent(ids.first, 0, n as i32 * 10, 10) }
                    } else {
                        plain(p as u32, 10)
                    }],
                };
                let parts = (0..partitions).map(part).collect();
                let command = Command::CommitChunk(CommitChunk {
                    stream,
                    chunk: n + 1,
                    acknowledged: 1,
                    partitions: parts,
                    object: None,
                });
                let number = n + 1;
                Entry::new(
                    rig.time_ms,
                    vec![Envelope::new(session, WAL_LANE, number, number.saturating_sub(4).max(1), command)],
                )
            })
            .collect();
        let mut image = rig.machine.image();
        let mut held = None;
        let start = cpu();
        let mut batches = Vec::with_capacity(entries.len());
        for entry in &entries {
            rig.index += 1;
            let applied = rig.machine.apply(rig.index, entry);
            assert_eq!(applied.results[0].refusal(), None);
            batches.push(applied.effects);
        }
        let apply = (cpu() - start) / rounds as u32;
        let start = cpu();
        for batch in &batches {
            image.apply(batch).unwrap();
            // A reader that holds each version for one step.
            held = image.partition(topics[0], 0).cloned().or(held);
        }
        let follow = (cpu() - start) / rounds as u32;
        let start = cpu();
        let frozen = rig.machine.freeze();
        let freeze = cpu() - start;
        let start = cpu();
        let bytes = frozen.to_vec();
        let encode = cpu() - start;
        let start = cpu();
        let restored = StateMachine::restore(&bytes).unwrap();
        let restore = cpu() - start;
        assert!(restored == rig.machine);
        println!(
            "{partitions} partitions, producers {producers}: apply {apply:?}, follow {follow:?}, freeze {freeze:?}, \
             snapshot {} MiB in {encode:?}, restored in {restore:?}",
            bytes.len() >> 20
        );
    }
}
