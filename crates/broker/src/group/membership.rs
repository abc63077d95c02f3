//! JoinGroup, SyncGroup, Heartbeat, LeaveGroup.

use std::sync::Arc;

use isobar_groups::{
    CommitCheck, Event, GroupError, Heartbeat, JoinAnswer, Leave, Name, Response, member_id,
    validate_group_id,
};
use isobar_protocol::Uuid;
use isobar_protocol::messages::{
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
};
use isobar_protocol::request::RequestHeader;

use super::coordinated::Coordinated;
use super::{IfAbsent, ask, ask_one, wire};
use crate::Broker;
use crate::connection::Client;

/// The machine answered with another request's kind: a bug, told as an unknown error.
fn mismatch(response: &Response) -> GroupError {
    tracing::error!(?response, "a group answered another kind of request");
    GroupError::UnknownServerError
}

pub(super) async fn join(
    broker: &Arc<Broker>,
    client: &Client,
    header: &RequestHeader,
    request: JoinGroupRequest,
) -> JoinGroupResponse {
    let client_id = header.client_id.as_ref().map_or_else(|| Name::from(""), wire::name);
    let uuid = Uuid::from_bytes(broker.host.random_uuid()).to_string();
    let new_member_id = member_id(&client_id, request.group_instance_id.as_deref(), &uuid);
    let host = Name::from(format!("/{}", client.peer.ip()));
    let join = wire::join_request(header.version, client_id, host, new_member_id, &request);
    let member_id = Arc::clone(&join.member_id);
    // Only who has no member id may be the first of a group.
    let if_absent = if member_id.is_empty() { IfAbsent::Create } else { IfAbsent::Answer };
    let group = request.group_id.0.to_string();
    // A join may wait for minutes: it must not keep its frame.
    drop(request);
    let answered = match validate_group_id(&group)
        .and_then(|()| broker.groups.config.check_session_timeout(join.session_timeout_ms))
    {
        Ok(()) => ask(broker, &group, if_absent, |request| Event::Join(request, join.clone())).await,
        Err(error) => Err(error),
    };
    let answer = match answered {
        Ok(Response::Join(answer)) => answer,
        Ok(other) => JoinAnswer::refused(mismatch(&other), member_id),
        Err(error) => JoinAnswer::refused(error, member_id),
    };
    wire::join_response(header.version, &answer)
}

pub(super) async fn sync(broker: &Arc<Broker>, request: SyncGroupRequest) -> SyncGroupResponse {
    let sync = wire::sync_request(&request);
    let group = request.group_id.0.to_string();
    drop(request);
    let answered = match validate_group_id(&group) {
        Ok(()) => ask(broker, &group, IfAbsent::Answer, |request| Event::Sync(request, sync.clone())).await,
        Err(error) => Err(error),
    };
    let answer = match answered {
        Ok(Response::Sync(answer)) => answer,
        Ok(other) => Err(mismatch(&other)),
        Err(error) => Err(error),
    };
    wire::sync_response(&answer)
}

pub(super) async fn heartbeat(broker: &Arc<Broker>, request: HeartbeatRequest) -> HeartbeatResponse {
    let heartbeat = Heartbeat {
        member_id: wire::name(&request.member_id),
        instance_id: request.group_instance_id.as_ref().map(wire::name),
        generation: request.generation_id,
    };
    let group = &request.group_id.0;
    let answered = match validate_group_id(group) {
        Ok(()) => {
            ask(broker, group, IfAbsent::Answer, |request| Event::Heartbeat(request, heartbeat.clone())).await
        }
        Err(error) => Err(error),
    };
    let result = match answered {
        Ok(Response::Heartbeat(result)) => result,
        Ok(other) => Err(mismatch(&other)),
        // As in Kafka: a member is not told off for a coordinator that is loading.
        Err(GroupError::CoordinatorLoadInProgress) => Ok(()),
        Err(error) => Err(error),
    };
    HeartbeatResponse::default().with_error_code(wire::code(result.err()))
}

pub(super) async fn leave(
    broker: &Arc<Broker>,
    version: i16,
    request: LeaveGroupRequest,
) -> LeaveGroupResponse {
    let leave = Leave { members: wire::leaving(version, &request) };
    let group = &request.group_id.0;
    let answered = match validate_group_id(group) {
        Ok(()) => ask(broker, group, IfAbsent::Answer, |request| Event::Leave(request, leave.clone())).await,
        Err(error) => Err(error),
    };
    let answer = match answered {
        Ok(Response::Leave(answer)) => answer,
        Ok(other) => Err(mismatch(&other)),
        Err(error) => Err(error),
    };
    wire::leave_response(version, &answer)
}

/// May this member commit? Extends its session if so, and gives what it may commit under.
pub(super) async fn check_commit(
    broker: &Arc<Broker>,
    group: &str,
    if_absent: IfAbsent,
    check: CommitCheck,
) -> Result<Arc<Coordinated>, GroupError> {
    let event = |request| Event::CommitCheck(request, check.clone());
    match ask_one(broker, group, if_absent, event).await? {
        (Response::CommitCheck(Ok(())), Some(group)) => Ok(group),
        (Response::CommitCheck(Ok(())), None) => Err(GroupError::GroupIdNotFound),
        (Response::CommitCheck(Err(error)), _) => Err(error),
        (other, _) => Err(mismatch(&other)),
    }
}
