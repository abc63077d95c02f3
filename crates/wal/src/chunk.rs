//! Chunks: the batches one broker makes durable together.
//!
//! A chunk is one frame of the journal. Its sections are batches in the order in which they arrived; its meta is the
//! [table](crate::table). A batch has two numbers: its *section* (order of arrival, which the writer returns at once)
//! and its *ordinal* (partitions one after the other, each in order of arrival), which metadata's `Wal` locations use:
//! so that what a partition has in a chunk is one range of ordinals, however its batches arrived.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use isobar_host::AlignedBuf;
use isobar_journal::{Frame, FrameWriter};
use isobar_metadata::ids::{PartitionKey, StreamId};
use isobar_protocol::batch::BatchHeader;

use crate::WalError;
use crate::table::{PartitionRange, Table, bound};

/// The kind that marks a frame as a chunk in a WAL's journal.
pub const FRAME_KIND: u8 = 1;

/// Kafka's "no producer id".
pub const NO_PRODUCER_ID: i64 = -1;
/// Kafka's "no producer epoch".
pub const NO_PRODUCER_EPOCH: i16 = -1;
/// Kafka's "no sequence".
pub const NO_SEQUENCE: i32 = -1;

/// What the commit of a batch needs to know about it, taken from its header when it was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchInfo {
    /// Records, as offsets: last offset delta + 1.
    pub record_count: u32,
    /// Largest timestamp of its records, milliseconds since the epoch.
    pub max_timestamp_ms: i64,
    /// [`NO_PRODUCER_ID`] for a plain producer.
    pub producer_id: i64,
    /// [`NO_PRODUCER_EPOCH`] for a plain producer.
    pub producer_epoch: i16,
    /// [`NO_SEQUENCE`] for a plain producer.
    pub base_sequence: i32,
    /// Bits of metadata's batch flags; the WAL only carries them.
    pub flags: u32,
}

impl BatchInfo {
    /// From a header that `validate_produced` let pass, so its counts are not negative.
    pub fn new(header: &BatchHeader, flags: u32) -> Self {
        Self {
            record_count: header.last_offset_delta.wrapping_add(1).max(0).cast_unsigned(),
            max_timestamp_ms: header.max_timestamp_ms,
            producer_id: header.producer_id,
            producer_epoch: header.producer_epoch,
            base_sequence: header.base_sequence,
            flags,
        }
    }
}

/// A batch in a sealed chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkBatch {
    /// Order of arrival in the chunk: what [`ChunkWriter::push`] returned.
    pub section: u32,
    /// Length in bytes.
    pub bytes: u32,
    /// As given to [`ChunkWriter::push`].
    pub info: BatchInfo,
}

/// What one partition has in a chunk.
#[derive(Debug, Clone, Copy)]
pub struct ChunkPartition<'a> {
    /// Whose.
    pub key: PartitionKey,
    /// The batches' ordinals start here and have no holes.
    pub first_ordinal: u32,
    /// In order of arrival.
    pub batches: &'a [ChunkBatch],
}

/// Multiplies and rotates (as rustc's own tables do). Keys are ids that metadata made, not input to defend against,
/// and the map is only looked up, never walked.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_i32(&mut self, word: i32) {
        self.write_u64(u64::from(word.cast_unsigned()));
    }

    fn write_usize(&mut self, _: usize) {
        // Length prefixes of byte arrays: all keys have the same.
    }
}

#[derive(Debug, Clone, Copy)]
struct Row {
    slot: u32,
    bytes: u32,
    info: BatchInfo,
}

/// The open chunk of a lane. `push` is the hot path: one copy of the batch, one row, one lookup.
pub struct ChunkWriter {
    frame: FrameWriter,
    rows: Vec<Row>,
    slots: Vec<PartitionKey>,
    by_partition: HashMap<PartitionKey, u32, BuildHasherDefault<IdHasher>>,
    last_slot: u32,
    batch_bytes: usize,
    buffer_bytes: usize,
    /// What the buffer has beyond the largest chunk.
    unused_bytes: usize,
}

impl ChunkWriter {
    /// A chunk that grows in `buffer` until it has so many bytes as encoded ([`Wal::max_chunk_bytes`](crate::Wal)).
    pub fn new(buffer: AlignedBuf, max_bytes: usize) -> Self {
        Self {
            buffer_bytes: buffer.capacity(),
            unused_bytes: buffer.capacity().saturating_sub(max_bytes),
            frame: FrameWriter::new(buffer),
            rows: Vec::with_capacity(64),
            slots: Vec::new(),
            by_partition: HashMap::default(),
            last_slot: 0,
            batch_bytes: 0,
        }
    }

    /// Whether a batch of `batch_bytes` still fits. To be asked before each [`push`](Self::push).
    pub fn fits(&self, batch_bytes: usize) -> bool {
        let kept_free =
            self.table_bound_bytes() + bound::PARTITION_BYTES + bound::BATCH_BYTES + self.unused_bytes;
        self.frame.room(kept_free) >= batch_bytes
    }

    /// Copies a checked batch into the chunk and returns its section number. The caller has asked [`fits`](Self::fits).
    pub fn push(&mut self, key: PartitionKey, info: &BatchInfo, batch: &[u8]) -> u32 {
        let slot = self.slot(key);
        self.frame.push(batch);
        self.batch_bytes += batch.len();
        let section = self.rows.len() as u32;
        self.rows.push(Row { slot, bytes: batch.len() as u32, info: *info });
        section
    }

    /// Batches so far.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True before the first batch.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of the batches so far.
    pub fn batch_bytes(&self) -> usize {
        self.batch_bytes
    }

    /// Closes the chunk as number `number` of `stream`.
    pub fn seal(self, stream: StreamId, number: u64) -> Chunk {
        let mut next = vec![0_u32; self.slots.len()];
        for row in &self.rows {
            next[row.slot as usize] += 1;
        }
        let mut partitions = Vec::with_capacity(self.slots.len());
        let mut start = 0;
        for (&key, count) in self.slots.iter().zip(&mut next) {
            let ordinals = start..start + *count;
            *count = start;
            start = ordinals.end;
            partitions.push(PartitionRange { key, ordinals });
        }
        let empty = ChunkBatch { section: 0, bytes: 0, info: NO_INFO };
        let mut batches = vec![empty; self.rows.len()];
        for (section, row) in self.rows.iter().enumerate() {
            let ordinal = &mut next[row.slot as usize];
            batches[*ordinal as usize] =
                ChunkBatch { section: section as u32, bytes: row.bytes, info: row.info };
            *ordinal += 1;
        }
        let table = Table { stream, number, partitions, batches };
        let frame = self.frame.seal(FRAME_KIND, &table.encode());
        let memory_bytes = self.buffer_bytes.max(frame.len() as usize);
        Chunk(Arc::new(Inner { frame, table, batch_bytes: self.batch_bytes as u64, memory_bytes }))
    }

    fn table_bound_bytes(&self) -> usize {
        bound::TABLE_BYTES + self.slots.len() * bound::PARTITION_BYTES + self.rows.len() * bound::BATCH_BYTES
    }

    fn slot(&mut self, key: PartitionKey) -> u32 {
        if self.slots.get(self.last_slot as usize) == Some(&key) {
            return self.last_slot;
        }
        let slots = &mut self.slots;
        self.last_slot = *self.by_partition.entry(key).or_insert_with(|| {
            slots.push(key);
            (slots.len() - 1) as u32
        });
        self.last_slot
    }
}

const NO_INFO: BatchInfo = BatchInfo {
    record_count: 0,
    max_timestamp_ms: 0,
    producer_id: NO_PRODUCER_ID,
    producer_epoch: NO_PRODUCER_EPOCH,
    base_sequence: NO_SEQUENCE,
    flags: 0,
};

/// A sealed chunk. Cheap to clone.
#[derive(Clone)]
pub struct Chunk(Arc<Inner>);

struct Inner {
    frame: Frame,
    table: Table,
    batch_bytes: u64,
    memory_bytes: usize,
}

impl Chunk {
    /// Reads the table of a chunk that came back from a journal, whose CRCs the journal has checked.
    pub fn from_frame(frame: Frame) -> Result<Self, WalError> {
        let memory_bytes = frame.len() as usize;
        Self::in_buffer(frame, memory_bytes)
    }

    /// As [`from_frame`](Self::from_frame), of a frame that lies in a buffer of `memory_bytes`.
    pub(crate) fn in_buffer(frame: Frame, memory_bytes: usize) -> Result<Self, WalError> {
        if frame.kind() != FRAME_KIND {
            return Err(WalError::Corrupt(format!("a frame of kind {} is no chunk", frame.kind())));
        }
        let sections: Vec<u32> =
            (0..frame.section_count()).map(|i| frame.section_range(i).len() as u32).collect();
        let table = Table::decode(&frame.meta(), &sections)?;
        let batch_bytes = sections.iter().map(|&bytes| u64::from(bytes)).sum();
        Ok(Self(Arc::new(Inner { frame, table, batch_bytes, memory_bytes })))
    }

    /// A chunk that came over a network, with or without padding: copied to where the disk can write it from, in a buffer that
    /// `take` gives, and every CRC checked.
    pub(crate) fn received(
        bytes: &Bytes,
        max_bytes: usize,
        take: impl FnOnce(usize) -> AlignedBuf,
    ) -> Result<Self, WalError> {
        let damaged = |error| WalError::Corrupt(format!("a chunk came damaged: {error}"));
        let whole = Frame::padded_bytes(bytes).map_err(damaged)?;
        if whole > max_bytes {
            return Err(WalError::TooLarge(format!("a chunk of {whole} bytes, here {max_bytes} at most")));
        }
        let mut buffer = take(whole);
        let memory_bytes = buffer.capacity();
        buffer[..bytes.len()].copy_from_slice(bytes);
        buffer[bytes.len()..whole].fill(0);
        let frame = Frame::parse(buffer.freeze().slice(..whole)).map_err(damaged)?;
        Self::in_buffer(frame, memory_bytes)
    }

    /// The stream this chunk was sealed for.
    pub fn stream(&self) -> StreamId {
        self.0.table.stream
    }

    /// Its number in the stream.
    pub fn number(&self) -> u64 {
        self.0.table.number
    }

    /// Number of batches.
    pub fn len(&self) -> u32 {
        self.0.table.batches.len() as u32
    }

    /// True if there is no batch in it.
    pub fn is_empty(&self) -> bool {
        self.0.table.batches.is_empty()
    }

    /// Bytes of all batches.
    pub fn batch_bytes(&self) -> u64 {
        self.0.batch_bytes
    }

    /// The frame, as it is written.
    pub fn frame(&self) -> &Frame {
        &self.0.frame
    }

    /// Bytes of memory it holds on to: the whole buffer it was written in.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.0.memory_bytes
    }

    /// The same chunk in memory just as long as it is, if its buffer is much larger, so that many small chunks may be kept.
    pub(crate) fn compact(self) -> Self {
        let needed = self.0.frame.len() as usize;
        if self.0.memory_bytes < 2 * needed {
            return self;
        }
        Self(Arc::new(Inner {
            frame: self.0.frame.copied(),
            table: self.0.table.clone(),
            batch_bytes: self.0.batch_bytes,
            memory_bytes: needed,
        }))
    }

    /// The batch with this ordinal, without a copy.
    pub fn batch(&self, ordinal: u32) -> Option<Bytes> {
        let batch = self.0.table.batches.get(ordinal as usize)?;
        Some(self.0.frame.section(batch.section as usize))
    }

    /// A range of batches, without a copy; `None` if the chunk does not have them all.
    pub fn batches(&self, ordinals: Range<u32>) -> Option<Vec<Bytes>> {
        let batches = self.0.table.batches.get(ordinals.start as usize..ordinals.end as usize)?;
        Some(batches.iter().map(|batch| self.0.frame.section(batch.section as usize)).collect())
    }

    /// The same batches in the same order, sealed for another place. `buffer` and `max_bytes`: as for [`ChunkWriter::new`].
    pub fn resealed(&self, buffer: AlignedBuf, max_bytes: usize, stream: StreamId, number: u64) -> Self {
        let mut rows: Vec<_> = self
            .partitions()
            .flat_map(|partition| {
                partition.batches.iter().map(move |batch| (batch.section, partition.key, batch.info))
            })
            .collect();
        // Sections are in the order of arrival, by which a lane finds who waits for a batch.
        rows.sort_unstable_by_key(|(section, ..)| *section);
        let mut writer = ChunkWriter::new(buffer, max_bytes);
        for (section, key, info) in rows {
            writer.push(key, &info, &self.0.frame.section(section as usize));
        }
        writer.seal(stream, number)
    }

    /// Every partition's share, in order of first arrival: what CommitChunk is built from.
    pub fn partitions(&self) -> impl ExactSizeIterator<Item = ChunkPartition<'_>> {
        self.0.table.partitions.iter().map(|range| ChunkPartition {
            key: range.key,
            first_ordinal: range.ordinals.start,
            batches: &self.0.table.batches[range.ordinals.start as usize..range.ordinals.end as usize],
        })
    }
}

#[cfg(test)]
mod tests;
