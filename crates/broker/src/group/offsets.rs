//! OffsetCommit and OffsetFetch.

use std::collections::BTreeMap;
use std::sync::Arc;

use isobar_groups::{CommitCheck, GroupError};
use isobar_metadata::command::{CommitOffsets, OffsetToCommit};
use isobar_metadata::result::OffsetResults;
use isobar_metadata::{Command, CommandResult, Image, PartitionKey};
use isobar_protocol::StrBytes;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use isobar_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use isobar_protocol::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, TopicName,
};
use isobar_protocol::request::RequestHeader;
use isobar_raft::ProposeError;

use super::membership::check_commit;
use super::{IfAbsent, wire};
use crate::Broker;
use crate::connection::{Answer, Client};

/// First OffsetCommit version that tells a missing group from an old generation.
const COMMIT_GROUP_NOT_FOUND_VERSION: i16 = 9;
/// First OffsetFetch version with an error for the whole request.
const FETCH_ERROR_VERSION: i16 = 2;
/// First OffsetFetch version for several groups (KIP-709).
const FETCH_SEVERAL_VERSION: i16 = 8;

/// Why a commit was not carried out.
enum NotCommitted {
    Refused(ErrorCode),
    /// It may be older than this broker's claim of the group, as may be all that its connection still brings.
    OfBefore,
}

impl From<ErrorCode> for NotCommitted {
    fn from(error: ErrorCode) -> Self {
        Self::Refused(error)
    }
}

/// A partition of a commit: refused, or at this place in the command.
type Placed = Result<usize, ErrorCode>;

pub(super) async fn handle(
    broker: &Arc<Broker>,
    client: &Client,
    header: &RequestHeader,
    request: OffsetCommitRequest,
) -> Answer {
    let (response, is_last) = commit(broker, client, header.version, request).await;
    match Answer::of(header, &response) {
        Answer::Send(response) if is_last => Answer::Last(response),
        answer => answer,
    }
}

/// The response, and whether it is to be the connection's last.
async fn commit(
    broker: &Arc<Broker>,
    client: &Client,
    version: i16,
    request: OffsetCommitRequest,
) -> (OffsetCommitResponse, bool) {
    let mut command = CommitOffsets {
        group: request.group_id.0.to_string(),
        member_id: request.member_id.to_string(),
        instance_id: request.group_instance_id.as_ref().map(ToString::to_string),
        generation: request.generation_id_or_member_epoch,
        ..CommitOffsets::default()
    };
    let mut placed = place(broker, &request, &mut command);
    if placed.iter().flatten().any(|p| *p == Err(ErrorCode::UnknownTopicOrPartition))
        && broker.barrier().await.is_ok()
    {
        // An absence is told only behind a barrier.
        command.offsets.clear();
        placed = place(broker, &request, &mut command);
    }
    let result = if command.offsets.is_empty() {
        Ok(OffsetResults::default())
    } else {
        propose(broker, client, version, &request, command).await
    };
    let code = |placed: &Placed| match (placed, &result) {
        (Err(error), _) | (Ok(_), Err(NotCommitted::Refused(error))) => error.code(),
        (Ok(_), Err(NotCommitted::OfBefore)) => ErrorCode::CoordinatorLoadInProgress.code(),
        (Ok(at), Ok(results)) => {
            results.error_codes.get(*at).and_then(|code| i16::try_from(*code).ok()).unwrap_or(-1)
        }
    };
    let committed = placed.iter().flatten().filter(|placed| code(placed) == 0).count();
    broker.metrics.offsets_committed.inc_by(committed as u64);
    let topics = request.topics.iter().zip(&placed).map(|(topic, placed)| {
        let partitions = topic.partitions.iter().zip(placed).map(|(partition, placed)| {
            OffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(code(placed))
        });
        OffsetCommitResponseTopic::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    let response = OffsetCommitResponse::default().with_topics(topics.collect());
    (response, matches!(result, Err(NotCommitted::OfBefore)))
}

/// Puts what may be committed into the command; says of each partition, by topic, where it is or why not.
fn place(broker: &Broker, request: &OffsetCommitRequest, command: &mut CommitOffsets) -> Vec<Vec<Placed>> {
    let most_units = broker.options.offset_metadata_max_bytes;
    broker.image.with(|image| {
        let topics = request.topics.iter().map(|topic| {
            let known = image.topic_by_name(&topic.name);
            let partitions = topic.partitions.iter().map(|partition| {
                let known = known.filter(|topic| (0..topic.partitions).contains(&partition.partition_index));
                let topic_id = known.ok_or(ErrorCode::UnknownTopicOrPartition)?.topic_id;
                let metadata = partition.committed_metadata.as_deref().unwrap_or_default();
                // Never more units than bytes.
                if metadata.len() > most_units && metadata.encode_utf16().count() > most_units {
                    return Err(ErrorCode::OffsetMetadataTooLarge);
                }
                command.offsets.push(OffsetToCommit {
                    topic_id,
                    partition: partition.partition_index,
                    offset: partition.committed_offset,
                    leader_epoch: partition.committed_leader_epoch,
                    metadata: metadata.to_owned(),
                });
                Ok(command.offsets.len() - 1)
            });
            partitions.collect()
        });
        topics.collect()
    })
}

/// Checked here, where sessions are known, and again in apply, which alone sees the generation that is durable.
async fn propose(
    broker: &Arc<Broker>,
    client: &Client,
    version: i16,
    request: &OffsetCommitRequest,
    mut command: CommitOffsets,
) -> Result<OffsetResults, NotCommitted> {
    let check = CommitCheck {
        member_id: wire::name(&request.member_id),
        instance_id: request.group_instance_id.as_ref().map(wire::name),
        generation: command.generation,
    };
    let partitions =
        command.offsets.iter().map(|offset| PartitionKey::new(offset.topic_id, offset.partition));
    let mut place = broker.groups.commits.line_up(Arc::from(command.group.as_str()), partitions.collect());
    place.turn().await;
    let if_absent = if command.generation < 0 { IfAbsent::Create } else { IfAbsent::Refuse };
    match check_commit(broker, &command.group, if_absent, check).await {
        Ok(group) if group.may_be_of_before(client.since, command.generation) => {
            tracing::info!(
                group = command.group, peer = %client.peer,
                "connection closed: its commit may be older than this broker's claim of the group"
            );
            return Err(NotCommitted::OfBefore);
        }
        Ok(group) => command.coordinator_epoch = group.epoch,
        Err(GroupError::GroupIdNotFound) if version < COMMIT_GROUP_NOT_FOUND_VERSION => {
            return Err(ErrorCode::IllegalGeneration.into());
        }
        Err(error) => return Err(ErrorCode::from_i16(error.code()).into()),
    }
    if command.generation < 0 {
        // The group is empty: as in Kafka, whoever it is commits as a simple consumer.
        command.member_id.clear();
        command.instance_id = None;
    }
    if broker.host.sabotaged("offsets-before-commit") {
        return Ok(commit_later(broker, command));
    }
    Ok(propose_checked(broker, command).await?)
}

async fn propose_checked(broker: &Arc<Broker>, command: CommitOffsets) -> Result<OffsetResults, ErrorCode> {
    let group = command.group.clone();
    match broker.session.propose(Command::CommitOffsets(command)).await {
        Ok(CommandResult::Offsets(results)) if results.error_code == 0 => Ok(results),
        Ok(CommandResult::Offsets(results)) => {
            let error = ErrorCode::from_i16(i16::try_from(results.error_code).unwrap_or(-1));
            if error == ErrorCode::NotCoordinator {
                broker.groups.unload(broker, &group, GroupError::NotCoordinator);
            }
            Err(error)
        }
        Ok(CommandResult::Refused(refused)) => {
            tracing::warn!(group, ?refused, "this broker may commit no offsets any more");
            broker.groups.unload(broker, &group, GroupError::NotCoordinator);
            Err(ErrorCode::NotCoordinator)
        }
        Ok(other) => {
            tracing::error!(group, answer = ?other, "an unexpected answer to a commit of offsets");
            Err(ErrorCode::UnknownServerError)
        }
        Err(ProposeError::TooLarge { .. }) => Err(ErrorCode::InvalidCommitOffsetSize),
        Err(error) => {
            tracing::warn!(group, %error, "offsets could not be committed");
            Err(ErrorCode::CoordinatorNotAvailable)
        }
    }
}

/// The sabotage "offsets-before-commit": they are said to be committed, and are some time later, unless this broker dies.
fn commit_later(broker: &Arc<Broker>, command: CommitOffsets) -> OffsetResults {
    let error_codes = vec![0; command.offsets.len()];
    let later = Arc::clone(broker);
    broker.host.spawn("sabotage.commit", async move {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let _ = later.session.propose(Command::CommitOffsets(command)).await;
    });
    OffsetResults { error_code: 0, error_codes }
}

/// A committed offset as it is told; without one, -1 and no error.
struct Fetched {
    partition: i32,
    offset: i64,
    leader_epoch: i32,
    metadata: String,
}

impl Fetched {
    fn none(partition: i32) -> Self {
        Self { partition, offset: -1, leader_epoch: -1, metadata: String::new() }
    }
}

/// By topic, in the order asked for; `asked` of `None` is everything.
fn fetched(
    image: &Image,
    group: &str,
    asked: Option<&[(&TopicName, &[i32])]>,
) -> Vec<(TopicName, Vec<Fetched>)> {
    let told = |partition, record: &isobar_metadata::record::OffsetRecord| Fetched {
        partition,
        offset: record.offset,
        leader_epoch: record.leader_epoch,
        metadata: record.metadata.clone(),
    };
    let Some(asked) = asked else {
        let mut by_topic: BTreeMap<String, Vec<Fetched>> = BTreeMap::new();
        for (key, record) in image.offsets(group) {
            if let Some(topic) = image.topic(key.topic_id) {
                by_topic.entry(topic.name.clone()).or_default().push(told(key.partition, record));
            }
        }
        return by_topic
            .into_iter()
            .map(|(name, all)| (TopicName(StrBytes::from_string(name)), all))
            .collect();
    };
    let topics = asked.iter().map(|(name, partitions)| {
        let topic_id = image.topic_id(name);
        let of = |partition: &i32| {
            let record = topic_id.and_then(|id| image.offset(group, PartitionKey::new(id, *partition)));
            record.map_or_else(|| Fetched::none(*partition), |record| told(*partition, record))
        };
        ((*name).clone(), partitions.iter().map(of).collect())
    });
    topics.collect()
}

pub(super) async fn fetch(
    broker: &Arc<Broker>,
    version: i16,
    request: OffsetFetchRequest,
) -> OffsetFetchResponse {
    // Any broker can tell offsets, the coordinator or not: they are what metadata says behind a barrier.
    let error = broker.barrier().await.err().map(|_| ErrorCode::CoordinatorLoadInProgress);
    if version >= FETCH_SEVERAL_VERSION {
        let groups = request.groups.iter().map(|group| fetch_of_group(broker, group, error));
        return OffsetFetchResponse::default().with_groups(groups.collect());
    }
    let response = OffsetFetchResponse::default();
    let asked: Option<Vec<(&TopicName, &[i32])>> = request
        .topics
        .as_ref()
        .map(|topics| topics.iter().map(|t| (&t.name, &*t.partition_indexes)).collect());
    let code = error.map_or(0, ErrorCode::code);
    let topics = match (error, asked) {
        (None, asked) => broker.image.with(|image| fetched(image, &request.group_id.0, asked.as_deref())),
        // Version 1 can tell an error only of each partition.
        (Some(_), Some(asked)) if version < FETCH_ERROR_VERSION => {
            let none = |(name, partitions): &(&TopicName, &[i32])| {
                ((*name).clone(), partitions.iter().copied().map(Fetched::none).collect())
            };
            asked.iter().map(none).collect()
        }
        (Some(_), _) => Vec::new(),
    };
    let partition = |fetched: Fetched| {
        OffsetFetchResponsePartition::default()
            .with_partition_index(fetched.partition)
            .with_committed_offset(fetched.offset)
            .with_committed_leader_epoch(fetched.leader_epoch)
            .with_metadata(Some(StrBytes::from_string(fetched.metadata)))
            .with_error_code(code)
    };
    let topics = topics.into_iter().map(|(name, partitions)| {
        OffsetFetchResponseTopic::default()
            .with_name(name)
            .with_partitions(partitions.into_iter().map(partition).collect())
    });
    let response = response.with_topics(topics.collect());
    if version >= FETCH_ERROR_VERSION { response.with_error_code(code) } else { response }
}

fn fetch_of_group(
    broker: &Broker,
    group: &isobar_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup,
    error: Option<ErrorCode>,
) -> OffsetFetchResponseGroup {
    let response = OffsetFetchResponseGroup::default().with_group_id(group.group_id.clone());
    if let Some(error) = error {
        return response.with_error_code(error.code());
    }
    let asked: Option<Vec<(&TopicName, &[i32])>> =
        group.topics.as_ref().map(|topics| topics.iter().map(|t| (&t.name, &*t.partition_indexes)).collect());
    let topics = broker.image.with(|image| fetched(image, &group.group_id.0, asked.as_deref()));
    let partition = |fetched: Fetched| {
        OffsetFetchResponsePartitions::default()
            .with_partition_index(fetched.partition)
            .with_committed_offset(fetched.offset)
            .with_committed_leader_epoch(fetched.leader_epoch)
            .with_metadata(Some(StrBytes::from_string(fetched.metadata)))
    };
    let topics = topics.into_iter().map(|(name, partitions)| {
        OffsetFetchResponseTopics::default()
            .with_name(name)
            .with_partitions(partitions.into_iter().map(partition).collect())
    });
    response.with_topics(topics.collect())
}
