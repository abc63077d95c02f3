//! Random histories with an archive that ends anywhere: what comes back is one cut, whole, and in objects only.

use crate::rig::*;
use crate::world::{Step, World, step};
use isobar_metadata::command::*;
use isobar_metadata::record::ObjectState;
use isobar_metadata::recover::*;
use isobar_metadata::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const ONE: StoreId = StoreId(1);

fn entry(bytes: &[u8]) -> Entry {
    Entry::from_bytes(bytes.to_vec().into()).unwrap()
}

/// The state machine after the log's entries up to an index.
fn replay(log: &[(u64, Vec<u8>)], through: u64) -> StateMachine {
    let mut machine = StateMachine::new(format());
    for (index, bytes) in log.iter().take_while(|(index, _)| *index <= through) {
        machine.apply(*index, &entry(bytes));
    }
    machine
}

/// Recovers from the log alone, from a snapshot at `from`, and names the clips.
fn recover(
    log: &[(u64, Vec<u8>)],
    from: u64,
    cut: u64,
    incarnation: u32,
) -> Result<(StateMachine, Vec<Clip>), RecoverError> {
    let snapshot = replay(log, from).freeze().to_vec();
    let mut recovery = Recovery::new(StateMachine::restore(&snapshot).unwrap(), cut)?;
    for (index, bytes) in log.iter().filter(|(index, _)| *index > from) {
        recovery.entry(*index, Some(&entry(bytes)))?;
    }
    let clips = recovery.clips().to_vec();
    // Two batches of the rig's size, say.
    let clipped: Vec<_> = clips.iter().map(|_| Clipped { size_bytes: 70, max_timestamp_ms: 1500 }).collect();
    let time_ms = recovery.time_ms();
    Ok((recovery.finish(&clipped, incarnation, time_ms + 5000)?, clips))
}

fn views(image: &Image) -> BTreeMap<PartitionKey, PartitionView> {
    let views = (0..image.shards()).flat_map(|shard| image.shard_stored(shard));
    views.map(|view| (view.key(), PartitionView::clone(view))).collect()
}

/// At which index objects became unreferenced (the last time), by the log.
fn unreferenced(log: &[(u64, Vec<u8>)]) -> BTreeMap<ObjectId, u64> {
    let mut machine = StateMachine::new(format());
    let mut found = BTreeMap::new();
    for (index, bytes) in log {
        for effect in &machine.apply(*index, &entry(bytes)).effects.effects {
            if let Some(EffectKind::Object(record)) = &effect.kind
                && record.state == ObjectState::Unreferenced as i32
            {
                assert!(found.insert(record.object, *index).is_none(), "unreferenced twice");
            }
        }
    }
    found
}

/// A history with an uploader in it.
fn world(steps: Vec<Step>) -> World {
    let mut world = World::new();
    for (n, step) in steps.into_iter().enumerate() {
        world.step(step);
        if n % 16 == 15 {
            world.upload_most(n / 16 + n / 64);
        }
    }
    world
}

/// Entries behind the cut, runs that were clipped, offsets that came back.
fn check(log: &[(u64, Vec<u8>)], world: &World, from: u8) -> (u64, usize, i64) {
    let end = log.last().unwrap().0;
    let full = replay(log, end);
    let cut = full.view().recovery_cut();
    let incarnation = full.view().incarnation() + 1;
    let from = cut * u64::from(from) / 255;
    let (recovered, clips) = recover(log, from, cut, incarnation).unwrap();
    let at_cut = replay(log, cut);
    let (image, then, now) = (recovered.view(), at_cut.view(), full.view());
    assert_eq!((image.index(), image.incarnation()), (end + 1, incarnation));

    let gone = unreferenced(log);
    let (views_then, views_now) = (views(then), views(now));
    let recovered_views = views(image);
    for (key, view) in &views_then {
        let Some(found) = recovered_views.get(key) else {
            assert!(!views_now.contains_key(key), "{key:?} is lost");
            continue;
        };
        let newest = &views_now[key];
        assert_eq!(found.high_watermark, view.high_watermark, "every log ends where it did at the cut");
        assert_eq!(found.log_start, newest.log_start.min(view.high_watermark));
        assert!(found.wal.is_empty() && found.wal_bytes == 0);
        assert_eq!(image.topic(key.topic_id).is_some(), now.topic(key.topic_id).is_some());
        let epoch = ids::base_leader_epoch(incarnation);
        assert_eq!(found.leader_epoch(), epoch);
        assert!(newest.leader_epoch() < epoch && found.epoch_at(found.high_watermark) == epoch);
        let mut stores = found.stores.values().flat_map(|list| list.values());
        let in_objects = stores.all(|extent| {
            let object = extent.object().unwrap().object;
            gone.get(&object).is_none_or(|index| *index > cut)
        });
        assert!(in_objects, "an extent in an object that may have been deleted");
        let pointers = found.indexed.values().flat_map(|list| list.values());
        for pointer in pointers {
            let objects = pointer.objects().map(|(object, _)| object).chain([pointer.object]);
            objects.for_each(|object| assert!(gone.get(&object).is_none_or(|index| *index > cut)));
        }
    }
    assert!(recovered_views.keys().all(|key| views_then.contains_key(key)), "nothing is made up");
    for group in then.groups() {
        let offsets =
            |image: &Image| image.offsets(&group.group).map(|(k, o)| (k, o.clone())).collect::<Vec<_>>();
        let visible = |(key, _): &(PartitionKey, _)| image.view(*key).is_some() && then.view(*key).is_some();
        let (a, b) = (offsets(image), offsets(then));
        assert!(a.iter().filter(|o| visible(o)).eq(b.iter().filter(|o| visible(o))), "of {}", group.group);
    }
    // All else that must hold at all times; and it goes on, in new ids, also from a snapshot.
    let mut rig = Rig::over(recovered, world.rig.time_ms, world.rig.blocks.clone());
    rig.check();
    rig.restart();
    let broker = rig.broker(7);
    assert_eq!((broker.0.incarnation(), broker.1.incarnation()), (incarnation, incarnation));
    let topic = rig
        .machine
        .view()
        .topics()
        .find(|topic| topic.placement == PlacementId(0) && topic.settings.durability == Durability::Wal);
    if let Some(topic) = topic.map(|topic| topic.topic_id) {
        let end = rig.view(topic, 0).high_watermark;
        assert_eq!(rig.commit(broker, (topic, 0), vec![plain(0, 3)])[0].base_offset, end);
        assert_eq!(rig.objects(broker.0, 1).incarnation(), incarnation);
    }
    let offsets = recovered_views.values().map(|view| view.high_watermark - view.log_start).sum();
    (end - cut, clips.len(), offsets)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, max_shrink_iters: 500, ..ProptestConfig::default() })]
    #[test]
    fn what_comes_back_is_one_cut(
        steps in prop::collection::vec(step(), 1..200),
        ends in prop::collection::vec(any::<prop::sample::Index>(), 3),
        from in any::<u8>(),
    ) {
        let world = world(steps);
        for end in ends {
            let end = 1 + end.index(world.rig.log.len());
            check(&world.rig.log[..end], &world, from);
        }
    }
}

/// The generator must reach what the property is about.
#[test]
fn random_archives_lose_something() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut lost, mut clips, mut offsets) = (0, 0, 0);
    for _ in 0..20 {
        let steps = prop::collection::vec(step(), 150..200).new_tree(&mut runner).unwrap().current();
        let world = world(steps);
        let len = world.rig.log.len();
        for end in (1..=6).map(|sixth| len * sixth / 6) {
            let (entries, clipped, back) = check(&world.rig.log[..end], &world, 200);
            lost += entries;
            clips += clipped;
            offsets += back;
        }
    }
    println!("{lost} entries behind the cuts, {clips} runs clipped, {offsets} offsets came back");
    assert!(lost > 300 && clips > 10 && offsets > 1000, "{lost} {clips} {offsets}");
}

/// One partition: [0, 4] stored, [5, 9] and [10, 14] in the WAL, then one object with both.
fn straddling() -> (Rig, SessionId, TopicId, ObjectId, u64) {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 2);
    let object = rig.objects(broker.0, 4);
    rig.commit(broker, (topic, 0), vec![plain(0, 5)]);
    rig.upload(broker.0, object, ONE, vec![run_of(topic, 0, 0, 4)]);
    rig.commit(broker, (topic, 0), vec![plain(0, 5)]);
    // This one stays in the WAL: the cut lies before it.
    rig.commit(broker, (topic, 1), vec![plain(0, 1)]);
    let cut = rig.index - 1;
    rig.commit(broker, (topic, 0), vec![plain(0, 5)]);
    rig.upload(broker.0, ObjectId(object.0 + 1), ONE, vec![run_of(topic, 0, 5, 14)]);
    (rig, broker.0, topic, object, cut)
}

#[test]
fn a_run_across_the_cut_is_clipped() {
    let (rig, _, topic, object, cut) = straddling();
    assert_eq!(rig.machine.view().recovery_cut(), cut);
    let (recovered, clips) = recover(&rig.log, 0, cut, 1).unwrap();
    let expected = Clip {
        partition: PartitionKey::new(topic, 0),
        store: ONE,
        object: ObjectId(object.0 + 1),
        position: 0,
        size_bytes: 100,
        base_offset: 5,
        last_offset: 14,
        end_offset: 10,
    };
    assert_eq!(clips, [expected]);
    let view = recovered.view().partition(topic, 0).unwrap();
    assert_eq!(view.high_watermark, 10);
    let extent = view.locate(9, &[]).unwrap().extent().unwrap();
    assert_eq!((extent.last_offset, extent.size_bytes, extent.max_timestamp_ms), (9, 70, 1500));
    assert_eq!(extent.object().unwrap().size_bytes, 70);
    let of_clipped = recovered.view().object(ObjectId(object.0 + 1)).unwrap();
    assert_eq!((of_clipped.live_bytes, of_clipped.refs, of_clipped.size_bytes), (70, 1, 100));
    assert_eq!(view.end_of_epoch(0), Some((0, 10)), "who has seen more is told");
    let ended = recovered.view().partition(topic, 1).unwrap();
    assert_eq!((ended.log_start, ended.high_watermark), (0, 0));
}

#[test]
fn what_became_of_the_bytes_later_does_not_matter() {
    let (mut rig, session, topic, object, cut) = straddling();
    // Compacted, and the sources deleted as far as metadata knows: the recovered cluster reads the sources, which the
    // deleter may not have deleted, for they were unreferenced after the cut.
    let (first, second) = (object, ObjectId(object.0 + 1));
    let replaces = vec![
        ReplacedExtent { base_offset: 0, object: first, position: 0 },
        ReplacedExtent { base_offset: 5, object: second, position: 0 },
    ];
    let runs = vec![CompactedRun { run: run_of(topic, 0, 0, 14), replaces }];
    assert_eq!(rig.compact(session, ObjectId(object.0 + 2), ONE, runs).applied, [0]);
    assert_eq!(rig.machine.view().recovery_cut(), cut);
    let (recovered, _) = recover(&rig.log, cut, cut, 1).unwrap();
    let view = recovered.view().partition(topic, 0).unwrap();
    let objects: Vec<_> = view.stores[&ONE].values().map(|extent| extent.object().unwrap().object).collect();
    assert_eq!(objects, [first, second]);
    let merged = recovered.view().object(ObjectId(object.0 + 2)).unwrap();
    assert_eq!(merged.state, ObjectState::Prepared as i32, "it expires");
}

#[test]
fn what_is_missing_or_wrong_is_said() {
    let (rig, _, _, _, cut) = straddling();
    let log = &rig.log;
    assert!(matches!(recover(log, cut + 1, cut, 1), Err(RecoverError::SnapshotTooNew { .. })));
    assert!(matches!(recover(log, 0, rig.index + 1, 1), Err(RecoverError::TooShort { .. })));
    assert!(
        matches!(recover(log, 0, cut + 1, 1), Err(RecoverError::Torn { offset: 0, .. })),
        "not the log's cut"
    );
    assert!(matches!(
        recover(&log[..cut as usize + 1], 0, cut, 1),
        Err(RecoverError::Torn { offset: 5, .. })
    ));
    assert!(matches!(recover(log, 0, cut, 0), Err(RecoverError::Incarnation { .. })));
    assert!(matches!(recover(log, 0, cut, 256), Err(RecoverError::Incarnation { .. })));
    let mut gap = log.clone();
    gap.remove(3);
    assert!(matches!(recover(&gap, 0, cut, 1), Err(RecoverError::Gap { expected: 4, found: 5 })));
    let mut recovery = Recovery::new(StateMachine::new(format()), cut).unwrap();
    for (index, bytes) in log {
        recovery.entry(*index, Some(&entry(bytes))).unwrap();
    }
    assert!(matches!(recovery.finish(&[], 1, 0), Err(RecoverError::Clips { found: 0, expected: 1 })));
}
