use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::record::ObjectState;
use isobar_metadata::*;

const ONE: StoreId = StoreId(1);
const TWO: StoreId = StoreId(2);
const THREE: StoreId = StoreId(3);

fn state(rig: &Rig, object: ObjectId) -> ObjectState {
    ObjectState::try_from(rig.machine.view().object(object).unwrap().state).unwrap()
}

fn released(rig: &Rig) -> Vec<u64> {
    let chunks = rig.last_effects.iter().filter_map(|effect| match effect {
        EffectKind::Released(released) => Some(released.chunks.clone()),
        _ => None,
    });
    chunks.flatten().collect()
}

/// A topic with chunks of the given record counts, and three granted objects.
fn filled(placement: u32, counts: &[u32]) -> (Rig, (SessionId, StreamId), TopicId, [ObjectId; 3]) {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    let directory = rig.directory(1);
    let lane = lane_of(Durability::Wal, PlacementId(placement));
    let stream = rig.open(session, lane, directory);
    let mut topic = rig.new_topic("t", 1);
    topic.placement = PlacementId(placement);
    let topic_id = topic.topic_id;
    rig.create(session, topic);
    for count in counts {
        let batches = vec![plain(0, *count)];
        let part = CommitPartition { topic_id, partition: 0, class_epoch: 0, batches, position: 0 };
        let command = rig.chunk(stream, vec![part]);
        rig.send(session, lane, command);
    }
    let first = rig.objects(session, 3).0;
    (rig, (session, stream), topic_id, [ObjectId(first), ObjectId(first + 1), ObjectId(first + 2)])
}

#[test]
fn a_run_takes_the_place_of_its_chunks() {
    let (mut rig, (session, stream), topic, [a, b, c]) = filled(0, &[5, 5, 5]);
    let committed = rig.upload(session, a, ONE, vec![run_of(topic, 0, 0, 9)]);
    assert_eq!(committed.applied, [0]);
    assert_eq!(released(&rig), [1, 2]);
    assert_eq!(rig.view(topic, 0).wal.len(), 1);
    assert!(
        matches!(rig.view(topic, 0).locate(3, &[ONE]).unwrap().extent().unwrap().location(), Location::Object(o) if o.object == a)
    );
    assert!(rig.machine.view().stream(stream).unwrap().is_garbage(2));
    // The same offsets again, from another uploader: dead bytes, and an object that nothing points at.
    let committed = rig.upload(session, b, ONE, vec![run_of(topic, 0, 5, 14)]);
    assert_eq!((committed.error_code, committed.applied.len()), (0, 0));
    assert_eq!(state(&rig, b), ObjectState::Unreferenced);
    assert_eq!(state(&rig, a), ObjectState::Committed);
    // To another store it is late: what has left the WAL is copied by mirroring, not by uploads.
    assert!(rig.upload(session, c, TWO, vec![run_of(topic, 0, 0, 4)]).applied.is_empty());
    assert_eq!(state(&rig, c), ObjectState::Unreferenced);
}

#[test]
fn runs_apply_whole_or_not_at_all() {
    let (mut rig, (session, _), topic, [a, ..]) = filled(0, &[5, 5, 5]);
    let runs = vec![
        run_of(topic, 0, 0, 4),
        run_of(topic, 0, 4, 9),
        run_of(topic, 0, 10, 15),
        run_of(topic, 1, 0, 4),
        run_of(TopicId::from([9; 16]), 0, 0, 4),
        run_of(topic, 0, 9, 8),
        run_of(topic, 0, -5, 9),
        run_of(topic, 0, 5, 14),
    ];
    assert_eq!(rig.upload(session, a, ONE, runs).applied, [0, 7]);
    assert!(rig.view(topic, 0).wal.is_empty());
}

#[test]
fn an_extent_stays_until_all_of_it_inside_the_log_is_stored() {
    let (mut rig, (session, _), topic, [a, b, c]) = filled(0, &[10, 5]);
    rig.upload(session, a, ONE, vec![run_of(topic, 0, 5, 9)]);
    assert_eq!(released(&rig), [0u64; 0], "half of chunk 1 is stored");
    let move_to = |log_start| {
        Command::MoveLogStart(MoveLogStart {
            partitions: vec![NewLogStart { topic_id: topic, partition: 0, log_start }],
            reason: 0,
        })
    };
    rig.control(session, move_to(3));
    assert_eq!(released(&rig), [0u64; 0]);
    rig.control(session, move_to(5));
    assert_eq!(released(&rig), [1], "what is left of it is stored");
    rig.upload(session, b, ONE, vec![run_of(topic, 0, 10, 14)]);
    assert_eq!(released(&rig), [2]);
    // Offsets below the log start are nobody's.
    assert!(rig.upload(session, c, ONE, vec![run_of(topic, 0, 0, 4)]).applied.is_empty());
    rig.control(session, move_to(10));
    assert_eq!(state(&rig, a), ObjectState::Unreferenced);
    rig.control(session, move_to(-1));
    assert_eq!(state(&rig, b), ObjectState::Unreferenced);
    assert_eq!((rig.view(topic, 0).log_start, rig.view(topic, 0).high_watermark), (15, 15));
}

#[test]
fn every_required_store_must_have_it() {
    let (mut rig, (session, _), topic, [a, b, c]) = filled(1, &[5, 5]);
    rig.upload(session, a, ONE, vec![run_of(topic, 0, 0, 9)]);
    rig.upload(session, c, THREE, vec![run_of(topic, 0, 0, 9)]);
    assert_eq!(released(&rig), [0u64; 0]);
    rig.upload(session, b, TWO, vec![run_of(topic, 0, 0, 4)]);
    assert_eq!(released(&rig), [1]);
    let d = rig.objects(session, 1);
    rig.upload(session, d, TWO, vec![run_of(topic, 0, 5, 9)]);
    assert_eq!(released(&rig), [2]);
    let in_two = rig.view(topic, 0).locate(7, &[TWO]).unwrap().extent().unwrap();
    assert!(matches!(in_two.location(), Location::Object(o) if o.object == d));
}

#[test]
fn objects_commit_in_parts_until_the_last_or_the_deadline() {
    let (mut rig, (session, _), topic, [a, b, _]) = filled(0, &[5, 5, 5]);
    let part = |object, store, base, last, more_parts| {
        let runs = vec![run_of(topic, 0, base, last)];
        Command::CommitObject(CommitObject { object, store, runs, more_parts, size_bytes: 10 })
    };
    let code = |result| match result {
        CommandResult::ObjectCommitted(committed) => committed.error_code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(rig.control(session, part(a, ONE, 0, 4, true))), 0);
    assert_eq!(
        code(rig.control(session, part(a, TWO, 5, 9, true))),
        codes::INVALID_REQUEST,
        "it lies in another"
    );
    assert_eq!(code(rig.control(session, part(a, StoreId(9), 5, 9, true))), codes::INVALID_REQUEST);
    assert_eq!(code(rig.control(session, part(a, ONE, 5, 9, false))), 0);
    assert_eq!(
        code(rig.control(session, part(a, ONE, 10, 14, false))),
        codes::INVALID_REQUEST,
        "it was complete"
    );
    // Without any reference, and with more parts to come: not yet unreferenced.
    assert_eq!(code(rig.control(session, part(b, ONE, 0, 4, true))), 0);
    assert_eq!(state(&rig, b), ObjectState::Committed);
    rig.time_ms += 60_001;
    let expired = rig.leader(Command::ExpireObjects(ExpireObjects { limit: 0 }));
    assert!(matches!(&expired, CommandResult::Expired(e) if e.count == 2), "{expired:?}");
    assert_eq!(state(&rig, b), ObjectState::Unreferenced);
    assert_eq!(code(rig.control(session, part(b, ONE, 10, 14, false))), codes::INVALID_REQUEST);
    assert_eq!(rig.view(topic, 0).wal.len(), 1);
}

#[test]
fn the_first_of_expiry_and_commit_wins_and_deletes_are_repeated() {
    let (mut rig, (session, _), topic, [a, b, _]) = filled(0, &[5]);
    rig.time_ms += 60_001;
    // After the deadline and before the expiry a commit still counts.
    assert_eq!(rig.upload(session, a, ONE, vec![run_of(topic, 0, 0, 4)]).applied, [0]);
    rig.leader(Command::ExpireObjects(ExpireObjects { limit: 1 }));
    assert_eq!(state(&rig, b), ObjectState::Unreferenced);
    assert_eq!(rig.upload(session, b, ONE, vec![]).error_code, codes::INVALID_REQUEST);
    let deleted = Command::ObjectsDeleted(ObjectsDeleted { objects: vec![a, b] });
    rig.control(session, deleted.clone());
    assert_eq!((state(&rig, a), state(&rig, b)), (ObjectState::Committed, ObjectState::Deleted));
    rig.control(session, deleted.clone());
    assert_eq!(state(&rig, b), ObjectState::Deleted);
    rig.time_ms += 24 * 60 * 60 * 1000;
    rig.control(session, deleted.clone());
    assert_eq!(state(&rig, b), ObjectState::Deleted, "held: the clock jumped");
    rig.time_ms += TIME_JUMP_MS;
    rig.control(session, deleted);
    assert_eq!(rig.machine.view().object(b), None);
}

#[test]
fn deleting_a_topic_lets_go_of_everything() {
    let (mut rig, (session, stream), topic, [a, ..]) = filled(0, &[5, 5]);
    rig.upload(session, a, ONE, vec![run_of(topic, 0, 0, 4)]);
    rig.delete_for_good(session, topic);
    assert_eq!(released(&rig), [2]);
    assert_eq!(state(&rig, a), ObjectState::Unreferenced);
    assert!(rig.machine.view().stream(stream).unwrap().live.is_empty());
    rig.leader(Command::FenceSession(FenceSession { session }));
    assert_eq!(rig.machine.view().streams().count(), 0);
}

#[test]
fn log_starts_rise_only_and_not_past_the_end() {
    let (mut rig, (session, _), topic, _) = filled(0, &[5]);
    let mut answers = vec![];
    for (partition, log_start) in [(0, 6), (0, 2), (0, 1), (1, 0), (0, -2), (0, -1)] {
        let partitions = vec![NewLogStart { topic_id: topic, partition, log_start }];
        match rig.control(session, Command::MoveLogStart(MoveLogStart { partitions, reason: 0 })) {
            CommandResult::LogStarts(starts) => {
                answers.push((starts.partitions[0].error_code, starts.partitions[0].log_start));
            }
            other => panic!("{other:?}"),
        }
    }
    let (range, unknown) = (codes::OFFSET_OUT_OF_RANGE, codes::UNKNOWN_TOPIC_OR_PARTITION);
    assert_eq!(answers, [(range, -1), (0, 2), (0, 2), (unknown, -1), (range, -1), (0, 5)]);
}
