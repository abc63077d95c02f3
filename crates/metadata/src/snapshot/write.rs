//! Encoding.

use super::parts::{
    DeletedTopicPart, End, ExtentsPart, GrantPart, Head, KeptBatchPart, Kind, LanePart, LivePart,
    NodeEpochPart, NumberedResult, Part, PartitionPart, PointersPart, ProducerPart, ProducersPart,
};
use super::{FRAME_BYTES, Frozen, MAGIC, PART_ENTRIES, version_at};
use crate::effect::{BrokerConfigs, CommittedOffset, GroupChanged, OffsetsChanged};
use crate::ids::{PartitionKey, StoreId};
use crate::image::{Extents, Group, PartitionView};
use crate::result::ResultRecord;
use crate::state::{Lane, Producers, StateMachine};
use prost::Message;
use prost::encoding::message;

/// Gathers parts into frames.
struct Writer<'a> {
    out: &'a mut dyn FnMut(&[u8]),
    frame: Vec<u8>,
    parts: u64,
}

impl Writer<'_> {
    fn part(&mut self, kind: Kind) {
        // Field 1 of `Parts`, one element.
        message::encode(1, &Part { kind: Some(kind) }, &mut self.frame);
        self.parts += 1;
        if self.frame.len() >= FRAME_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.frame.is_empty() {
            return;
        }
        (self.out)(&(self.frame.len() as u32).to_le_bytes());
        (self.out)(&crc32c::crc32c(&self.frame).to_le_bytes());
        (self.out)(&self.frame);
        self.frame.clear();
    }
}

impl Frozen {
    /// Encodes it in pieces of at most about 64 KiB, each given to `out` in order.
    pub fn encode(&self, out: &mut dyn FnMut(&[u8])) {
        out(&MAGIC);
        out(&version_at(self.0.feature_level()).to_le_bytes());
        let mut writer = Writer { out, frame: Vec::with_capacity(2 * FRAME_BYTES), parts: 0 };
        self.0.write_head(&mut writer);
        self.0.write_sessions(&mut writer);
        self.0.write_storage(&mut writer);
        self.0.write_topics(&mut writer);
        for group in self.0.image.groups.values() {
            write_group(group, &mut writer);
        }
        let parts = writer.parts;
        writer.part(Kind::End(End { parts }));
        writer.flush();
    }

    /// The whole snapshot as one piece.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode(&mut |piece| bytes.extend_from_slice(piece));
        bytes
    }
}

impl StateMachine {
    fn write_head(&self, w: &mut Writer<'_>) {
        w.part(Kind::Head(Head {
            format: self.image.format.as_ref().clone(),
            index: self.image.index,
            time_ms: self.image.time_ms,
            cluster: self.image.cluster,
            hash: self.hash,
            next_session: self.counters.session,
            next_stream: self.counters.stream,
            next_object: self.counters.object,
            next_producer: self.counters.producer,
            next_coordinator_epoch: self.counters.coordinator_epoch,
        }));
        for (next_producer_id, time_ms) in &self.grants {
            w.part(Kind::Grant(GrantPart { next_producer_id: *next_producer_id, time_ms: *time_ms }));
        }
        for (name, configs) in &self.image.broker_configs {
            let configs = configs.as_ref().clone();
            w.part(Kind::BrokerConfigs(BrokerConfigs { name: name.clone(), configs }));
        }
    }

    fn write_sessions(&self, w: &mut Writer<'_>) {
        for (node_id, epoch) in &self.node_epochs {
            w.part(Kind::NodeEpoch(NodeEpochPart { node_id: *node_id, epoch: *epoch }));
        }
        for session in self.image.sessions.values() {
            w.part(Kind::Session(session.as_ref().clone()));
        }
        for directory in self.image.directories.values() {
            w.part(Kind::Directory(directory.as_ref().clone()));
        }
        for shard in &self.image.shards {
            w.part(Kind::Leaders(shard.leaders.as_ref().clone()));
        }
        for ((session, lane), state) in &self.lanes {
            let part = |results| LanePart {
                session: *session,
                lane: *lane,
                floor: state.floor,
                next: state.next,
                results,
            };
            write_lane(state, &part, w);
        }
    }

    fn write_storage(&self, w: &mut Writer<'_>) {
        for stream in self.image.streams.values() {
            w.part(Kind::Stream(stream.record.clone()));
            let mut rest = stream.live.iter().filter(|(_, index)| **index > 0).peekable();
            while rest.peek().is_some() {
                let (chunks, indexes) = rest.by_ref().take(PART_ENTRIES).unzip();
                w.part(Kind::Live(LivePart { stream: stream.stream, chunks, indexes }));
            }
        }
        for object in self.image.objects.values() {
            w.part(Kind::Object(object.record));
        }
    }

    fn write_topics(&self, w: &mut Writer<'_>) {
        for topic in self.image.topics.values() {
            w.part(Kind::Topic(topic.record.clone()));
        }
        for topic in self.image.deleted.values() {
            let (record, deleted_ms, purge_ms) = (topic.record.clone(), topic.deleted_ms, topic.purge_ms);
            w.part(Kind::DeletedTopic(DeletedTopicPart { record, deleted_ms, purge_ms }));
        }
        for (shard, producers) in self.image.shards.iter().zip(&self.producers) {
            for view in shard.partitions.values().chain(shard.deleted.values()) {
                write_partition(view, w);
            }
            for (key, producers) in producers {
                write_producers(*key, producers, w);
            }
        }
    }
}

fn write_lane(lane: &Lane, part: &dyn Fn(Vec<NumberedResult>) -> LanePart, w: &mut Writer<'_>) {
    let mut results = Vec::new();
    let mut bytes = 0;
    for (number, result) in &lane.results {
        let result = ResultRecord { result: Some(result.as_ref().clone()) };
        bytes += result.encoded_len();
        results.push(NumberedResult { number: *number, result });
        if bytes >= FRAME_BYTES {
            w.part(Kind::Lane(part(std::mem::take(&mut results))));
            bytes = 0;
        }
    }
    w.part(Kind::Lane(part(results)));
}

fn write_partition(view: &PartitionView, w: &mut Writer<'_>) {
    w.part(Kind::Partition(PartitionPart {
        topic_id: view.topic_id,
        partition: view.partition,
        log_start: view.log_start,
        high_watermark: view.high_watermark,
        last_stable_offset: view.last_stable_offset,
        epochs: view.epochs.to_vec(),
    }));
    write_extents(view, None, &view.wal, w);
    for (store, extents) in &view.stores {
        write_extents(view, Some(*store), extents, w);
    }
    for (store, pointers) in &view.indexed {
        let mut rest = pointers.values().peekable();
        while rest.peek().is_some() {
            w.part(Kind::Pointers(PointersPart {
                topic_id: view.topic_id,
                partition: view.partition,
                store: *store,
                pointers: rest.by_ref().take(PART_ENTRIES).cloned().collect(),
            }));
        }
    }
}

fn write_extents(view: &PartitionView, store: Option<StoreId>, extents: &Extents, w: &mut Writer<'_>) {
    let mut rest = extents.values().peekable();
    while rest.peek().is_some() {
        w.part(Kind::Extents(ExtentsPart {
            topic_id: view.topic_id,
            partition: view.partition,
            store,
            extents: rest.by_ref().take(PART_ENTRIES).cloned().collect(),
        }));
    }
}

fn write_producers(key: PartitionKey, producers: &Producers, w: &mut Writer<'_>) {
    let mut rest = producers.iter().peekable();
    while rest.peek().is_some() {
        let part = rest.by_ref().take(PART_ENTRIES).map(|(producer_id, state)| ProducerPart {
            producer_id: *producer_id,
            epoch: state.epoch,
            last_ms: state.last_ms,
            batches: state
                .batches()
                .iter()
                .map(|kept| KeptBatchPart {
                    base_sequence: kept.base_sequence,
                    last_sequence: kept.last_sequence,
                    base_offset: kept.base_offset,
                    append_time_ms: kept.append_time_ms,
                })
                .collect(),
        });
        let producers = part.collect();
        w.part(Kind::Producers(ProducersPart {
            topic_id: key.topic_id,
            partition: key.partition,
            producers,
        }));
    }
}

fn write_group(group: &Group, w: &mut Writer<'_>) {
    let name = group.group.to_string();
    w.part(Kind::Group(GroupChanged {
        group: name.clone(),
        coordinator_epoch: group.coordinator_epoch,
        coordinator: group.coordinator,
        state_since_ms: group.state_since_ms,
        record: group.record.clone(),
    }));
    let mut rest = group.offsets.iter().peekable();
    while rest.peek().is_some() {
        let committed = rest.by_ref().take(PART_ENTRIES).map(|(key, offset)| CommittedOffset {
            topic_id: key.topic_id,
            partition: key.partition,
            offset: offset.clone(),
        });
        let committed = committed.collect();
        w.part(Kind::Offsets(OffsetsChanged { group: name.clone(), committed, removed: Vec::new() }));
    }
}
