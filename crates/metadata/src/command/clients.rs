//! Producers and consumer groups.

use prost::Message;

use crate::ids::TopicId;
use crate::record::GroupRecord;

/// Grants producer ids with epoch 0 (InitProducerId without a transactional id).
#[derive(Clone, Copy, PartialEq, Message)]
pub struct GrantProducerId {
    /// How many, in one contiguous block; at most 1,000. 0 means 1.
    #[prost(uint32, tag = "1")]
    pub count: u32,
}

/// Forgets producers of one shard that wrote nothing for `producer.id.expiration.ms` (the cluster's dynamic config).
#[derive(Clone, Copy, PartialEq, Message)]
pub struct ExpireProducers {
    #[prost(uint32, tag = "1")]
    pub shard: u32,
}

/// The asking session takes over these groups; each gets a new coordinator epoch.
#[derive(Clone, PartialEq, Message)]
pub struct ClaimGroups {
    #[prost(string, repeated, tag = "1")]
    pub groups: Vec<String>,
}

/// Replaces a group's members, generation and assignment.
#[derive(Clone, PartialEq, Message)]
pub struct PutGroup {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(uint64, tag = "2")]
    pub coordinator_epoch: u64,
    #[prost(message, required, tag = "3")]
    pub record: GroupRecord,
}

#[derive(Clone, PartialEq, Message)]
pub struct CommitOffsets {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(uint64, tag = "2")]
    pub coordinator_epoch: u64,
    /// Empty for a simple consumer or an admin client.
    #[prost(string, tag = "3")]
    pub member_id: String,
    #[prost(string, optional, tag = "4")]
    pub instance_id: Option<String>,
    /// -1 for a simple consumer or an admin client, which may commit only while the group has no members.
    #[prost(sint32, tag = "5")]
    pub generation: i32,
    #[prost(message, repeated, tag = "6")]
    pub offsets: Vec<OffsetToCommit>,
}

#[derive(Clone, PartialEq, Message)]
pub struct OffsetToCommit {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
    #[prost(int32, tag = "2")]
    pub partition: i32,
    #[prost(sint64, tag = "3")]
    pub offset: i64,
    /// -1: none.
    #[prost(sint32, tag = "4")]
    pub leader_epoch: i32,
    #[prost(string, tag = "5")]
    pub metadata: String,
}

/// Deletes groups without members, with their offsets.
#[derive(Clone, PartialEq, Message)]
pub struct DeleteGroups {
    #[prost(string, repeated, tag = "1")]
    pub groups: Vec<String>,
}

/// OffsetDelete. The coordinator has checked that no member subscribes to the topics.
#[derive(Clone, PartialEq, Message)]
pub struct DeleteOffsets {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(uint64, tag = "2")]
    pub coordinator_epoch: u64,
    #[prost(message, repeated, tag = "3")]
    pub partitions: Vec<TopicPartition>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct TopicPartition {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
    #[prost(int32, tag = "2")]
    pub partition: i32,
}

/// Forgets offsets of groups without members that are older than the retention, offsets of topics that are gone for good,
/// and then groups
/// that hold nothing.
#[derive(Clone, PartialEq, Message)]
pub struct ExpireOffsets {
    /// `offsets.retention.minutes` in ms.
    #[prost(int64, tag = "1")]
    pub retention_ms: i64,
    /// Groups after this name are looked at; empty: from the first.
    #[prost(string, tag = "2")]
    pub after: String,
    /// At most this many groups; 0 means 1,000. The answer names the last one looked at.
    #[prost(uint32, tag = "3")]
    pub limit: u32,
}
