//! Records: what the metadata holds about one thing, as effects and snapshots write it.

use crate::ids::{
    DirectoryId, Durability, LaneId, ObjectId, PlacementId, SessionId, StoreId, StreamId, TopicId,
};
use bytes::Bytes;
use prost::Message;
use std::collections::BTreeMap;

// ---- cluster ----

/// Version of [`ClusterFormat`].
pub const FORMAT_VERSION: u32 = 1;

/// What is fixed when a cluster is formatted, or raised by `recover`.
#[derive(Clone, PartialEq, Message)]
pub struct ClusterFormat {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Kafka's cluster id: 22 characters of base64url over 16 random bytes.
    #[prost(string, tag = "2")]
    pub cluster_id: String,
    /// S: how many shards the partitions fall into.
    #[prost(uint32, tag = "3")]
    pub shards: u32,
    /// A counter that `recover` raises; at most [`crate::ids::MAX_INCARNATION`].
    #[prost(uint32, tag = "4")]
    pub incarnation: u32,
    /// The feature level it starts with.
    #[prost(uint32, tag = "5")]
    pub feature_level: u32,
    /// Least write quorum of a stream: 1 for `dev`, else 2.
    #[prost(uint32, tag = "6")]
    pub write_quorum: u32,
    #[prost(message, repeated, tag = "7")]
    pub stores: Vec<StoreRecord>,
    #[prost(message, required, tag = "8")]
    pub archive_store: StoreId,
    /// Class 0 must be there.
    #[prost(message, repeated, tag = "9")]
    pub placements: Vec<PlacementRecord>,
}

impl ClusterFormat {
    /// One store, one voter, one WAL replica: what `isobar dev` formats.
    pub fn dev(cluster_id: String, store_name: String) -> Self {
        Self {
            version: FORMAT_VERSION,
            cluster_id,
            shards: 64,
            incarnation: 0,
            feature_level: crate::command::FEATURE_LEVEL,
            write_quorum: 1,
            stores: vec![StoreRecord { store: StoreId(1), name: store_name }],
            archive_store: StoreId(1),
            placements: vec![PlacementRecord::default()],
        }
    }
}

/// A bucket in one cloud region.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StoreRecord {
    #[prost(message, required, tag = "1")]
    pub store: StoreId,
    /// For example `aws-use1`.
    #[prost(string, tag = "2")]
    pub name: String,
}

/// Which stores may hold a topic (empty: every one), which must before the WAL lets go (empty: any one), and which get a
/// copy later.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PlacementRecord {
    #[prost(message, required, tag = "1")]
    pub placement: PlacementId,
    #[prost(message, repeated, tag = "2")]
    pub allow: Vec<StoreId>,
    #[prost(message, repeated, tag = "3")]
    pub require: Vec<StoreId>,
    #[prost(message, repeated, tag = "4")]
    pub mirror: Vec<StoreId>,
}

// ---- sessions ----

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum SessionState {
    Live = 0,
    /// Its connection is lost. Counts as left for the leader map; may still commit.
    Suspect = 1,
    /// Stopping: out of the leader map; may still commit.
    Draining = 2,
    /// Over. Can commit nothing.
    Fenced = 3,
}

/// One life of a broker.
#[derive(Clone, PartialEq, Message)]
pub struct SessionRecord {
    #[prost(message, required, tag = "1")]
    pub session: SessionId,
    #[prost(int32, tag = "2")]
    pub node_id: i32,
    /// Counts the lives of this node id, from 1; fencing bumps it. Kafka's broker epoch.
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
    #[prost(message, required, tag = "4")]
    pub life: DirectoryId,
    #[prost(enumeration = "SessionState", tag = "5")]
    pub state: i32,
    #[prost(string, tag = "6")]
    pub host: String,
    #[prost(int32, tag = "7")]
    pub port: i32,
    #[prost(string, tag = "8")]
    pub cloud: String,
    #[prost(string, tag = "9")]
    pub region: String,
    #[prost(string, tag = "10")]
    pub zone: String,
    #[prost(message, required, tag = "11")]
    pub home_store: StoreId,
    #[prost(message, optional, tag = "12")]
    pub directory: Option<DirectoryId>,
    #[prost(uint32, tag = "13")]
    pub feature_level: u32,
    #[prost(int64, tag = "14")]
    pub registered_ms: i64,
    /// 0 while it lives.
    #[prost(int64, tag = "15")]
    pub fenced_ms: i64,
    /// Where other nodes reach it; empty: nowhere, or it registered below feature level 5.
    #[prost(string, tag = "16")]
    pub rpc: String,
}

impl SessionRecord {
    pub fn is_fenced(&self) -> bool {
        self.state == SessionState::Fenced as i32
    }
    /// Neither fenced nor suspect nor draining.
    pub fn is_live(&self) -> bool {
        self.state == SessionState::Live as i32
    }
}

/// A registered WAL directory.
#[derive(Clone, PartialEq, Message)]
pub struct DirectoryRecord {
    #[prost(message, required, tag = "1")]
    pub directory: DirectoryId,
    #[prost(int32, tag = "2")]
    pub node_id: i32,
    #[prost(string, tag = "3")]
    pub zone: String,
    #[prost(string, tag = "4")]
    pub cloud: String,
    #[prost(enumeration = "DirectoryState", tag = "5")]
    pub state: i32,
}

impl DirectoryRecord {
    /// New streams may name it.
    pub fn takes_streams(&self) -> bool {
        self.state == DirectoryState::InUse as i32
    }
    /// It is out for good: what lay there is nowhere else to be looked for.
    pub fn is_removed(&self) -> bool {
        self.state == DirectoryState::Removed as i32
    }
}

/// Of a WAL directory. Ids are never reused, so one that was removed stays known as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum DirectoryState {
    InUse = 0,
    /// No new stream names it; those that do go on until they are closed.
    Draining = 1,
    /// An operator took it out.
    Removed = 2,
}

/// The leaders of one shard. Any broker serves; leaders only gather.
#[derive(Clone, PartialEq, Message)]
pub struct ShardLeaders {
    #[prost(uint32, tag = "1")]
    pub shard: u32,
    /// Bumped by each change of this shard's leaders.
    #[prost(uint32, tag = "2")]
    pub version: u32,
    /// Ordered by zone. The one with the empty zone is chosen among all brokers, for zones without brokers.
    #[prost(message, repeated, tag = "3")]
    pub leaders: Vec<ZoneLeader>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ZoneLeader {
    #[prost(string, tag = "1")]
    pub zone: String,
    #[prost(int32, tag = "2")]
    pub node_id: i32,
    #[prost(message, required, tag = "3")]
    pub session: SessionId,
}

// ---- streams ----

/// A lane's chunks on one ensemble of WAL replicas.
#[derive(Clone, PartialEq, Message)]
pub struct StreamRecord {
    #[prost(message, required, tag = "1")]
    pub stream: StreamId,
    #[prost(message, required, tag = "2")]
    pub session: SessionId,
    #[prost(message, required, tag = "3")]
    pub lane: LaneId,
    #[prost(message, repeated, tag = "4")]
    pub ensemble: Vec<DirectoryId>,
    #[prost(uint32, tag = "5")]
    pub write_quorum: u32,
    #[prost(bool, tag = "6")]
    pub closed: bool,
    /// The highest chunk number a commit named; in a closed stream every chunk that is not live is garbage, in an open one
    /// every chunk up to this that is not live.
    #[prost(uint64, tag = "7")]
    pub last_chunk: u64,
    /// False until the first commit, when `last_chunk` means nothing.
    #[prost(bool, tag = "8")]
    pub committed: bool,
}

// ---- locations and extents ----

/// That offsets `[base_offset, last_offset]` of a partition lie at a location.
#[derive(Clone, PartialEq, Message)]
pub struct Extent {
    #[prost(int64, tag = "1")]
    pub base_offset: i64,
    /// Inclusive.
    #[prost(int64, tag = "2")]
    pub last_offset: i64,
    /// The greatest timestamp in it; with LogAppendTime the append time.
    #[prost(int64, tag = "3")]
    pub max_timestamp_ms: i64,
    /// What the reader must still stamp: at 0 or more, the topic said LogAppendTime when the batches were sequenced, their
    /// bytes at the location are as the producer sent them, and whoever reads them there (Fetch from the WAL, the uploader)
    /// sets the timestamp type bit and max timestamp to this and sums the CRC anew. -1: nothing to stamp. Object extents
    /// have -1, for their bytes are final, unless their location is `unstamped`.
    #[prost(sint64, tag = "4")]
    pub append_time_ms: i64,
    /// Bytes of its batches, for `retention.bytes`.
    #[prost(uint64, tag = "5")]
    pub size_bytes: u64,
    #[prost(oneof = "Location", tags = "10, 11, 12")]
    pub location: Option<Location>,
}

static NOWHERE: Location = Location::Inline(InlineLocation { kind: 0, data: Bytes::new(), batches: 0 });

impl Extent {
    /// Where the bytes are. (`location` is an `Option` for protobuf only; what was decoded has one.)
    pub fn location(&self) -> &Location {
        self.location.as_ref().unwrap_or(&NOWHERE)
    }
    /// One past the last offset.
    pub fn end_offset(&self) -> i64 {
        self.last_offset + 1
    }
    pub fn contains(&self, offset: i64) -> bool {
        self.base_offset <= offset && offset <= self.last_offset
    }
    /// Where it lies, if it lies in an object.
    pub fn object(&self) -> Option<ObjectLocation> {
        match self.location {
            Some(Location::Object(object)) => Some(object),
            _ => None,
        }
    }
    /// The chunk it lies in, if it lies in the WAL.
    pub fn wal(&self) -> Option<WalLocation> {
        match self.location {
            Some(Location::Wal(wal)) => Some(wal),
            _ => None,
        }
    }
}

/// Where bytes are.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Location {
    #[prost(message, tag = "10")]
    Wal(WalLocation),
    #[prost(message, tag = "11")]
    Object(ObjectLocation),
    #[prost(message, tag = "12")]
    Inline(InlineLocation),
}

/// Batches in a chunk. Their offsets are the extent's base offset and up, in order of ordinal, without holes.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct WalLocation {
    #[prost(message, required, tag = "1")]
    pub stream: StreamId,
    #[prost(uint64, tag = "2")]
    pub chunk: u64,
    /// The first batch's ordinal in the chunk.
    #[prost(uint32, tag = "3")]
    pub first_batch: u32,
    /// How many consecutive ordinals.
    #[prost(uint32, tag = "4")]
    pub batches: u32,
}

impl WalLocation {
    /// Ordinals in the chunk.
    pub fn ordinals(&self) -> std::ops::Range<u32> {
        self.first_batch..self.first_batch + self.batches
    }
}

/// A byte range of an object: whole batches, with final offsets and bytes unless `unstamped`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ObjectLocation {
    #[prost(message, required, tag = "1")]
    pub object: ObjectId,
    #[prost(uint64, tag = "2")]
    pub position: u64,
    #[prost(uint32, tag = "3")]
    pub size_bytes: u32,
    /// The batches lie there as a WAL chunk has them (durability class `object`): the reader stamps offsets from the
    /// extent's base on, leader epochs by offset, and the extent's `append_time_ms`.
    #[prost(bool, tag = "4")]
    pub unstamped: bool,
}

impl ObjectLocation {
    /// Final bytes.
    pub const fn new(object: ObjectId, position: u64, size_bytes: u32) -> Self {
        Self { object, position, size_bytes, unstamped: false }
    }
    /// Byte range in the object.
    pub fn range(&self) -> std::ops::Range<u64> {
        self.position..self.position + u64::from(self.size_bytes)
    }
}

/// That the extents of `[base_offset, last_offset]` of a partition in one store are listed by a block of an index object.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct IndexPointer {
    #[prost(int64, tag = "1")]
    pub base_offset: i64,
    /// Inclusive.
    #[prost(int64, tag = "2")]
    pub last_offset: i64,
    /// The index object.
    #[prost(message, required, tag = "3")]
    pub object: ObjectId,
    /// Byte range of the block within it.
    #[prost(uint64, tag = "4")]
    pub position: u64,
    #[prost(uint32, tag = "5")]
    pub size_bytes: u32,
    /// How many extents the block lists.
    #[prost(uint32, tag = "6")]
    pub extents: u32,
    /// Sum of their sizes.
    #[prost(uint64, tag = "7")]
    pub bytes: u64,
    /// The greatest of theirs.
    #[prost(int64, tag = "8")]
    pub max_timestamp_ms: i64,
    /// The data objects they lie in, with the bytes of each: [`IndexPointer::objects`].
    #[prost(bytes = "bytes", tag = "9")]
    pub objects: Bytes,
}

impl IndexPointer {
    /// One past the last offset.
    pub fn end_offset(&self) -> i64 {
        self.last_offset + 1
    }
    pub fn contains(&self, offset: i64) -> bool {
        self.base_offset <= offset && offset <= self.last_offset
    }
    /// Byte range of the block within the index object.
    pub fn range(&self) -> std::ops::Range<u64> {
        self.position..self.position + u64::from(self.size_bytes)
    }
    /// The data objects that its extents lie in, ascending, and how many bytes of extents in each.
    pub fn objects(&self) -> impl Iterator<Item = (ObjectId, u64)> + '_ {
        let mut rest = &self.objects[..];
        let mut object = 0_u64;
        std::iter::from_fn(move || {
            let delta = prost::encoding::decode_varint(&mut rest).ok()?;
            let bytes = prost::encoding::decode_varint(&mut rest).ok()?;
            object = object.wrapping_add(delta);
            Some((ObjectId(object), bytes))
        })
    }
    /// `objects` as the field holds them: of each the distance from the one before and its bytes, as varints.
    pub fn pack_objects(objects: &BTreeMap<ObjectId, u64>) -> Bytes {
        let mut packed = Vec::with_capacity(objects.len() * 4 + 8);
        let mut before = 0;
        for (object, bytes) in objects {
            prost::encoding::encode_varint(object.0 - before, &mut packed);
            prost::encoding::encode_varint(*bytes, &mut packed);
            before = object.0;
        }
        packed.into()
    }
}

/// Batches carried by, or a function of, the command itself. No command makes one yet; formats carry it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InlineLocation {
    /// 0: `data` holds the batches, final but for offsets.
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub data: Bytes,
    #[prost(uint32, tag = "3")]
    pub batches: u32,
}

/// From `start_offset` on, batches are stamped with `leader_epoch`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct EpochStart {
    #[prost(int32, tag = "1")]
    pub leader_epoch: i32,
    #[prost(int64, tag = "2")]
    pub start_offset: i64,
}

/// The leader epoch that the batch at `offset` is stamped with; `epochs` ascending by offset.
pub fn epoch_at(epochs: &[EpochStart], offset: i64) -> i32 {
    let after = epochs.partition_point(|epoch| epoch.start_offset <= offset);
    epochs.get(after.saturating_sub(1)).map_or(0, |epoch| epoch.leader_epoch)
}

// ---- objects ----

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ObjectState {
    /// Granted; may be committed until its deadline.
    Prepared = 0,
    /// Some extent points at it, or more parts may follow.
    Committed = 1,
    /// No extent points at it and none ever will. May be deleted after the grace period and the cut.
    Unreferenced = 2,
    /// Deleted once; deletes are repeated for a day.
    Deleted = 3,
}

/// Values of [`ObjectRecord::level`].
pub mod object_level {
    /// An upload, or a chunk of the class `object`.
    pub const UPLOAD: u32 = 0;
    /// Compacted, of several topics.
    pub const MERGED: u32 = 1;
    /// Compacted, of one topic.
    pub const SINGLE_TOPIC: u32 = 2;
    /// An index object: never compacted.
    pub const INDEX: u32 = 16;
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct ObjectRecord {
    #[prost(message, required, tag = "1")]
    pub object: ObjectId,
    #[prost(enumeration = "ObjectState", tag = "2")]
    pub state: i32,
    /// Where a commit said it lies; 0 while prepared.
    #[prost(message, required, tag = "3")]
    pub store: StoreId,
    #[prost(int64, tag = "4")]
    pub deadline_ms: i64,
    #[prost(uint64, tag = "5")]
    pub size_bytes: u64,
    /// When it reached its state, and at which log index.
    #[prost(int64, tag = "6")]
    pub since_ms: i64,
    #[prost(uint64, tag = "7")]
    pub since_index: u64,
    /// The last part has been committed.
    #[prost(bool, tag = "8")]
    pub complete: bool,
    /// The session it was granted to.
    #[prost(message, required, tag = "9")]
    pub session: SessionId,
    /// [`object_level`], as the commit said.
    #[prost(uint32, tag = "10")]
    pub level: u32,
}

// ---- topics ----

#[derive(Clone, PartialEq, Message)]
pub struct TopicRecord {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(int32, tag = "3")]
    pub partitions: i32,
    /// As asked for at creation; shown, not used.
    #[prost(int32, tag = "4")]
    pub replication_factor: i32,
    /// Overrides only.
    #[prost(btree_map = "string, string", tag = "5")]
    pub configs: BTreeMap<String, String>,
    #[prost(message, required, tag = "6")]
    pub placement: PlacementId,
    /// Bumped when the durability class or the placement changes.
    #[prost(uint32, tag = "7")]
    pub class_epoch: u32,
    #[prost(int64, tag = "8")]
    pub created_ms: i64,
}

// ---- groups ----

/// What kind of group it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum GroupKind {
    /// JoinGroup and SyncGroup, and simple consumers that only commit.
    Classic = 0,
    /// KIP-848.
    Consumer = 1,
}

/// State of a classic group, as the coordinator recorded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum GroupState {
    Empty = 0,
    PreparingRebalance = 1,
    CompletingRebalance = 2,
    Stable = 3,
}

/// Members, generation and assignment of a group; what the next coordinator needs so that a stable group does not
/// rebalance for its taking over.
#[derive(Clone, PartialEq, Message)]
pub struct GroupRecord {
    #[prost(enumeration = "GroupKind", tag = "1")]
    pub kind: i32,
    #[prost(enumeration = "GroupState", tag = "2")]
    pub state: i32,
    #[prost(int32, tag = "3")]
    pub generation: i32,
    /// Empty for a group of simple consumers.
    #[prost(string, tag = "4")]
    pub protocol_type: String,
    #[prost(string, optional, tag = "5")]
    pub protocol: Option<String>,
    #[prost(string, optional, tag = "6")]
    pub leader: Option<String>,
    #[prost(message, repeated, tag = "7")]
    pub members: Vec<MemberRecord>,
}

#[derive(Clone, PartialEq, Message)]
pub struct MemberRecord {
    #[prost(string, tag = "1")]
    pub member_id: String,
    #[prost(string, optional, tag = "2")]
    pub instance_id: Option<String>,
    #[prost(string, tag = "3")]
    pub client_id: String,
    #[prost(string, tag = "4")]
    pub client_host: String,
    #[prost(int32, tag = "5")]
    pub session_timeout_ms: i32,
    #[prost(int32, tag = "6")]
    pub rebalance_timeout_ms: i32,
    /// In the member's order of preference.
    #[prost(message, repeated, tag = "7")]
    pub protocols: Vec<MemberProtocol>,
    #[prost(bytes = "bytes", tag = "8")]
    pub assignment: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub struct MemberProtocol {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub metadata: Bytes,
}

/// A committed offset.
#[derive(Clone, PartialEq, Message)]
pub struct OffsetRecord {
    #[prost(int64, tag = "1")]
    pub offset: i64,
    /// -1: none.
    #[prost(sint32, tag = "2")]
    pub leader_epoch: i32,
    #[prost(string, tag = "3")]
    pub metadata: String,
    #[prost(int64, tag = "4")]
    pub commit_time_ms: i64,
}

impl TopicRecord {
    /// The durability class its configs say.
    pub fn durability(&self) -> Durability {
        match self.configs.get("isobar.durability").map(String::as_str) {
            Some("object") => Durability::Object,
            _ => Durability::Wal,
        }
    }
}
