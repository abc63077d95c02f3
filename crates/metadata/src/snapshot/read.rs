//! Restoring.

use super::parts::{
    DeletedTopicPart, ExtentsPart, Head, Kind, LanePart, LivePart, PartitionPart, Parts, PointersPart,
    ProducersPart,
};
use super::{MAGIC, MAX_FRAME_BYTES, SNAPSHOT_VERSION, version_at};
use crate::command::FEATURE_LEVEL;
use crate::effect::EffectKind;
use crate::error::MetadataError;
use crate::ids::{ObjectId, PartitionKey};
use crate::image::{DeletedTopic, Extents, PartitionView, Shard};
use crate::record::{FORMAT_VERSION, Location, ObjectRecord, StreamRecord, TopicRecord};
use crate::state::{
    Counters, KEPT_BATCHES, KeptBatch, Lane, ProducerState, StateMachine, fold, is_open, result_len,
};
use bytes::Bytes;
use prost::Message;
use std::sync::Arc;

/// What a snapshot may ask for before it has shown anything: an empty shard takes about 4 KiB.
const SHARDS_MAX: u32 = 1 << 14;

impl StateMachine {
    /// The state machine that [`super::Frozen::encode`] wrote.
    pub fn restore(bytes: &[u8]) -> Result<Self, MetadataError> {
        let mut frames = Frames::open(bytes)?;
        let mut machine: Option<Self> = None;
        let mut parts = 0;
        let mut ended = false;
        while let Some(frame) = frames.next()? {
            for part in Parts::decode(frame)?.parts {
                let kind = part.kind.ok_or(MetadataError::Unknown { what: "snapshot part" })?;
                if ended {
                    return Err(corrupt("parts follow the end"));
                }
                match (kind, &mut machine) {
                    (Kind::Head(head), None) => {
                        let (found, level) = (frames.version, head.cluster.feature_level);
                        let restored = Self::from_head(head)?;
                        if found != version_at(level) {
                            return Err(corrupt(format!("version {found} at feature level {level}")));
                        }
                        machine = Some(restored);
                    }
                    (Kind::End(end), Some(_)) if end.parts == parts => ended = true,
                    (Kind::End(end), _) => {
                        return Err(corrupt(format!("{parts} parts, the end says {}", end.parts)));
                    }
                    (kind, Some(machine)) => machine.read_part(kind)?,
                    (_, None) => return Err(corrupt("the head is missing")),
                }
                parts += 1;
            }
        }
        match machine {
            Some(machine) if ended => machine.all_partitions(),
            _ => Err(corrupt("it is cut off")),
        }
    }

    fn from_head(head: Head) -> Result<Self, MetadataError> {
        let found = head.format.version;
        if found == 0 || found > FORMAT_VERSION {
            return Err(MetadataError::Version { what: "cluster format", found, known: FORMAT_VERSION });
        }
        let (found, known) = (head.cluster.feature_level, FEATURE_LEVEL);
        if found > known {
            return Err(MetadataError::Version { what: "feature level", found, known });
        }
        if head.format.shards == 0 || head.format.shards > SHARDS_MAX {
            return Err(corrupt(format!("{} shards", head.format.shards)));
        }
        let mut machine = Self::new(head.format);
        machine.image.index = head.index;
        machine.image.time_ms = head.time_ms;
        machine.image.cluster = head.cluster;
        machine.hash = head.hash;
        machine.counters = Counters {
            session: head.next_session,
            stream: head.next_stream,
            object: head.next_object,
            producer: head.next_producer,
            coordinator_epoch: head.next_coordinator_epoch,
        };
        Ok(machine)
    }

    fn read_part(&mut self, kind: Kind) -> Result<(), MetadataError> {
        match kind {
            Kind::Head(_) | Kind::End(_) => return Err(corrupt("a second head")),
            Kind::Grant(part) => {
                self.grants.insert(part.next_producer_id, part.time_ms);
            }
            Kind::NodeEpoch(part) => {
                self.node_epochs.insert(part.node_id, part.epoch);
            }
            Kind::Lane(part) => self.read_lane(part)?,
            Kind::Topic(record) => self.read_topic(&record),
            Kind::Partition(part) => self.read_partition(part)?,
            Kind::Extents(part) => self.read_extents(part)?,
            Kind::Pointers(part) => self.read_pointers(part)?,
            Kind::DeletedTopic(part) => self.read_deleted(part),
            Kind::Live(part) => self.read_live(&part)?,
            Kind::Producers(part) => self.read_producers(part)?,
            Kind::Stream(record) => self.read_stream(record),
            Kind::Object(record) => self.read_object(record),
            Kind::BrokerConfigs(part) => self.image.effect(&EffectKind::BrokerConfigs(part), 0, None),
            Kind::Session(part) => self.image.effect(&EffectKind::Session(part), 0, None),
            Kind::Directory(part) => self.image.effect(&EffectKind::Directory(part), 0, None),
            Kind::Leaders(part) => self.image.effect(&EffectKind::Leaders(part), 0, None),
            Kind::Group(part) => self.image.effect(&EffectKind::Group(part), 0, None),
            Kind::Offsets(part) => self.image.effect(&EffectKind::Offsets(part), 0, None),
        }
        Ok(())
    }

    fn read_lane(&mut self, part: LanePart) -> Result<(), MetadataError> {
        let lane = self.lanes.entry((part.session, part.lane)).or_insert_with(|| Lane {
            floor: part.floor,
            next: part.next,
            ..Lane::default()
        });
        for numbered in part.results {
            let result = numbered.result.result.ok_or(MetadataError::Unknown { what: "result" })?;
            lane.result_bytes += result_len(&result);
            lane.results.insert(numbered.number, Arc::new(result));
        }
        Ok(())
    }

    fn read_topic(&mut self, record: &TopicRecord) {
        self.folded_names.insert(fold(&record.name), record.topic_id);
        self.image.name_topic(record);
    }

    fn read_deleted(&mut self, part: DeletedTopicPart) {
        let (deleted_ms, purge_ms) = (part.deleted_ms, part.purge_ms);
        self.purges.insert((purge_ms, part.record.topic_id));
        let topic = DeletedTopic { record: part.record, deleted_ms, purge_ms };
        self.image.deleted.insert(topic.record.topic_id, Arc::new(topic));
    }

    fn read_live(&mut self, part: &LivePart) -> Result<(), MetadataError> {
        let stream = self.image.streams.get_mut(&part.stream);
        let stream = stream.ok_or_else(|| corrupt(format!("live chunks of unknown {:?}", part.stream)))?;
        if part.chunks.len() != part.indexes.len() {
            return Err(corrupt(format!("live chunks of {:?} without indexes", part.stream)));
        }
        Arc::make_mut(stream).live.extend(part.chunks.iter().copied().zip(part.indexes.iter().copied()));
        Ok(())
    }

    fn read_pointers(&mut self, part: PointersPart) -> Result<(), MetadataError> {
        for pointer in &part.pointers {
            self.known_object(pointer.object)?;
            for (object, _) in pointer.objects() {
                self.known_object(object)?;
            }
            self.image.reference_pointer(pointer);
        }
        let view = self.view_mut(PartitionKey::new(part.topic_id, part.partition))?;
        let list = view.indexed.entry(part.store).or_default();
        list.extend(part.pointers.into_iter().map(|pointer| (pointer.base_offset, pointer)));
        Ok(())
    }

    fn known_object(&self, object: ObjectId) -> Result<(), MetadataError> {
        match self.image.object(object) {
            Some(_) => Ok(()),
            None => Err(corrupt(format!("an extent in unknown {object:?}"))),
        }
    }

    fn read_stream(&mut self, record: StreamRecord) {
        self.image.effect(&EffectKind::Stream(record), 0, None);
    }

    fn read_object(&mut self, record: ObjectRecord) {
        if is_open(&record) {
            self.open_objects.insert((record.deadline_ms, record.object));
        }
        self.image.effect(&EffectKind::Object(record), 0, None);
    }

    fn view_mut(&mut self, key: PartitionKey) -> Result<&mut PartitionView, MetadataError> {
        let shard = self.image.shard_of(key) as usize;
        let shard = &mut self.image.shards[shard];
        let view = shard.partitions.get_mut(&key).or_else(|| shard.deleted.get_mut(&key));
        view.map(Arc::make_mut).ok_or_else(|| corrupt(format!("{key:?} has no topic")))
    }

    fn read_partition(&mut self, part: PartitionPart) -> Result<(), MetadataError> {
        let key = PartitionKey::new(part.topic_id, part.partition);
        let mut view = PartitionView::new(key, 0);
        view.log_start = part.log_start;
        view.high_watermark = part.high_watermark;
        view.last_stable_offset = part.last_stable_offset;
        view.epochs = part.epochs.into();
        let among = |partitions: i32| (0..partitions).contains(&key.partition);
        let shard = self.image.shard_of(key) as usize;
        let shard = &mut self.image.shards[shard];
        if self.image.topics.get(&key.topic_id).is_some_and(|topic| among(topic.partitions)) {
            shard.partitions.insert(key, Arc::new(view));
        } else if self.image.deleted.get(&key.topic_id).is_some_and(|topic| among(topic.record.partitions)) {
            shard.deleted.insert(key, Arc::new(view));
        } else {
            return Err(corrupt(format!("{key:?} has no topic")));
        }
        Ok(())
    }

    /// Each partition has come as a part of its own, so that no number in a topic's record makes us take memory for it.
    fn all_partitions(self) -> Result<Self, MetadataError> {
        let image = &self.image;
        let told = |partitions: i32| u64::from(partitions.max(0).unsigned_abs());
        let live: u64 = image.topics.values().map(|topic| told(topic.partitions)).sum();
        let deleted: u64 = image.deleted.values().map(|topic| told(topic.record.partitions)).sum();
        let found = |count: fn(&Shard) -> usize| image.shards.iter().map(count).sum::<usize>() as u64;
        if (live, deleted) == (found(|shard| shard.partitions.len()), found(|shard| shard.deleted.len())) {
            Ok(self)
        } else {
            Err(corrupt("a topic lacks partitions"))
        }
    }

    fn read_extents(&mut self, part: ExtentsPart) -> Result<(), MetadataError> {
        let key = PartitionKey::new(part.topic_id, part.partition);
        for extent in &part.extents {
            match &extent.location {
                None => return Err(MetadataError::Unknown { what: "location" }),
                Some(Location::Wal(wal)) => {
                    *self.chunk_refs.entry((wal.stream, wal.chunk)).or_insert(0) += 1;
                    let stream = self.image.streams.get_mut(&wal.stream);
                    let stream =
                        stream.ok_or_else(|| corrupt(format!("an extent in unknown {:?}", wal.stream)))?;
                    Arc::make_mut(stream).live.entry(wal.chunk).or_insert(0);
                }
                Some(Location::Object(object)) => {
                    self.known_object(object.object)?;
                    self.image.reference_extent(extent);
                }
                Some(Location::Inline(_)) => {}
            }
        }
        let view = self.view_mut(key)?;
        let list: &mut Extents = match part.store {
            None => {
                view.wal_bytes += part.extents.iter().map(|extent| extent.size_bytes).sum::<u64>();
                &mut view.wal
            }
            Some(store) => view.stores.entry(store).or_default(),
        };
        for extent in part.extents {
            list.insert(extent.base_offset, extent);
        }
        if part.store.is_none() {
            let shard = self.image.shard_of(key) as usize;
            self.image.shards[shard].in_wal.insert(key);
        }
        Ok(())
    }

    fn read_producers(&mut self, part: ProducersPart) -> Result<(), MetadataError> {
        let key = PartitionKey::new(part.topic_id, part.partition);
        let shard = self.image.shard_of(key) as usize;
        let producers = self.producers[shard].entry(key).or_default();
        for producer in part.producers {
            if producer.batches.len() > KEPT_BATCHES {
                return Err(corrupt("a producer has too many batches"));
            }
            let mut state = ProducerState {
                epoch: producer.epoch,
                last_ms: producer.last_ms,
                ..ProducerState::default()
            };
            for batch in producer.batches {
                state.push(KeptBatch {
                    base_sequence: batch.base_sequence,
                    last_sequence: batch.last_sequence,
                    base_offset: batch.base_offset,
                    append_time_ms: batch.append_time_ms,
                });
            }
            producers.insert(producer.producer_id, state);
        }
        Ok(())
    }
}

/// Cuts a snapshot into its frames and checks them.
struct Frames<'a> {
    bytes: &'a [u8],
    position: usize,
    version: u32,
}

impl<'a> Frames<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self, MetadataError> {
        let mut frames = Self { bytes, position: 0, version: 0 };
        if frames.take(MAGIC.len())? != MAGIC {
            return Err(corrupt("it does not begin as a snapshot"));
        }
        let found = frames.word()?;
        if found == 0 || found > SNAPSHOT_VERSION {
            return Err(MetadataError::Version { what: "snapshot", found, known: SNAPSHOT_VERSION });
        }
        frames.version = found;
        Ok(frames)
    }

    fn next(&mut self) -> Result<Option<Bytes>, MetadataError> {
        if self.position == self.bytes.len() {
            return Ok(None);
        }
        let at = self.position;
        let len = self.word()? as usize;
        let crc = self.word()?;
        if len > MAX_FRAME_BYTES {
            return Err(corrupt(format!("frame at byte {at}: {len} bytes long")));
        }
        let payload = self.take(len)?;
        if crc32c::crc32c(payload) != crc {
            return Err(corrupt(format!("frame at byte {at}: CRC mismatch")));
        }
        Ok(Some(Bytes::copy_from_slice(payload)))
    }

    fn word(&mut self) -> Result<u32, MetadataError> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], MetadataError> {
        let rest = &self.bytes[self.position..];
        let taken =
            rest.get(..len).ok_or_else(|| corrupt(format!("it ends at byte {}", self.bytes.len())))?;
        self.position += len;
        Ok(taken)
    }
}

fn corrupt(detail: impl Into<String>) -> MetadataError {
    MetadataError::Corrupt { what: "snapshot", detail: detail.into() }
}
