use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::index_block::{IndexBlock, extents_hash};
use isobar_metadata::record::{ObjectState, object_level};
use isobar_metadata::*;

const ONE: StoreId = StoreId(1);

/// One partition with extents [0, 4], [5, 9], ... each in an object of its own.
fn filled(count: u64) -> (Rig, SessionId, TopicId, Vec<ObjectId>) {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 1);
    let first = rig.objects(broker.0, count as u32 + 5).0;
    let objects: Vec<_> = (0..count + 5).map(|n| ObjectId(first + n)).collect();
    for object in &objects[..count as usize] {
        let base = rig.commit(broker, (topic, 0), vec![plain(0, 5)])[0].base_offset;
        rig.upload(broker.0, *object, ONE, vec![run_of(topic, 0, base, base + 4)]);
    }
    (rig, broker.0, topic, objects)
}

fn replaced(n: i64, object: ObjectId) -> ReplacedExtent {
    ReplacedExtent { base_offset: 5 * n, object, position: 0 }
}

fn state(rig: &Rig, object: ObjectId) -> ObjectState {
    ObjectState::try_from(rig.machine.view().object(object).unwrap().state).unwrap()
}

#[test]
fn a_merged_run_takes_the_place_of_its_extents() {
    let (mut rig, session, topic, objects) = filled(4);
    let run = CompactedRun {
        run: run_of(topic, 0, 5, 14),
        replaces: vec![replaced(1, objects[1]), replaced(2, objects[2])],
    };
    assert_eq!(rig.compact(session, objects[4], ONE, vec![run.clone()]).applied, [0]);
    assert_eq!(rig.view(topic, 0).stores[&ONE].len(), 3);
    assert_eq!(
        (state(&rig, objects[1]), state(&rig, objects[2])),
        (ObjectState::Unreferenced, ObjectState::Unreferenced)
    );
    let merged = rig.machine.view().object(objects[4]).unwrap();
    assert_eq!((merged.level, merged.refs, merged.live_bytes), (object_level::MERGED, 1, 100));
    // The same again, by another job: dead bytes.
    assert_eq!(rig.compact(session, objects[5], ONE, vec![run]).applied, [0u32; 0]);
    assert_eq!(state(&rig, objects[5]), ObjectState::Unreferenced);
    rig.restart();
}

#[test]
fn a_run_counts_only_if_it_names_exactly_what_is_there() {
    let (mut rig, session, topic, objects) = filled(4);
    let both = || vec![replaced(1, objects[1]), replaced(2, objects[2])];
    let run = |base, last, replaces: Vec<ReplacedExtent>| CompactedRun {
        run: run_of(topic, 0, base, last),
        replaces,
    };
    let wrong_place = ReplacedExtent { position: 1, ..replaced(2, objects[2]) };
    let other_topic = ObjectRun { topic_id: TopicId::from([8; 16]), ..run_of(topic, 0, 5, 14) };
    let runs = vec![
        run(5, 14, vec![]),
        run(4, 14, both()),
        run(5, 13, both()),
        run(5, 19, both()),
        run(5, 14, vec![replaced(1, objects[1]), wrong_place]),
        run(5, 14, vec![replaced(1, objects[1]), replaced(2, objects[1])]),
        run(5, 14, vec![replaced(2, objects[2]), replaced(1, objects[1])]),
        run(5, 19, vec![replaced(1, objects[1]), replaced(3, objects[3])]),
        CompactedRun { run: other_topic, replaces: both() },
        run(5, 14, both()),
    ];
    assert_eq!(rig.compact(session, objects[4], ONE, runs).applied, [9]);
    let elsewhere = vec![run(15, 19, vec![replaced(3, objects[3])])];
    assert_eq!(rig.compact(session, objects[5], StoreId(2), elsewhere).applied, [0u32; 0]);
}

#[test]
fn retention_below_a_run_and_inside_it() {
    let (mut rig, session, topic, objects) = filled(3);
    rig.log_start(session, topic, 0, 7);
    // [0, 4] is gone, of [5, 9] a part is inside the log yet.
    let gone = CompactedRun {
        run: run_of(topic, 0, 0, 9),
        replaces: vec![replaced(0, objects[0]), replaced(1, objects[1])],
    };
    assert_eq!(rig.compact(session, objects[3], ONE, vec![gone]).applied, [0u32; 0]);
    let cut = CompactedRun {
        run: run_of(topic, 0, 5, 14),
        replaces: vec![replaced(1, objects[1]), replaced(2, objects[2])],
    };
    assert_eq!(rig.compact(session, objects[4], ONE, vec![cut]).applied, [0]);
    rig.log_start(session, topic, 0, 15);
    assert_eq!(state(&rig, objects[4]), ObjectState::Unreferenced);
}

#[test]
fn indexed_extents_leave_a_pointer_that_holds_their_objects() {
    let (mut rig, session, topic, objects) = filled(6);
    let extents: Vec<Extent> = rig.view(topic, 0).stores[&ONE].values().take(4).cloned().collect();
    let index = objects[6];
    let run = rig.index_run(index, 0, topic, 0, &extents);
    assert_eq!(rig.commit_index(session, index, ONE, vec![run]).applied, [0]);
    let view = rig.view(topic, 0).clone();
    assert_eq!((view.stores[&ONE].len(), view.indexed[&ONE].len()), (2, 1));
    let Some(Found::Indexed(pointer)) = view.locate(7, &[ONE]) else { panic!() };
    assert_eq!((pointer.base_offset, pointer.last_offset, pointer.extents, pointer.bytes), (0, 19, 4, 400));
    assert_eq!(
        pointer.objects().collect::<Vec<_>>(),
        objects[..4].iter().map(|o| (*o, 100)).collect::<Vec<_>>()
    );
    let block = IndexBlock::of_pointer(&rig.blocks[&(index, 0)], view.key(), pointer).unwrap();
    assert_eq!(block.find(7), Some(&extents[1]));
    assert!(matches!(view.locate(20, &[]), Some(Found::Extent(_))));
    assert!(view.is_stored(ONE, 0, 29) && !view.is_stored(ONE, 0, 30) && view.is_partly_stored(ONE, 19, 19));
    let image = rig.machine.view();
    assert_eq!(
        (image.object(objects[0]).unwrap().refs, image.object(objects[0]).unwrap().live_bytes),
        (1, 100)
    );
    let of_index = image.object(index).unwrap();
    assert_eq!(
        (of_index.level, of_index.refs, of_index.live_bytes),
        (object_level::INDEX, 1, u64::from(pointer.size_bytes))
    );
    // Offsets that a pointer covers are stored: a late upload of them is dead bytes.
    assert!(rig.upload(session, objects[7], ONE, vec![run_of(topic, 0, 0, 4)]).applied.is_empty());
    rig.restart();
    // A log start inside the pointer's offsets keeps it whole; past them it goes, and its objects.
    rig.log_start(session, topic, 0, 19);
    assert_eq!(
        (state(&rig, objects[0]), state(&rig, index)),
        (ObjectState::Committed, ObjectState::Committed)
    );
    rig.log_start(session, topic, 0, 20);
    assert!(rig.view(topic, 0).indexed.is_empty());
    assert!(
        objects[..4].iter().chain([&index]).all(|object| state(&rig, *object) == ObjectState::Unreferenced)
    );
}

#[test]
fn an_index_counts_only_if_it_lists_exactly_what_is_there() {
    let (mut rig, session, topic, objects) = filled(4);
    let extents: Vec<Extent> = rig.view(topic, 0).stores[&ONE].values().cloned().collect();
    let good = rig.index_run(objects[4], 0, topic, 0, &extents[1..3]);
    let runs = vec![
        IndexRun { hash: good.hash + 1, ..good },
        IndexRun { extents: 1, ..good },
        IndexRun { extents: 3, ..good },
        IndexRun { extents: 0, ..good },
        IndexRun { base_offset: 4, ..good },
        IndexRun { last_offset: 15, ..good },
        IndexRun { last_offset: 4, ..good },
        IndexRun { partition: 1, ..good },
        IndexRun { hash: extents_hash(&extents[..2]), ..good },
        good,
        good,
    ];
    assert_eq!(rig.commit_index(session, objects[4], ONE, runs).applied, [9]);
    // It need not be the lowest; what is indexed is not compacted any more.
    assert!(matches!(rig.view(topic, 0).locate(0, &[]), Some(Found::Extent(_))));
    let run = CompactedRun {
        run: run_of(topic, 0, 0, 9),
        replaces: vec![replaced(0, objects[0]), replaced(1, objects[1])],
    };
    assert_eq!(rig.compact(session, objects[5], ONE, vec![run]).applied, [0u32; 0]);
    let refused = rig.commit_index(session, objects[5], ONE, vec![]);
    assert_eq!(refused.error_code, codes::INVALID_REQUEST, "the object is not open");
}

#[test]
fn a_deleted_topic_is_compacted_and_indexed_too() {
    let (mut rig, session, topic, objects) = filled(4);
    rig.control(session, Command::DeleteTopics(DeleteTopics { topic_ids: vec![topic] }));
    let run = CompactedRun {
        run: run_of(topic, 0, 0, 9),
        replaces: vec![replaced(0, objects[0]), replaced(1, objects[1])],
    };
    assert_eq!(rig.compact(session, objects[4], ONE, vec![run]).applied, [0]);
    let view = rig.machine.view().stored_view(PartitionKey::new(topic, 0)).unwrap();
    let extents: Vec<Extent> = view.stores[&ONE].values().cloned().collect();
    let run = rig.index_run(objects[5], 0, topic, 0, &extents);
    assert_eq!(rig.commit_index(session, objects[5], ONE, vec![run]).applied, [0]);
    rig.restart();
    rig.control(session, Command::PurgeTopics(PurgeTopics { topic_ids: vec![topic] }));
    for object in [objects[2], objects[3], objects[4], objects[5]] {
        assert_eq!(state(&rig, object), ObjectState::Unreferenced);
    }
}
