//! How effects change an image.

use super::{DeletedTopic, Group, Image, Object, PartitionView, Stream, Topic};
use crate::config_table::TopicSettings;
use crate::effect::{
    Appended, ChunkCommitted, EffectBatch, EffectKind, GroupChanged, Indexed, OffsetsChanged, Replaced,
    Stored, TopicSoftDeleted, Unlisted,
};
use crate::error::MetadataError;
use crate::ids::{ObjectId, PartitionKey, SessionId, StreamId, TopicId, base_leader_epoch, shard_of};
use crate::record::{EpochStart, Extent, IndexPointer, Location, TopicRecord};
use imbl::{OrdMap, OrdSet};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What one effect let go, for the state machine.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Dropped {
    /// Once for each `Wal` extent that went.
    pub(crate) chunks: Vec<(StreamId, u64)>,
    /// Objects that lost their last reference.
    pub(crate) bare: Vec<ObjectId>,
}

/// What a batch of effects touched. Each list is sorted and names a thing once; the thing may be gone.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Changes {
    pub partitions: Vec<PartitionKey>,
    pub topics: Vec<TopicId>,
    /// Groups whose claim, members or offsets changed.
    pub groups: Vec<String>,
    pub streams: Vec<StreamId>,
    pub objects: Vec<ObjectId>,
    pub sessions: Vec<SessionId>,
    /// Some shard's leaders changed.
    pub leaders: bool,
    /// Dynamic broker configs, the feature level or the write quorum changed.
    pub cluster: bool,
}

impl Changes {
    fn finish(mut self) -> Self {
        fn unique<T: Ord>(list: &mut Vec<T>) {
            list.sort_unstable();
            list.dedup();
        }
        unique(&mut self.partitions);
        unique(&mut self.topics);
        unique(&mut self.groups);
        unique(&mut self.streams);
        unique(&mut self.objects);
        unique(&mut self.sessions);
        self
    }

    fn note(&mut self, effect: &EffectKind) {
        let (topic_id, partition) = match effect {
            EffectKind::Appended(e) => (e.topic_id, e.partition),
            EffectKind::Stored(e) => (e.topic_id, e.partition),
            EffectKind::Unlisted(e) => (e.topic_id, e.partition),
            EffectKind::LogStartMoved(e) => (e.topic_id, e.partition),
            EffectKind::Replaced(e) => (e.topic_id, e.partition),
            EffectKind::Indexed(e) => (e.topic_id, e.partition),
            other => return self.note_other(other),
        };
        let key = PartitionKey::new(topic_id, partition);
        if self.partitions.last() != Some(&key) {
            self.partitions.push(key);
        }
    }

    fn note_other(&mut self, effect: &EffectKind) {
        match effect {
            EffectKind::Appended(_)
            | EffectKind::Stored(_)
            | EffectKind::Unlisted(_)
            | EffectKind::LogStartMoved(_)
            | EffectKind::Replaced(_)
            | EffectKind::Indexed(_)
            | EffectKind::Directory(_) => {}
            EffectKind::ChunkCommitted(e) => self.streams.push(e.stream),
            EffectKind::Released(e) => self.streams.push(e.stream),
            EffectKind::Stream(e) => self.streams.push(e.stream),
            EffectKind::StreamForgotten(e) => self.streams.push(e.stream),
            EffectKind::TopicCreated(e) | EffectKind::TopicChanged(e) => self.topics.push(e.topic_id),
            EffectKind::TopicUndeleted(e) => self.topics.push(e.topic_id),
            EffectKind::TopicDeleted(e) => self.topics.push(e.topic_id),
            EffectKind::TopicSoftDeleted(e) => self.topics.push(e.topic_id),
            EffectKind::TopicPurged(e) => self.topics.push(e.topic_id),
            EffectKind::Session(e) => self.sessions.push(e.session),
            EffectKind::SessionForgotten(e) => self.sessions.push(e.session),
            EffectKind::Object(e) => self.objects.push(e.object),
            EffectKind::ObjectForgotten(e) => self.objects.push(e.object),
            EffectKind::Group(e) => self.groups.push(e.group.clone()),
            EffectKind::GroupDeleted(e) => self.groups.push(e.group.clone()),
            EffectKind::Offsets(e) => self.groups.push(e.group.clone()),
            EffectKind::Leaders(_) => self.leaders = true,
            EffectKind::BrokerConfigs(_) | EffectKind::Cluster(_) => self.cluster = true,
        }
    }
}

impl Image {
    /// Follows the effects of the next entry. A batch that does not follow `index()` is refused and changes nothing.
    ///
    /// The partitions of a topic that was created, changed, deleted or brought back are among the changed partitions.
    pub fn apply(&mut self, batch: &EffectBatch) -> Result<Changes, MetadataError> {
        batch.check()?;
        if batch.previous != self.index {
            return Err(MetadataError::Gap { index: batch.index, previous: batch.previous, at: self.index });
        }
        let mut changes = Changes::default();
        for kind in batch.effects.iter().filter_map(|effect| effect.kind.as_ref()) {
            if matches!(kind, EffectKind::Cluster(e) if e.incarnation > self.cluster.incarnation) {
                changes
                    .partitions
                    .extend(self.shards.iter().flat_map(|shard| shard.partitions.keys().copied()));
            }
            let before = self.partitions_of(kind);
            self.effect(kind, batch.index, None);
            changes.note(kind);
            if let Some((topic_id, known)) = before {
                let now = self.topics.get(&topic_id).map_or(0, |topic| topic.partitions);
                let span = known.min(now)..known.max(now);
                changes.partitions.extend(span.map(|partition| PartitionKey::new(topic_id, partition)));
            }
        }
        self.index = batch.index;
        self.time_ms = batch.time_ms;
        Ok(changes.finish())
    }

    /// The topic whose number of partitions an effect may change, and that number.
    fn partitions_of(&self, effect: &EffectKind) -> Option<(TopicId, i32)> {
        let topic_id = match effect {
            EffectKind::TopicCreated(e) | EffectKind::TopicChanged(e) | EffectKind::TopicUndeleted(e) => {
                e.topic_id
            }
            EffectKind::TopicDeleted(e) => e.topic_id,
            EffectKind::TopicSoftDeleted(e) => e.topic_id,
            _ => return None,
        };
        Some((topic_id, self.topics.get(&topic_id).map_or(0, |topic| topic.partitions)))
    }

    /// One effect of the entry at `index`. What it lets go is added to `dropped`.
    pub(crate) fn effect(&mut self, effect: &EffectKind, index: u64, mut dropped: Option<&mut Dropped>) {
        match effect {
            EffectKind::Appended(e) => self.append(e),
            EffectKind::ChunkCommitted(e) => self.chunk_committed(e, index),
            EffectKind::Released(e) => {
                if let Some(stream) = self.streams.get_mut(&e.stream) {
                    let stream = Arc::make_mut(stream);
                    for chunk in &e.chunks {
                        stream.live.remove(chunk);
                    }
                }
            }
            EffectKind::Stored(e) => self.stored(e),
            EffectKind::Replaced(e) => self.replaced(e, &mut dropped),
            EffectKind::Indexed(e) => self.indexed(e, &mut dropped),
            EffectKind::Unlisted(e) => self.unlisted(e, &mut dropped),
            EffectKind::LogStartMoved(e) => {
                self.log_start(PartitionKey::new(e.topic_id, e.partition), e.log_start, &mut dropped);
            }
            EffectKind::TopicCreated(e) | EffectKind::TopicChanged(e) => self.put_topic(e),
            EffectKind::TopicDeleted(e) => self.delete_topic(e.topic_id, &mut dropped),
            EffectKind::TopicSoftDeleted(e) => self.soft_delete_topic(e),
            EffectKind::TopicUndeleted(e) => self.undelete_topic(e),
            EffectKind::TopicPurged(e) => self.purge_topic(e.topic_id, &mut dropped),
            other => self.small_effect(other),
        }
    }

    /// Effects that touch no partition.
    fn small_effect(&mut self, effect: &EffectKind) {
        match effect {
            EffectKind::BrokerConfigs(e) => {
                if e.configs.is_empty() {
                    self.broker_configs.remove(&e.name);
                } else {
                    self.broker_configs.insert(e.name.clone(), Arc::new(e.configs.clone()));
                }
                if e.name.is_empty() {
                    self.recompute_settings();
                }
            }
            EffectKind::Session(e) => {
                self.sessions.insert(e.session, Arc::new(e.clone()));
            }
            EffectKind::SessionForgotten(e) => {
                self.sessions.remove(&e.session);
            }
            EffectKind::Directory(e) => {
                self.directories.insert(e.directory, Arc::new(e.clone()));
            }
            EffectKind::Leaders(e) => {
                if let Some(shard) = self.shards.get_mut(e.shard as usize) {
                    shard.leaders = Arc::new(e.clone());
                }
            }
            EffectKind::Stream(e) => {
                let live = self.streams.get(&e.stream).map_or_else(OrdMap::new, |stream| stream.live.clone());
                self.streams.insert(e.stream, Arc::new(Stream { record: e.clone(), live }));
            }
            EffectKind::StreamForgotten(e) => {
                self.streams.remove(&e.stream);
            }
            EffectKind::Object(e) => {
                let new = Object { record: *e, refs: 0, live_bytes: 0 };
                self.objects.entry(e.object).or_insert(new).record = *e;
            }
            EffectKind::ObjectForgotten(e) => {
                self.objects.remove(&e.object);
            }
            EffectKind::Group(e) => self.put_group(e),
            EffectKind::GroupDeleted(e) => {
                self.groups.remove(e.group.as_str());
            }
            EffectKind::Offsets(e) => self.put_offsets(e),
            EffectKind::Cluster(e) => {
                if e.incarnation > self.cluster.incarnation {
                    self.begin_epochs(base_leader_epoch(e.incarnation));
                }
                self.cluster = *e;
            }
            // The caller's.
            EffectKind::Appended(_)
            | EffectKind::ChunkCommitted(_)
            | EffectKind::Released(_)
            | EffectKind::Stored(_)
            | EffectKind::Replaced(_)
            | EffectKind::Indexed(_)
            | EffectKind::Unlisted(_)
            | EffectKind::LogStartMoved(_)
            | EffectKind::TopicCreated(_)
            | EffectKind::TopicChanged(_)
            | EffectKind::TopicDeleted(_)
            | EffectKind::TopicSoftDeleted(_)
            | EffectKind::TopicUndeleted(_)
            | EffectKind::TopicPurged(_) => {}
        }
    }

    fn chunk_committed(&mut self, e: &ChunkCommitted, index: u64) {
        // What level 1 made must be what a binary of level 1 makes, and its snapshots do not hold the index.
        let index = if self.cluster.feature_level >= 2 { index } else { 0 };
        let Some(stream) = self.streams.get_mut(&e.stream) else { return };
        let stream = Arc::make_mut(stream);
        stream.record.last_chunk = e.chunk;
        stream.record.committed = true;
        if e.extents > 0 {
            stream.live.insert(e.chunk, index);
        }
    }

    /// Every partition's next offset begins this leader epoch.
    fn begin_epochs(&mut self, leader_epoch: i32) {
        for shard in &mut self.shards {
            for views in [&mut shard.partitions, &mut shard.deleted] {
                let keys: Vec<PartitionKey> = views.keys().copied().collect();
                for key in keys {
                    let Some(view) = views.get_mut(&key).map(Arc::make_mut) else { continue };
                    let start_offset = view.high_watermark;
                    let kept = view.epochs.iter().filter(|epoch| epoch.start_offset < start_offset).copied();
                    view.epochs = kept.chain([EpochStart { leader_epoch, start_offset }]).collect();
                }
            }
        }
    }

    fn view_mut(&mut self, key: PartitionKey) -> Option<(&mut PartitionView, &mut OrdSet<PartitionKey>)> {
        let shard = shard_of(key, self.shards.len() as u32) as usize;
        let shard = self.shards.get_mut(shard)?;
        let view = match shard.partitions.get_mut(&key) {
            Some(view) => view,
            None => shard.deleted.get_mut(&key)?,
        };
        Some((Arc::make_mut(view), &mut shard.in_wal))
    }

    // ---- references ----

    fn reference(&mut self, object: ObjectId, bytes: u64) {
        if let Some(object) = self.objects.get_mut(&object) {
            object.refs += 1;
            object.live_bytes += bytes;
        }
    }

    /// An extent joined a list.
    pub(crate) fn reference_extent(&mut self, extent: &Extent) {
        if let Some(location) = extent.object() {
            self.reference(location.object, extent.size_bytes);
        }
    }

    /// A pointer joined a list.
    pub(crate) fn reference_pointer(&mut self, pointer: &IndexPointer) {
        self.reference(pointer.object, u64::from(pointer.size_bytes));
        for (object, bytes) in pointer.objects() {
            self.reference(object, bytes);
        }
    }

    fn dereference(&mut self, id: ObjectId, bytes: u64, dropped: &mut Option<&mut Dropped>) {
        let Some(object) = self.objects.get_mut(&id) else { return };
        object.refs -= 1;
        object.live_bytes -= bytes;
        if object.refs == 0
            && let Some(dropped) = dropped
        {
            dropped.bare.push(id);
        }
    }

    fn release(&mut self, extent: &Extent, dropped: &mut Option<&mut Dropped>) {
        match &extent.location {
            Some(Location::Object(location)) => self.dereference(location.object, extent.size_bytes, dropped),
            Some(Location::Wal(wal)) => {
                if let Some(dropped) = dropped {
                    dropped.chunks.push((wal.stream, wal.chunk));
                }
            }
            Some(Location::Inline(_)) | None => {}
        }
    }

    fn release_pointer(&mut self, pointer: &IndexPointer, dropped: &mut Option<&mut Dropped>) {
        for (object, bytes) in pointer.objects() {
            self.dereference(object, bytes, dropped);
        }
        self.dereference(pointer.object, u64::from(pointer.size_bytes), dropped);
    }

    fn release_view(&mut self, view: &PartitionView, dropped: &mut Option<&mut Dropped>) {
        for extent in view.wal.values().chain(view.stores.values().flat_map(|extents| extents.values())) {
            self.release(extent, dropped);
        }
        for pointer in view.indexed.values().flat_map(|pointers| pointers.values()) {
            self.release_pointer(pointer, dropped);
        }
    }

    // ---- extents ----

    fn append(&mut self, e: &Appended) {
        let (key, extent) = (PartitionKey::new(e.topic_id, e.partition), &e.extent);
        let Some((view, in_wal)) = self.view_mut(key) else { return };
        match e.store {
            None => {
                if view.wal.is_empty() {
                    in_wal.insert(key);
                }
                view.wal.insert(extent.base_offset, extent.clone());
                view.wal_bytes += extent.size_bytes;
            }
            Some(store) => {
                view.stores.entry(store).or_default().insert(extent.base_offset, extent.clone());
            }
        }
        view.high_watermark = extent.end_offset();
        view.last_stable_offset = view.high_watermark;
        self.reference_extent(extent);
    }

    fn stored(&mut self, e: &Stored) {
        let Some((view, _)) = self.view_mut(PartitionKey::new(e.topic_id, e.partition)) else { return };
        view.stores.entry(e.store).or_default().insert(e.extent.base_offset, e.extent.clone());
        self.reference_extent(&e.extent);
    }

    fn replaced(&mut self, e: &Replaced, dropped: &mut Option<&mut Dropped>) {
        let Some((view, _)) = self.view_mut(PartitionKey::new(e.topic_id, e.partition)) else { return };
        let extents = view.stores.entry(e.store).or_default();
        let gone: Vec<Extent> = e.base_offsets.iter().filter_map(|base| extents.remove(base)).collect();
        extents.insert(e.extent.base_offset, e.extent.clone());
        self.reference_extent(&e.extent);
        for extent in &gone {
            self.release(extent, dropped);
        }
    }

    fn indexed(&mut self, e: &Indexed, dropped: &mut Option<&mut Dropped>) {
        let Some((view, _)) = self.view_mut(PartitionKey::new(e.topic_id, e.partition)) else { return };
        let extents = view.stores.entry(e.store).or_default();
        let inside = extents.range(e.pointer.base_offset..=e.pointer.last_offset);
        let bases: Vec<i64> = inside.map(|(base, _)| *base).collect();
        let gone: Vec<Extent> = bases.iter().filter_map(|base| extents.remove(base)).collect();
        if extents.is_empty() {
            view.stores.remove(&e.store);
        }
        view.indexed.entry(e.store).or_default().insert(e.pointer.base_offset, e.pointer.clone());
        // First what comes, so that no object looks bare in between.
        self.reference_pointer(&e.pointer);
        for extent in &gone {
            self.release(extent, dropped);
        }
    }

    fn unlisted(&mut self, e: &Unlisted, dropped: &mut Option<&mut Dropped>) {
        let key = PartitionKey::new(e.topic_id, e.partition);
        let Some((view, in_wal)) = self.view_mut(key) else { return };
        let mut gone = Vec::with_capacity(e.base_offsets.len());
        for base_offset in &e.base_offsets {
            if let Some(extent) = view.wal.remove(base_offset) {
                view.wal_bytes -= extent.size_bytes;
                gone.push(extent);
            }
        }
        if view.wal.is_empty() {
            in_wal.remove(&key);
        }
        for extent in &gone {
            self.release(extent, dropped);
        }
    }

    fn log_start(&mut self, key: PartitionKey, log_start: i64, dropped: &mut Option<&mut Dropped>) {
        let Some((view, in_wal)) = self.view_mut(key) else { return };
        view.log_start = log_start;
        let mut gone = Vec::new();
        while let Some(extent) = pop_below(&mut view.wal, log_start, |extent| extent.last_offset) {
            view.wal_bytes -= extent.size_bytes;
            gone.push(extent);
        }
        let stores: Vec<_> = view.stores.keys().copied().collect();
        for store in stores {
            let Some(extents) = view.stores.get_mut(&store) else { continue };
            while let Some(extent) = pop_below(extents, log_start, |extent| extent.last_offset) {
                gone.push(extent);
            }
            if extents.is_empty() {
                view.stores.remove(&store);
            }
        }
        let mut gone_pointers = Vec::new();
        let stores: Vec<_> = view.indexed.keys().copied().collect();
        for store in stores {
            let Some(pointers) = view.indexed.get_mut(&store) else { continue };
            while let Some(pointer) = pop_below(pointers, log_start, |pointer| pointer.last_offset) {
                gone_pointers.push(pointer);
            }
            if pointers.is_empty() {
                view.indexed.remove(&store);
            }
        }
        if view.wal.is_empty() {
            in_wal.remove(&key);
        }
        for extent in &gone {
            self.release(extent, dropped);
        }
        for pointer in &gone_pointers {
            self.release_pointer(pointer, dropped);
        }
    }

    // ---- topics ----

    fn put_topic(&mut self, record: &TopicRecord) {
        let known = self.topics.get(&record.topic_id).map_or(0, |topic| topic.partitions);
        let leader_epoch = self.base_leader_epoch();
        for partition in known..record.partitions {
            let key = PartitionKey::new(record.topic_id, partition);
            let shard = shard_of(key, self.shards.len() as u32) as usize;
            let view = Arc::new(PartitionView::new(key, leader_epoch));
            self.shards[shard].partitions.insert(key, view);
        }
        self.name_topic(record);
    }

    /// Without its partitions.
    pub(crate) fn name_topic(&mut self, record: &TopicRecord) {
        let settings = TopicSettings::of(&record.configs, self.cluster_defaults().as_deref());
        let topic = Arc::new(Topic { record: record.clone(), settings });
        self.names.insert(record.name.as_str().into(), record.topic_id);
        self.topics.insert(record.topic_id, topic);
    }

    fn delete_topic(&mut self, topic_id: TopicId, dropped: &mut Option<&mut Dropped>) {
        let Some(topic) = self.topics.remove(&topic_id) else { return };
        self.names.remove(topic.name.as_str());
        self.drop_partitions(&topic.record, dropped);
    }

    fn purge_topic(&mut self, topic_id: TopicId, dropped: &mut Option<&mut Dropped>) {
        let Some(topic) = self.deleted.remove(&topic_id) else { return };
        self.drop_partitions(&topic.record, dropped);
    }

    fn drop_partitions(&mut self, record: &TopicRecord, dropped: &mut Option<&mut Dropped>) {
        for partition in 0..record.partitions {
            let key = PartitionKey::new(record.topic_id, partition);
            let shard = shard_of(key, self.shards.len() as u32) as usize;
            let shard = &mut self.shards[shard];
            shard.in_wal.remove(&key);
            let view = shard.partitions.remove(&key).or_else(|| shard.deleted.remove(&key));
            if let Some(view) = view {
                self.release_view(&view, dropped);
            }
        }
    }

    fn soft_delete_topic(&mut self, e: &TopicSoftDeleted) {
        let Some(topic) = self.topics.remove(&e.topic_id) else { return };
        self.names.remove(topic.name.as_str());
        for partition in 0..topic.partitions {
            let key = PartitionKey::new(e.topic_id, partition);
            let shard = shard_of(key, self.shards.len() as u32) as usize;
            let shard = &mut self.shards[shard];
            if let Some(view) = shard.partitions.remove(&key) {
                shard.deleted.insert(key, view);
            }
        }
        let (record, deleted_ms, purge_ms) = (topic.record.clone(), e.deleted_ms, e.purge_ms);
        self.deleted.insert(e.topic_id, Arc::new(DeletedTopic { record, deleted_ms, purge_ms }));
    }

    fn undelete_topic(&mut self, record: &TopicRecord) {
        self.deleted.remove(&record.topic_id);
        for partition in 0..record.partitions {
            let key = PartitionKey::new(record.topic_id, partition);
            let shard = shard_of(key, self.shards.len() as u32) as usize;
            let shard = &mut self.shards[shard];
            if let Some(view) = shard.deleted.remove(&key) {
                shard.partitions.insert(key, view);
            }
        }
        self.name_topic(record);
    }

    pub(crate) fn cluster_defaults(&self) -> Option<Arc<BTreeMap<String, String>>> {
        self.broker_configs.get("").cloned()
    }

    fn recompute_settings(&mut self) {
        let defaults = self.cluster_defaults();
        let ids: Vec<TopicId> = self.topics.keys().copied().collect();
        for id in ids {
            if let Some(topic) = self.topics.get_mut(&id) {
                let topic = Arc::make_mut(topic);
                topic.settings = TopicSettings::of(&topic.record.configs, defaults.as_deref());
            }
        }
    }

    fn put_group(&mut self, e: &GroupChanged) {
        let known = self.groups.get(e.group.as_str());
        let name: Arc<str> = known.map_or_else(|| e.group.as_str().into(), |group| group.group.clone());
        let group = Group {
            group: name.clone(),
            coordinator_epoch: e.coordinator_epoch,
            coordinator: e.coordinator,
            state_since_ms: e.state_since_ms,
            record: e.record.clone(),
            offsets: known.map(|group| group.offsets.clone()).unwrap_or_default(),
        };
        self.groups.insert(name, Arc::new(group));
    }

    fn put_offsets(&mut self, e: &OffsetsChanged) {
        let Some(group) = self.groups.get_mut(e.group.as_str()) else { return };
        let group = Arc::make_mut(group);
        for offset in &e.committed {
            let key = PartitionKey::new(offset.topic_id, offset.partition);
            group.offsets.insert(key, offset.offset.clone());
        }
        for removed in &e.removed {
            group.offsets.remove(&PartitionKey::new(removed.topic_id, removed.partition));
        }
    }
}

fn pop_below<T: Clone>(list: &mut OrdMap<i64, T>, log_start: i64, last_offset: fn(&T) -> i64) -> Option<T> {
    let (base, first) = list.get_min()?;
    if last_offset(first) >= log_start {
        return None;
    }
    let base = *base;
    list.remove(&base)
}
