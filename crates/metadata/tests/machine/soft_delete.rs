use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::record::ObjectState;
use isobar_metadata::result::*;
use isobar_metadata::*;

const DAY_MS: i64 = 86_400_000;

fn delete(rig: &mut Rig, session: SessionId, topic: TopicId) -> i32 {
    match rig.control(session, Command::DeleteTopics(DeleteTopics { topic_ids: vec![topic] })) {
        CommandResult::Topics(results) => results.topics[0].error_code,
        other => panic!("{other:?}"),
    }
}

fn undelete(rig: &mut Rig, session: SessionId, topic_id: TopicId, name: &str) -> TopicResult {
    let command = UndeleteTopic { topic_id, name: name.into() };
    match rig.control(session, Command::UndeleteTopic(command)) {
        CommandResult::Topics(mut results) => results.topics.remove(0),
        other => panic!("{other:?}"),
    }
}

fn purge(rig: &mut Rig, session: SessionId, topic: TopicId) -> i32 {
    match rig.control(session, Command::PurgeTopics(PurgeTopics { topic_ids: vec![topic] })) {
        CommandResult::Topics(results) => results.topics[0].error_code,
        other => panic!("{other:?}"),
    }
}

/// Moves time on in steps that hold nothing.
fn wait(rig: &mut Rig, ms: i64) {
    let end = rig.time_ms + ms;
    rig.checked = false;
    while rig.time_ms < end {
        rig.time_ms = end.min(rig.time_ms + TIME_JUMP_MS);
        rig.run(vec![]);
    }
    rig.checked = true;
}

fn expire(rig: &mut Rig) -> Expired {
    match rig.leader(Command::ExpireTopics(ExpireTopics { limit: 0 })) {
        CommandResult::Expired(expired) => expired,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_deleted_topic_comes_back_with_everything() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 2);
    let CommandResult::ProducerIds(ids) =
        rig.control(broker.0, Command::GrantProducerId(GrantProducerId { count: 1 }))
    else {
        panic!()
    };
    rig.commit(broker, (topic, 0), vec![idempotent(ids.first, 0, 0, 5)]);
    rig.commit(broker, (topic, 1), vec![plain(0, 3)]);
    let object = rig.objects(broker.0, 2);
    rig.upload(broker.0, object, StoreId(1), vec![run_of(topic, 1, 0, 2)]);
    rig.control(broker.0, Command::ClaimGroups(ClaimGroups { groups: vec!["g".into()] }));
    let offset = OffsetToCommit { topic_id: topic, partition: 0, offset: 4, ..OffsetToCommit::default() };
    let coordinator_epoch = rig.machine.view().group("g").unwrap().coordinator_epoch;
    let commit = CommitOffsets {
        group: "g".into(),
        coordinator_epoch,
        generation: -1,
        offsets: vec![offset],
        ..CommitOffsets::default()
    };
    rig.control(broker.0, Command::CommitOffsets(commit.clone()));
    let before = rig.view(topic, 0).clone();
    let key = PartitionKey::new(topic, 0);

    assert_eq!(delete(&mut rig, broker.0, topic), 0);
    let image = rig.machine.image();
    assert!(image.topic(topic).is_none() && image.topic_by_name("t").is_none() && image.view(key).is_none());
    assert_eq!((image.topic_count(), image.partition_count()), (0, 0));
    assert_eq!(image.offsets("g").count(), 0, "hidden");
    assert_eq!(**image.stored_view(key).unwrap(), before);
    assert_eq!(image.deleted_topic(topic).unwrap().purge_ms, rig.time_ms + DAY_MS);
    assert!(image.shard_in_wal(image.shard_of(key)).any(|view| view.key() == key), "its bytes are uploaded");
    assert_eq!(image.object(object).unwrap().state, ObjectState::Committed as i32);
    assert_eq!(delete(&mut rig, broker.0, topic), codes::UNKNOWN_TOPIC_ID);
    assert_eq!(rig.commit(broker, (topic, 0), vec![plain(0, 1)])[0].error_code, codes::UNKNOWN_TOPIC_ID);
    let CommandResult::Offsets(refused) = rig.control(broker.0, Command::CommitOffsets(commit)) else {
        panic!()
    };
    assert_eq!(refused.error_codes, [codes::UNKNOWN_TOPIC_OR_PARTITION]);
    rig.leader(Command::ExpireOffsets(ExpireOffsets { retention_ms: DAY_MS, ..ExpireOffsets::default() }));
    rig.restart();

    // An upload that was under way counts.
    let upload = rig.upload(broker.0, ObjectId(object.0 + 1), StoreId(1), vec![run_of(topic, 0, 0, 4)]);
    assert_eq!(upload.applied, [0]);
    let back = undelete(&mut rig, broker.0, topic, "");
    assert_eq!((back.error_code, back.name.as_str(), back.partitions), (0, "t", 2));
    assert_eq!(rig.view(topic, 0).high_watermark, 5);
    assert_eq!(rig.machine.view().offset("g", key).unwrap().offset, 4);
    let again = rig.commit(broker, (topic, 0), vec![idempotent(ids.first, 0, 0, 5)]);
    assert!(again[0].duplicate && again[0].base_offset == 0, "its producers are known");
    assert_eq!(undelete(&mut rig, broker.0, topic, "t").error_code, 0, "it is there already");
    assert_eq!(undelete(&mut rig, broker.0, topic, "u").error_code, codes::INVALID_REQUEST);
}

#[test]
fn a_name_is_free_once_deleted_and_must_be_free_to_come_back() {
    let mut rig = Rig::new();
    let (session, _) = rig.broker(1);
    let first = rig.topic(session, "a.b", 1);
    delete(&mut rig, session, first);
    let mut same_id = rig.new_topic("other", 1);
    same_id.topic_id = first;
    assert_eq!(rig.create(session, same_id).error_code, codes::INVALID_REQUEST, "its id is not free");
    let second = rig.topic(session, "a.b", 1);
    assert_eq!(undelete(&mut rig, session, first, "").error_code, codes::TOPIC_ALREADY_EXISTS);
    assert_eq!(undelete(&mut rig, session, first, "a_b").error_code, codes::INVALID_TOPIC_EXCEPTION);
    assert_eq!(undelete(&mut rig, session, first, "a/b").error_code, codes::INVALID_TOPIC_EXCEPTION);
    delete(&mut rig, session, second);
    assert_eq!(rig.machine.view().deleted_topics().count(), 2);
    assert_eq!(undelete(&mut rig, session, first, "c").name, "c");
    assert_eq!(undelete(&mut rig, session, second, "").error_code, 0);
    let names: Vec<_> = rig.machine.view().topics().map(|topic| topic.name.clone()).collect();
    assert_eq!(names, ["a.b", "c"]);
    let collides = rig.new_topic("a_b", 1);
    assert_eq!(rig.create(session, collides).error_code, codes::INVALID_TOPIC_EXCEPTION);
    assert_eq!(undelete(&mut rig, session, TopicId::from([7; 16]), "").error_code, codes::UNKNOWN_TOPIC_ID);
}

#[test]
fn a_deleted_topic_goes_when_its_window_is_over_or_when_purged() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let (slow, purged) = (rig.topic(broker.0, "slow", 1), rig.topic(broker.0, "purged", 1));
    let mut quick = rig.new_topic("quick", 1);
    quick.configs.insert("isobar.undelete.window.ms".into(), "1000".into());
    let mut at_once = rig.new_topic("at.once", 1);
    at_once.configs.insert("isobar.undelete.window.ms".into(), "0".into());
    let (quick_id, at_once_id) = (quick.topic_id, at_once.topic_id);
    rig.create(broker.0, quick);
    rig.create(broker.0, at_once);
    for topic in [slow, purged, quick_id, at_once_id] {
        rig.commit(broker, (topic, 0), vec![plain(0, 1)]);
    }
    assert_eq!(purge(&mut rig, broker.0, purged), codes::UNKNOWN_TOPIC_ID, "not deleted");
    for topic in [slow, purged, quick_id, at_once_id] {
        delete(&mut rig, broker.0, topic);
    }
    let live = |rig: &Rig| rig.machine.view().stream(broker.1).unwrap().live.len();
    assert_eq!((live(&rig), rig.machine.view().deleted_topics().count()), (3, 3));
    assert_eq!(purge(&mut rig, broker.0, purged), 0);
    assert_eq!(purge(&mut rig, broker.0, purged), codes::UNKNOWN_TOPIC_ID);
    assert_eq!((live(&rig), expire(&mut rig).count), (2, 0));
    rig.time_ms += 1000;
    assert_eq!((expire(&mut rig).count, live(&rig)), (1, 1));
    assert_eq!(undelete(&mut rig, broker.0, quick_id, "").error_code, codes::UNKNOWN_TOPIC_ID);
    // A clock that jumps brings no end.
    rig.time_ms += 2 * DAY_MS;
    assert!(expire(&mut rig).held);
    rig.restart();
    rig.time_ms += TIME_JUMP_MS;
    assert_eq!((expire(&mut rig).count, live(&rig)), (1, 0));
    assert_eq!(rig.machine.view().deleted_topics().count(), 0);
    let changed =
        rig.last_effects.iter().any(|e| matches!(e, EffectKind::TopicPurged(p) if p.topic_id == slow));
    assert!(changed);
}

#[test]
fn offsets_of_a_topic_go_after_the_topic() {
    let mut rig = Rig::new();
    let (session, _) = rig.broker(1);
    let topic = rig.topic(session, "t", 1);
    rig.control(session, Command::ClaimGroups(ClaimGroups { groups: vec!["g".into()] }));
    let coordinator_epoch = rig.machine.view().group("g").unwrap().coordinator_epoch;
    let offsets = vec![OffsetToCommit { topic_id: topic, offset: 4, ..OffsetToCommit::default() }];
    let commit =
        CommitOffsets { group: "g".into(), coordinator_epoch, generation: -1, offsets, ..Default::default() };
    rig.control(session, Command::CommitOffsets(commit));
    delete(&mut rig, session, topic);
    let expired = |rig: &mut Rig| {
        let command = ExpireOffsets { retention_ms: 10 * DAY_MS, ..ExpireOffsets::default() };
        match rig.leader(Command::ExpireOffsets(command)) {
            CommandResult::Expired(expired) => expired.count,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(expired(&mut rig), 0);
    purge(&mut rig, session, topic);
    assert_eq!(expired(&mut rig), 1);
}

#[test]
fn retention_moves_nothing_while_expiry_is_held() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 1);
    rig.commit(broker, (topic, 0), vec![plain(0, 5)]);
    wait(&mut rig, 1000);
    let to = |rig: &mut Rig, log_start, reason: LogStartReason| {
        let partitions = vec![NewLogStart { topic_id: topic, partition: 0, log_start }];
        let command = MoveLogStart { partitions, reason: reason as i32 };
        match rig.control(broker.0, Command::MoveLogStart(command)) {
            CommandResult::LogStarts(starts) => starts.partitions[0],
            other => panic!("{other:?}"),
        }
    };
    let done = |log_start, held| LogStartResult { error_code: 0, log_start, held };
    assert_eq!(to(&mut rig, 1, LogStartReason::Retention), done(1, false));
    rig.time_ms += 2 * TIME_JUMP_MS;
    assert_eq!(to(&mut rig, 2, LogStartReason::Retention), done(1, true));
    assert_eq!(to(&mut rig, 2, LogStartReason::DeleteRecords), done(2, false), "somebody asked for it");
    wait(&mut rig, TIME_JUMP_MS + 1);
    assert_eq!(to(&mut rig, 3, LogStartReason::Retention), done(3, false));
}
