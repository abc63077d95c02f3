//! Streams of the WAL, and the chunks in them.

use prost::Message;

use crate::ids::{DirectoryId, LaneId, ObjectId, StoreId, StreamId, TopicId};

/// Opens a stream for a commit lane of the asking session; the answer names it.
#[derive(Clone, PartialEq, Message)]
pub struct OpenStream {
    /// The commit lane whose chunks it takes; never the control lane.
    #[prost(message, required, tag = "1")]
    pub lane: LaneId,
    /// Incarnations of the WAL directories, distinct and registered; at most 32.
    #[prost(message, repeated, tag = "2")]
    pub ensemble: Vec<DirectoryId>,
    #[prost(uint32, tag = "3")]
    pub write_quorum: u32,
}

/// Closes a stream of the asking session: no commit or swap may name it any more as a target. Its chunks stay readable.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct CloseStream {
    #[prost(message, required, tag = "1")]
    pub stream: StreamId,
}

/// Names another replica in the ensemble of a closed stream, in the place of one that is lost.
///
/// To be proposed once `to` has synced every chunk that is live in an image in which the stream is closed: no chunk can become
/// live after that, so wherever this is applied it has all of them.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct ReplaceReplica {
    #[prost(message, required, tag = "1")]
    pub stream: StreamId,
    #[prost(message, required, tag = "2")]
    pub from: DirectoryId,
    /// Registered, and neither drained nor removed.
    #[prost(message, required, tag = "3")]
    pub to: DirectoryId,
}

/// Sequences a durable chunk. Without partitions: a chunk that was given up, which uses up its number and nothing else (an
/// object that it names becomes unreferenced).
///
/// In a lane of the durability class `object` (level 2) the chunk is an object and there is no stream.
#[derive(Clone, PartialEq, Message)]
pub struct CommitChunk {
    #[prost(message, required, tag = "1")]
    pub stream: StreamId,
    /// The chunk's number in its stream; strictly rising within the stream.
    #[prost(uint64, tag = "2")]
    pub chunk: u64,
    /// The replicas that acknowledged, as bits by their position in the stream's ensemble.
    #[prost(uint32, tag = "3")]
    pub acknowledged: u32,
    #[prost(message, repeated, tag = "4")]
    pub partitions: Vec<CommitPartition>,
    /// The object that is the chunk, in the lanes of the class `object`, where `stream`, `chunk` and `acknowledged` are 0.
    #[prost(message, optional, tag = "5")]
    pub object: Option<ChunkObject>,
}

/// A chunk of the durability class `object`: durable in the store before its commit is proposed.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct ChunkObject {
    /// Prepared, and granted to the asking session; else every batch answers KAFKA_STORAGE_ERROR.
    #[prost(message, required, tag = "1")]
    pub object: ObjectId,
    /// The placement must allow it, and require no other.
    #[prost(message, required, tag = "2")]
    pub store: StoreId,
    /// Size of the whole object in bytes.
    #[prost(uint64, tag = "3")]
    pub size_bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct CommitPartition {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
    #[prost(int32, tag = "2")]
    pub partition: i32,
    /// The topic's class epoch when the batches were taken in; an old one is refused.
    #[prost(uint32, tag = "3")]
    pub class_epoch: u32,
    /// In the order in which they take offsets. Batches with neighbouring ordinals make one extent, so a chunk's table is
    /// best ordered by partition.
    #[prost(message, repeated, tag = "4")]
    pub batches: Vec<CommitBatch>,
    /// Class `object`: where the first batch begins in the object. The others follow each other there, refused ones too.
    #[prost(uint64, tag = "5")]
    pub position: u64,
}

/// A batch's header, as far as sequencing needs it. [`CommitBatch::plain`] makes one without a producer.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct CommitBatch {
    /// The batch's place in the chunk's table.
    #[prost(uint32, tag = "1")]
    pub ordinal: u32,
    /// Offsets it takes: last offset delta + 1.
    #[prost(uint32, tag = "2")]
    pub record_count: u32,
    #[prost(int64, tag = "3")]
    pub max_timestamp_ms: i64,
    /// -1: not idempotent.
    #[prost(sint64, tag = "4")]
    pub producer_id: i64,
    #[prost(sint32, tag = "5")]
    pub producer_epoch: i32,
    #[prost(sint32, tag = "6")]
    pub base_sequence: i32,
    /// [`batch_flags`].
    #[prost(uint32, tag = "7")]
    pub flags: u32,
    /// Encoded size of the batch.
    #[prost(uint32, tag = "8")]
    pub size_bytes: u32,
}

impl CommitBatch {
    /// A batch of a producer that is not idempotent.
    pub fn plain(ordinal: u32, record_count: u32, max_timestamp_ms: i64, size_bytes: u32) -> Self {
        Self {
            ordinal,
            record_count,
            max_timestamp_ms,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            flags: 0,
            size_bytes,
        }
    }
}

/// Bits of [`CommitBatch::flags`].
pub mod batch_flags {
    /// Part of a transaction. Refused INVALID_TXN_STATE until transactions are built.
    pub const TRANSACTIONAL: u32 = 1;
    /// The transaction follows KIP-890 part 2 (Produce v12 and later): the commit adds the partition.
    pub const TV2: u32 = 2;
    /// A control batch. Refused from clients.
    pub const CONTROL: u32 = 4;
}
