use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::result::*;
use isobar_metadata::*;

fn grant() -> Command {
    Command::GrantProducerId(GrantProducerId { count: 1 })
}

#[test]
fn a_repeat_answers_with_the_first_result_and_does_nothing() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 1);
    let partitions = vec![CommitPartition {
        topic_id: topic,
        partition: 0,
        class_epoch: 0,
        batches: vec![plain(0, 3)],
        position: 0,
    }];
    let command = rig.chunk(broker.1, partitions);
    let envelope = rig.envelope(broker.0, WAL_LANE, command);
    let first = rig.one(envelope.clone());
    assert_eq!(first.refusal(), None);
    let again = rig.one(envelope.clone());
    assert_eq!(first, again);
    assert!(rig.last_effects.is_empty());
    assert_eq!(rig.view(topic, 0).high_watermark, 3);
    // Twice in one entry, too; and after the session was fenced; and after a restart.
    assert_eq!(rig.run(vec![envelope.clone(), envelope.clone()]), [first.clone(), first.clone()]);
    rig.leader(Command::FenceSession(FenceSession { session: broker.0 }));
    rig.restart();
    assert_eq!(rig.one(envelope.clone()), first);
    let next = Envelope { number: envelope.number + 1, ..envelope };
    assert_eq!(rig.one(next).refusal(), Some(RefusalKind::Fenced));
}

#[test]
fn a_commit_lane_takes_only_the_next_number() {
    let mut rig = Rig::new();
    let (session, stream) = rig.broker(1);
    let empty = |chunk| {
        Command::CommitChunk(CommitChunk { stream, chunk, acknowledged: 1, partitions: vec![], object: None })
    };
    let at = |number, floor| Envelope::new(session, WAL_LANE, number, floor, empty(number));
    let CommandResult::Refused(gap) = rig.one(at(2, 0)) else { panic!() };
    assert_eq!((gap.kind(), gap.expected), (RefusalKind::Gap, 1));
    assert_eq!(rig.one(at(1, 1)).refusal(), None);
    assert_eq!(rig.one(at(2, 1)).refusal(), None, "a refusal uses up no number");
    assert_eq!(rig.one(at(3, 3)).refusal(), None);
    let CommandResult::Refused(low) = rig.one(at(1, 1)) else { panic!() };
    assert_eq!((low.kind(), low.expected), (RefusalKind::BelowFloor, 3));
    assert_eq!(rig.one(at(0, 0)).refusal(), Some(RefusalKind::Malformed));
    assert_eq!(rig.one(at(4, 5)).refusal(), Some(RefusalKind::Malformed));
}

#[test]
fn lanes_do_not_wait_for_each_other() {
    let mut rig = Rig::new();
    let (session, _) = rig.broker(1);
    let other = lane_of(Durability::Wal, PlacementId(1));
    let empty = || Command::CommitChunk(CommitChunk::default());
    for lane in [WAL_LANE, other, WAL_LANE, other] {
        assert_eq!(rig.send(session, lane, empty()).refusal(), None);
    }
    for lane in [
        lane_of(Durability::Wal, PlacementId(7)),
        lane_of(Durability::Object, PlacementId(7)),
        LaneId::CONTROL,
    ] {
        assert_eq!(rig.send(session, lane, empty()).refusal(), Some(RefusalKind::Malformed), "{lane:?}");
    }
    assert_eq!(rig.send(session, WAL_LANE, grant()).refusal(), Some(RefusalKind::Malformed));
}

#[test]
fn the_control_lane_takes_any_number_once_and_none_below_the_floor() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    let at = |number, floor| Envelope::new(session, LaneId::CONTROL, number, floor, grant());
    let first = rig.one(at(7, 0));
    let second = rig.one(at(3, 0));
    assert_ne!(first, second);
    assert_eq!(rig.one(at(7, 2)), first);
    assert_eq!(rig.one(at(3, 2)), second);
    rig.one(at(9, 6));
    assert_eq!(rig.one(at(3, 2)).refusal(), Some(RefusalKind::BelowFloor));
    assert_eq!(rig.one(at(5, 0)).refusal(), Some(RefusalKind::BelowFloor));
    assert_eq!(rig.one(at(7, 2)), first);
    assert_eq!(rig.one(at(6 + 4096, 0)).refusal(), Some(RefusalKind::TooManyUnanswered));
}

#[test]
fn who_may_send_what() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    assert_eq!(rig.leader(grant()).refusal(), Some(RefusalKind::Malformed));
    let fence = Command::FenceSession(FenceSession { session });
    assert_eq!(rig.control(session, fence).refusal(), Some(RefusalKind::Malformed));
    let expire = Command::ExpireObjects(ExpireObjects { limit: 0 });
    assert_eq!(rig.control(session, expire.clone()).refusal(), None);
    assert_eq!(rig.leader(expire).refusal(), None);
    assert_eq!(rig.control(SessionId(99), grant()).refusal(), Some(RefusalKind::UnknownSession));
}

#[test]
fn what_a_later_version_wrote_is_an_error() {
    use prost::Message;
    let mut entry = Entry::new(1, vec![Envelope::unnumbered(grant())]);
    assert!(Entry::from_bytes(entry.encode_to_vec().into()).is_ok());
    entry.version = 2;
    assert!(matches!(
        Entry::from_bytes(entry.encode_to_vec().into()),
        Err(MetadataError::Version { found: 2, .. })
    ));
    let unknown = Envelope { command: None, ..Envelope::unnumbered(grant()) };
    let entry = Entry::new(1, vec![unknown]);
    assert!(matches!(Entry::from_bytes(entry.encode_to_vec().into()), Err(MetadataError::Unknown { .. })));
    let batch = EffectBatch { version: 1, effects: vec![Effect { kind: None }], ..EffectBatch::default() };
    assert!(matches!(
        EffectBatch::from_bytes(batch.encode_to_vec().into()),
        Err(MetadataError::Unknown { .. })
    ));
    assert!(matches!(Entry::from_bytes(vec![0xff; 9].into()), Err(MetadataError::Corrupt { .. })));
}

#[test]
fn an_image_refuses_effects_that_do_not_follow() {
    let mut rig = Rig::new();
    rig.register(1, "");
    let mut image = StateMachine::new(format()).image();
    let late = EffectBatch { version: 1, index: 2, previous: 1, ..EffectBatch::default() };
    assert!(matches!(image.apply(&late), Err(MetadataError::Gap { index: 2, previous: 1, at: 0 })));
    rig.index += 1;
    let skipped = rig.machine.skip(rig.index);
    rig.follower.apply(&skipped).unwrap();
    rig.register(2, "");
}
