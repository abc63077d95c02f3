//! Commits of chunks, of both classes, and what must be answered.

use super::step::Batch;
use super::{World, pick, pick_useful};
use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::record::*;
use isobar_metadata::*;

impl World {
    pub(super) fn commit(&mut self, stream: usize, parts: Vec<(usize, i32, Vec<Batch>)>, how: u8) {
        let image = self.rig.machine.view();
        let open =
            |stream: &(SessionId, StreamId, u32)| image.stream(stream.1).is_some_and(|stream| !stream.closed);
        let Some((session, stream, class)) = pick_useful(&self.streams, stream, open) else { return };
        let lane = lane_of(Durability::Wal, PlacementId(class));
        let mut ordinal = 0;
        let mut partitions = vec![];
        for (topic, partition, batches) in parts {
            let Some(topic_id) = self.some_topic(topic, Some(class)) else { continue };
            let batches = batches.iter().map(|batch| {
                ordinal += 1 + batch.skip;
                self.batch(ordinal, topic_id, partition, batch)
            });
            let batches = batches.collect();
            let class_epoch = self.class_epoch(topic_id) + u32::from(how == 77);
            partitions.push(CommitPartition { topic_id, partition, class_epoch, batches, position: 0 });
        }
        let command = self.rig.chunk(stream, partitions);
        let mut envelope = self.rig.envelope(session, lane, command.clone());
        if how > 240 {
            // Too early: refused, and nothing happens.
            envelope.number += 1 + u64::from(how - 240);
            let result = self.rig.one(envelope);
            assert!(result.refusal().is_some() && self.rig.did_nothing());
            return;
        }
        let result = self.rig.send(session, lane, command.clone());
        self.keep(envelope, &result);
        self.done.appended += self.note_appended(command, result);
    }

    pub(super) fn class_epoch(&self, topic_id: TopicId) -> u32 {
        self.rig.machine.view().topic(topic_id).map_or(0, |topic| topic.class_epoch)
    }

    /// Checks the answers to a chunk against the model; how many batches were appended.
    pub(super) fn note_appended(&mut self, command: Command, result: CommandResult) -> u64 {
        let (CommandResult::Chunk(result), Command::CommitChunk(command)) = (result, command) else {
            return 0;
        };
        if result.error_code != 0 {
            assert!(result.batches.is_empty());
            return 0;
        }
        let batches =
            command.partitions.iter().flat_map(|part| part.batches.iter().map(move |batch| (part, batch)));
        let mut answers = result.batches.iter();
        let mut appended = 0;
        for (part, batch) in batches {
            let answer = answers.next().unwrap();
            let key = PartitionKey::new(part.topic_id, part.partition);
            if answer.error_code != 0 || answer.duplicate {
                continue;
            }
            let end = self.offsets.entry(key).or_insert(0);
            assert_eq!(answer.base_offset, *end, "offsets are dense and given once");
            *end += i64::from(batch.record_count);
            appended += 1;
            if batch.producer_id >= 0 {
                let next = batch.base_sequence + batch.record_count as i32;
                self.sequences.insert((batch.producer_id, part.topic_id, part.partition), next);
            }
        }
        assert!(answers.next().is_none());
        appended
    }

    pub(super) fn object_chunk(
        &mut self,
        session: usize,
        object: usize,
        class: u32,
        parts: Vec<(usize, i32, Vec<Batch>)>,
    ) {
        let Some(session) = self.session(session) else { return };
        let image = self.rig.machine.view();
        let mine = |id: &ObjectId| {
            let prepared = |object: &Object| object.state == ObjectState::Prepared as i32;
            image.object(*id).is_some_and(|object| prepared(object) && object.session == session)
        };
        let Some(object) = pick_useful(&self.objects, object, mine) else { return };
        let lane = lane_of(Durability::Object, PlacementId(class));
        let of_class: Vec<TopicId> = {
            let topics = image.topics().filter(|topic| topic.settings.durability == Durability::Object);
            topics.filter(|topic| topic.placement.0 == class).map(|topic| topic.topic_id).collect()
        };
        let mut position = 0;
        let mut partitions = vec![];
        for (topic, partition, batches) in parts {
            let found = if topic % 8 == 1 { self.some_topic(topic, None) } else { pick(&of_class, topic) };
            let Some(topic_id) = found else { continue };
            let batches: Vec<_> =
                batches.iter().map(|batch| self.batch(0, topic_id, partition, batch)).collect();
            let bytes: u64 = batches.iter().map(|batch| u64::from(batch.size_bytes)).sum();
            let class_epoch = self.class_epoch(topic_id);
            partitions.push(CommitPartition { topic_id, partition, class_epoch, batches, position });
            position += bytes;
        }
        let chunk = Some(ChunkObject { object, store: StoreId(1), size_bytes: position });
        let command =
            Command::CommitChunk(CommitChunk { partitions, object: chunk, ..CommitChunk::default() });
        let envelope = self.rig.envelope(session, lane, command.clone());
        let result = self.rig.send(session, lane, command.clone());
        self.keep(envelope, &result);
        self.done.in_objects += self.note_appended(command, result);
    }

    pub(super) fn batch(
        &self,
        ordinal: u32,
        topic_id: TopicId,
        partition: i32,
        batch: &Batch,
    ) -> CommitBatch {
        let Some((producer, off)) = batch.producer else { return plain(ordinal, batch.count) };
        let Some(id) = pick(&self.producers, usize::from(producer) + 1) else {
            return plain(ordinal, batch.count);
        };
        let next = self.sequences.get(&(id, topic_id, partition)).copied().unwrap_or(0);
        CommitBatch { ordinal, ..idempotent(id, 0, (next + off / 2).max(0), batch.count) }
    }
}
