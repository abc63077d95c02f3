use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::record::WalLocation;
use isobar_metadata::result::*;
use isobar_metadata::*;
use prost::Message;
use std::collections::BTreeMap;

#[test]
fn batches_take_dense_offsets_and_neighbours_make_one_extent() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 2);
    let results = rig.commit(broker, (topic, 0), vec![plain(0, 3), plain(1, 2), plain(4, 1)]);
    assert_eq!(
        results.iter().map(|r| (r.error_code, r.base_offset)).collect::<Vec<_>>(),
        [(0, 0), (0, 3), (0, 5)]
    );
    let view = rig.view(topic, 0);
    let extents: Vec<_> =
        view.wal.values().map(|e| (e.base_offset, e.last_offset, e.wal().unwrap())).collect();
    let stream = broker.1;
    assert_eq!(
        extents,
        [
            (0, 4, WalLocation { stream, chunk: 1, first_batch: 0, batches: 2 }),
            (5, 5, WalLocation { stream, chunk: 1, first_batch: 4, batches: 1 })
        ]
    );
    assert_eq!(view.wal_bytes, 300);
    assert_eq!(view.locate(4, &[]).unwrap().max_timestamp_ms(), 1001);
    assert_eq!(view.locate(6, &[]), None);
    // A new chunk is a new extent.
    assert_eq!(rig.commit(broker, (topic, 0), vec![plain(5, 1)])[0].base_offset, 6);
    assert_eq!(rig.view(topic, 0).wal.len(), 3);
}

#[test]
fn one_bad_partition_fails_alone() {
    let mut rig = Rig::new();
    let (session, stream) = rig.broker(1);
    let topic = rig.topic(session, "t", 1);
    let unknown = TopicId::from([9; 16]);
    let part = |topic_id, partition, class_epoch, batches| CommitPartition {
        topic_id,
        partition,
        class_epoch,
        batches,
        position: 0,
    };
    let bad_count = CommitBatch { record_count: 0, ..plain(5, 1) };
    let control = CommitBatch { flags: batch_flags::CONTROL, ..plain(6, 1) };
    let transactional = CommitBatch { flags: batch_flags::TRANSACTIONAL, ..plain(7, 1) };
    let command = rig.chunk(
        stream,
        vec![
            part(unknown, 0, 0, vec![plain(0, 1)]),
            part(topic, 0, 0, vec![plain(1, 2), bad_count, control, transactional, plain(8, 2)]),
            part(topic, 1, 0, vec![plain(2, 1), plain(3, 1)]),
            part(topic, 0, 1, vec![plain(4, 1)]),
        ],
    );
    let CommandResult::Chunk(result) = rig.send(session, WAL_LANE, command) else { panic!() };
    let answers: Vec<_> =
        result.batches.iter().map(|b| (b.error_code, b.base_offset, b.log_start_offset)).collect();
    let expected = [
        (codes::UNKNOWN_TOPIC_ID, -1, -1),
        (0, 0, 0),
        (codes::INVALID_RECORD, -1, 0),
        (codes::INVALID_RECORD, -1, 0),
        (codes::INVALID_TXN_STATE, -1, 0),
        (0, 2, 0),
        (codes::UNKNOWN_TOPIC_OR_PARTITION, -1, -1),
        (codes::UNKNOWN_TOPIC_OR_PARTITION, -1, -1),
        (codes::NOT_LEADER_OR_FOLLOWER, -1, 0),
    ];
    assert_eq!(answers, expected);
    let ordinals: Vec<_> = rig.view(topic, 0).wal.values().map(|e| e.wal().unwrap().ordinals()).collect();
    assert_eq!(ordinals, [1..2, 8..9], "split round the refused batches");
}

#[test]
fn a_chunk_without_any_accepted_batch_is_released_at_once() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let unknown = TopicId::from([9; 16]);
    assert_eq!(rig.commit(broker, (unknown, 0), vec![plain(0, 1)])[0].error_code, codes::UNKNOWN_TOPIC_ID);
    let released = rig.last_effects.iter().any(|e| matches!(e, EffectKind::Released(r) if r.chunks == [1]));
    assert!(released);
    assert!(rig.machine.view().stream(broker.1).unwrap().is_garbage(1));
    assert!(!rig.machine.view().stream(broker.1).unwrap().is_garbage(2));
}

#[test]
fn commits_need_an_open_stream_and_its_quorum() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    let other = rig.register(2, "");
    let (a, b) = (rig.directory(1), rig.directory(2));
    let topic = rig.topic(session, "t", 1);
    let open = OpenStream { lane: WAL_LANE, ensemble: vec![a, b], write_quorum: 2 };
    let CommandResult::Stream(granted) = rig.control(session, Command::OpenStream(open)) else { panic!() };
    let stream = granted.stream;
    let commit = |stream, chunk, acknowledged| {
        let partitions = vec![CommitPartition {
            topic_id: topic,
            batches: vec![plain(0, 1)],
            ..CommitPartition::default()
        }];
        Command::CommitChunk(CommitChunk { stream, chunk, acknowledged, partitions, object: None })
    };
    let code = |result| match result {
        CommandResult::Chunk(ChunkResult { error_code, .. }) => error_code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(rig.send(session, WAL_LANE, commit(stream, 1, 0b01))), codes::INVALID_REQUEST);
    assert_eq!(
        code(rig.send(session, WAL_LANE, commit(stream, 1, 0b101))),
        codes::INVALID_REQUEST,
        "no such replica"
    );
    assert_eq!(code(rig.send(session, WAL_LANE, commit(stream, 1, 0b11))), 0);
    assert_eq!(
        code(rig.send(session, WAL_LANE, commit(stream, 1, 0b11))),
        codes::INVALID_REQUEST,
        "not rising"
    );
    assert_eq!(rig.send(other, WAL_LANE, commit(stream, 2, 0b11)).refusal(), Some(RefusalKind::StreamClosed));
    rig.control(session, Command::CloseStream(CloseStream { stream }));
    assert_eq!(
        rig.send(session, WAL_LANE, commit(stream, 2, 0b11)).refusal(),
        Some(RefusalKind::StreamClosed)
    );
    // The number was not used up: the same one goes on another stream, or is given up.
    let second = rig.open(session, WAL_LANE, a);
    assert_eq!(code(rig.send(session, WAL_LANE, commit(second, 9, 0b1))), 0);
    let given_up = Command::CommitChunk(CommitChunk { stream, chunk: 3, ..CommitChunk::default() });
    assert_eq!(code(rig.send(session, WAL_LANE, given_up)), 0);
    assert_eq!(rig.view(topic, 0).high_watermark, 2);
}

#[test]
fn streams_are_checked() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    let (a, b) = (rig.directory(1), rig.directory(2));
    let unknown = DirectoryId::from([5; 16]);
    let mut open = |lane, ensemble: &[DirectoryId], write_quorum| {
        let command = OpenStream { lane, ensemble: ensemble.to_vec(), write_quorum };
        match rig.control(session, Command::OpenStream(command)) {
            CommandResult::Stream(granted) => granted.error_code,
            other => panic!("{other:?}"),
        }
    };
    for (lane, ensemble, quorum) in [
        (LaneId::CONTROL, &[a][..], 1),
        (WAL_LANE, &[a], 0),
        (WAL_LANE, &[a], 2),
        (WAL_LANE, &[a, a], 1),
        (WAL_LANE, &[unknown], 1),
        (LaneId(99), &[a], 1),
    ] {
        assert_eq!(open(lane, ensemble, quorum), codes::INVALID_REQUEST, "{lane:?} {ensemble:?} {quorum}");
    }
    assert_eq!(open(WAL_LANE, &[a, b], 2), 0);
    rig.leader(Command::SetWriteQuorum(SetWriteQuorum { write_quorum: 2 }));
    rig.leader(Command::SetWriteQuorum(SetWriteQuorum { write_quorum: 1 }));
    assert_eq!(rig.machine.view().write_quorum(), 2, "never lowered");
    let command = OpenStream { lane: WAL_LANE, ensemble: vec![a, b], write_quorum: 1 };
    let CommandResult::Stream(granted) = rig.control(session, Command::OpenStream(command)) else { panic!() };
    assert_eq!(granted.error_code, codes::INVALID_REQUEST);
}

#[test]
fn log_append_time_is_the_entrys() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let mut topic = rig.new_topic("t", 1);
    topic.configs = BTreeMap::from([("message.timestamp.type".into(), "LogAppendTime".into())]);
    let topic_id = topic.topic_id;
    rig.create(broker.0, topic);
    rig.time_ms += 5;
    let now = rig.time_ms;
    assert_eq!(rig.commit(broker, (topic_id, 0), vec![plain(0, 1)])[0].log_append_time_ms, now);
    let extent = rig.view(topic_id, 0).locate(0, &[]).unwrap().extent().unwrap();
    assert_eq!((extent.append_time_ms, extent.max_timestamp_ms), (now, now));
    // Time never goes back.
    rig.time_ms -= 100;
    assert_eq!(rig.commit(broker, (topic_id, 0), vec![plain(0, 1)])[0].log_append_time_ms, now);
    rig.time_ms += 100;
    let plain_topic = rig.topic(broker.0, "u", 1);
    assert_eq!(rig.commit(broker, (plain_topic, 0), vec![plain(0, 1)])[0].log_append_time_ms, -1);
}

#[test]
fn a_topic_is_written_in_the_lane_of_its_classes_only() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let mut topic = rig.new_topic("t", 1);
    topic.placement = PlacementId(1);
    let topic_id = topic.topic_id;
    rig.create(broker.0, topic);
    let result = rig.commit(broker, (topic_id, 0), vec![plain(0, 1)]);
    assert_eq!(result[0].error_code, codes::NOT_LEADER_OR_FOLLOWER);
    assert_eq!(rig.view(topic_id, 0).high_watermark, 0);
}

#[test]
fn the_largest_chunk_fits_an_entry() {
    let widest = CommitBatch {
        ordinal: u32::MAX,
        record_count: u32::MAX,
        max_timestamp_ms: -1,
        producer_id: i64::MIN,
        producer_epoch: i32::MIN,
        base_sequence: i32::MIN,
        flags: u32::MAX,
        size_bytes: u32::MAX,
    };
    let alone = CommitPartition {
        topic_id: TopicId::from([0xff; 16]),
        partition: -1,
        class_epoch: u32::MAX,
        batches: vec![widest],
        position: u64::MAX,
    };
    let commit = CommitChunk {
        stream: StreamId(u64::MAX),
        chunk: u64::MAX,
        acknowledged: u32::MAX,
        partitions: vec![alone; MAX_CHUNK_BATCHES],
        object: None,
    };
    let (session, lane) = (SessionId(u64::MAX), LaneId(u32::MAX));
    let envelope = Envelope::new(session, lane, u64::MAX, u64::MAX, Command::CommitChunk(commit));
    let entry = Entry { version: u32::MAX, time_ms: -1, commands: vec![envelope] };
    assert!(entry.encoded_len() < MAX_ENTRY_BYTES, "{} bytes", entry.encoded_len());
}
