//! The chunk table: what a chunk's frame carries as its meta, so that a chunk explains itself without metadata.
//!
//! Versioned protobuf. Columns a partition needs not (no producer, no flags) are absent. Lengths are not repeated
//! here: the frame's own section table has them.

use std::ops::Range;

use isobar_metadata::ids::{PartitionKey, StreamId, TopicId};
use prost::Message;

use crate::WalError;
use crate::chunk::{BatchInfo, ChunkBatch, NO_PRODUCER_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE};

/// The only version there is. A reader refuses a higher one.
const VERSION: u32 = 1;

#[derive(Clone, PartialEq, Message)]
struct TableProto {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    stream: u64,
    #[prost(uint64, tag = "3")]
    number: u64,
    #[prost(message, repeated, tag = "4")]
    partitions: Vec<PartitionProto>,
}

/// Columns, one value a batch in arrival order; a column that is empty holds defaults only.
#[derive(Clone, PartialEq, Message)]
struct PartitionProto {
    #[prost(bytes = "vec", tag = "1")]
    topic_id: Vec<u8>,
    #[prost(int32, tag = "2")]
    partition: i32,
    /// Section numbers; each but the first as the difference to the one before.
    #[prost(uint32, repeated, packed = "true", tag = "3")]
    sections: Vec<u32>,
    #[prost(uint32, repeated, packed = "true", tag = "4")]
    record_counts: Vec<u32>,
    /// Each but the first as the difference to the one before.
    #[prost(sint64, repeated, packed = "true", tag = "5")]
    max_timestamps_ms: Vec<i64>,
    /// Each but the first as the difference to the one before. Absent: no batch has a producer.
    #[prost(sint64, repeated, packed = "true", tag = "6")]
    producer_ids: Vec<i64>,
    #[prost(sint32, repeated, packed = "true", tag = "7")]
    producer_epochs: Vec<i32>,
    #[prost(sint32, repeated, packed = "true", tag = "8")]
    base_sequences: Vec<i32>,
    /// Absent: all zero.
    #[prost(uint32, repeated, packed = "true", tag = "9")]
    flags: Vec<u32>,
}

/// The first fields of the table, for who needs no more.
#[derive(Clone, PartialEq, Message)]
struct IdentityProto {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    stream: u64,
    #[prost(uint64, tag = "3")]
    number: u64,
}

/// Which chunk a table is of.
pub(crate) fn identity(meta: &[u8]) -> Result<(StreamId, u64), WalError> {
    let proto = IdentityProto::decode(meta).map_err(|error| bad(&error.to_string()))?;
    if proto.version != VERSION {
        return Err(bad(&format!("table version {} is not known", proto.version)));
    }
    Ok((StreamId(proto.stream), proto.number))
}

/// One partition's share of a chunk: consecutive ordinals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartitionRange {
    pub(crate) key: PartitionKey,
    pub(crate) ordinals: Range<u32>,
}

/// The decoded table. `batches` is indexed by ordinal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) stream: StreamId,
    pub(crate) number: u64,
    pub(crate) partitions: Vec<PartitionRange>,
    pub(crate) batches: Vec<ChunkBatch>,
}

impl Table {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let partitions = self
            .partitions
            .iter()
            .map(|range| {
                let batches = &self.batches[range.ordinals.start as usize..range.ordinals.end as usize];
                partition_proto(range, batches)
            })
            .collect();
        TableProto { version: VERSION, stream: self.stream.0, number: self.number, partitions }
            .encode_to_vec()
    }

    /// `section_bytes` are the lengths of the frame's sections, in order: the table must name each exactly once.
    pub(crate) fn decode(meta: &[u8], section_bytes: &[u32]) -> Result<Self, WalError> {
        let proto = TableProto::decode(meta).map_err(|error| bad(&error.to_string()))?;
        if proto.version != VERSION {
            return Err(bad(&format!("table version {} is not known", proto.version)));
        }
        let mut named = vec![false; section_bytes.len()];
        let mut partitions = Vec::with_capacity(proto.partitions.len());
        let mut batches = Vec::with_capacity(section_bytes.len());
        for partition in proto.partitions {
            let start = batches.len() as u32;
            let topic_id: [u8; 16] =
                partition.topic_id.as_slice().try_into().map_err(|_| bad("a topic id is not 16 bytes"))?;
            decode_partition(&partition, section_bytes, &mut named, &mut batches)?;
            partitions.push(PartitionRange {
                key: PartitionKey::new(TopicId::from(topic_id), partition.partition),
                ordinals: start..batches.len() as u32,
            });
        }
        if batches.len() != section_bytes.len() {
            return Err(bad("a section is not in the table"));
        }
        Ok(Self { stream: StreamId(proto.stream), number: proto.number, partitions, batches })
    }
}

fn bad(why: &str) -> WalError {
    WalError::Corrupt(format!("chunk table: {why}"))
}

/// Replaces each value but the first by its difference to the one before.
fn deltas(values: impl Iterator<Item = i64>) -> Vec<i64> {
    let mut previous = 0_i64;
    values
        .map(|value| {
            let delta = value.wrapping_sub(previous);
            previous = value;
            delta
        })
        .collect()
}

fn partition_proto(range: &PartitionRange, batches: &[ChunkBatch]) -> PartitionProto {
    let mut previous = 0;
    let sections = batches
        .iter()
        .map(|batch| {
            let delta = batch.section - previous;
            previous = batch.section;
            delta
        })
        .collect();
    let mut proto = PartitionProto {
        topic_id: range.key.topic_id.bytes().to_vec(),
        partition: range.key.partition,
        sections,
        record_counts: batches.iter().map(|b| b.info.record_count).collect(),
        max_timestamps_ms: deltas(batches.iter().map(|b| b.info.max_timestamp_ms)),
        ..PartitionProto::default()
    };
    if batches.iter().any(|b| b.info.producer_id != NO_PRODUCER_ID) {
        proto.producer_ids = deltas(batches.iter().map(|b| b.info.producer_id));
        proto.producer_epochs = batches.iter().map(|b| i32::from(b.info.producer_epoch)).collect();
        proto.base_sequences = batches.iter().map(|b| b.info.base_sequence).collect();
    }
    if batches.iter().any(|b| b.info.flags != 0) {
        proto.flags = batches.iter().map(|b| b.info.flags).collect();
    }
    proto
}

fn decode_partition(
    proto: &PartitionProto,
    section_bytes: &[u32],
    named: &mut [bool],
    batches: &mut Vec<ChunkBatch>,
) -> Result<(), WalError> {
    let count = proto.sections.len();
    let whole = |len: usize| len == count;
    let whole_or_absent = |len: usize| len == count || len == 0;
    if !(whole(proto.record_counts.len())
        && whole(proto.max_timestamps_ms.len())
        && whole_or_absent(proto.producer_ids.len())
        && proto.producer_epochs.len() == proto.producer_ids.len()
        && proto.base_sequences.len() == proto.producer_ids.len()
        && whole_or_absent(proto.flags.len()))
    {
        return Err(bad("columns of different lengths"));
    }
    let (mut section, mut max_timestamp_ms, mut producer_id) = (0_u32, 0_i64, 0_i64);
    for row in 0..count {
        section = section.checked_add(proto.sections[row]).ok_or_else(|| bad("section number overflows"))?;
        let seen = named.get_mut(section as usize).ok_or_else(|| bad("a section that the frame lacks"))?;
        if std::mem::replace(seen, true) {
            return Err(bad("a section named twice"));
        }
        max_timestamp_ms = max_timestamp_ms.wrapping_add(proto.max_timestamps_ms[row]);
        let (mut epoch, mut base_sequence, mut id) = (NO_PRODUCER_EPOCH, NO_SEQUENCE, NO_PRODUCER_ID);
        if !proto.producer_ids.is_empty() {
            producer_id = producer_id.wrapping_add(proto.producer_ids[row]);
            id = producer_id;
            epoch = i16::try_from(proto.producer_epochs[row]).map_err(|_| bad("producer epoch"))?;
            base_sequence = proto.base_sequences[row];
        }
        batches.push(ChunkBatch {
            section,
            bytes: section_bytes[section as usize],
            info: BatchInfo {
                record_count: proto.record_counts[row],
                max_timestamp_ms,
                producer_id: id,
                producer_epoch: epoch,
                base_sequence,
                flags: proto.flags.get(row).copied().unwrap_or(0),
            },
        });
    }
    Ok(())
}

/// Upper bound of the table's encoding, kept up to date batch by batch so that the frame leaves room for it.
pub(crate) mod bound {
    /// Version, stream, number, and slack for the lengths of nested fields.
    pub(crate) const TABLE_BYTES: usize = 48;
    /// Topic id, partition, the keys and lengths of all columns and of the message itself.
    pub(crate) const PARTITION_BYTES: usize = 18 + 11 + 8 * 7 + 7;
    /// section 5, count 5, timestamp 10, producer id 10, epoch 3 (sint32 of an i16), sequence 5, flags 5.
    pub(crate) const BATCH_BYTES: usize = 43;
}
