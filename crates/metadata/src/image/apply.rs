//! How effects change an image.

use super::{Group, Image, PartitionView, Stream, Topic};
use crate::config_table::TopicSettings;
use crate::effect::{EffectBatch, EffectKind, GroupChanged, OffsetsChanged, Stored, Unlisted};
use crate::error::MetadataError;
use crate::ids::{ObjectId, PartitionKey, SessionId, StreamId, TopicId, base_leader_epoch, shard_of};
use crate::record::{EpochStart, Extent, Location, TopicRecord};
use imbl::OrdSet;
use std::collections::BTreeMap;
use std::sync::Arc;

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
            | EffectKind::Directory(_) => {}
            EffectKind::ChunkCommitted(e) => self.streams.push(e.stream),
            EffectKind::Released(e) => self.streams.push(e.stream),
            EffectKind::Stream(e) => self.streams.push(e.stream),
            EffectKind::StreamForgotten(e) => self.streams.push(e.stream),
            EffectKind::TopicCreated(e) | EffectKind::TopicChanged(e) => self.topics.push(e.topic_id),
            EffectKind::TopicDeleted(e) => self.topics.push(e.topic_id),
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
    /// The partitions of a created, changed or deleted topic are among the changed partitions.
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
            self.effect(kind, None);
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
            EffectKind::TopicCreated(e) | EffectKind::TopicChanged(e) => e.topic_id,
            EffectKind::TopicDeleted(e) => e.topic_id,
            _ => return None,
        };
        Some((topic_id, self.topics.get(&topic_id).map_or(0, |topic| topic.partitions)))
    }

    /// One effect. Locations that no list of this partition holds any more are added to `dropped`.
    pub(crate) fn effect(&mut self, effect: &EffectKind, dropped: Option<&mut Vec<Location>>) {
        match effect {
            EffectKind::Appended(e) => self.append(e.topic_id, e.partition, &e.extent),
            EffectKind::ChunkCommitted(e) => {
                if let Some(stream) = self.streams.get_mut(&e.stream) {
                    let stream = Arc::make_mut(stream);
                    stream.record.last_chunk = e.chunk;
                    stream.record.committed = true;
                    if e.extents > 0 {
                        stream.live.insert(e.chunk);
                    }
                }
            }
            EffectKind::Released(e) => {
                if let Some(stream) = self.streams.get_mut(&e.stream) {
                    let stream = Arc::make_mut(stream);
                    for chunk in &e.chunks {
                        stream.live.remove(chunk);
                    }
                }
            }
            EffectKind::Stored(e) => self.stored(e),
            EffectKind::Unlisted(e) => self.unlisted(e, dropped),
            EffectKind::LogStartMoved(e) => {
                self.log_start(PartitionKey::new(e.topic_id, e.partition), e.log_start, dropped);
            }
            EffectKind::TopicCreated(e) | EffectKind::TopicChanged(e) => self.put_topic(e),
            EffectKind::TopicDeleted(e) => self.delete_topic(e.topic_id, dropped),
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
                let live = self.streams.get(&e.stream).map_or_else(OrdSet::new, |stream| stream.live.clone());
                self.streams.insert(e.stream, Arc::new(Stream { record: e.clone(), live }));
            }
            EffectKind::StreamForgotten(e) => {
                self.streams.remove(&e.stream);
            }
            EffectKind::Object(e) => {
                self.objects.insert(e.object, *e);
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
        }
    }

    /// Every partition's next offset begins this leader epoch.
    fn begin_epochs(&mut self, leader_epoch: i32) {
        let keys: Vec<PartitionKey> =
            self.shards.iter().flat_map(|shard| shard.partitions.keys().copied()).collect();
        for key in keys {
            let Some((view, _)) = self.view_mut(key) else { continue };
            let start_offset = view.high_watermark;
            let kept = view.epochs.iter().filter(|epoch| epoch.start_offset < start_offset).copied();
            view.epochs = kept.chain([EpochStart { leader_epoch, start_offset }]).collect();
        }
    }

    fn view_mut(&mut self, key: PartitionKey) -> Option<(&mut PartitionView, &mut OrdSet<PartitionKey>)> {
        let shard = shard_of(key, self.shards.len() as u32) as usize;
        let shard = self.shards.get_mut(shard)?;
        let view = shard.partitions.get_mut(&key)?;
        Some((Arc::make_mut(view), &mut shard.in_wal))
    }

    fn append(&mut self, topic_id: TopicId, partition: i32, extent: &Extent) {
        let key = PartitionKey::new(topic_id, partition);
        let Some((view, in_wal)) = self.view_mut(key) else { return };
        if view.wal.is_empty() {
            in_wal.insert(key);
        }
        view.wal.insert(extent.base_offset, extent.clone());
        view.wal_bytes += extent.size_bytes;
        view.high_watermark = extent.end_offset();
        view.last_stable_offset = view.high_watermark;
    }

    fn stored(&mut self, e: &Stored) {
        let Some((view, _)) = self.view_mut(PartitionKey::new(e.topic_id, e.partition)) else { return };
        view.stores.entry(e.store).or_default().insert(e.extent.base_offset, e.extent.clone());
    }

    fn unlisted(&mut self, e: &Unlisted, mut dropped: Option<&mut Vec<Location>>) {
        let key = PartitionKey::new(e.topic_id, e.partition);
        let Some((view, in_wal)) = self.view_mut(key) else { return };
        for base_offset in &e.base_offsets {
            if let Some(extent) = view.wal.remove(base_offset) {
                view.wal_bytes -= extent.size_bytes;
                note_dropped(&mut dropped, extent);
            }
        }
        if view.wal.is_empty() {
            in_wal.remove(&key);
        }
    }

    fn log_start(&mut self, key: PartitionKey, log_start: i64, mut dropped: Option<&mut Vec<Location>>) {
        let Some((view, in_wal)) = self.view_mut(key) else { return };
        view.log_start = log_start;
        while let Some(extent) = pop_below(&mut view.wal, log_start) {
            view.wal_bytes -= extent.size_bytes;
            note_dropped(&mut dropped, extent);
        }
        let stores: Vec<_> = view.stores.keys().copied().collect();
        for store in stores {
            if let Some(extents) = view.stores.get_mut(&store) {
                while let Some(extent) = pop_below(extents, log_start) {
                    note_dropped(&mut dropped, extent);
                }
                if extents.is_empty() {
                    view.stores.remove(&store);
                }
            }
        }
        if view.wal.is_empty() {
            in_wal.remove(&key);
        }
    }

    fn put_topic(&mut self, record: &TopicRecord) {
        let known = self.topics.get(&record.topic_id).map_or(0, |topic| topic.partitions);
        let leader_epoch = self.base_leader_epoch();
        for partition in known..record.partitions {
            let key = PartitionKey::new(record.topic_id, partition);
            let shard = shard_of(key, self.shards.len() as u32) as usize;
            let view = Arc::new(PartitionView::new(key, leader_epoch));
            self.shards[shard].partitions.insert(key, view);
        }
        let settings = TopicSettings::of(&record.configs, self.cluster_defaults().as_deref());
        let topic = Arc::new(Topic { record: record.clone(), settings });
        self.names.insert(record.name.as_str().into(), record.topic_id);
        self.topics.insert(record.topic_id, topic);
    }

    fn delete_topic(&mut self, topic_id: TopicId, mut dropped: Option<&mut Vec<Location>>) {
        let Some(topic) = self.topics.remove(&topic_id) else { return };
        self.names.remove(topic.name.as_str());
        for partition in 0..topic.partitions {
            let key = PartitionKey::new(topic_id, partition);
            let shard = shard_of(key, self.shards.len() as u32) as usize;
            let shard = &mut self.shards[shard];
            shard.in_wal.remove(&key);
            let Some(view) = shard.partitions.remove(&key) else { continue };
            if dropped.is_some() {
                let stored = view.stores.values().flat_map(|extents| extents.values());
                for extent in view.wal.values().chain(stored) {
                    note_dropped(&mut dropped, extent.clone());
                }
            }
        }
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

fn pop_below(extents: &mut super::Extents, log_start: i64) -> Option<Extent> {
    let (base, first) = extents.get_min()?;
    if first.last_offset >= log_start {
        return None;
    }
    let base = *base;
    extents.remove(&base)
}

fn note_dropped(dropped: &mut Option<&mut Vec<Location>>, extent: Extent) {
    if let (Some(dropped), Some(location)) = (dropped, extent.location) {
        dropped.push(location);
    }
}
