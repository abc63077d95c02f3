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

#[expect(clippy::disallowed_methods, reason = "it measures")]
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Run it alone.
#[test]
#[ignore = "a measurement"]
fn what_an_extent_and_a_pointer_take() {
    const EXTENTS: u64 = 1000;
    const PARTITIONS: u64 = 200;
    let mut rig = Rig::new();
    rig.checked = false;
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", PARTITIONS as i32);
    let machine_bytes = |rig: &Rig| {
        let snapshot = rig.machine.freeze().to_vec();
        // The first takes what lies free; the next two are all new.
        let warm = StateMachine::restore(&snapshot).unwrap();
        let before = resident_bytes();
        let copies = [(); 2].map(|()| StateMachine::restore(&snapshot).unwrap());
        let bytes = (resident_bytes() - before) / 2;
        assert!(copies[0] == warm && copies[1] == rig.machine);
        (bytes, snapshot.len() as u64)
    };
    let mut objects = vec![];
    for _ in 0..EXTENTS {
        let parts = (0..PARTITIONS as i32).map(|partition| CommitPartition {
            topic_id: topic,
            partition,
            batches: vec![plain(partition as u32, 1000)],
            ..CommitPartition::default()
        });
        let parts = parts.collect();
        let command = rig.chunk(broker.1, parts);
        rig.send(broker.0, WAL_LANE, command);
        let object = rig.objects(broker.0, 1);
        objects.push(object);
        let end = rig.view(topic, 0).high_watermark;
        let runs = (0..PARTITIONS as i32).map(|partition| run_of(topic, partition, end - 1000, end - 1));
        assert_eq!(
            rig.upload(broker.0, object, StoreId(1), runs.collect()).applied.len(),
            PARTITIONS as usize
        );
    }
    let count = EXTENTS * PARTITIONS;
    let (memory, snapshot) = machine_bytes(&rig);
    println!("an extent: {} bytes of memory, {} of snapshot", memory / count, snapshot / count);
    let index = rig.objects(broker.0, 1);
    let mut runs = vec![];
    for partition in 0..PARTITIONS as i32 {
        let extents: Vec<Extent> = rig.view(topic, partition).stores[&StoreId(1)].values().cloned().collect();
        for part in extents.chunks(100) {
            runs.push(rig.index_run(index, runs.len() as u64, topic, partition, part));
        }
    }
    let pointers = runs.len() as u64;
    let start = cpu();
    assert_eq!(rig.commit_index(broker.0, index, StoreId(1), runs).applied.len() as u64, pointers);
    let took = (cpu() - start) / pointers as u32;
    rig.blocks.clear();
    let snapshot = rig.machine.freeze().to_vec().len() as u64;
    let pointer = rig.view(topic, 0).indexed[&StoreId(1)].get_min().unwrap().1.clone();
    println!(
        "a pointer to 100 extents in 100 objects: {} bytes of memory and {} of the map, {} of snapshot (with {EXTENTS} \
         object records), {took:?} to commit",
        pointer.objects.len(),
        size_of::<IndexPointer>() + 8,
        snapshot / pointers
    );
}
