//! Commands: what the Raft log holds. An [`Entry`] is one Raft entry: a time and commands, each in an [`Envelope`] with
//! the (session, lane, number) by which a repeat is found.

use crate::error::MetadataError;
use crate::ids::{DirectoryId, LaneId, ObjectId, PlacementId, SessionId, StoreId, StreamId, TopicId};
use crate::record::GroupRecord;
use bytes::Bytes;
use prost::Message;
use std::collections::BTreeMap;

/// Version of the entry format that this binary writes, and the highest it reads.
pub const ENTRY_VERSION: u32 = 1;
/// The feature level this binary implements. A cluster at a higher one must not be joined by this binary.
///
/// 1: what issue 3 built. 2: soft delete, retention, the durability class `object`, compaction, index objects, archive.
/// 3: WAL directories are drained and removed.
pub const FEATURE_LEVEL: u32 = 3;
/// The largest encoded [`Entry`], in bytes.
pub const MAX_ENTRY_BYTES: usize = 1 << 20;
/// The most batches that one [`CommitChunk`] may sequence: with so many, each in a partition of its own and every number
/// at its largest, it still fits an entry.
pub const MAX_CHUNK_BATCHES: usize = 8_000;
/// The first number of every lane of a session. 0 is no number.
pub const FIRST_NUMBER: u64 = 1;

/// One Raft entry.
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    /// [`ENTRY_VERSION`] of its writer.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Wall clock in ms, given by the leader. The state machine's time is the maximum of this and its time so far.
    #[prost(int64, tag = "2")]
    pub time_ms: i64,
    #[prost(message, repeated, tag = "3")]
    pub commands: Vec<Envelope>,
}

impl Entry {
    pub fn new(time_ms: i64, commands: Vec<Envelope>) -> Self {
        Self { version: ENTRY_VERSION, time_ms, commands }
    }

    /// Decodes an entry from the log. A later format, or a command this binary does not know, is an error: applying the
    /// rest would make this replica another state machine. `Bytes` inside share `bytes`.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, MetadataError> {
        let entry = Self::decode(bytes)?;
        if entry.version == 0 || entry.version > ENTRY_VERSION {
            return Err(MetadataError::Version { what: "entry", found: entry.version, known: ENTRY_VERSION });
        }
        if entry.commands.iter().any(|envelope| envelope.command.is_none()) {
            return Err(MetadataError::Unknown { what: "command" });
        }
        Ok(entry)
    }
}

/// A command with the name under which a repeat of it is found (invariant 9).
#[derive(Clone, PartialEq, Message)]
pub struct Envelope {
    /// Who asks. [`SessionId::NONE`] for registration and the leader's own commands, which repeat harmlessly.
    #[prost(message, required, tag = "1")]
    pub session: SessionId,
    #[prost(message, required, tag = "2")]
    pub lane: LaneId,
    /// The command's number in its lane, from [`FIRST_NUMBER`]. In a commit lane only the next one is accepted.
    #[prost(uint64, tag = "3")]
    pub number: u64,
    /// The lowest number of this lane that the session still waits for; results below it are dropped.
    #[prost(uint64, tag = "4")]
    pub floor: u64,
    /// Never `None` in an entry that [`Entry::from_bytes`] let through.
    #[prost(
        oneof = "Command",
        tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, \
                38, 39, 40, 41, 42, 43"
    )]
    pub command: Option<Command>,
}

impl Envelope {
    pub fn new(session: SessionId, lane: LaneId, number: u64, floor: u64, command: Command) -> Self {
        Self { session, lane, number, floor, command: Some(command) }
    }

    /// A command that names no session: registration, fencing, expiry and the like.
    pub fn unnumbered(command: Command) -> Self {
        Self::new(SessionId::NONE, LaneId::CONTROL, 0, 0, command)
    }
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Command {
    /// Unnumbered; a repeat is known by the `life` it names.
    #[prost(message, tag = "10")]
    RegisterSession(RegisterSession),
    /// Unnumbered.
    #[prost(message, tag = "11")]
    FenceSession(FenceSession),
    /// Unnumbered.
    #[prost(message, tag = "12")]
    UpdateSession(UpdateSession),
    /// Unnumbered.
    #[prost(message, tag = "13")]
    RegisterDirectory(RegisterDirectory),
    #[prost(message, tag = "14")]
    OpenStream(OpenStream),
    #[prost(message, tag = "15")]
    CloseStream(CloseStream),
    /// The only command of a commit lane.
    #[prost(message, tag = "16")]
    CommitChunk(CommitChunk),
    #[prost(message, tag = "17")]
    GrantObjects(GrantObjects),
    #[prost(message, tag = "18")]
    CommitObject(CommitObject),
    /// Unnumbered or numbered.
    #[prost(message, tag = "19")]
    ExpireObjects(ExpireObjects),
    #[prost(message, tag = "20")]
    ObjectsDeleted(ObjectsDeleted),
    #[prost(message, tag = "21")]
    CreateTopics(CreateTopics),
    #[prost(message, tag = "22")]
    DeleteTopics(DeleteTopics),
    #[prost(message, tag = "23")]
    CreatePartitions(CreatePartitions),
    #[prost(message, tag = "24")]
    AlterConfigs(AlterConfigs),
    #[prost(message, tag = "25")]
    MoveLogStart(MoveLogStart),
    #[prost(message, tag = "26")]
    GrantProducerId(GrantProducerId),
    /// Unnumbered or numbered.
    #[prost(message, tag = "27")]
    ExpireProducers(ExpireProducers),
    #[prost(message, tag = "28")]
    ClaimGroups(ClaimGroups),
    #[prost(message, tag = "29")]
    PutGroup(PutGroup),
    #[prost(message, tag = "30")]
    CommitOffsets(CommitOffsets),
    #[prost(message, tag = "31")]
    DeleteGroups(DeleteGroups),
    #[prost(message, tag = "32")]
    DeleteOffsets(DeleteOffsets),
    /// Unnumbered or numbered.
    #[prost(message, tag = "33")]
    ExpireOffsets(ExpireOffsets),
    /// Unnumbered.
    #[prost(message, tag = "34")]
    SetFeatureLevel(SetFeatureLevel),
    /// Unnumbered.
    #[prost(message, tag = "35")]
    SetWriteQuorum(SetWriteQuorum),
    /// Unnumbered.
    #[prost(message, tag = "36")]
    RaiseIncarnation(RaiseIncarnation),
    /// Level 2.
    #[prost(message, tag = "37")]
    UndeleteTopic(UndeleteTopic),
    /// Level 2.
    #[prost(message, tag = "38")]
    PurgeTopics(PurgeTopics),
    /// Level 2. Unnumbered or numbered.
    #[prost(message, tag = "39")]
    ExpireTopics(ExpireTopics),
    /// Level 2.
    #[prost(message, tag = "40")]
    CompactObjects(CompactObjects),
    /// Level 2.
    #[prost(message, tag = "41")]
    CommitIndex(CommitIndex),
    /// Level 2. Unnumbered.
    #[prost(message, tag = "42")]
    ArchiveAdvanced(ArchiveAdvanced),
    /// Level 3. Unnumbered.
    #[prost(message, tag = "43")]
    UpdateDirectory(UpdateDirectory),
}

// ---- sessions, directories, cluster ----

/// Registers one life of a broker and fences the node's earlier one. The leader decides whether that may be done.
#[derive(Clone, PartialEq, Message)]
pub struct RegisterSession {
    /// Kafka's broker id.
    #[prost(int32, tag = "1")]
    pub node_id: i32,
    /// A random id of this registration. A repeat of it answers as the first did; a fenced broker that registers anew takes
    /// another.
    #[prost(message, required, tag = "2")]
    pub life: DirectoryId,
    /// What clients connect to.
    #[prost(string, tag = "3")]
    pub host: String,
    #[prost(int32, tag = "4")]
    pub port: i32,
    #[prost(string, tag = "5")]
    pub cloud: String,
    #[prost(string, tag = "6")]
    pub region: String,
    /// Kafka's rack. Empty: none.
    #[prost(string, tag = "7")]
    pub zone: String,
    #[prost(message, required, tag = "8")]
    pub home_store: StoreId,
    /// The node's WAL directory, if it has one.
    #[prost(message, optional, tag = "9")]
    pub directory: Option<DirectoryId>,
    /// The highest feature level its binary implements.
    #[prost(uint32, tag = "10")]
    pub feature_level: u32,
}

/// Ends a session: it can commit nothing more, its streams are closed.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct FenceSession {
    #[prost(message, required, tag = "1")]
    pub session: SessionId,
}

/// Moves a live session between live, suspect and draining. The last two leave the leader map.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct UpdateSession {
    #[prost(message, required, tag = "1")]
    pub session: SessionId,
    /// [`crate::record::SessionState`]; fenced is refused here.
    #[prost(enumeration = "crate::record::SessionState", tag = "2")]
    pub state: i32,
}

/// Registers the incarnation of a WAL directory, so that ensembles may name it.
#[derive(Clone, PartialEq, Message)]
pub struct RegisterDirectory {
    #[prost(message, required, tag = "1")]
    pub directory: DirectoryId,
    #[prost(int32, tag = "2")]
    pub node_id: i32,
    #[prost(string, tag = "3")]
    pub zone: String,
    #[prost(string, tag = "4")]
    pub cloud: String,
}

/// Keeps new streams off a WAL directory, lets them come to it again, or takes it out for good. Needs feature level 3.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct UpdateDirectory {
    #[prost(message, required, tag = "1")]
    pub directory: DirectoryId,
    #[prost(enumeration = "crate::record::DirectoryState", tag = "2")]
    pub state: i32,
    /// With [`crate::record::DirectoryState::Removed`]: what lies there is gone or given up, so chunks that are not
    /// uploaded yet do not keep it. Open streams do.
    #[prost(bool, tag = "3")]
    pub lost: bool,
}

/// Raises the cluster's feature level. Never lowers it.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct SetFeatureLevel {
    #[prost(uint32, tag = "1")]
    pub level: u32,
}

/// Raises the least write quorum a stream may have. Never lowers it.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct SetWriteQuorum {
    #[prost(uint32, tag = "1")]
    pub write_quorum: u32,
}

/// A `recover`: from here on ids and leader epochs are of this incarnation, all sessions are fenced and all streams closed.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct RaiseIncarnation {
    /// Above the one so far, at most [`crate::ids::MAX_INCARNATION`].
    #[prost(uint32, tag = "1")]
    pub incarnation: u32,
}

/// The archive holds every entry up to `through`, and a snapshot at or below `cut`. Objects that were unreferenced at or
/// below the cut may be deleted.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct ArchiveAdvanced {
    /// An index that was applied before this command.
    #[prost(uint64, tag = "1")]
    pub through: u64,
    /// [`crate::Image::recovery_cut`] of the image at `through`. A cut beyond today's is INVALID_REQUEST.
    #[prost(uint64, tag = "2")]
    pub cut: u64,
}

// ---- streams and chunks ----

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

// ---- objects ----

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

// ---- topics and configs ----

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

// ---- producers ----

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

// ---- groups ----

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
