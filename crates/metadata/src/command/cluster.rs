//! Sessions of brokers, WAL directories, and the cluster as a whole.

use prost::Message;

use crate::ids::{DirectoryId, SessionId, StoreId};

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
    /// Where other nodes reach it (`host:port`). Empty: nowhere. Anything else needs feature level 5.
    #[prost(string, tag = "11")]
    pub rpc: String,
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
