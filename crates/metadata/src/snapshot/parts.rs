//! The parts of a snapshot on the wire.

use crate::effect::{BrokerConfigs, ClusterChanged, GroupChanged, OffsetsChanged};
use crate::ids::{LaneId, SessionId, StoreId, StreamId, TopicId};
use crate::record::{
    ClusterFormat, DirectoryRecord, EpochStart, Extent, IndexPointer, ObjectRecord, SessionRecord,
    ShardLeaders, StreamRecord, TopicRecord,
};
use crate::result::ResultRecord;
use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Parts {
    #[prost(message, repeated, tag = "1")]
    pub(super) parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Part {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20")]
    pub(super) kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Kind {
    /// Always the first.
    #[prost(message, tag = "1")]
    Head(Head),
    #[prost(message, tag = "2")]
    BrokerConfigs(BrokerConfigs),
    #[prost(message, tag = "3")]
    Topic(TopicRecord),
    #[prost(message, tag = "4")]
    Partition(PartitionPart),
    #[prost(message, tag = "5")]
    Extents(ExtentsPart),
    #[prost(message, tag = "6")]
    Producers(ProducersPart),
    #[prost(message, tag = "7")]
    Session(SessionRecord),
    #[prost(message, tag = "8")]
    Lane(LanePart),
    #[prost(message, tag = "9")]
    NodeEpoch(NodeEpochPart),
    #[prost(message, tag = "10")]
    Directory(DirectoryRecord),
    #[prost(message, tag = "11")]
    Stream(StreamRecord),
    #[prost(message, tag = "12")]
    Object(ObjectRecord),
    #[prost(message, tag = "13")]
    Group(GroupChanged),
    #[prost(message, tag = "14")]
    Offsets(OffsetsChanged),
    #[prost(message, tag = "15")]
    Leaders(ShardLeaders),
    #[prost(message, tag = "16")]
    Grant(GrantPart),
    /// Always the last.
    #[prost(message, tag = "17")]
    End(End),
    #[prost(message, tag = "18")]
    DeletedTopic(DeletedTopicPart),
    #[prost(message, tag = "19")]
    Pointers(PointersPart),
    #[prost(message, tag = "20")]
    Live(LivePart),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Head {
    #[prost(message, required, tag = "1")]
    pub(super) format: ClusterFormat,
    #[prost(uint64, tag = "2")]
    pub(super) index: u64,
    #[prost(int64, tag = "3")]
    pub(super) time_ms: i64,
    #[prost(message, required, tag = "4")]
    pub(super) cluster: ClusterChanged,
    #[prost(fixed64, tag = "5")]
    pub(super) hash: u64,
    #[prost(uint64, tag = "6")]
    pub(super) next_session: u64,
    #[prost(uint64, tag = "7")]
    pub(super) next_stream: u64,
    #[prost(uint64, tag = "8")]
    pub(super) next_object: u64,
    #[prost(uint64, tag = "9")]
    pub(super) next_producer: u64,
    #[prost(uint64, tag = "10")]
    pub(super) next_coordinator_epoch: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PartitionPart {
    #[prost(message, required, tag = "1")]
    pub(super) topic_id: TopicId,
    #[prost(int32, tag = "2")]
    pub(super) partition: i32,
    #[prost(int64, tag = "3")]
    pub(super) log_start: i64,
    #[prost(int64, tag = "4")]
    pub(super) high_watermark: i64,
    #[prost(int64, tag = "5")]
    pub(super) last_stable_offset: i64,
    #[prost(message, repeated, tag = "6")]
    pub(super) epochs: Vec<EpochStart>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ExtentsPart {
    #[prost(message, required, tag = "1")]
    pub(super) topic_id: TopicId,
    #[prost(int32, tag = "2")]
    pub(super) partition: i32,
    /// None: WAL and Inline extents.
    #[prost(message, optional, tag = "3")]
    pub(super) store: Option<StoreId>,
    #[prost(message, repeated, tag = "4")]
    pub(super) extents: Vec<Extent>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DeletedTopicPart {
    #[prost(message, required, tag = "1")]
    pub(super) record: TopicRecord,
    #[prost(int64, tag = "2")]
    pub(super) deleted_ms: i64,
    #[prost(int64, tag = "3")]
    pub(super) purge_ms: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PointersPart {
    #[prost(message, required, tag = "1")]
    pub(super) topic_id: TopicId,
    #[prost(int32, tag = "2")]
    pub(super) partition: i32,
    #[prost(message, required, tag = "3")]
    pub(super) store: StoreId,
    #[prost(message, repeated, tag = "4")]
    pub(super) pointers: Vec<IndexPointer>,
}

/// Live chunks of a stream; two lists of one length.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LivePart {
    #[prost(message, required, tag = "1")]
    pub(super) stream: StreamId,
    #[prost(uint64, repeated, tag = "2")]
    pub(super) chunks: Vec<u64>,
    /// Log indexes of their commits.
    #[prost(uint64, repeated, tag = "3")]
    pub(super) indexes: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ProducersPart {
    #[prost(message, required, tag = "1")]
    pub(super) topic_id: TopicId,
    #[prost(int32, tag = "2")]
    pub(super) partition: i32,
    #[prost(message, repeated, tag = "3")]
    pub(super) producers: Vec<ProducerPart>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ProducerPart {
    #[prost(int64, tag = "1")]
    pub(super) producer_id: i64,
    #[prost(int32, tag = "2")]
    pub(super) epoch: i32,
    #[prost(int64, tag = "3")]
    pub(super) last_ms: i64,
    #[prost(message, repeated, tag = "4")]
    pub(super) batches: Vec<KeptBatchPart>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct KeptBatchPart {
    #[prost(int32, tag = "1")]
    pub(super) base_sequence: i32,
    #[prost(int32, tag = "2")]
    pub(super) last_sequence: i32,
    #[prost(int64, tag = "3")]
    pub(super) base_offset: i64,
    #[prost(sint64, tag = "4")]
    pub(super) append_time_ms: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LanePart {
    #[prost(message, required, tag = "1")]
    pub(super) session: SessionId,
    #[prost(message, required, tag = "2")]
    pub(super) lane: LaneId,
    #[prost(uint64, tag = "3")]
    pub(super) floor: u64,
    #[prost(uint64, tag = "4")]
    pub(super) next: u64,
    /// More results of the same lane may come in another part.
    #[prost(message, repeated, tag = "5")]
    pub(super) results: Vec<NumberedResult>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NumberedResult {
    #[prost(uint64, tag = "1")]
    pub(super) number: u64,
    #[prost(message, required, tag = "2")]
    pub(super) result: ResultRecord,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct NodeEpochPart {
    #[prost(int32, tag = "1")]
    pub(super) node_id: i32,
    #[prost(uint64, tag = "2")]
    pub(super) epoch: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct GrantPart {
    #[prost(int64, tag = "1")]
    pub(super) next_producer_id: i64,
    #[prost(int64, tag = "2")]
    pub(super) time_ms: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct End {
    /// Parts before this one.
    #[prost(uint64, tag = "1")]
    pub(super) parts: u64,
}
