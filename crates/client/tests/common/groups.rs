//! The fake's group coordinator: one group, eager rebalancing, no timers but the join's.

use std::collections::BTreeMap;

use bytes::Bytes;
use isobar_protocol::StrBytes;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::join_group_response::JoinGroupResponseMember;
use isobar_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use isobar_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartitions, OffsetFetchResponseTopics,
};
use isobar_protocol::messages::*;
use tokio::time::{Duration, Instant, sleep};

use super::Fake;

const JOIN_WAIT: Duration = Duration::from_millis(300);
const LOOK: Duration = Duration::from_millis(5);

#[derive(Default)]
pub(crate) struct Groups {
    pub(crate) generation: i32,
    members: BTreeMap<String, Member>,
    next_member: u32,
    leader: String,
    /// Between the first join and the last sync of a generation.
    rebalancing: bool,
    pub(crate) committed: BTreeMap<(String, i32), i64>,
    /// Codes for the next heartbeats.
    pub(crate) heartbeat_errors: Vec<ErrorCode>,
}

#[derive(Default)]
struct Member {
    metadata: Bytes,
    /// Has joined the generation that is being formed.
    joined: bool,
    assignment: Option<Bytes>,
}

pub(crate) async fn join(fake: &Fake, body: &JoinGroupRequest) -> JoinGroupResponse {
    let failed = |code: ErrorCode| JoinGroupResponse::default().with_error_code(code.code());
    let (member_id, until, before) = {
        let mut state = fake.state.lock();
        let groups = &mut state.groups;
        if body.member_id.is_empty() {
            groups.next_member += 1;
            let id = format!("member-{}", groups.next_member);
            return failed(ErrorCode::MemberIdRequired).with_member_id(StrBytes::from_string(id));
        }
        if !groups.rebalancing {
            groups.rebalancing = true;
            groups.members.values_mut().for_each(|member| (member.joined, member.assignment) = (false, None));
        }
        let member = groups.members.entry(body.member_id.to_string()).or_default();
        (member.joined, member.metadata) = (true, body.protocols[0].metadata.clone());
        (body.member_id.to_string(), Instant::now() + JOIN_WAIT, groups.generation)
    };
    loop {
        sleep(LOOK).await;
        let mut state = fake.state.lock();
        let groups = &mut state.groups;
        if groups.generation == before && Instant::now() >= until {
            // Who has not come is out.
            groups.members.retain(|_, member| member.joined);
            groups.generation += 1;
            groups.leader = groups.members.keys().next().unwrap().clone();
        }
        if groups.generation == before {
            continue;
        }
        let member = |(id, member): (&String, &Member)| {
            JoinGroupResponseMember::default()
                .with_member_id(StrBytes::from_string(id.clone()))
                .with_metadata(member.metadata.clone())
        };
        let leads = groups.leader == member_id;
        return JoinGroupResponse::default()
            .with_generation_id(groups.generation)
            .with_protocol_type(Some(StrBytes::from_static_str("consumer")))
            .with_protocol_name(Some(StrBytes::from_static_str("range")))
            .with_leader(StrBytes::from_string(groups.leader.clone()))
            .with_member_id(StrBytes::from_string(member_id))
            .with_members(if leads { groups.members.iter().map(member).collect() } else { Vec::new() });
    }
}

pub(crate) async fn sync(fake: &Fake, body: &SyncGroupRequest) -> SyncGroupResponse {
    let failed = |code: ErrorCode| SyncGroupResponse::default().with_error_code(code.code());
    loop {
        {
            let mut state = fake.state.lock();
            let groups = &mut state.groups;
            if let Some(code) = wrong(groups, &body.member_id, body.generation_id) {
                return failed(code);
            }
            for share in &body.assignments {
                if let Some(member) = groups.members.get_mut(share.member_id.as_str()) {
                    member.assignment = Some(share.assignment.clone());
                }
            }
            if groups.members.values().all(|member| member.assignment.is_some()) {
                groups.rebalancing = false;
            }
            if let Some(assignment) = groups.members[body.member_id.as_str()].assignment.clone() {
                return SyncGroupResponse::default()
                    .with_protocol_type(Some(StrBytes::from_static_str("consumer")))
                    .with_protocol_name(Some(StrBytes::from_static_str("range")))
                    .with_assignment(assignment);
            }
        }
        sleep(LOOK).await;
    }
}

fn wrong(groups: &Groups, member_id: &str, generation: i32) -> Option<ErrorCode> {
    if !groups.members.contains_key(member_id) {
        Some(ErrorCode::UnknownMemberId)
    } else if groups.generation != generation {
        Some(ErrorCode::IllegalGeneration)
    } else {
        None
    }
}

pub(crate) fn heartbeat(fake: &Fake, body: &HeartbeatRequest) -> HeartbeatResponse {
    let mut state = fake.state.lock();
    let groups = &mut state.groups;
    let code = match wrong(groups, &body.member_id, body.generation_id) {
        Some(code) => code,
        None if groups.rebalancing => ErrorCode::RebalanceInProgress,
        None => groups.heartbeat_errors.pop().unwrap_or_default(),
    };
    HeartbeatResponse::default().with_error_code(code.code())
}

pub(crate) fn leave(fake: &Fake, body: &LeaveGroupRequest) -> LeaveGroupResponse {
    let mut state = fake.state.lock();
    for member in &body.members {
        state.groups.members.remove(member.member_id.as_str());
    }
    state.groups.rebalancing = true;
    state.groups.members.values_mut().for_each(|member| (member.joined, member.assignment) = (false, None));
    LeaveGroupResponse::default()
}

pub(crate) fn commit(fake: &Fake, body: &OffsetCommitRequest) -> OffsetCommitResponse {
    let mut state = fake.state.lock();
    let groups = &mut state.groups;
    let code = wrong(groups, &body.member_id, body.generation_id_or_member_epoch).unwrap_or_default();
    let topics = body.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            if code.is_none() {
                let at = (topic.name.to_string(), partition.partition_index);
                groups.committed.insert(at, partition.committed_offset);
            }
            OffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(code.code())
        });
        OffsetCommitResponseTopic::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    let topics = topics.collect();
    OffsetCommitResponse::default().with_topics(topics)
}

pub(crate) fn fetch(fake: &Fake, body: &OffsetFetchRequest) -> OffsetFetchResponse {
    let state = fake.state.lock();
    let group = &body.groups[0];
    let topics = group.topics.iter().flatten().map(|topic| {
        let partitions = topic.partition_indexes.iter().map(|&index| {
            let committed = state.groups.committed.get(&(topic.name.to_string(), index));
            OffsetFetchResponsePartitions::default()
                .with_partition_index(index)
                .with_committed_offset(committed.copied().unwrap_or(-1))
                .with_metadata(Some(StrBytes::new()))
        });
        OffsetFetchResponseTopics::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    let group = OffsetFetchResponseGroup::default()
        .with_group_id(group.group_id.clone())
        .with_topics(topics.collect());
    OffsetFetchResponse::default().with_groups(vec![group])
}
