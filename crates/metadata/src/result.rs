//! Results: what a command answers. Kept for repeats until the session's floor passes them, so they are protobuf too.

use crate::ids::{ObjectId, SessionId, StreamId, TopicId};
use prost::Message;
use std::collections::BTreeMap;

/// The answer to one command.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum CommandResult {
    /// Not applied and no result: the number is not used up.
    #[prost(message, tag = "1")]
    Refused(Refused),
    /// Applied, with nothing to say but an error code (0: none) and perhaps a message.
    #[prost(message, tag = "2")]
    Done(Outcome),
    #[prost(message, tag = "3")]
    Session(SessionGranted),
    #[prost(message, tag = "4")]
    Stream(StreamGranted),
    #[prost(message, tag = "5")]
    Chunk(ChunkResult),
    #[prost(message, tag = "6")]
    Objects(ObjectsGranted),
    #[prost(message, tag = "7")]
    ObjectCommitted(ObjectCommitted),
    #[prost(message, tag = "8")]
    Topics(TopicResults),
    #[prost(message, tag = "9")]
    Configs(ConfigResults),
    #[prost(message, tag = "10")]
    ProducerIds(ProducerIdsGranted),
    #[prost(message, tag = "11")]
    Groups(GroupResults),
    #[prost(message, tag = "12")]
    Offsets(OffsetResults),
    #[prost(message, tag = "13")]
    LogStarts(LogStartResults),
    #[prost(message, tag = "14")]
    Expired(Expired),
}

impl CommandResult {
    /// Whether this is a refusal, which is no result.
    pub fn refusal(&self) -> Option<RefusalKind> {
        match self {
            Self::Refused(refused) => Some(refused.kind()),
            _ => None,
        }
    }
}

/// A result where a message is needed (snapshots, the wire).
#[derive(Clone, PartialEq, Message)]
pub struct ResultRecord {
    #[prost(oneof = "CommandResult", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14")]
    pub result: Option<CommandResult>,
}

/// Why a command was not applied. What the caller does is in the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum RefusalKind {
    /// A repeat whose result was dropped because the floor had passed it. Do not send it again.
    BelowFloor = 0,
    /// A commit lane takes only the next number. Send the missing ones first.
    Gap = 1,
    /// The session is fenced. Resolve what is unanswered, then register anew.
    Fenced = 2,
    /// No such session; it was forgotten or never was. Register.
    UnknownSession = 3,
    /// The stream is closed or unknown. Append the chunk to another and send the same number again.
    StreamClosed = 4,
    /// The cluster's feature level is too low.
    Feature = 5,
    /// Too many numbers, or bytes of results, lie unanswered above the floor. Raise the floor first.
    TooManyUnanswered = 6,
    /// The command may not come this way (wrong lane, or needs a session). A bug of the caller.
    Malformed = 7,
}

#[derive(Clone, PartialEq, Message)]
pub struct Refused {
    #[prost(enumeration = "RefusalKind", tag = "1")]
    pub kind: i32,
    /// For a gap: the number that would be accepted. For a low floor: the floor.
    #[prost(uint64, tag = "2")]
    pub expected: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Outcome {
    /// Kafka's error code ([`crate::codes`]).
    #[prost(sint32, tag = "1")]
    pub error_code: i32,
    #[prost(string, optional, tag = "2")]
    pub message: Option<String>,
}

impl Outcome {
    pub const OK: Self = Self { error_code: 0, message: None };
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct SessionGranted {
    #[prost(message, required, tag = "1")]
    pub session: SessionId,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct StreamGranted {
    #[prost(sint32, tag = "1")]
    pub error_code: i32,
    #[prost(message, required, tag = "2")]
    pub stream: StreamId,
    #[prost(string, optional, tag = "3")]
    pub message: Option<String>,
}

/// One answer per batch, in the command's order: partitions in order, and each partition's batches in order.
#[derive(Clone, PartialEq, Message)]
pub struct ChunkResult {
    /// The command as a whole was wrong (quorum not met, chunk number not rising); no batch was looked at and
    /// `batches` is empty.
    #[prost(sint32, tag = "1")]
    pub error_code: i32,
    #[prost(message, repeated, tag = "2")]
    pub batches: Vec<BatchResult>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct BatchResult {
    /// Kafka's error code; 0 also for a duplicate, which answers with its old offset.
    #[prost(sint32, tag = "1")]
    pub error_code: i32,
    /// -1 with an error.
    #[prost(sint64, tag = "2")]
    pub base_offset: i64,
    /// -1 unless the topic says LogAppendTime.
    #[prost(sint64, tag = "3")]
    pub log_append_time_ms: i64,
    /// -1 where the partition is unknown.
    #[prost(sint64, tag = "4")]
    pub log_start_offset: i64,
    /// Nothing was appended: the batch was sequenced before.
    #[prost(bool, tag = "5")]
    pub duplicate: bool,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct ObjectsGranted {
    #[prost(sint32, tag = "1")]
    pub error_code: i32,
    /// The ids are `first` and the `count - 1` after it.
    #[prost(message, required, tag = "2")]
    pub first: ObjectId,
    #[prost(uint32, tag = "3")]
    pub count: u32,
    #[prost(int64, tag = "4")]
    pub deadline_ms: i64,
}

/// For CommitObject, CompactObjects and CommitIndex.
#[derive(Clone, PartialEq, Message)]
pub struct ObjectCommitted {
    /// INVALID_REQUEST: the object is not prepared or open for parts any more (expired, deleted, never granted), or the
    /// store may not hold it; nothing was swapped.
    #[prost(sint32, tag = "1")]
    pub error_code: i32,
    /// Which runs were applied, by position in the command; the others are dead bytes.
    #[prost(uint32, repeated, tag = "2")]
    pub applied: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TopicResults {
    #[prost(message, repeated, tag = "1")]
    pub topics: Vec<TopicResult>,
}

/// For CreateTopics, DeleteTopics, CreatePartitions, UndeleteTopic (one) and PurgeTopics, in the command's order.
#[derive(Clone, PartialEq, Message)]
pub struct TopicResult {
    #[prost(sint32, tag = "1")]
    pub error_code: i32,
    #[prost(string, optional, tag = "2")]
    pub message: Option<String>,
    #[prost(message, required, tag = "3")]
    pub topic_id: TopicId,
    #[prost(string, tag = "4")]
    pub name: String,
    #[prost(int32, tag = "5")]
    pub partitions: i32,
    #[prost(int32, tag = "6")]
    pub replication_factor: i32,
    /// Overrides as created; also of a topic that was brought back.
    #[prost(btree_map = "string, string", tag = "7")]
    pub configs: BTreeMap<String, String>,
}

/// One per resource, in the command's order.
#[derive(Clone, PartialEq, Message)]
pub struct ConfigResults {
    #[prost(message, repeated, tag = "1")]
    pub resources: Vec<Outcome>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct ProducerIdsGranted {
    /// The ids are `first` and the `count - 1` after it; epoch 0.
    #[prost(int64, tag = "1")]
    pub first: i64,
    #[prost(uint32, tag = "2")]
    pub count: u32,
}

/// One per group, in the command's order.
#[derive(Clone, PartialEq, Message)]
pub struct GroupResults {
    #[prost(message, repeated, tag = "1")]
    pub groups: Vec<GroupResult>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct GroupResult {
    #[prost(sint32, tag = "1")]
    pub error_code: i32,
    /// The coordinator epoch a claim got.
    #[prost(uint64, tag = "2")]
    pub coordinator_epoch: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct OffsetResults {
    /// For the whole group (NOT_COORDINATOR, UNKNOWN_MEMBER_ID, ILLEGAL_GENERATION, FENCED_INSTANCE_ID, ...).
    #[prost(sint32, tag = "1")]
    pub error_code: i32,
    /// One per offset, in the command's order; empty with an error above.
    #[prost(sint32, repeated, tag = "2")]
    pub error_codes: Vec<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct LogStartResults {
    #[prost(message, repeated, tag = "1")]
    pub partitions: Vec<LogStartResult>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct LogStartResult {
    #[prost(sint32, tag = "1")]
    pub error_code: i32,
    /// The log start after the command; -1 with an error.
    #[prost(sint64, tag = "2")]
    pub log_start: i64,
    /// Retention moved nothing because expiry is held after a jump of the clock.
    #[prost(bool, tag = "3")]
    pub held: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Expired {
    /// How many things were removed.
    #[prost(uint64, tag = "1")]
    pub count: u64,
    /// Where the next command goes on (group name); empty: at the beginning.
    #[prost(string, tag = "2")]
    pub next: String,
    /// Nothing was done because expiry is held after a jump of the clock.
    #[prost(bool, tag = "3")]
    pub held: bool,
}
