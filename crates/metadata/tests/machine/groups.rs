use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::record::*;
use isobar_metadata::result::*;
use isobar_metadata::*;

fn claim(rig: &mut Rig, session: SessionId, group: &str) -> u64 {
    match rig.control(session, Command::ClaimGroups(ClaimGroups { groups: vec![group.into()] })) {
        CommandResult::Groups(results) if results.groups[0].error_code == 0 => {
            results.groups[0].coordinator_epoch
        }
        other => panic!("{other:?}"),
    }
}

fn record(generation: i32, members: &[(&str, Option<&str>)]) -> GroupRecord {
    let member = |(id, instance): &(&str, Option<&str>)| MemberRecord {
        member_id: (*id).into(),
        instance_id: instance.map(str::to_owned),
        assignment: vec![1, 2].into(),
        ..MemberRecord::default()
    };
    GroupRecord {
        state: if members.is_empty() { GroupState::Empty as i32 } else { GroupState::Stable as i32 },
        generation,
        protocol_type: "consumer".into(),
        members: members.iter().map(member).collect(),
        ..GroupRecord::default()
    }
}

fn put(rig: &mut Rig, session: SessionId, epoch: u64, record: GroupRecord) -> i32 {
    match rig
        .control(session, Command::PutGroup(PutGroup { group: "g".into(), coordinator_epoch: epoch, record }))
    {
        CommandResult::Done(outcome) => outcome.error_code,
        other => panic!("{other:?}"),
    }
}

fn offset(topic_id: TopicId, partition: i32, offset: i64) -> OffsetToCommit {
    OffsetToCommit { topic_id, partition, offset, leader_epoch: -1, metadata: "m".into() }
}

fn commit(rig: &mut Rig, session: SessionId, command: CommitOffsets) -> OffsetResults {
    match rig.control(session, Command::CommitOffsets(command)) {
        CommandResult::Offsets(results) => results,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_the_last_to_claim_a_group_may_change_it() {
    let mut rig = Rig::new();
    let (a, b) = (rig.register(1, ""), rig.register(2, ""));
    let first = claim(&mut rig, a, "g");
    assert_eq!(put(&mut rig, a, first, record(1, &[("m", None)])), 0);
    let second = claim(&mut rig, b, "g");
    assert!(second > first);
    assert_eq!(put(&mut rig, a, first, record(2, &[])), codes::NOT_COORDINATOR);
    assert_eq!(put(&mut rig, a, second, record(2, &[])), codes::NOT_COORDINATOR);
    let group = rig.machine.view().group("g").unwrap();
    assert_eq!((group.coordinator, group.record.generation, group.record.members.len()), (b, 1, 1));
    assert_eq!(put(&mut rig, b, second, record(2, &[])), 0);
}

#[test]
fn offsets_are_committed_by_members_of_the_generation() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    let topic = rig.topic(session, "t", 2);
    let epoch = claim(&mut rig, session, "g");
    put(&mut rig, session, epoch, record(3, &[("m", None), ("s-1", Some("s"))]));
    let base = CommitOffsets {
        group: "g".into(),
        coordinator_epoch: epoch,
        member_id: "m".into(),
        generation: 3,
        offsets: vec![offset(topic, 0, 7), offset(topic, 9, 7)],
        ..CommitOffsets::default()
    };
    let mut code = |change: &dyn Fn(&mut CommitOffsets)| {
        let mut command = base.clone();
        change(&mut command);
        commit(&mut rig, session, command).error_code
    };
    assert_eq!(code(&|c| c.coordinator_epoch += 1), codes::NOT_COORDINATOR);
    assert_eq!(code(&|c| c.group = "h".into()), codes::NOT_COORDINATOR);
    assert_eq!(code(&|c| c.member_id = "x".into()), codes::UNKNOWN_MEMBER_ID);
    assert_eq!(code(&|c| c.generation = 2), codes::ILLEGAL_GENERATION);
    assert_eq!(code(&|c| c.instance_id = Some("s".into())), codes::FENCED_INSTANCE_ID);
    assert_eq!(code(&|c| c.instance_id = Some("z".into())), codes::UNKNOWN_MEMBER_ID);
    let simple = |c: &mut CommitOffsets| (c.generation, c.member_id) = (-1, String::new());
    assert_eq!(code(&simple), codes::UNKNOWN_MEMBER_ID, "the group has members");
    assert!(rig.machine.view().offsets("g").next().is_none());
    let results = commit(&mut rig, session, base.clone());
    assert_eq!(results.error_codes, [0, codes::UNKNOWN_TOPIC_OR_PARTITION]);
    let fixed = CommitOffsets { instance_id: Some("s".into()), member_id: "s-1".into(), ..base.clone() };
    assert_eq!(commit(&mut rig, session, fixed).error_code, 0);
    put(&mut rig, session, epoch, record(4, &[]));
    let mut command = base;
    simple(&mut command);
    assert_eq!(commit(&mut rig, session, command).error_code, 0);
    let key = PartitionKey::new(topic, 0);
    let found = rig.machine.view().offset("g", key).unwrap();
    assert_eq!(
        (found.offset, found.leader_epoch, found.metadata.as_str(), found.commit_time_ms),
        (7, -1, "m", rig.time_ms)
    );
    rig.restart();
}

#[test]
fn offsets_and_groups_go_in_the_end() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    let (kept, gone) = (rig.topic(session, "kept", 1), rig.topic(session, "gone", 1));
    let epoch = claim(&mut rig, session, "g");
    let simple = CommitOffsets {
        group: "g".into(),
        coordinator_epoch: epoch,
        generation: -1,
        offsets: vec![offset(kept, 0, 1), offset(gone, 0, 1)],
        ..CommitOffsets::default()
    };
    commit(&mut rig, session, simple);
    rig.control(session, Command::DeleteTopics(DeleteTopics { topic_ids: vec![gone] }));
    assert_eq!(rig.machine.view().offsets("g").count(), 1, "an offset of a deleted topic is not shown");
    assert_eq!(rig.machine.view().offset("g", PartitionKey::new(gone, 0)), None);
    let expire = |rig: &mut Rig| match rig
        .leader(Command::ExpireOffsets(ExpireOffsets { retention_ms: 500_000, ..ExpireOffsets::default() }))
    {
        CommandResult::Expired(expired) => expired.count,
        other => panic!("{other:?}"),
    };
    rig.control(session, Command::PurgeTopics(PurgeTopics { topic_ids: vec![gone] }));
    assert_eq!(expire(&mut rig), 1, "of the deleted topic");
    let delete = |rig: &mut Rig, group: &str| match rig
        .control(session, Command::DeleteGroups(DeleteGroups { groups: vec![group.into()] }))
    {
        CommandResult::Groups(results) => results.groups[0].error_code,
        other => panic!("{other:?}"),
    };
    put(&mut rig, session, epoch, record(1, &[("m", None)]));
    assert_eq!(delete(&mut rig, "g"), codes::NON_EMPTY_GROUP);
    assert_eq!(delete(&mut rig, "h"), codes::GROUP_ID_NOT_FOUND);
    rig.time_ms += 499_000;
    put(&mut rig, session, epoch, record(2, &[]));
    assert_eq!(expire(&mut rig), 0, "it became empty just now");
    rig.time_ms += 500_000;
    assert_eq!(expire(&mut rig), 1);
    assert!(rig.machine.view().group("g").is_none());
    let again = claim(&mut rig, session, "g");
    assert!(again > epoch, "a coordinator epoch never comes back");
    assert_eq!(delete(&mut rig, "g"), 0);
}

#[test]
fn offsets_can_be_deleted_and_expiry_goes_on_where_it_stopped() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    let topic = rig.topic(session, "t", 2);
    let epoch = claim(&mut rig, session, "g");
    let offsets = vec![offset(topic, 0, 1), offset(topic, 1, 1)];
    let command = CommitOffsets {
        group: "g".into(),
        coordinator_epoch: epoch,
        generation: -1,
        offsets,
        ..Default::default()
    };
    commit(&mut rig, session, command);
    let partitions = vec![
        TopicPartition { topic_id: topic, partition: 1 },
        TopicPartition { topic_id: topic, partition: 5 },
    ];
    let command = DeleteOffsets { group: "g".into(), coordinator_epoch: epoch, partitions };
    let CommandResult::Offsets(results) = rig.control(session, Command::DeleteOffsets(command)) else {
        panic!()
    };
    assert_eq!(results.error_codes, [0, codes::UNKNOWN_TOPIC_OR_PARTITION]);
    assert_eq!(rig.machine.view().offsets("g").count(), 1);
    claim(&mut rig, session, "h");
    let step = |rig: &mut Rig, after: &str| {
        let command = ExpireOffsets { retention_ms: 1_000_000, after: after.into(), limit: 1 };
        match rig.leader(Command::ExpireOffsets(command)) {
            CommandResult::Expired(expired) => expired.next,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(step(&mut rig, ""), "g");
    assert_eq!(step(&mut rig, "g"), "h");
    assert_eq!(step(&mut rig, "h"), "");
}
