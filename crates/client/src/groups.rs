//! Groups seen from outside: who is there, what they have committed, and committing for them while they are away.

use std::collections::BTreeMap;

use isobar_protocol::StrBytes;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::describe_groups_response::DescribedGroup;
use isobar_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use isobar_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use isobar_protocol::messages::{
    DescribeGroupsRequest, GroupId, ListGroupsRequest, OffsetCommitRequest, OffsetCommitResponse,
    OffsetFetchRequest, TopicName,
};
use tokio::time::Instant;

use crate::client::{Client, Retry};
use crate::coordinator::Coordinator;
use crate::error::ClientError;
use crate::metadata::TopicPartition;

const LIST_GROUPS_MIN: i16 = 4;
const DESCRIBE_GROUPS_MIN: i16 = 5;
/// First OffsetFetch version that takes a list of groups (KIP-709).
pub(crate) const OFFSET_FETCH_MIN: i16 = 8;
pub(crate) const OFFSET_COMMIT_MIN: i16 = 7;

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupListing {
    /// Its id.
    pub group: String,
    /// What its members speak: `consumer` for consumer groups.
    pub protocol_type: String,
    /// Its state, such as `Stable` or `Empty`.
    pub state: String,
}

/// An offset that a group has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The next offset to read.
    pub offset: i64,
    /// Leader epoch of the record before it, -1 if unknown.
    pub leader_epoch: i32,
    /// The committer's note.
    pub metadata: String,
}

impl Client {
    /// All groups of all brokers, by id.
    pub async fn list_groups(&self) -> Result<Vec<GroupListing>, ClientError> {
        let brokers = self.refresh(Some(&[])).await?.brokers.clone();
        let mut found = BTreeMap::new();
        for id in brokers.keys() {
            let response = self.call(Some(*id), &ListGroupsRequest::default(), LIST_GROUPS_MIN).await?;
            match ErrorCode::from_i16(response.error_code) {
                ErrorCode::None => {}
                code => return Err(ClientError::broker(format!("list groups of broker {id}"), code, None)),
            }
            for group in response.groups {
                let listing = GroupListing {
                    group: group.group_id.to_string(),
                    protocol_type: group.protocol_type.to_string(),
                    state: group.group_state.to_string(),
                };
                found.insert(listing.group.clone(), listing);
            }
        }
        Ok(found.into_values().collect())
    }

    /// State and members of a group.
    pub async fn describe_group(&self, group: &str) -> Result<DescribedGroup, ClientError> {
        let coordinator = Coordinator::new(self, group);
        let request = DescribeGroupsRequest::default().with_groups(vec![coordinator.group_id()]);
        let code = |described: Option<&DescribedGroup>| described.map_or(0, |described| described.error_code);
        let response = coordinator
            .call(&request, DESCRIBE_GROUPS_MIN, self.deadline(), |response| code(response.groups.first()))
            .await?;
        let found = response.groups.into_iter().next();
        found.ok_or_else(|| ClientError::malformed(format!("describe group {group}"), "no answer for it"))
    }

    /// What a group has committed, for all its partitions.
    pub async fn group_offsets(
        &self,
        group: &str,
    ) -> Result<BTreeMap<TopicPartition, CommittedOffset>, ClientError> {
        let coordinator = Coordinator::new(self, group);
        let asked = OffsetFetchRequestGroup::default()
            .with_group_id(coordinator.group_id())
            .with_member_epoch(-1)
            .with_topics(None);
        fetch_offsets(&coordinator, asked, self.deadline()).await
    }

    /// Commits offsets for a group that has no members.
    pub async fn commit_group_offsets(
        &self,
        group: &str,
        offsets: &BTreeMap<TopicPartition, i64>,
    ) -> Result<(), ClientError> {
        let coordinator = Coordinator::new(self, group);
        let request =
            commit_request(coordinator.group_id(), offsets.iter().map(|(at, offset)| (at, *offset)));
        let response =
            coordinator.call(&request, OFFSET_COMMIT_MIN, self.deadline(), first_coordinator_error).await?;
        commit_outcome(group, &response)
    }
}

/// A commit from outside; members add who they are.
pub(crate) fn commit_request<'a>(
    group: GroupId,
    offsets: impl Iterator<Item = (&'a TopicPartition, i64)>,
) -> OffsetCommitRequest {
    let mut topics: BTreeMap<&str, Vec<OffsetCommitRequestPartition>> = BTreeMap::new();
    for (at, offset) in offsets {
        let partition = OffsetCommitRequestPartition::default()
            .with_partition_index(at.partition)
            .with_committed_offset(offset)
            .with_committed_metadata(Some(StrBytes::new()));
        topics.entry(&at.topic).or_default().push(partition);
    }
    let topics = topics.into_iter().map(|(name, partitions)| {
        let name = TopicName(StrBytes::from_string(name.to_owned()));
        OffsetCommitRequestTopic::default().with_name(name).with_partitions(partitions)
    });
    OffsetCommitRequest::default()
        .with_group_id(group)
        .with_generation_id_or_member_epoch(-1)
        .with_topics(topics.collect())
}

/// The error that is the coordinator's and not a partition's: worth trying elsewhere.
pub(crate) fn first_coordinator_error(response: &OffsetCommitResponse) -> i16 {
    let codes =
        response.topics.iter().flat_map(|topic| &topic.partitions).map(|partition| partition.error_code);
    let of_coordinator = |code: &i16| {
        matches!(
            ErrorCode::from_i16(*code),
            ErrorCode::NotCoordinator
                | ErrorCode::CoordinatorNotAvailable
                | ErrorCode::CoordinatorLoadInProgress
        )
    };
    codes.into_iter().find(of_coordinator).unwrap_or(0)
}

pub(crate) fn commit_outcome(group: &str, response: &OffsetCommitResponse) -> Result<(), ClientError> {
    for topic in &response.topics {
        for partition in &topic.partitions {
            let code = ErrorCode::from_i16(partition.error_code);
            if !code.is_none() {
                let what = format!(
                    "commit of {}-{} by group {group}",
                    topic.name.as_str(),
                    partition.partition_index
                );
                return Err(ClientError::broker(what, code, None));
            }
        }
    }
    Ok(())
}

/// Committed offsets; partitions without one are left out. Waits for transactional commits that are pending.
pub(crate) async fn fetch_offsets(
    coordinator: &Coordinator,
    asked: OffsetFetchRequestGroup,
    deadline: Instant,
) -> Result<BTreeMap<TopicPartition, CommittedOffset>, ClientError> {
    let request = OffsetFetchRequest::default().with_groups(vec![asked]).with_require_stable(true);
    let mut retry = Retry::until(deadline);
    'again: loop {
        let code = |response: &isobar_protocol::messages::OffsetFetchResponse| {
            response.groups.first().map_or(0, |group| group.error_code)
        };
        let response = coordinator.call(&request, OFFSET_FETCH_MIN, deadline, code).await?;
        let mut offsets = BTreeMap::new();
        for topic in response.groups.into_iter().flat_map(|group| group.topics) {
            for partition in topic.partitions {
                let at = TopicPartition::new(topic.name.to_string(), partition.partition_index);
                match ErrorCode::from_i16(partition.error_code) {
                    ErrorCode::None if partition.committed_offset < 0 => {}
                    ErrorCode::None => {
                        let committed = CommittedOffset {
                            offset: partition.committed_offset,
                            leader_epoch: partition.committed_leader_epoch,
                            metadata: partition.metadata.map(|note| note.to_string()).unwrap_or_default(),
                        };
                        offsets.insert(at, committed);
                    }
                    code => {
                        retry.after(coordinator.refused(&format!("committed offset of {at}"), code)).await?;
                        continue 'again;
                    }
                }
            }
        }
        return Ok(offsets);
    }
}
