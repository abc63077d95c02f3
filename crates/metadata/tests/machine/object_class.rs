use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::record::{ObjectLocation, ObjectState};
use isobar_metadata::result::*;
use isobar_metadata::*;

const ONE: StoreId = StoreId(1);

fn object_topic(rig: &mut Rig, session: SessionId, name: &str, placement: u32) -> TopicId {
    let mut topic = rig.new_topic(name, 2);
    topic.placement = PlacementId(placement);
    topic.configs.insert("isobar.durability".into(), "object".into());
    let id = topic.topic_id;
    assert_eq!(rig.create(session, topic).error_code, 0);
    id
}

fn part(topic_id: TopicId, partition: i32, position: u64, batches: Vec<CommitBatch>) -> CommitPartition {
    CommitPartition { topic_id, partition, class_epoch: 0, batches, position }
}

fn commit(
    rig: &mut Rig,
    session: SessionId,
    object: ObjectId,
    partitions: Vec<CommitPartition>,
) -> ChunkResult {
    let object = Some(ChunkObject { object, store: ONE, size_bytes: 1000 });
    let command = Command::CommitChunk(CommitChunk { partitions, object, ..CommitChunk::default() });
    match rig.send(session, OBJECT_LANE, command) {
        CommandResult::Chunk(chunk) => chunk,
        other => panic!("{other:?}"),
    }
}

fn places(rig: &Rig, topic: TopicId, partition: i32) -> Vec<(i64, i64, u64, u32)> {
    let extents = rig.view(topic, partition).stores[&ONE].values();
    let place = |extent: &Extent| {
        let location = extent.object().unwrap();
        assert!(location.unstamped && u64::from(location.size_bytes) == extent.size_bytes);
        (extent.base_offset, extent.last_offset, location.position, location.size_bytes)
    };
    extents.map(place).collect()
}

#[test]
fn an_object_is_a_chunk() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    let topic = object_topic(&mut rig, session, "t", 0);
    let object = rig.objects(session, 1);
    let control = CommitBatch { flags: batch_flags::CONTROL, ..plain(0, 9) };
    let result = commit(
        &mut rig,
        session,
        object,
        vec![
            part(topic, 0, 40, vec![plain(0, 2), plain(0, 3), control, plain(0, 1)]),
            part(topic, 1, 440, vec![plain(0, 4)]),
            part(topic, 1, 940, vec![plain(0, 4)]),
        ],
    );
    let answers: Vec<_> = result.batches.iter().map(|b| (b.error_code, b.base_offset)).collect();
    let beyond = (codes::INVALID_REQUEST, -1);
    assert_eq!(answers, [(0, 0), (0, 2), (codes::INVALID_RECORD, -1), (0, 5), (0, 0), beyond]);
    assert_eq!(places(&rig, topic, 0), [(0, 4, 40, 200), (5, 5, 340, 100)], "split round the refused batch");
    assert_eq!(places(&rig, topic, 1), [(0, 3, 440, 100)]);
    let view = rig.view(topic, 0);
    assert_eq!((view.high_watermark, view.wal.len()), (6, 0));
    let record = rig.machine.view().object(object).unwrap();
    assert_eq!((record.state, record.refs, record.live_bytes), (ObjectState::Committed as i32, 3, 400));
    rig.restart();
    // What an upload makes of it is final, and what names it as it was does not count twice.
    let merged = rig.objects(session, 1);
    let replaces = vec![
        ReplacedExtent { base_offset: 0, object, position: 40 },
        ReplacedExtent { base_offset: 5, object, position: 340 },
    ];
    let runs = vec![CompactedRun { run: run_of(topic, 0, 0, 5), replaces }];
    assert_eq!(rig.compact(session, merged, ONE, runs).applied, [0]);
    let final_place = rig.view(topic, 0).stores[&ONE][&0].object().unwrap();
    assert_eq!(final_place, ObjectLocation::new(merged, 0, 100));
}

#[test]
fn an_object_that_is_not_open_makes_nothing_durable() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    let other = rig.register(2, "");
    let topic = object_topic(&mut rig, session, "t", 0);
    let object = rig.objects(session, 3);
    let batches = || vec![part(topic, 0, 0, vec![plain(0, 2), plain(0, 1)])];
    let storage_error = |result: ChunkResult| {
        assert_eq!(result.error_code, 0);
        result.batches.iter().all(|batch| batch.error_code == codes::KAFKA_STORAGE_ERROR)
    };
    assert!(storage_error(commit(&mut rig, session, ObjectId(99), batches())));
    assert!(storage_error(commit(&mut rig, other, object, batches())), "granted to another");
    assert!(!storage_error(commit(&mut rig, session, object, batches())));
    assert!(storage_error(commit(&mut rig, session, object, batches())), "committed already");
    rig.time_ms += 60_001;
    rig.leader(Command::ExpireObjects(ExpireObjects { limit: 0 }));
    assert!(storage_error(commit(&mut rig, session, ObjectId(object.0 + 1), batches())), "expired");
    assert_eq!(rig.view(topic, 0).high_watermark, 3);
}

#[test]
fn what_nobody_needs_is_unreferenced_at_once() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    let first = rig.objects(session, 3).0;
    let topic = rig.topic(session, "wal", 1);
    let state = |rig: &Rig, object| rig.machine.view().object(ObjectId(object)).unwrap().state;
    let refused = commit(&mut rig, session, ObjectId(first), vec![part(topic, 0, 0, vec![plain(0, 1)])]);
    assert_eq!(refused.batches[0].error_code, codes::NOT_LEADER_OR_FOLLOWER, "another class");
    assert_eq!(state(&rig, first), ObjectState::Unreferenced as i32);
    assert_eq!(commit(&mut rig, session, ObjectId(first + 1), vec![]).batches, [], "given up");
    assert_eq!(state(&rig, first + 1), ObjectState::Unreferenced as i32);
    let given_up = rig.send(session, OBJECT_LANE, Command::CommitChunk(CommitChunk::default()));
    assert!(matches!(given_up, CommandResult::Chunk(chunk) if chunk.error_code == 0));
    assert_eq!(state(&rig, first + 2), ObjectState::Prepared as i32);
}

#[test]
fn lanes_take_what_is_theirs_and_stores_what_the_placement_lets_them() {
    let mut rig = Rig::new();
    let (session, stream) = rig.broker(1);
    let topic = object_topic(&mut rig, session, "t", 0);
    let object = rig.objects(session, 1);
    let chunk = Some(ChunkObject { object, store: ONE, size_bytes: 1000 });
    let partitions = vec![part(topic, 0, 0, vec![plain(0, 1)])];
    let wrong = CommitChunk { stream, chunk: 1, acknowledged: 1, partitions, object: chunk };
    let malformed = Some(RefusalKind::Malformed);
    assert_eq!(rig.send(session, WAL_LANE, Command::CommitChunk(wrong.clone())).refusal(), malformed);
    let no_object = CommitChunk { object: None, ..wrong };
    assert_eq!(rig.send(session, OBJECT_LANE, Command::CommitChunk(no_object)).refusal(), malformed);
    // A placement that requires two stores cannot be served by an object in one.
    let placed = object_topic(&mut rig, session, "placed", 1);
    let partitions = vec![part(placed, 0, 0, vec![plain(0, 1)])];
    let command = Command::CommitChunk(CommitChunk { partitions, object: chunk, ..CommitChunk::default() });
    let lane = lane_of(Durability::Object, PlacementId(1));
    let CommandResult::Chunk(result) = rig.send(session, lane, command) else { panic!() };
    assert_eq!((result.error_code, result.batches.len()), (codes::INVALID_REQUEST, 0));
}

#[test]
fn a_topic_changes_its_class_between_two_batches() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 1);
    rig.commit(broker, (topic, 0), vec![plain(0, 5)]);
    let class = |rig: &mut Rig, value: &str| {
        let op = ConfigOp { name: "isobar.durability".into(), op: 0, value: Some(value.into()) };
        let resources = vec![AlterResource { resource_type: 2, name: "t".into(), ops: vec![op] }];
        rig.control(broker.0, Command::AlterConfigs(AlterConfigs { resources, validate_only: false }));
    };
    class(&mut rig, "object");
    let old = rig.chunk(broker.1, vec![part(topic, 0, 0, vec![plain(0, 1)])]);
    let CommandResult::Chunk(refused) = rig.send(broker.0, WAL_LANE, old) else { panic!() };
    assert_eq!(refused.batches[0].error_code, codes::NOT_LEADER_OR_FOLLOWER);
    let object = rig.objects(broker.0, 2);
    let in_object = CommitPartition { class_epoch: 1, ..part(topic, 0, 0, vec![plain(0, 2)]) };
    assert_eq!(commit(&mut rig, broker.0, object, vec![in_object]).batches[0].base_offset, 5);
    class(&mut rig, "wal");
    assert_eq!(rig.commit(broker, (topic, 0), vec![plain(0, 3)])[0].base_offset, 7);
    // The upload takes what lies in the WAL on either side, each for itself.
    let upload = ObjectId(object.0 + 1);
    let runs = vec![run_of(topic, 0, 0, 6), run_of(topic, 0, 0, 4), run_of(topic, 0, 7, 9)];
    assert_eq!(rig.upload(broker.0, upload, ONE, runs).applied, [1, 2]);
    assert_eq!(rig.view(topic, 0).stores[&ONE].len(), 3);
    assert!(rig.view(topic, 0).wal.is_empty());
}
