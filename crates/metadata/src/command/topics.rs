//! Topics, their partitions and configs.

use std::collections::BTreeMap;

use prost::Message;

use crate::ids::{PlacementId, TopicId};

#[derive(Clone, PartialEq, Message)]
pub struct CreateTopics {
    #[prost(message, repeated, tag = "1")]
    pub topics: Vec<NewTopic>,
    /// Checks and answers, and creates nothing.
    #[prost(bool, tag = "2")]
    pub validate_only: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct NewTopic {
    #[prost(string, tag = "1")]
    pub name: String,
    /// Random, from the broker that asks.
    #[prost(message, required, tag = "2")]
    pub topic_id: TopicId,
    /// The broker has put its default for Kafka's -1.
    #[prost(sint32, tag = "3")]
    pub partitions: i32,
    /// Any positive one is accepted and shown again; -1 is shown as 1. Durability does not depend on it.
    #[prost(sint32, tag = "4")]
    pub replication_factor: i32,
    #[prost(btree_map = "string, string", tag = "5")]
    pub configs: BTreeMap<String, String>,
    #[prost(message, required, tag = "6")]
    pub placement: PlacementId,
}

/// From level 2 on a deleted topic can be brought back for its `isobar.undelete.window.ms`; a window of 0 deletes at once,
/// as level 1 does.
#[derive(Clone, PartialEq, Message)]
pub struct DeleteTopics {
    #[prost(message, repeated, tag = "1")]
    pub topic_ids: Vec<TopicId>,
}

/// Brings a deleted topic back: the same id, offsets, configs and groups' offsets. A topic that is there under this name
/// already is answered as brought back.
#[derive(Clone, PartialEq, Message)]
pub struct UndeleteTopic {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
    /// Empty: the one it had.
    #[prost(string, tag = "2")]
    pub name: String,
}

/// Ends deleted topics before their time; what they held is let go.
#[derive(Clone, PartialEq, Message)]
pub struct PurgeTopics {
    #[prost(message, repeated, tag = "1")]
    pub topic_ids: Vec<TopicId>,
}

/// Purges deleted topics whose window is over. Does nothing while expiry is held.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct ExpireTopics {
    /// At most this many in one command; 0 means 100.
    #[prost(uint32, tag = "1")]
    pub limit: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct CreatePartitions {
    #[prost(message, repeated, tag = "1")]
    pub topics: Vec<MorePartitions>,
    #[prost(bool, tag = "2")]
    pub validate_only: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct MorePartitions {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
    /// The new total.
    #[prost(sint32, tag = "2")]
    pub count: i32,
}

/// IncrementalAlterConfigs (KIP-339).
#[derive(Clone, PartialEq, Message)]
pub struct AlterConfigs {
    #[prost(message, repeated, tag = "1")]
    pub resources: Vec<AlterResource>,
    #[prost(bool, tag = "2")]
    pub validate_only: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct AlterResource {
    /// Kafka's resource type: 2 topic, 4 broker.
    #[prost(int32, tag = "1")]
    pub resource_type: i32,
    /// Topic name; for brokers the id, or empty for the cluster's default.
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "3")]
    pub ops: Vec<ConfigOp>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ConfigOp {
    #[prost(string, tag = "1")]
    pub name: String,
    /// Kafka's op: 0 SET, 1 DELETE, 2 APPEND, 3 SUBTRACT.
    #[prost(int32, tag = "2")]
    pub op: i32,
    #[prost(string, optional, tag = "3")]
    pub value: Option<String>,
}

/// DeleteRecords and retention. A log start only rises; a value beyond the high watermark is OFFSET_OUT_OF_RANGE.
#[derive(Clone, PartialEq, Message)]
pub struct MoveLogStart {
    #[prost(message, repeated, tag = "1")]
    pub partitions: Vec<NewLogStart>,
    /// Retention needs level 2; while expiry is held it moves nothing, and says so.
    #[prost(enumeration = "LogStartReason", tag = "2")]
    pub reason: i32,
}

/// Why a log start moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum LogStartReason {
    DeleteRecords = 0,
    Retention = 1,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct NewLogStart {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
    #[prost(int32, tag = "2")]
    pub partition: i32,
    /// -1: the high watermark.
    #[prost(sint64, tag = "3")]
    pub log_start: i64,
}
