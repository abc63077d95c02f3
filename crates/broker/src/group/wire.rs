//! Between the machine's types and Kafka's messages.

use std::sync::Arc;

use bytes::Bytes;
use isobar_groups::{
    Description, GroupError, Join, JoinAnswer, LeaveAnswer, Leaving, MemberDescription, Name, Protocol, Sync,
    SyncAnswer,
};
use isobar_protocol::StrBytes;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use isobar_protocol::messages::join_group_response::JoinGroupResponseMember;
use isobar_protocol::messages::leave_group_response::MemberResponse;
use isobar_protocol::messages::{
    GroupId, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse, SyncGroupRequest,
    SyncGroupResponse,
};

/// First JoinGroup version in which a dynamic member must come back with an id it was given (KIP-394).
const MEMBER_ID_REQUIRED_VERSION: i16 = 4;
/// First JoinGroup version in which the protocol's name may be null (KIP-559).
const NULLABLE_PROTOCOL_VERSION: i16 = 7;
/// First JoinGroup version that can say "skip the assignment" (KIP-814).
const SKIP_ASSIGNMENT_VERSION: i16 = 9;
/// First LeaveGroup version for several members (KIP-345).
const LEAVE_SEVERAL_VERSION: i16 = 3;
/// First DescribeGroups version that has an error for a group that does not exist (KIP-1043).
const GROUP_NOT_FOUND_VERSION: i16 = 6;
/// "Not asked for" in the authorized operations fields.
const NO_OPERATIONS: i32 = i32::MIN;

/// What is kept is copied: a slice would keep the whole frame.
pub(super) fn name(text: &StrBytes) -> Name {
    Arc::from(&**text)
}

fn names(text: Option<&StrBytes>) -> Option<Name> {
    text.map(name)
}

pub(super) fn text(name: &Name) -> StrBytes {
    StrBytes::from_string(name.to_string())
}

fn texts(name: Option<&Name>) -> Option<StrBytes> {
    name.map(text)
}

pub(super) fn code(error: Option<GroupError>) -> i16 {
    error.map_or(ErrorCode::None.code(), GroupError::code)
}

pub(super) fn join_request(
    version: i16,
    client_id: Name,
    client_host: Name,
    new_member_id: Name,
    request: &JoinGroupRequest,
) -> Join {
    // Version 0 knows only one timeout.
    let rebalance_timeout_ms =
        if version == 0 { request.session_timeout_ms } else { request.rebalance_timeout_ms };
    let protocols = request.protocols.iter();
    Join {
        member_id: name(&request.member_id),
        instance_id: names(request.group_instance_id.as_ref()),
        client_id,
        client_host,
        session_timeout_ms: request.session_timeout_ms,
        rebalance_timeout_ms,
        protocol_type: name(&request.protocol_type),
        protocols: protocols
            .map(|p| Protocol { name: name(&p.name), metadata: Bytes::copy_from_slice(&p.metadata) })
            .collect(),
        new_member_id,
        requires_member_id: version >= MEMBER_ID_REQUIRED_VERSION,
        supports_skip_assignment: version >= SKIP_ASSIGNMENT_VERSION,
        reason: request.reason.as_ref().map(ToString::to_string),
    }
}

pub(super) fn join_response(version: i16, answer: &JoinAnswer) -> JoinGroupResponse {
    let protocol = texts(answer.protocol.as_ref());
    let protocol =
        if version < NULLABLE_PROTOCOL_VERSION { Some(protocol.unwrap_or_default()) } else { protocol };
    let members = answer.members.iter().map(|member| {
        JoinGroupResponseMember::default()
            .with_member_id(text(&member.member_id))
            .with_group_instance_id(texts(member.instance_id.as_ref()))
            .with_metadata(member.metadata.clone())
    });
    JoinGroupResponse::default()
        .with_error_code(code(answer.error))
        .with_generation_id(answer.generation)
        .with_protocol_type(texts(answer.protocol_type.as_ref()))
        .with_protocol_name(protocol)
        .with_leader(text(&answer.leader))
        .with_skip_assignment(answer.skip_assignment)
        .with_member_id(text(&answer.member_id))
        .with_members(members.collect())
}

pub(super) fn sync_request(request: &SyncGroupRequest) -> Sync {
    let assignments = request.assignments.iter();
    Sync {
        member_id: name(&request.member_id),
        instance_id: names(request.group_instance_id.as_ref()),
        generation: request.generation_id,
        protocol_type: names(request.protocol_type.as_ref()),
        protocol: names(request.protocol_name.as_ref()),
        assignments: assignments
            .map(|a| (name(&a.member_id), Bytes::copy_from_slice(&a.assignment)))
            .collect(),
    }
}

pub(super) fn sync_response(answer: &Result<SyncAnswer, GroupError>) -> SyncGroupResponse {
    match answer {
        Ok(answer) => SyncGroupResponse::default()
            .with_protocol_type(texts(answer.protocol_type.as_ref()))
            .with_protocol_name(texts(answer.protocol.as_ref()))
            .with_assignment(answer.assignment.clone()),
        Err(error) => SyncGroupResponse::default().with_error_code(error.code()),
    }
}

pub(super) fn leaving(version: i16, request: &LeaveGroupRequest) -> Vec<Leaving> {
    if version < LEAVE_SEVERAL_VERSION {
        return vec![Leaving { member_id: name(&request.member_id), instance_id: None, reason: None }];
    }
    let leaving = request.members.iter().map(|member| Leaving {
        member_id: name(&member.member_id),
        instance_id: names(member.group_instance_id.as_ref()),
        reason: member.reason.as_ref().map(ToString::to_string),
    });
    leaving.collect()
}

pub(super) fn leave_response(version: i16, answer: &Result<LeaveAnswer, GroupError>) -> LeaveGroupResponse {
    let response = LeaveGroupResponse::default();
    match answer {
        Err(error) => response.with_error_code(error.code()),
        // Its one member's error is the whole answer's.
        Ok(answer) if version < LEAVE_SEVERAL_VERSION => {
            response.with_error_code(code(answer.members.iter().find_map(|member| member.error)))
        }
        Ok(answer) => {
            let members = answer.members.iter().map(|member| {
                MemberResponse::default()
                    .with_member_id(text(&member.member_id))
                    .with_group_instance_id(texts(member.instance_id.as_ref()))
                    .with_error_code(code(member.error))
            });
            response.with_members(members.collect())
        }
    }
}

pub(super) fn described(group: GroupId, description: &Description) -> DescribedGroup {
    let member = |member: &MemberDescription| {
        DescribedGroupMember::default()
            .with_member_id(text(&member.member_id))
            .with_group_instance_id(texts(member.instance_id.as_ref()))
            .with_client_id(text(&member.client_id))
            .with_client_host(text(&member.client_host))
            .with_member_metadata(member.metadata.clone())
            .with_member_assignment(member.assignment.clone())
    };
    DescribedGroup::default()
        .with_group_id(group)
        .with_group_state(StrBytes::from_static_str(description.state.as_str()))
        .with_protocol_type(text(&description.protocol_type))
        .with_protocol_data(text(&description.protocol))
        .with_members(description.members.iter().map(member).collect())
        .with_authorized_operations(NO_OPERATIONS)
}

/// A group that is not there: `Dead`, and from version 6 on an error.
pub(super) fn described_absent(version: i16, group: GroupId) -> DescribedGroup {
    let absent = DescribedGroup::default()
        .with_group_state(StrBytes::from_static_str("Dead"))
        .with_authorized_operations(NO_OPERATIONS);
    if version < GROUP_NOT_FOUND_VERSION {
        return absent.with_group_id(group);
    }
    let message = format!("Group {} not found.", &*group.0);
    absent
        .with_group_id(group)
        .with_error_code(ErrorCode::GroupIdNotFound.code())
        .with_error_message(Some(StrBytes::from_string(message)))
}

pub(super) fn described_error(group: GroupId, error: GroupError) -> DescribedGroup {
    DescribedGroup::default()
        .with_group_id(group)
        .with_error_code(error.code())
        .with_authorized_operations(NO_OPERATIONS)
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
