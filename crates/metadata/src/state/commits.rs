//! Streams, and the sequencing of chunks: the hot path.

use super::producers::{KeptBatch, Verdict};
use super::{StateMachine, failed};
use crate::codes;
use crate::command::{
    ChunkObject, CommitBatch, CommitChunk, CommitPartition, OpenStream, ReplaceReplica, batch_flags,
};
use crate::config_table::TimestampType;
use crate::effect::{Appended, ChunkCommitted, EffectKind, Released, StreamForgotten};
use crate::ids::{
    Durability, LaneId, ObjectId, PartitionKey, PlacementId, SessionId, StoreId, StreamId, TopicId,
    classes_of, shard_of,
};
use crate::image::Object;
use crate::record::{Extent, Location, ObjectLocation, ObjectRecord, ObjectState, StreamRecord, WalLocation};
use crate::result::{BatchResult, ChunkResult, CommandResult, RefusalKind, StreamGranted};

/// Open streams of one session.
const MAX_OPEN_STREAMS: usize = 256;
/// An ensemble's replicas are bits of a u32.
const MAX_ENSEMBLE: usize = 32;

/// What sequencing needs of a topic; kept while consecutive partitions are of one topic.
#[derive(Clone, Copy)]
struct TopicFacts {
    topic_id: TopicId,
    class_epoch: u32,
    lane: LaneId,
    log_append_time: bool,
}

/// Where a chunk's batches lie.
#[derive(Clone, Copy)]
enum Place {
    Wal {
        stream: StreamId,
        chunk: u64,
    },
    /// `position` is that of the next batch.
    Object {
        object: ObjectId,
        store: StoreId,
        size_bytes: u64,
        position: u64,
    },
}

impl Place {
    /// An extent of this one batch.
    fn of(self, batch: &CommitBatch) -> Location {
        match self {
            Self::Wal { stream, chunk } => {
                Location::Wal(WalLocation { stream, chunk, first_batch: batch.ordinal, batches: 1 })
            }
            Self::Object { object, position, .. } => {
                let location = ObjectLocation::new(object, position, batch.size_bytes);
                Location::Object(ObjectLocation { unstamped: true, ..location })
            }
        }
    }

    /// Adds the batch to an extent's location if it lies right behind.
    fn grow(self, location: &mut Location, batch: &CommitBatch) -> bool {
        match (self, location) {
            (Self::Wal { .. }, Location::Wal(wal)) => {
                let follows = wal.first_batch.checked_add(wal.batches) == Some(batch.ordinal);
                wal.batches += u32::from(follows);
                follows
            }
            (Self::Object { position, .. }, Location::Object(object)) => {
                let size_bytes = object.size_bytes.checked_add(batch.size_bytes);
                let follows = object.range().end == position && size_bytes.is_some();
                object.size_bytes = size_bytes.filter(|_| follows).unwrap_or(object.size_bytes);
                follows
            }
            _ => false,
        }
    }
}

/// The partition being sequenced.
struct Sequencer {
    key: PartitionKey,
    place: Place,
    now_ms: i64,
    /// -1 unless the topic says LogAppendTime.
    append_time_ms: i64,
    log_start: i64,
    next_offset: i64,
    /// The extent that grows while ordinals follow one another.
    open: Option<Extent>,
    /// Extents made so far in this chunk.
    extents: u32,
}

impl StateMachine {
    pub(super) fn open_stream(&mut self, session: SessionId, c: &OpenStream) -> CommandResult {
        match self.check_stream(session, c) {
            Ok(()) => {}
            Err(message) => {
                return CommandResult::Stream(StreamGranted {
                    error_code: codes::INVALID_REQUEST,
                    stream: StreamId::default(),
                    message: Some(message.into()),
                });
            }
        }
        let stream = StreamId::new(self.image.incarnation(), self.counters.stream);
        self.counters.stream += 1;
        self.emit(EffectKind::Stream(StreamRecord {
            stream,
            session,
            lane: c.lane,
            ensemble: c.ensemble.clone(),
            write_quorum: c.write_quorum,
            closed: false,
            last_chunk: 0,
            committed: false,
        }));
        CommandResult::Stream(StreamGranted { error_code: codes::NONE, stream, message: None })
    }

    fn check_stream(&self, session: SessionId, c: &OpenStream) -> Result<(), &'static str> {
        if !self.is_stream_lane(c.lane) {
            return Err("the lane is not that of a durability class and a placement class");
        }
        if c.write_quorum < self.image.cluster.write_quorum {
            return Err("the write quorum is below the cluster's");
        }
        if c.ensemble.len() > MAX_ENSEMBLE || (c.ensemble.len() as u64) < u64::from(c.write_quorum) {
            return Err("the ensemble is smaller than the write quorum, or too large");
        }
        for (index, directory) in c.ensemble.iter().enumerate() {
            match self.image.directory(*directory) {
                None => return Err("the ensemble names a directory that is not registered"),
                Some(record) if !record.takes_streams() => {
                    return Err("the ensemble names a directory that is drained or removed");
                }
                Some(_) => {}
            }
            if c.ensemble[..index].contains(directory) {
                return Err("the ensemble names a directory twice");
            }
        }
        let open = self.image.streams.values().filter(|stream| stream.session == session && !stream.closed);
        if open.count() >= MAX_OPEN_STREAMS {
            return Err("the session has too many open streams");
        }
        Ok(())
    }

    fn is_stream_lane(&self, lane: LaneId) -> bool {
        // The object class has no streams.
        matches!(classes_of(lane), Some((Durability::Wal, placement)) if self.image.placement(placement).is_some())
    }

    pub(super) fn close_stream(&mut self, session: SessionId, stream: StreamId) -> CommandResult {
        match self.image.stream(stream) {
            Some(found) if found.session == session => {
                self.close(stream);
                super::done()
            }
            // Forgotten because it was closed and spent, or never this session's.
            _ => CommandResult::Done(failed(codes::INVALID_REQUEST, "no such stream of this session")),
        }
    }

    /// Another replica has all that is live of a closed stream.
    pub(super) fn replace_replica(&mut self, c: &ReplaceReplica) -> CommandResult {
        let refused = |why: &str| CommandResult::Done(failed(codes::INVALID_REQUEST, why));
        let Some(stream) = self.image.stream(c.stream) else { return refused("no such stream") };
        if !stream.closed {
            return refused("the stream is open: its writer's chunks do not go there");
        }
        let is_named = |directory| stream.ensemble.contains(&directory);
        match (is_named(c.from), is_named(c.to)) {
            (false, true) => return super::done(),
            (true, false) => {}
            (false, false) => return refused("the ensemble does not name the replica that is lost"),
            (true, true) => return refused("the ensemble names both replicas"),
        }
        if !self.image.directory(c.to).is_some_and(|record| record.takes_streams()) {
            return refused("the directory is not registered, or is drained or removed");
        }
        let mut record = stream.record.clone();
        for directory in record.ensemble.iter_mut().filter(|directory| **directory == c.from) {
            *directory = c.to;
        }
        self.emit(EffectKind::Stream(record));
        super::done()
    }

    /// Closes a stream if it is open. Idempotent.
    pub(super) fn close(&mut self, stream: StreamId) {
        let Some(found) = self.image.stream(stream) else { return };
        if found.closed {
            return;
        }
        let record = StreamRecord { closed: true, ..found.record.clone() };
        self.emit(EffectKind::Stream(record));
        self.forget_if_spent(stream);
    }

    /// Forgets a closed stream that no extent points into.
    pub(super) fn forget_if_spent(&mut self, stream: StreamId) {
        if self.image.stream(stream).is_some_and(|stream| stream.closed && stream.live.is_empty()) {
            self.emit(EffectKind::StreamForgotten(StreamForgotten { stream }));
        }
    }

    /// Sequences a chunk. `Err` refuses it: nothing changed and the number is not used up.
    pub(super) fn commit_chunk(
        &mut self,
        session: SessionId,
        lane: LaneId,
        c: &CommitChunk,
    ) -> Result<ChunkResult, RefusalKind> {
        match classes_of(lane) {
            Some((Durability::Object, placement)) if self.feature_level() >= 2 => {
                return self.commit_object_chunk(session, lane, placement, c);
            }
            _ if !self.is_stream_lane(lane) || c.object.is_some() => return Err(RefusalKind::Malformed),
            _ => {}
        }
        let stream = self.image.streams.get(&c.stream).filter(|stream| stream.session == session);
        if c.partitions.is_empty() {
            // A chunk that was given up. Where its stream is still open, the replicas learn that it is garbage.
            if stream.is_some_and(|s| !s.closed && s.lane == lane && rises(s, c.chunk)) {
                self.chunk_committed(c, 0);
            }
            return Ok(ChunkResult { error_code: codes::NONE, batches: Vec::new() });
        }
        let Some(stream) = stream.filter(|stream| !stream.closed) else {
            return Err(RefusalKind::StreamClosed);
        };
        if stream.lane != lane {
            return Err(RefusalKind::Malformed);
        }
        let members = u32::MAX >> (32 - stream.ensemble.len().clamp(1, 32) as u32);
        let acknowledged = (c.acknowledged & members).count_ones();
        if acknowledged < stream.write_quorum || !rises(stream, c.chunk) {
            return Ok(ChunkResult { error_code: codes::INVALID_REQUEST, batches: Vec::new() });
        }
        let (batches, extents) = self.sequence_all(lane, c, Place::Wal { stream: c.stream, chunk: c.chunk });
        self.chunk_committed(c, extents);
        Ok(ChunkResult { error_code: codes::NONE, batches })
    }

    /// A chunk of the class `object`: the first of this and the object's expiry wins.
    fn commit_object_chunk(
        &mut self,
        session: SessionId,
        lane: LaneId,
        placement: PlacementId,
        c: &CommitChunk,
    ) -> Result<ChunkResult, RefusalKind> {
        let Some(placement) = self.image.placement(placement) else { return Err(RefusalKind::Malformed) };
        let Some(chunk) = c.object else {
            // A chunk that was given up before its object had a name.
            let given_up = ChunkResult { error_code: codes::NONE, batches: Vec::new() };
            return if c.partitions.is_empty() { Ok(given_up) } else { Err(RefusalKind::Malformed) };
        };
        let allowed = placement.allow.is_empty() || placement.allow.contains(&chunk.store);
        let elsewhere = placement.require.iter().any(|store| *store != chunk.store);
        if !allowed || elsewhere || self.image.store_name(chunk.store).is_none() {
            return Ok(ChunkResult { error_code: codes::INVALID_REQUEST, batches: Vec::new() });
        }
        let prepared =
            |object: &&Object| object.state == ObjectState::Prepared as i32 && object.session == session;
        let record = self.image.object(chunk.object).filter(prepared).map(|object| object.record);
        let Some(record) = record else {
            let batches = c.partitions.iter().flat_map(|partition| &partition.batches);
            let batches = batches.map(|_| batch_error(codes::KAFKA_STORAGE_ERROR, -1)).collect();
            return Ok(ChunkResult { error_code: codes::NONE, batches });
        };
        let ChunkObject { object, store, size_bytes } = chunk;
        let state = ObjectState::Committed as i32;
        self.put_object(ObjectRecord { state, store, size_bytes, complete: true, ..record });
        let (batches, _) =
            self.sequence_all(lane, c, Place::Object { object, store, size_bytes, position: 0 });
        self.unreference(object);
        Ok(ChunkResult { error_code: codes::NONE, batches })
    }

    /// Every partition of a chunk: one answer a batch, and how many extents it made.
    fn sequence_all(&mut self, lane: LaneId, c: &CommitChunk, place: Place) -> (Vec<BatchResult>, u32) {
        let count = c.partitions.iter().map(|partition| partition.batches.len()).sum();
        let mut batches = Vec::with_capacity(count);
        let mut facts = None;
        let mut extents = 0;
        for partition in &c.partitions {
            extents += self.sequence(lane, place, partition, &mut facts, &mut batches);
        }
        (batches, extents)
    }

    fn chunk_committed(&mut self, c: &CommitChunk, extents: u32) {
        let (stream, chunk) = (c.stream, c.chunk);
        if extents > 0 {
            self.chunk_refs.insert((stream, chunk), extents);
        }
        self.emit(EffectKind::ChunkCommitted(ChunkCommitted { stream, chunk, extents }));
        if extents == 0 {
            self.emit(EffectKind::Released(Released { stream, chunks: vec![chunk] }));
        }
    }

    /// One partition of a chunk; returns how many extents it made.
    fn sequence(
        &mut self,
        lane: LaneId,
        place: Place,
        partition: &CommitPartition,
        facts: &mut Option<TopicFacts>,
        results: &mut Vec<BatchResult>,
    ) -> u32 {
        let mut sequencer = match self.sequencer(lane, place, partition, facts) {
            Ok(sequencer) => sequencer,
            Err(error) => {
                results.extend(partition.batches.iter().map(|_| error));
                return 0;
            }
        };
        for batch in &partition.batches {
            let result = self.sequence_batch(&mut sequencer, batch);
            results.push(result);
            if let Place::Object { position, .. } = &mut sequencer.place {
                *position += u64::from(batch.size_bytes);
            }
        }
        self.close_extent(&mut sequencer);
        sequencer.extents
    }

    fn sequencer(
        &self,
        lane: LaneId,
        mut place: Place,
        partition: &CommitPartition,
        facts: &mut Option<TopicFacts>,
    ) -> Result<Sequencer, BatchResult> {
        let key = PartitionKey::new(partition.topic_id, partition.partition);
        let facts = match facts {
            Some(known) if known.topic_id == key.topic_id => *known,
            _ => {
                let topic = self.image.topic(key.topic_id);
                let topic = topic.ok_or(batch_error(codes::UNKNOWN_TOPIC_ID, -1))?;
                *facts.insert(TopicFacts {
                    topic_id: key.topic_id,
                    class_epoch: topic.class_epoch,
                    lane: crate::ids::lane_of(topic.settings.durability, topic.placement),
                    log_append_time: topic.settings.timestamp_type == TimestampType::LogAppendTime,
                })
            }
        };
        let view = self.image.view(key);
        let view = view.ok_or(batch_error(codes::UNKNOWN_TOPIC_OR_PARTITION, -1))?;
        if facts.class_epoch != partition.class_epoch || facts.lane != lane {
            return Err(batch_error(codes::NOT_LEADER_OR_FOLLOWER, view.log_start));
        }
        if let Place::Object { position, size_bytes, .. } = &mut place {
            *position = partition.position;
            let sizes = partition.batches.iter().map(|batch| u64::from(batch.size_bytes));
            if partition.position.saturating_add(sizes.sum()) > *size_bytes {
                return Err(batch_error(codes::INVALID_REQUEST, view.log_start));
            }
        }
        let now_ms = self.image.time_ms;
        Ok(Sequencer {
            key,
            place,
            now_ms,
            append_time_ms: if facts.log_append_time { now_ms } else { -1 },
            log_start: view.log_start,
            next_offset: view.high_watermark,
            open: None,
            extents: 0,
        })
    }

    fn sequence_batch(&mut self, s: &mut Sequencer, batch: &CommitBatch) -> BatchResult {
        if let Err(code) = check_batch(s, batch) {
            return batch_error(code, s.log_start);
        }
        if batch.producer_id >= 0 {
            match self.check_producer(s.key, batch) {
                Verdict::Append => {}
                Verdict::Duplicate(first) => {
                    return BatchResult {
                        error_code: codes::NONE,
                        base_offset: first.base_offset,
                        log_append_time_ms: first.append_time_ms,
                        log_start_offset: s.log_start,
                        duplicate: true,
                    };
                }
                Verdict::Error(code) => return batch_error(code, s.log_start),
            }
        }
        let base_offset = s.next_offset;
        self.extend(s, batch);
        if batch.producer_id >= 0 {
            let kept = KeptBatch::new(batch, base_offset, s.append_time_ms);
            self.remember_producer(s.key, batch, kept, s.now_ms);
        }
        BatchResult {
            error_code: codes::NONE,
            base_offset,
            log_append_time_ms: s.append_time_ms,
            log_start_offset: s.log_start,
            duplicate: false,
        }
    }

    /// Gives the batch its offsets: in the open extent if it lies right behind, else in a new one.
    fn extend(&mut self, s: &mut Sequencer, batch: &CommitBatch) {
        let base_offset = s.next_offset;
        s.next_offset += i64::from(batch.record_count);
        let timestamp = if s.append_time_ms >= 0 { s.append_time_ms } else { batch.max_timestamp_ms };
        let open = s.open.as_mut().and_then(|extent| extent.location.as_mut());
        if !open.is_some_and(|location| s.place.grow(location, batch)) {
            self.close_extent(s);
            s.open = Some(Extent {
                base_offset,
                last_offset: base_offset,
                max_timestamp_ms: timestamp,
                append_time_ms: s.append_time_ms,
                size_bytes: 0,
                location: Some(s.place.of(batch)),
            });
        }
        if let Some(extent) = &mut s.open {
            extent.last_offset = s.next_offset - 1;
            extent.max_timestamp_ms = extent.max_timestamp_ms.max(timestamp);
            extent.size_bytes += u64::from(batch.size_bytes);
        }
    }

    fn close_extent(&mut self, s: &mut Sequencer) {
        if let Some(extent) = s.open.take() {
            s.extents += 1;
            self.emit(EffectKind::Appended(Appended {
                topic_id: s.key.topic_id,
                partition: s.key.partition,
                extent,
                store: match s.place {
                    Place::Wal { .. } => None,
                    Place::Object { store, .. } => Some(store),
                },
            }));
        }
    }

    /// The shard of a partition, as an index into per-shard lists.
    pub(super) fn shard_index(&self, key: PartitionKey) -> usize {
        shard_of(key, self.image.shards()) as usize
    }
}

fn rises(stream: &StreamRecord, chunk: u64) -> bool {
    !stream.committed || chunk > stream.last_chunk
}

/// What can be said of a batch without its producer.
fn check_batch(s: &Sequencer, batch: &CommitBatch) -> Result<(), i32> {
    if batch.record_count == 0
        || batch.record_count > i32::MAX as u32
        || batch.flags & batch_flags::CONTROL != 0
    {
        return Err(codes::INVALID_RECORD);
    }
    if batch.flags & batch_flags::TRANSACTIONAL != 0 {
        return Err(codes::INVALID_TXN_STATE);
    }
    if batch.producer_id >= 0
        && (batch.base_sequence < 0 || !(0..=i32::from(i16::MAX)).contains(&batch.producer_epoch))
    {
        return Err(codes::INVALID_RECORD);
    }
    match s.next_offset.checked_add(i64::from(batch.record_count)) {
        Some(_) => Ok(()),
        None => Err(codes::INVALID_RECORD),
    }
}

const fn batch_error(error_code: i32, log_start_offset: i64) -> BatchResult {
    BatchResult { error_code, base_offset: -1, log_append_time_ms: -1, log_start_offset, duplicate: false }
}
