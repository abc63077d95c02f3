//! Objects in stores.

use prost::Message;

use crate::ids::{ObjectId, StoreId, TopicId};

/// Grants object ids in state *prepared*.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct GrantObjects {
    /// At most 1,000.
    #[prost(uint32, tag = "1")]
    pub count: u32,
    /// How long after the grant they may be committed, in ms of the state machine's time.
    #[prost(int64, tag = "2")]
    pub lifetime_ms: i64,
}

/// Swaps runs to an object that lies in a store. A large object commits in parts.
#[derive(Clone, PartialEq, Message)]
pub struct CommitObject {
    #[prost(message, required, tag = "1")]
    pub object: ObjectId,
    #[prost(message, required, tag = "2")]
    pub store: StoreId,
    #[prost(message, repeated, tag = "3")]
    pub runs: Vec<ObjectRun>,
    /// More parts of this object follow; until the last part or the deadline it cannot become unreferenced.
    #[prost(bool, tag = "4")]
    pub more_parts: bool,
    /// Size of the whole object in bytes.
    #[prost(uint64, tag = "5")]
    pub size_bytes: u64,
}

/// Contiguous whole batches of one partition inside an object, with final offsets and final bytes.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct ObjectRun {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
    #[prost(int32, tag = "2")]
    pub partition: i32,
    #[prost(int64, tag = "3")]
    pub base_offset: i64,
    /// Inclusive.
    #[prost(int64, tag = "4")]
    pub last_offset: i64,
    /// Byte range within the object.
    #[prost(uint64, tag = "5")]
    pub position: u64,
    #[prost(uint32, tag = "6")]
    pub size_bytes: u32,
    /// The greatest max timestamp of its batches.
    #[prost(int64, tag = "7")]
    pub max_timestamp_ms: i64,
}

/// Swaps extents of one store to an object that was compacted from them. A large object commits in parts.
#[derive(Clone, PartialEq, Message)]
pub struct CompactObjects {
    #[prost(message, required, tag = "1")]
    pub object: ObjectId,
    #[prost(message, required, tag = "2")]
    pub store: StoreId,
    /// Size of the whole object in bytes.
    #[prost(uint64, tag = "3")]
    pub size_bytes: u64,
    /// As in [`CommitObject`].
    #[prost(bool, tag = "4")]
    pub more_parts: bool,
    /// [`crate::record::object_level`]: 1 or 2.
    #[prost(uint32, tag = "5")]
    pub level: u32,
    #[prost(message, repeated, tag = "6")]
    pub runs: Vec<CompactedRun>,
}

/// Counts only if the store's list holds exactly the extents it replaces, unchanged, each beginning where the one before
/// ends, the first at the run's first offset and the last ending at its last. Else the run is dead bytes.
#[derive(Clone, PartialEq, Message)]
pub struct CompactedRun {
    #[prost(message, required, tag = "1")]
    pub run: ObjectRun,
    /// In offset order; at least one.
    #[prost(message, repeated, tag = "2")]
    pub replaces: Vec<ReplacedExtent>,
}

/// An extent by what it cannot change without: offsets below the log start may have gone from it.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ReplacedExtent {
    #[prost(int64, tag = "1")]
    pub base_offset: i64,
    #[prost(message, required, tag = "2")]
    pub object: ObjectId,
    #[prost(uint64, tag = "3")]
    pub position: u64,
}

/// Swaps extents to pointers into an index object, which holds [`crate::index_block`]s.
#[derive(Clone, PartialEq, Message)]
pub struct CommitIndex {
    #[prost(message, required, tag = "1")]
    pub object: ObjectId,
    #[prost(message, required, tag = "2")]
    pub store: StoreId,
    /// Size of the whole object in bytes.
    #[prost(uint64, tag = "3")]
    pub size_bytes: u64,
    #[prost(message, repeated, tag = "4")]
    pub runs: Vec<IndexRun>,
}

/// Counts only if the store's list holds in `[base_offset, last_offset]` exactly these extents: as many, of this hash, each
/// beginning where the one before ends, all of them final bytes in objects.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct IndexRun {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
    #[prost(int32, tag = "2")]
    pub partition: i32,
    #[prost(int64, tag = "3")]
    pub base_offset: i64,
    /// Inclusive.
    #[prost(int64, tag = "4")]
    pub last_offset: i64,
    #[prost(uint32, tag = "5")]
    pub extents: u32,
    /// [`crate::index_block::extents_hash`] of them.
    #[prost(fixed64, tag = "6")]
    pub hash: u64,
    /// Byte range of the block within the index object.
    #[prost(uint64, tag = "7")]
    pub position: u64,
    #[prost(uint32, tag = "8")]
    pub size_bytes: u32,
}

/// Prepared objects whose deadline has passed become unreferenced; the commit that comes later is refused.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct ExpireObjects {
    /// At most this many in one command; 0 means 1,000.
    #[prost(uint32, tag = "1")]
    pub limit: u32,
}

/// Reports that DELETE requests for these unreferenced objects were answered. The first report makes an object
/// *deleted*; one that comes a day or more later (deletes are repeated, because a late PUT may land) forgets it.
#[derive(Clone, PartialEq, Message)]
pub struct ObjectsDeleted {
    #[prost(message, repeated, tag = "1")]
    pub objects: Vec<ObjectId>,
}
