//! The APIs of consumer groups and their offsets.

use bytes::Bytes;
use isobar_protocol::StrBytes;
use isobar_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use isobar_protocol::messages::leave_group_request::MemberIdentity;
use isobar_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use isobar_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use isobar_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use isobar_protocol::messages::{
    DeleteGroupsRequest, DescribeGroupsRequest, FindCoordinatorRequest, GroupId, HeartbeatRequest,
    JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, ListGroupsRequest, OffsetCommitRequest,
    OffsetFetchRequest, SyncGroupRequest,
};

use crate::wire::{ABSENT, Rig, TOPIC, s, t};

/// Version 0, one topic, no user data: Kafka looks into it.
const SUBSCRIPTION: &[u8] = b"\0\0\0\0\0\x01\0\x07surface\xff\xff\xff\xff";
const NEWEST_JOIN: i16 = 9;
const NEWEST_SYNC: i16 = 5;
const NEWEST_COMMIT: i16 = 9;

fn g(name: &str) -> GroupId {
    GroupId(s(name))
}

fn join_of(version: i16, group: &str, member_id: &StrBytes) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default()
        .with_name(s("range"))
        .with_metadata(Bytes::from_static(SUBSCRIPTION));
    let request = JoinGroupRequest::default()
        .with_group_id(g(group))
        .with_session_timeout_ms(30_000)
        .with_member_id(member_id.clone())
        .with_protocol_type(s("consumer"))
        .with_protocols(vec![protocol]);
    if version >= 1 { request.with_rebalance_timeout_ms(30_000) } else { request }
}

/// Joins as the only member, with however many requests the version needs.
async fn join(rig: &mut Rig, version: i16, group: &str) -> JoinGroupResponse {
    let mut answer = rig.wire.call(version, &join_of(version, group, &s(""))).await;
    if version >= 4 {
        assert_eq!(
            (answer.error_code, answer.generation_id),
            (79, -1),
            "v{version}: a member id is required"
        );
        assert!(!answer.member_id.is_empty());
        answer = rig.wire.call(version, &join_of(version, group, &answer.member_id)).await;
    }
    answer
}

async fn stable(rig: &mut Rig, group: &str) -> JoinGroupResponse {
    let joined = join(rig, NEWEST_JOIN, group).await;
    assert_eq!(joined.error_code, 0);
    let synced = rig.wire.call(NEWEST_SYNC, &sync_of(NEWEST_SYNC, group, &joined)).await;
    assert_eq!(synced.error_code, 0);
    joined
}

fn sync_of(version: i16, group: &str, joined: &JoinGroupResponse) -> SyncGroupRequest {
    let own = SyncGroupRequestAssignment::default()
        .with_member_id(joined.member_id.clone())
        .with_assignment(Bytes::from_static(b"all"));
    let request = SyncGroupRequest::default()
        .with_group_id(g(group))
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id.clone())
        .with_assignments(vec![own]);
    if version >= 5 {
        request.with_protocol_type(Some(s("consumer"))).with_protocol_name(Some(s("range")))
    } else {
        request
    }
}

pub(crate) async fn join_group(rig: &mut Rig, version: i16) {
    let group = rig.name("join");
    let joined = join(rig, version, &group).await;
    assert_eq!((joined.error_code, joined.generation_id), (0, 1), "v{version}");
    assert_eq!(joined.leader, joined.member_id, "v{version}");
    assert_eq!(joined.protocol_name.as_deref(), Some("range"), "v{version}");
    assert_eq!(joined.protocol_type.as_deref(), (version >= 7).then_some("consumer"), "v{version}");
    assert_eq!(joined.members.len(), 1, "v{version}");
    assert_eq!(&*joined.members[0].metadata, SUBSCRIPTION, "v{version}");

    let refused = async |rig: &mut Rig, request: JoinGroupRequest| {
        let answer = rig.wire.call(version, &request).await;
        assert_eq!((answer.generation_id, answer.members.len()), (-1, 0), "v{version}");
        answer.error_code
    };
    let base = join_of(version, &group, &s(""));
    assert_eq!(
        refused(rig, base.clone().with_session_timeout_ms(1)).await,
        26,
        "v{version}: session timeout"
    );
    let other_type = base.clone().with_protocol_type(s("connect"));
    assert_eq!(refused(rig, other_type).await, 23, "v{version}: protocol type");
    let stranger = base.clone().with_member_id(s("stranger"));
    assert_eq!(refused(rig, stranger).await, 25, "v{version}: unknown member");
    assert_eq!(refused(rig, base.with_group_id(g(""))).await, 24, "v{version}: no group id");
    if version >= 5 {
        let group = rig.name("static");
        let request = join_of(version, &group, &s("")).with_group_instance_id(Some(s("one")));
        let answer = rig.wire.call(version, &request).await;
        assert_eq!(answer.error_code, 0, "v{version}");
        assert_eq!(answer.members[0].group_instance_id.as_deref(), Some("one"), "v{version}");
        let fenced = request.with_member_id(s("another"));
        assert_eq!(refused(rig, fenced).await, 82, "v{version}: the instance has another member id");
    }
}

pub(crate) async fn sync_group(rig: &mut Rig, version: i16) {
    let group = rig.name("sync");
    let joined = join(rig, NEWEST_JOIN, &group).await;
    let request = sync_of(version, &group, &joined);
    let refused = async |rig: &mut Rig, request: SyncGroupRequest| {
        let answer = rig.wire.call(version, &request).await;
        assert!(answer.assignment.is_empty(), "v{version}");
        answer.error_code
    };
    assert_eq!(refused(rig, request.clone().with_generation_id(7)).await, 22, "v{version}: generation");
    assert_eq!(refused(rig, request.clone().with_member_id(s("x"))).await, 25, "v{version}: member");
    assert_eq!(refused(rig, request.clone().with_group_id(g(""))).await, 24, "v{version}: group id");
    assert_eq!(refused(rig, request.clone().with_group_id(g(ABSENT))).await, 25, "v{version}: no such group");
    if version >= 3 {
        let fenced = request.clone().with_group_instance_id(Some(s("ghost")));
        assert_eq!(refused(rig, fenced).await, 25, "v{version}: unknown instance");
    }
    if version >= 5 {
        let other = request.clone().with_protocol_name(Some(s("other")));
        assert_eq!(refused(rig, other).await, 23, "v{version}: protocol");
    }
    let answer = rig.wire.call(version, &request).await;
    assert_eq!((answer.error_code, &*answer.assignment), (0, &b"all"[..]), "v{version}");
    assert_eq!(answer.protocol_name.as_deref(), (version >= 5).then_some("range"), "v{version}");
}

pub(crate) async fn heartbeat(rig: &mut Rig, version: i16) {
    let group = rig.name("heartbeat");
    let joined = stable(rig, &group).await;
    let request = HeartbeatRequest::default()
        .with_group_id(g(&group))
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id.clone());
    let mut asked = vec![
        (request.clone(), 0),
        (request.clone().with_generation_id(7), 22),
        (request.clone().with_member_id(s("x")), 25),
        (request.clone().with_group_id(g(ABSENT)), 25),
        (request.clone().with_group_id(g("")), 24),
    ];
    if version >= 3 {
        asked.push((request.with_group_instance_id(Some(s("ghost"))), 25));
    }
    for (request, expected) in asked {
        let answer = rig.wire.call(version, &request).await;
        assert_eq!(answer.error_code, expected, "v{version}: {request:?}");
    }
}

pub(crate) async fn leave_group(rig: &mut Rig, version: i16) {
    let group = rig.name("leave");
    let joined = stable(rig, &group).await;
    let leave = |group: &str, member: &str| {
        let request = LeaveGroupRequest::default().with_group_id(g(group));
        if version < 3 {
            request.with_member_id(s(member))
        } else {
            request.with_members(vec![MemberIdentity::default().with_member_id(s(member))])
        }
    };
    let mut told = Vec::new();
    for (group, member) in [(&*group, "x"), (ABSENT, "x"), ("", "x"), (&*group, &*joined.member_id)] {
        let answer = rig.wire.call(version, &leave(group, member)).await;
        told.push((answer.error_code, answer.members.first().map(|member| member.error_code)));
    }
    let expected = if version < 3 {
        vec![(25, None), (25, None), (24, None), (0, None)]
    } else if rig.isobar {
        vec![(0, Some(25)), (0, Some(25)), (24, None), (0, Some(0))]
    } else {
        vec![(0, Some(25)), told[1], (24, told[2].1), (0, Some(0))]
    };
    assert_eq!(told, expected, "v{version}");
}

fn commit_of(version: i16, group: &str, partition: i32, topic: &str) -> OffsetCommitRequest {
    let partition = OffsetCommitRequestPartition::default()
        .with_partition_index(partition)
        .with_committed_offset(2)
        .with_committed_metadata(Some(s("note")));
    let partition = if version >= 6 { partition.with_committed_leader_epoch(0) } else { partition };
    let topic = OffsetCommitRequestTopic::default().with_name(t(topic)).with_partitions(vec![partition]);
    OffsetCommitRequest::default().with_group_id(g(group)).with_topics(vec![topic])
}

pub(crate) async fn offset_commit(rig: &mut Rig, version: i16) {
    let group = rig.name("commit");
    let joined = stable(rig, &group).await;
    let own = |request: OffsetCommitRequest| {
        request
            .with_generation_id_or_member_epoch(joined.generation_id)
            .with_member_id(joined.member_id.clone())
    };
    let alone = rig.name("alone");
    let mut noted = own(commit_of(version, &group, 0, TOPIC));
    noted.topics[0].partitions[0].committed_metadata = Some(s(&"x".repeat(5_000)));
    let absent_group = own(commit_of(version, ABSENT, 0, TOPIC));
    let asked = vec![
        (own(commit_of(version, &group, 0, TOPIC)), 0),
        (commit_of(version, &alone, 0, TOPIC), 0),
        (own(commit_of(version, &group, 0, ABSENT)), 3),
        (own(commit_of(version, &group, 77, TOPIC)), 3),
        (noted, 12),
        (own(commit_of(version, &group, 0, TOPIC)).with_generation_id_or_member_epoch(7), 22),
        (own(commit_of(version, &group, 0, TOPIC)).with_member_id(s("x")), 25),
        (commit_of(version, &group, 0, TOPIC), 25),
        (absent_group, if version >= 9 { 69 } else { 22 }),
        (commit_of(version, "", 0, TOPIC), 0),
    ];
    for (request, expected) in asked {
        let answer = rig.wire.call(version, &request).await;
        let code = answer.topics[0].partitions[0].error_code;
        assert_eq!(code, expected, "v{version}: {request:?}");
    }
}

pub(crate) async fn offset_fetch(rig: &mut Rig, version: i16) {
    let group = rig.name("fetch");
    let commit = commit_of(NEWEST_COMMIT, &group, 0, TOPIC);
    assert_eq!(rig.wire.call(NEWEST_COMMIT, &commit).await.topics[0].partitions[0].error_code, 0);
    // (offset, leader epoch, metadata, error), by partition.
    let told = async |rig: &mut Rig, group: &str, topics: Option<Vec<(&str, Vec<i32>)>>| {
        let (topic_names, request) = (topics.clone(), OffsetFetchRequest::default());
        if version < 8 {
            let topics = topics.map(|topics| {
                let one = |(name, indexes): (&str, Vec<i32>)| {
                    OffsetFetchRequestTopic::default().with_name(t(name)).with_partition_indexes(indexes)
                };
                topics.into_iter().map(one).collect()
            });
            let answer = rig.wire.call(version, &request.with_group_id(g(group)).with_topics(topics)).await;
            assert_eq!(answer.error_code, 0, "v{version}: {topic_names:?}");
            let all = answer.topics.into_iter().flat_map(|topic| topic.partitions);
            let one = all.map(|p| (p.committed_offset, p.committed_leader_epoch, p.metadata, p.error_code));
            return one.collect::<Vec<_>>();
        }
        let topics = topics.map(|topics| {
            let one = |(name, indexes): (&str, Vec<i32>)| {
                OffsetFetchRequestTopics::default().with_name(t(name)).with_partition_indexes(indexes)
            };
            topics.into_iter().map(one).collect()
        });
        let wanted = OffsetFetchRequestGroup::default().with_group_id(g(group)).with_topics(topics);
        let answer = rig.wire.call(version, &request.with_groups(vec![wanted])).await;
        let group = answer.groups.into_iter().next().unwrap();
        assert_eq!(group.error_code, 0, "v{version}: {topic_names:?}");
        let all = group.topics.into_iter().flat_map(|topic| topic.partitions);
        all.map(|p| (p.committed_offset, p.committed_leader_epoch, p.metadata, p.error_code)).collect()
    };
    let epoch = if version >= 5 { 0 } else { -1 };
    let committed = (2, epoch, Some(s("note")), 0);
    let none = (-1, -1, Some(s("")), 0);
    let asked = Some(vec![(TOPIC, vec![0, 1]), (ABSENT, vec![0])]);
    let found = told(rig, &group, asked.clone()).await;
    assert_eq!(found, vec![committed.clone(), none.clone(), none.clone()], "v{version}");
    let found = told(rig, ABSENT, asked).await;
    assert_eq!(found, vec![none; 3], "v{version}: no such group");
    if version >= 2 {
        assert_eq!(told(rig, &group, None).await, vec![committed], "v{version}: everything");
        assert_eq!(told(rig, ABSENT, None).await, Vec::new(), "v{version}: everything of no group");
    }
}

pub(crate) async fn find_coordinator(rig: &mut Rig, version: i16) {
    for (key_type, expected) in [(0, 0), (1, 42), (9, 42)] {
        if (version == 0 && key_type != 0) || (key_type == 1 && !rig.isobar) {
            continue;
        }
        let request = FindCoordinatorRequest::default();
        let request = if version >= 1 { request.with_key_type(key_type) } else { request };
        let request = if version >= 4 {
            request.with_coordinator_keys(vec![s("a"), s("b")])
        } else {
            request.with_key(s("a"))
        };
        // Kafka makes its own topic first.
        let answer = loop {
            let answer = rig.wire.call(version, &request).await;
            let code = answer.coordinators.first().map_or(answer.error_code, |first| first.error_code);
            if code != 15 {
                break answer;
            }
        };
        let found: Vec<_> = if version >= 4 {
            let all = answer.coordinators.iter();
            all.map(|found| (found.error_code, found.node_id.0, found.port)).collect()
        } else {
            vec![(answer.error_code, answer.node_id.0, answer.port)]
        };
        let several = version >= 4 && (rig.isobar || expected == 0);
        assert_eq!(found.len(), if several { 2 } else { found.len() }, "v{version}");
        for (code, node, port) in found {
            assert_eq!(code, expected, "v{version}: type {key_type}");
            let address = if expected == 0 {
                (1, rig.addr.rsplit_once(':').unwrap().1.parse().unwrap())
            } else {
                (-1, -1)
            };
            assert_eq!((node, port), address, "v{version}: type {key_type}");
        }
    }
}

pub(crate) async fn describe_groups(rig: &mut Rig, version: i16) {
    let group = rig.name("describe");
    let joined = stable(rig, &group).await;
    let request = DescribeGroupsRequest::default().with_groups(vec![g(&group), g(ABSENT)]);
    let answer = rig.wire.call(version, &request).await;
    // Kafka answers in an order of its own.
    let of = |group: &str| answer.groups.iter().find(|told| *told.group_id.0 == *group).unwrap();
    let found = of(&group);
    assert_eq!((found.error_code, &*found.group_state), (0, "Stable"), "v{version}");
    assert_eq!((&*found.protocol_type, &*found.protocol_data), ("consumer", "range"), "v{version}");
    let member = &found.members[0];
    assert_eq!(member.member_id, joined.member_id, "v{version}");
    assert_eq!((&*member.member_metadata, &*member.member_assignment), (SUBSCRIPTION, &b"all"[..]));
    assert_eq!((&*member.client_id, &*member.client_host), ("surface", "/127.0.0.1"), "v{version}");
    let absent = of(ABSENT);
    let code = if version >= 6 { 69 } else { 0 };
    assert_eq!((absent.error_code, &*absent.group_state), (code, "Dead"), "v{version}");
    assert_eq!(absent.error_message.is_some(), version >= 6, "v{version}");
}

pub(crate) async fn list_groups(rig: &mut Rig, version: i16) {
    let group = rig.name("list");
    stable(rig, &group).await;
    let mut asked = vec![(ListGroupsRequest::default(), true)];
    if version >= 4 {
        let in_state = |state: &str| ListGroupsRequest::default().with_states_filter(vec![s(state)]);
        asked.extend([(in_state("Stable"), true), (in_state("Empty"), false)]);
    }
    if version >= 5 {
        let of_type = |kind: &str| ListGroupsRequest::default().with_types_filter(vec![s(kind)]);
        asked.extend([(of_type("classic"), true), (of_type("consumer"), false)]);
    }
    for (request, listed) in asked {
        let answer = rig.wire.call(version, &request).await;
        assert_eq!(answer.error_code, 0, "v{version}");
        let found = answer.groups.iter().find(|found| *found.group_id.0 == *group);
        assert_eq!(found.is_some(), listed, "v{version}: {request:?}");
        let Some(found) = found else { continue };
        assert_eq!(&*found.protocol_type, "consumer", "v{version}");
        assert_eq!(&*found.group_state, if version >= 4 { "Stable" } else { "" }, "v{version}");
        assert_eq!(&*found.group_type, if version >= 5 { "classic" } else { "" }, "v{version}");
    }
}

pub(crate) async fn delete_groups(rig: &mut Rig, version: i16) {
    let (busy, empty) = (rig.name("busy"), rig.name("empty"));
    stable(rig, &busy).await;
    rig.wire.call(NEWEST_COMMIT, &commit_of(NEWEST_COMMIT, &empty, 0, TOPIC)).await;
    let request = DeleteGroupsRequest::default().with_groups_names(vec![g(&busy), g(&empty), g(ABSENT)]);
    let answer = rig.wire.call(version, &request).await;
    let code = |group: &str| {
        let found = answer.results.iter().find(|result| *result.group_id.0 == *group);
        found.unwrap_or_else(|| panic!("v{version}: no answer for {group}")).error_code
    };
    assert_eq!((code(&busy), code(&empty), code(ABSENT)), (68, 0, 69), "v{version}");
}
