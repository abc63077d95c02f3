//! Commands: what the Raft log holds. An [`Entry`] is one Raft entry: a time and commands, each in an [`Envelope`] with
//! the (session, lane, number) by which a repeat is found.

mod clients;
mod cluster;
mod objects;
mod streams;
mod topics;

use bytes::Bytes;
use prost::Message;

use crate::error::MetadataError;
use crate::ids::{LaneId, SessionId};

pub use clients::*;
pub use cluster::*;
pub use objects::*;
pub use streams::*;
pub use topics::*;

/// Version of the entry format that this binary writes, and the highest it reads.
pub const ENTRY_VERSION: u32 = 1;
/// The feature level this binary implements. A cluster at a higher one must not be joined by this binary.
///
/// 1: what issue 3 built. 2: soft delete, retention, the durability class `object`, compaction, index objects, archive.
/// 3: WAL directories are drained and removed. 4: a closed stream gets another replica for one that is lost.
/// 5: sessions say where other nodes reach the broker.
pub const FEATURE_LEVEL: u32 = 5;
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
                38, 39, 40, 41, 42, 43, 44"
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
    /// Level 4. Unnumbered.
    #[prost(message, tag = "44")]
    ReplaceReplica(ReplaceReplica),
}
