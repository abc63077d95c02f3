//! The metadata as a broker sees it.
//!
//! Owns: topics, partitions, extents, leaders, sessions, streams, objects, groups and offsets, dynamic configs. The state
//! machine holds one itself and changes it by its own effects only, so what a follower makes of the effects cannot
//! differ from what the state machine has.
//!
//! All maps are persistent: a clone is O(shards) and shares everything. A [`PartitionView`] is immutable behind its `Arc`;
//! a reader keeps one version for as long as it likes (invariant 11).

mod apply;
mod since;
mod view;

pub use apply::Changes;
pub(crate) use apply::Dropped;
pub use since::Difference;
pub use view::{Extents, Found, PartitionView, Pointers};

use crate::config_table::TopicSettings;
use crate::effect::ClusterChanged;
use crate::ids::{
    DirectoryId, ObjectId, PartitionKey, PlacementId, SessionId, StoreId, StreamId, TopicId,
    base_leader_epoch, leader_epoch, mix64, shard_of,
};
use crate::record::{
    ClusterFormat, DirectoryRecord, GroupRecord, ObjectRecord, OffsetRecord, PlacementRecord, SessionRecord,
    ShardLeaders, StreamRecord, TopicRecord, ZoneLeader,
};
use imbl::{OrdMap, OrdSet};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    pub(crate) format: Arc<ClusterFormat>,
    pub(crate) index: u64,
    pub(crate) time_ms: i64,
    pub(crate) cluster: ClusterChanged,
    pub(crate) topics: OrdMap<TopicId, Arc<Topic>>,
    pub(crate) names: OrdMap<Arc<str>, TopicId>,
    pub(crate) shards: Vec<Shard>,
    pub(crate) sessions: OrdMap<SessionId, Arc<SessionRecord>>,
    pub(crate) directories: OrdMap<DirectoryId, Arc<DirectoryRecord>>,
    pub(crate) streams: OrdMap<StreamId, Arc<Stream>>,
    pub(crate) objects: OrdMap<ObjectId, Object>,
    /// Topics that can be brought back.
    pub(crate) deleted: OrdMap<TopicId, Arc<DeletedTopic>>,
    pub(crate) groups: OrdMap<Arc<str>, Arc<Group>>,
    pub(crate) broker_configs: OrdMap<String, Arc<BTreeMap<String, String>>>,
}

/// The partitions of one shard.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Shard {
    pub(crate) partitions: OrdMap<PartitionKey, Arc<PartitionView>>,
    /// Of deleted topics that can be brought back.
    pub(crate) deleted: OrdMap<PartitionKey, Arc<PartitionView>>,
    /// Those with WAL or Inline extents, of either map.
    pub(crate) in_wal: OrdSet<PartitionKey>,
    pub(crate) leaders: Arc<ShardLeaders>,
}

/// A topic: its record, and its configs made of overrides, cluster defaults and Kafka's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Topic {
    pub record: TopicRecord,
    pub settings: TopicSettings,
}

impl Deref for Topic {
    type Target = TopicRecord;
    fn deref(&self) -> &TopicRecord {
        &self.record
    }
}

impl Shard {
    pub(crate) fn stored(&self, key: &PartitionKey) -> Option<&Arc<PartitionView>> {
        self.partitions.get(key).or_else(|| self.deleted.get(key))
    }
}

/// A deleted topic that can be brought back: nobody can read or write it, and what it holds stays.
#[derive(Clone, Debug, PartialEq)]
pub struct DeletedTopic {
    pub record: TopicRecord,
    pub deleted_ms: i64,
    /// When its window is over.
    pub purge_ms: i64,
}

/// An object's record, and what follows from the extents and pointers that name it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    pub record: ObjectRecord,
    /// Extents in it, pointers to blocks in it, and pointers to blocks that list extents in it.
    pub refs: u32,
    /// Bytes of it that these name: the rest of `record.size_bytes` is dead (or footer).
    pub live_bytes: u64,
}

impl Deref for Object {
    type Target = ObjectRecord;
    fn deref(&self) -> &ObjectRecord {
        &self.record
    }
}

/// A stream and the chunks in it that extents point at.
#[derive(Clone, Debug, PartialEq)]
pub struct Stream {
    pub record: StreamRecord,
    /// Chunks that some `Wal` extent points at, each with the log index of its commit (0: it was committed at feature level
    /// 1, which does not note it). Both rise together. Any other chunk up to `record.last_chunk`, and any other chunk at all of a
    /// closed stream, is garbage.
    pub live: OrdMap<u64, u64>,
}

impl Deref for Stream {
    type Target = StreamRecord;
    fn deref(&self) -> &StreamRecord {
        &self.record
    }
}

impl Stream {
    /// Whether the WAL may drop a chunk of this stream.
    pub fn is_garbage(&self, chunk: u64) -> bool {
        let past = self.record.closed || (self.record.committed && chunk <= self.record.last_chunk);
        past && !self.live.contains_key(&chunk)
    }
}

/// A group: who coordinates it, its members, its offsets.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub group: Arc<str>,
    pub coordinator_epoch: u64,
    /// The session that claimed it last; it may be fenced by now.
    pub coordinator: SessionId,
    /// When the state in the record last changed.
    pub state_since_ms: i64,
    pub record: GroupRecord,
    /// May name partitions of topics that are gone until offsets are expired; [`Image::offsets`] hides them.
    pub(crate) offsets: OrdMap<PartitionKey, OffsetRecord>,
}

impl Image {
    /// What a cluster formatted so begins with.
    pub fn new(format: ClusterFormat) -> Self {
        let leaders = |shard| Arc::new(ShardLeaders { shard, version: 0, leaders: Vec::new() });
        let shards =
            (0..format.shards.max(1)).map(|shard| Shard { leaders: leaders(shard), ..Shard::default() });
        Self {
            index: 0,
            time_ms: 0,
            cluster: ClusterChanged {
                feature_level: format.feature_level,
                write_quorum: format.write_quorum,
                expiry_held_until_ms: 0,
                incarnation: format.incarnation,
                archived_through: 0,
                archived_cut: 0,
            },
            topics: OrdMap::new(),
            names: OrdMap::new(),
            shards: shards.collect(),
            sessions: OrdMap::new(),
            directories: OrdMap::new(),
            streams: OrdMap::new(),
            objects: OrdMap::new(),
            deleted: OrdMap::new(),
            groups: OrdMap::new(),
            broker_configs: OrdMap::new(),
            format: Arc::new(format),
        }
    }

    /// The Raft index of the newest entry in it.
    pub fn index(&self) -> u64 {
        self.index
    }
    /// The state machine's time in ms.
    pub fn time_ms(&self) -> i64 {
        self.time_ms
    }
    /// The cluster incarnation, which `recover` raises.
    pub fn incarnation(&self) -> u32 {
        self.cluster.incarnation
    }
    /// As formatted; [`Image::incarnation`], [`Image::feature_level`] and [`Image::write_quorum`] may have risen since.
    pub fn format(&self) -> &Arc<ClusterFormat> {
        &self.format
    }
    pub fn feature_level(&self) -> u32 {
        self.cluster.feature_level
    }
    /// The least write quorum that a new stream may have.
    pub fn write_quorum(&self) -> u32 {
        self.cluster.write_quorum
    }
    /// Expiry does nothing until this time because the clock jumped by more than ten minutes; 0: not held. An alarm.
    pub fn expiry_held_until_ms(&self) -> i64 {
        self.cluster.expiry_held_until_ms
    }

    /// From the log alone up to here, and the objects alone, every partition comes back whole to here (DESIGN.md section
    /// 5): the index before the oldest commit with an offset inside the log that some required store still lacks, or this
    /// image's index if there is none. Never falls. Costs the number of streams.
    pub fn recovery_cut(&self) -> u64 {
        let oldest = self.streams.values().filter_map(|stream| stream.live.get_min());
        oldest.map(|(_, index)| *index).min().map_or(self.index, |index| index.saturating_sub(1))
    }
    /// The recovery cut that is archived. Only what was unreferenced at or below it may be deleted from a store.
    pub fn archived_cut(&self) -> u64 {
        self.cluster.archived_cut
    }
    /// The archive holds every entry up to this one.
    pub fn archived_through(&self) -> u64 {
        self.cluster.archived_through
    }

    // ---- topics and partitions ----

    pub fn topic(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.topics.get(&id)
    }
    pub fn topic_id(&self, name: &str) -> Option<TopicId> {
        self.names.get(name).copied()
    }
    pub fn topic_by_name(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(self.names.get(name)?)
    }
    /// Ordered by name.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.names.values().filter_map(|id| self.topics.get(id))
    }
    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }
    pub fn partition_count(&self) -> usize {
        self.shards.iter().map(|shard| shard.partitions.len()).sum()
    }
    pub fn partition(&self, topic_id: TopicId, partition: i32) -> Option<&Arc<PartitionView>> {
        self.view(PartitionKey::new(topic_id, partition))
    }
    pub fn view(&self, key: PartitionKey) -> Option<&Arc<PartitionView>> {
        self.shard(key).partitions.get(&key)
    }
    /// The partition of a topic, or of a deleted one that can be brought back: what its bytes belong to.
    pub fn stored_view(&self, key: PartitionKey) -> Option<&Arc<PartitionView>> {
        self.shard(key).stored(&key)
    }
    /// The record of a topic, or of a deleted one that can be brought back.
    pub fn stored_topic(&self, id: TopicId) -> Option<&TopicRecord> {
        let topic = self.topics.get(&id).map(|topic| &topic.record);
        topic.or_else(|| self.deleted.get(&id).map(|topic| &topic.record))
    }
    pub fn deleted_topic(&self, id: TopicId) -> Option<&Arc<DeletedTopic>> {
        self.deleted.get(&id)
    }
    /// Topics that can be brought back, ordered by id; several may have had one name.
    pub fn deleted_topics(&self) -> impl Iterator<Item = &Arc<DeletedTopic>> {
        self.deleted.values()
    }
    /// S.
    pub fn shards(&self) -> u32 {
        self.shards.len() as u32
    }
    pub fn shard_of(&self, key: PartitionKey) -> u32 {
        shard_of(key, self.shards())
    }
    /// Ordered by topic id and number.
    pub fn shard_partitions(&self, shard: u32) -> impl Iterator<Item = &Arc<PartitionView>> {
        self.shards.get(shard as usize).into_iter().flat_map(|shard| shard.partitions.values())
    }
    /// The same, those of deleted topics that can be brought back after the others.
    pub fn shard_stored(&self, shard: u32) -> impl Iterator<Item = &Arc<PartitionView>> {
        let shard = self.shards.get(shard as usize).into_iter();
        shard.flat_map(|shard| shard.partitions.values().chain(shard.deleted.values()))
    }
    /// Partitions of a shard with WAL or Inline extents, of deleted topics too: what an uploader looks at. Costs only what
    /// it yields.
    pub fn shard_in_wal(&self, shard: u32) -> impl Iterator<Item = &Arc<PartitionView>> {
        self.shards
            .get(shard as usize)
            .into_iter()
            .flat_map(|shard| shard.in_wal.iter().filter_map(|key| shard.stored(key)))
    }
    pub(crate) fn shard(&self, key: PartitionKey) -> &Shard {
        let index = shard_of(key, self.shards.len() as u32) as usize;
        &self.shards[index]
    }

    // ---- leaders ----

    pub fn shard_leaders(&self, shard: u32) -> Option<&Arc<ShardLeaders>> {
        self.shards.get(shard as usize).map(|shard| &shard.leaders)
    }
    /// The leader that a client in `zone` is told; a zone without brokers has the one chosen among all. `None`: no broker
    /// is live.
    pub fn leader(&self, key: PartitionKey, zone: &str) -> Option<&ZoneLeader> {
        let leaders = &self.shard(key).leaders.leaders;
        let found = leaders.iter().find(|leader| leader.zone == zone);
        found.or_else(|| leaders.iter().find(|leader| leader.zone.is_empty()))
    }
    /// Who uploads a shard to a store, by hint: its leader in the zone that the shard's hash picks, among the live brokers whose
    /// home store it is. `None`: there is no such broker, so anybody may.
    pub fn uploader(&self, shard: u32, store: StoreId) -> Option<SessionId> {
        let leaders = &self.shard_leaders(shard)?.leaders;
        let at_home = |leader: &&ZoneLeader| {
            self.session(leader.session).is_some_and(|session| session.home_store == store)
        };
        let zones: Vec<&ZoneLeader> =
            leaders.iter().filter(|leader| !leader.zone.is_empty()).filter(at_home).collect();
        if zones.is_empty() {
            return leaders.iter().find(at_home).map(|leader| leader.session);
        }
        let place = mix64(u64::from(shard)) % zones.len() as u64;
        zones.get(place as usize).map(|leader| leader.session)
    }
    /// One live broker per zone that has any: what is shown as replicas and ISR, the first being that of `zone`.
    pub fn replicas(&self, key: PartitionKey, zone: &str) -> Vec<i32> {
        let first = self.leader(key, zone).map(|leader| leader.node_id);
        let mut nodes: Vec<i32> = first.into_iter().collect();
        for leader in &self.shard(key).leaders.leaders {
            if !leader.zone.is_empty() && !nodes.contains(&leader.node_id) {
                nodes.push(leader.node_id);
            }
        }
        nodes
    }
    /// Kafka's leader epoch of a partition: incarnation and the shard's map version.
    pub fn leader_epoch(&self, key: PartitionKey) -> i32 {
        leader_epoch(self.cluster.incarnation, self.shard(key).leaders.version)
    }
    /// What new batches are stamped with: the lowest leader epoch of this incarnation.
    pub fn base_leader_epoch(&self) -> i32 {
        base_leader_epoch(self.cluster.incarnation)
    }

    // ---- sessions and directories ----

    pub fn session(&self, id: SessionId) -> Option<&Arc<SessionRecord>> {
        self.sessions.get(&id)
    }
    /// All that are not forgotten, fenced ones too.
    pub fn sessions(&self) -> impl Iterator<Item = &Arc<SessionRecord>> {
        self.sessions.values()
    }
    /// Sessions that are not fenced, ordered by node id.
    pub fn brokers(&self) -> Vec<&Arc<SessionRecord>> {
        let mut live: Vec<_> = self.sessions.values().filter(|session| !session.is_fenced()).collect();
        live.sort_by_key(|session| session.node_id);
        live
    }
    pub fn broker(&self, node_id: i32) -> Option<&Arc<SessionRecord>> {
        self.sessions.values().find(|session| session.node_id == node_id && !session.is_fenced())
    }
    /// Those that were removed too.
    pub fn directory(&self, id: DirectoryId) -> Option<&Arc<DirectoryRecord>> {
        self.directories.get(&id)
    }
    /// All that were not removed.
    pub fn directories(&self) -> impl Iterator<Item = &Arc<DirectoryRecord>> {
        self.directories.values().filter(|directory| !directory.is_removed())
    }
    /// What keeps a directory from being removed: how many open streams name it, and how many chunks that are not uploaded yet
    /// lie in streams that name it.
    pub fn held_by(&self, directory: DirectoryId) -> (usize, usize) {
        let naming = self.streams.values().filter(|stream| stream.ensemble.contains(&directory));
        naming.fold((0, 0), |(open, chunks), stream| {
            (open + usize::from(!stream.closed), chunks + stream.live.len())
        })
    }
    /// Chunks that are not uploaded yet, of streams that name a directory that was taken out though it may have had them.
    pub fn lacking_chunks(&self) -> usize {
        let is_out =
            |id: &DirectoryId| self.directories.get(id).is_none_or(|directory| directory.is_removed());
        let lacking = self.streams.values().filter(|stream| stream.ensemble.iter().any(is_out));
        lacking.map(|stream| stream.live.len()).sum()
    }

    // ---- streams ----

    pub fn stream(&self, id: StreamId) -> Option<&Arc<Stream>> {
        self.streams.get(&id)
    }
    /// Open ones, and closed ones with live chunks. A stream that is not here is forgotten: all its chunks are garbage.
    pub fn streams(&self) -> impl Iterator<Item = &Arc<Stream>> {
        self.streams.values()
    }

    // ---- objects and placement ----

    pub fn object(&self, id: ObjectId) -> Option<&Object> {
        self.objects.get(&id)
    }
    /// All that are not forgotten, ordered by id.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }
    pub fn placement(&self, id: PlacementId) -> Option<&PlacementRecord> {
        self.format.placements.iter().find(|placement| placement.placement == id)
    }
    pub fn store_name(&self, id: StoreId) -> Option<&str> {
        self.format.stores.iter().find(|store| store.store == id).map(|store| store.name.as_str())
    }

    // ---- groups ----

    pub fn group(&self, group: &str) -> Option<&Arc<Group>> {
        self.groups.get(group)
    }
    /// Ordered by name.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.groups.values()
    }
    /// A group's committed offset, if the partition still exists.
    pub fn offset(&self, group: &str, key: PartitionKey) -> Option<&OffsetRecord> {
        self.view(key)?;
        self.groups.get(group)?.offsets.get(&key)
    }
    /// A group's committed offsets of partitions that still exist, ordered by topic id and number.
    pub fn offsets(&self, group: &str) -> impl Iterator<Item = (PartitionKey, &OffsetRecord)> {
        let offsets = self.groups.get(group).into_iter().flat_map(|group| group.offsets.iter());
        offsets.filter(|(key, _)| self.view(**key).is_some()).map(|(key, offset)| (*key, offset))
    }

    // ---- configs ----

    /// A broker resource's dynamic configs; the empty name is the cluster's default.
    pub fn broker_configs(&self, name: &str) -> Option<&Arc<BTreeMap<String, String>>> {
        self.broker_configs.get(name)
    }
}
