//! FindCoordinator, DescribeGroups, ListGroups, DeleteGroups.

use std::collections::BTreeMap;
use std::sync::Arc;

use isobar_groups::{Description, GroupError, Name, State, validate_group_id};
use isobar_metadata::command::DeleteGroups;
use isobar_metadata::record::GroupKind;
use isobar_metadata::{Command, CommandResult, Image};
use isobar_protocol::StrBytes;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::delete_groups_response::DeletableGroupResult;
use isobar_protocol::messages::describe_groups_response::DescribedGroup;
use isobar_protocol::messages::find_coordinator_response::Coordinator;
use isobar_protocol::messages::list_groups_response::ListedGroup;
use isobar_protocol::messages::{
    BrokerId, DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse,
    FindCoordinatorRequest, FindCoordinatorResponse, GroupId, ListGroupsRequest, ListGroupsResponse,
};

use super::{coordinator_of, record, wire};
use crate::Broker;

/// First FindCoordinator version for several keys (KIP-699).
const FIND_SEVERAL_VERSION: i16 = 4;
/// `key_type` of groups; 1 is transactions, 2 share groups.
const GROUP_KEY: i8 = 0;
const CLASSIC: &str = "classic";
const CONSUMER: &str = "consumer";

pub(super) async fn find_coordinator(
    broker: &Broker,
    version: i16,
    request: FindCoordinatorRequest,
) -> FindCoordinatorResponse {
    broker.doubts.settled(&broker.image).await;
    let find = |key: StrBytes| broker.image.with(|image| coordinator(image, request.key_type, key));
    if version >= FIND_SEVERAL_VERSION {
        let found = request.coordinator_keys.iter().cloned().map(find);
        return FindCoordinatorResponse::default().with_coordinators(found.collect());
    }
    let found = find(request.key.clone());
    FindCoordinatorResponse::default()
        .with_error_code(found.error_code)
        .with_error_message(found.error_message)
        .with_node_id(found.node_id)
        .with_host(found.host)
        .with_port(found.port)
}

fn coordinator(image: &Image, key_type: i8, key: StrBytes) -> Coordinator {
    let none = |error: ErrorCode, message: &'static str| {
        Coordinator::default()
            .with_node_id(BrokerId(-1))
            .with_port(-1)
            .with_error_code(error.code())
            .with_error_message(Some(StrBytes::from_static_str(message)))
    };
    let found = if key_type != GROUP_KEY {
        none(ErrorCode::InvalidRequest, "Only consumer groups have coordinators here so far.")
    } else {
        match coordinator_of(image, &key) {
            None => none(ErrorCode::CoordinatorNotAvailable, ErrorCode::CoordinatorNotAvailable.message()),
            Some(session) => Coordinator::default()
                .with_node_id(BrokerId(session.node_id))
                .with_host(StrBytes::from_string(session.host.clone()))
                .with_port(session.port),
        }
    };
    found.with_key(key)
}

pub(super) async fn describe(
    broker: &Arc<Broker>,
    version: i16,
    request: DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    let fresh = broker.barrier().await.is_ok();
    let groups = request.groups.into_iter().map(|group| {
        let found = validate_group_id(&group.0).and_then(|()| describe_one(broker, &group.0, fresh));
        match found {
            Ok(Some(description)) => wire::described(group, &description),
            Ok(None) => wire::described_absent(version, group),
            Err(error) => wire::described_error(group, error),
        }
    });
    let groups: Vec<DescribedGroup> = groups.collect();
    DescribeGroupsResponse::default().with_groups(groups)
}

/// `None`: there is no such group.
fn describe_one(broker: &Broker, group: &str, fresh: bool) -> Result<Option<Description>, GroupError> {
    if let Some(description) = broker.groups.current(broker, group).and_then(|loaded| loaded.describe().ok())
    {
        return Ok(Some(description));
    }
    if !fresh {
        return Err(GroupError::CoordinatorLoadInProgress);
    }
    broker.image.with(|image| {
        let Some(known) = image.group(group) else { return Ok(None) };
        if !is_ours(broker, image, group) {
            return Err(GroupError::NotCoordinator);
        }
        Ok(Some(Description::of_stored(&record::state(&known.record))))
    })
}

fn is_ours(broker: &Broker, image: &Image, group: &str) -> bool {
    coordinator_of(image, group).is_some_and(|session| session.session == broker.session.id())
}

pub(super) async fn list(broker: &Arc<Broker>, request: ListGroupsRequest) -> ListGroupsResponse {
    if broker.barrier().await.is_err() {
        return ListGroupsResponse::default().with_error_code(ErrorCode::CoordinatorLoadInProgress.code());
    }
    let wanted = |filter: &[StrBytes], value: &str| {
        filter.is_empty() || filter.iter().any(|wanted| wanted.eq_ignore_ascii_case(value))
    };
    let groups = broker.image.with(|image| {
        let ours = image.groups().filter(|group| is_ours(broker, image, &group.group));
        let listed = ours.filter_map(|group| {
            let loaded = broker.groups.slots.get(&group.group).and_then(|loaded| loaded.list().ok());
            let (state, protocol_type) = match loaded {
                Some(loaded) => (loaded.state, loaded.protocol_type.unwrap_or_else(|| Name::from(""))),
                None => stored(&group.record),
            };
            let kind = if group.record.kind() == GroupKind::Consumer { CONSUMER } else { CLASSIC };
            let listed =
                wanted(&request.states_filter, state.as_str()) && wanted(&request.types_filter, kind);
            listed.then(|| {
                ListedGroup::default()
                    .with_group_id(GroupId(StrBytes::from_string(group.group.to_string())))
                    .with_protocol_type(wire::text(&protocol_type))
                    .with_group_state(StrBytes::from_static_str(state.as_str()))
                    .with_group_type(StrBytes::from_static_str(kind))
            })
        });
        listed.collect()
    });
    ListGroupsResponse::default().with_groups(groups)
}

fn stored(stored: &isobar_metadata::record::GroupRecord) -> (State, Name) {
    let state = record::state(stored);
    (isobar_groups::state_from_persisted(state.phase), Name::from(stored.protocol_type.as_str()))
}

pub(super) async fn delete(broker: &Arc<Broker>, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let fresh = broker.barrier().await.is_ok();
    let mut results: BTreeMap<&GroupId, i16> = BTreeMap::new();
    for group in &request.groups_names {
        results.insert(group, wire::code(may_delete(broker, &group.0, fresh).err()));
    }
    let doomed = results.iter().filter(|(_, code)| **code == 0).map(|(group, _)| *group);
    let doomed: Vec<&GroupId> = doomed.collect();
    if !doomed.is_empty() {
        let codes = propose_delete(broker, &doomed).await;
        results.extend(doomed.into_iter().zip(codes));
    }
    let results = results.into_iter().map(|(group, code)| {
        DeletableGroupResult::default().with_group_id(group.clone()).with_error_code(code)
    });
    DeleteGroupsResponse::default().with_results(results.collect())
}

fn may_delete(broker: &Broker, group: &str, fresh: bool) -> Result<(), GroupError> {
    if let Some(loaded) = broker.groups.current(broker, group) {
        loaded.check_delete().unwrap_or(Ok(()))?;
    }
    if !fresh {
        return Err(GroupError::CoordinatorLoadInProgress);
    }
    broker.image.with(|image| match image.group(group) {
        None => Err(GroupError::GroupIdNotFound),
        Some(_) if is_ours(broker, image, group) => Ok(()),
        Some(_) => Err(GroupError::NotCoordinator),
    })
}

/// One code for each group. Metadata refuses groups with members.
async fn propose_delete(broker: &Arc<Broker>, doomed: &[&GroupId]) -> Vec<i16> {
    let groups = doomed.iter().map(|group| group.0.to_string()).collect();
    match broker.session.propose(Command::DeleteGroups(DeleteGroups { groups })).await {
        Ok(CommandResult::Groups(results)) if results.groups.len() == doomed.len() => {
            broker.settled().await;
            for (group, result) in doomed.iter().zip(&results.groups) {
                if result.error_code == 0 {
                    tracing::info!(group = &*group.0, "group deleted");
                    broker.groups.unload(broker, &group.0, GroupError::CoordinatorNotAvailable);
                }
            }
            results.groups.iter().map(|result| i16::try_from(result.error_code).unwrap_or(-1)).collect()
        }
        Ok(CommandResult::Refused(_)) => vec![ErrorCode::NotCoordinator.code(); doomed.len()],
        other => {
            tracing::warn!(answer = ?other, "groups could not be deleted");
            vec![ErrorCode::CoordinatorNotAvailable.code(); doomed.len()]
        }
    }
}
