//! Effects: what `apply` did. Brokers and WAL replicas follow these, not commands. An effect says everything its follower
//! needs; a follower that holds the image before it holds the image after it.

use crate::command::TopicPartition;
use crate::error::MetadataError;
use crate::ids::{ObjectId, StoreId, StreamId, TopicId};
use crate::record::{
    DirectoryRecord, Extent, GroupRecord, IndexPointer, ObjectRecord, OffsetRecord, SessionRecord,
    ShardLeaders, StreamRecord, TopicRecord,
};
use bytes::Bytes;
use prost::Message;
use std::collections::BTreeMap;

/// Version of the effect format that this binary writes, and the highest it reads.
pub const EFFECT_VERSION: u32 = 1;

/// The effects of one Raft entry; follows the batch whose `index` is this one's `previous`.
#[derive(Clone, PartialEq, Message)]
pub struct EffectBatch {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(uint64, tag = "2")]
    pub index: u64,
    #[prost(uint64, tag = "3")]
    pub previous: u64,
    /// The state machine's time after the entry.
    #[prost(int64, tag = "4")]
    pub time_ms: i64,
    #[prost(message, repeated, tag = "5")]
    pub effects: Vec<Effect>,
}

impl EffectBatch {
    /// Decodes; a later format or an unknown effect is an error, not silence.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, MetadataError> {
        let batch = Self::decode(bytes)?;
        batch.check()?;
        Ok(batch)
    }

    pub(crate) fn check(&self) -> Result<(), MetadataError> {
        if self.version == 0 || self.version > EFFECT_VERSION {
            return Err(MetadataError::Version {
                what: "effects",
                found: self.version,
                known: EFFECT_VERSION,
            });
        }
        for effect in &self.effects {
            match &effect.kind {
                None => return Err(MetadataError::Unknown { what: "effect" }),
                Some(EffectKind::Appended(append)) if append.extent.location.is_none() => {
                    return Err(MetadataError::Unknown { what: "location" });
                }
                Some(EffectKind::Stored(stored)) if stored.extent.location.is_none() => {
                    return Err(MetadataError::Unknown { what: "location" });
                }
                Some(EffectKind::Replaced(replaced)) if replaced.extent.location.is_none() => {
                    return Err(MetadataError::Unknown { what: "location" });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct Effect {
    /// Never `None` in a batch that [`EffectBatch::from_bytes`] let through.
    #[prost(
        oneof = "EffectKind",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27"
    )]
    pub kind: Option<EffectKind>,
}

impl From<EffectKind> for Effect {
    fn from(kind: EffectKind) -> Self {
        Self { kind: Some(kind) }
    }
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum EffectKind {
    /// A partition grew; its high watermark is one past the extent's last offset.
    #[prost(message, tag = "1")]
    Appended(Appended),
    /// A chunk was committed (for WAL replicas and the uploader).
    #[prost(message, tag = "2")]
    ChunkCommitted(ChunkCommitted),
    /// No `Wal` extent points at these chunks any more, and none ever will.
    #[prost(message, tag = "3")]
    Released(Released),
    /// An object extent joined a store's list.
    #[prost(message, tag = "4")]
    Stored(Stored),
    /// WAL or Inline extents left the list: every required store has them.
    #[prost(message, tag = "5")]
    Unlisted(Unlisted),
    /// A log start rose; extents wholly below it are gone.
    #[prost(message, tag = "6")]
    LogStartMoved(LogStartMoved),
    /// With empty partitions.
    #[prost(message, tag = "7")]
    TopicCreated(TopicRecord),
    #[prost(message, tag = "8")]
    TopicDeleted(TopicDeleted),
    /// New partitions or configs; the whole record.
    #[prost(message, tag = "9")]
    TopicChanged(TopicRecord),
    /// A broker resource's dynamic configs, all of them.
    #[prost(message, tag = "10")]
    BrokerConfigs(BrokerConfigs),
    /// A session was registered, changed or fenced; the whole record.
    #[prost(message, tag = "11")]
    Session(SessionRecord),
    /// A fenced session is forgotten.
    #[prost(message, tag = "12")]
    SessionForgotten(SessionForgotten),
    #[prost(message, tag = "13")]
    Directory(DirectoryRecord),
    #[prost(message, tag = "14")]
    Leaders(ShardLeaders),
    /// A stream was opened or closed; the whole record.
    #[prost(message, tag = "15")]
    Stream(StreamRecord),
    /// A closed stream without live chunks is forgotten.
    #[prost(message, tag = "16")]
    StreamForgotten(StreamForgotten),
    /// An object changed its state; the whole record.
    #[prost(message, tag = "17")]
    Object(ObjectRecord),
    #[prost(message, tag = "18")]
    ObjectForgotten(ObjectForgotten),
    /// A group was claimed or put; the whole record without offsets.
    #[prost(message, tag = "19")]
    Group(GroupChanged),
    #[prost(message, tag = "20")]
    GroupDeleted(GroupDeleted),
    /// Offsets of a group were committed or removed.
    #[prost(message, tag = "21")]
    Offsets(OffsetsChanged),
    #[prost(message, tag = "22")]
    Cluster(ClusterChanged),
    /// Extents of a store's list were compacted into one.
    #[prost(message, tag = "23")]
    Replaced(Replaced),
    /// Extents of a store's list went into an index object.
    #[prost(message, tag = "24")]
    Indexed(Indexed),
    /// A topic left the topics and can be brought back.
    #[prost(message, tag = "25")]
    TopicSoftDeleted(TopicSoftDeleted),
    /// A deleted topic is back; the whole record.
    #[prost(message, tag = "26")]
    TopicUndeleted(TopicRecord),
    /// A deleted topic is gone.
    #[prost(message, tag = "27")]
    TopicPurged(TopicPurged),
}

#[derive(Clone, PartialEq, Message)]
pub struct Appended {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
    #[prost(int32, tag = "2")]
    pub partition: i32,
    #[prost(message, required, tag = "3")]
    pub extent: Extent,
    /// The store whose list it joined (durability class `object`); none: the WAL's.
    #[prost(message, optional, tag = "4")]
    pub store: Option<StoreId>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct ChunkCommitted {
    #[prost(message, required, tag = "1")]
    pub stream: StreamId,
    #[prost(uint64, tag = "2")]
    pub chunk: u64,
    /// How many extents point at it. 0: none, it is garbage at once.
    #[prost(uint32, tag = "3")]
    pub extents: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct Released {
    #[prost(message, required, tag = "1")]
    pub stream: StreamId,
    #[prost(uint64, repeated, tag = "2")]
    pub chunks: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Stored {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
    #[prost(int32, tag = "2")]
    pub partition: i32,
    #[prost(message, required, tag = "3")]
    pub store: StoreId,
    #[prost(message, required, tag = "4")]
    pub extent: Extent,
}

#[derive(Clone, PartialEq, Message)]
pub struct Replaced {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
    #[prost(int32, tag = "2")]
    pub partition: i32,
    #[prost(message, required, tag = "3")]
    pub store: StoreId,
    /// Base offsets of the extents that go.
    #[prost(int64, repeated, tag = "4")]
    pub base_offsets: Vec<i64>,
    /// What takes their place.
    #[prost(message, required, tag = "5")]
    pub extent: Extent,
}

#[derive(Clone, PartialEq, Message)]
pub struct Indexed {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
    #[prost(int32, tag = "2")]
    pub partition: i32,
    #[prost(message, required, tag = "3")]
    pub store: StoreId,
    /// The extents of the store's list inside its offsets go, and it comes.
    #[prost(message, required, tag = "4")]
    pub pointer: IndexPointer,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct TopicSoftDeleted {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
    #[prost(int64, tag = "2")]
    pub deleted_ms: i64,
    /// When its window is over.
    #[prost(int64, tag = "3")]
    pub purge_ms: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct TopicPurged {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
}

#[derive(Clone, PartialEq, Message)]
pub struct Unlisted {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
    #[prost(int32, tag = "2")]
    pub partition: i32,
    /// Base offsets of the WAL or Inline extents that go.
    #[prost(int64, repeated, tag = "3")]
    pub base_offsets: Vec<i64>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct LogStartMoved {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
    #[prost(int32, tag = "2")]
    pub partition: i32,
    #[prost(int64, tag = "3")]
    pub log_start: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct TopicDeleted {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
}

#[derive(Clone, PartialEq, Message)]
pub struct BrokerConfigs {
    /// Node id in decimal, or empty for the cluster's default.
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub configs: BTreeMap<String, String>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct SessionForgotten {
    #[prost(message, required, tag = "1")]
    pub session: crate::ids::SessionId,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct StreamForgotten {
    #[prost(message, required, tag = "1")]
    pub stream: StreamId,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct ObjectForgotten {
    #[prost(message, required, tag = "1")]
    pub object: ObjectId,
}

#[derive(Clone, PartialEq, Message)]
pub struct GroupChanged {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(uint64, tag = "2")]
    pub coordinator_epoch: u64,
    /// The session that holds the claim.
    #[prost(message, required, tag = "3")]
    pub coordinator: crate::ids::SessionId,
    /// When the state last changed, for the expiry of offsets.
    #[prost(int64, tag = "4")]
    pub state_since_ms: i64,
    #[prost(message, required, tag = "5")]
    pub record: GroupRecord,
}

#[derive(Clone, PartialEq, Message)]
pub struct GroupDeleted {
    #[prost(string, tag = "1")]
    pub group: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct OffsetsChanged {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(message, repeated, tag = "2")]
    pub committed: Vec<CommittedOffset>,
    #[prost(message, repeated, tag = "3")]
    pub removed: Vec<TopicPartition>,
}

#[derive(Clone, PartialEq, Message)]
pub struct CommittedOffset {
    #[prost(message, required, tag = "1")]
    pub topic_id: TopicId,
    #[prost(int32, tag = "2")]
    pub partition: i32,
    #[prost(message, required, tag = "3")]
    pub offset: OffsetRecord,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct ClusterChanged {
    #[prost(uint32, tag = "1")]
    pub feature_level: u32,
    #[prost(uint32, tag = "2")]
    pub write_quorum: u32,
    /// Expiry does nothing until this time, because the clock jumped; 0: not held.
    #[prost(int64, tag = "3")]
    pub expiry_held_until_ms: i64,
    /// The cluster incarnation. Where it rises, every partition begins a leader epoch at its high watermark.
    #[prost(uint32, tag = "4")]
    pub incarnation: u32,
    /// The archive holds every entry up to this one. 0: nothing was archived.
    #[prost(uint64, tag = "5")]
    pub archived_through: u64,
    /// The recovery cut that counts: from the archive a cluster comes back as it was here, or later.
    #[prost(uint64, tag = "6")]
    pub archived_cut: u64,
}
