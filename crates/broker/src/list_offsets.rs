//! ListOffsets and OffsetForLeaderEpoch: every answer states an end, so every answer comes behind a read barrier.

use std::sync::Arc;

use bytes::Bytes;
use isobar_metadata::{Extent, Found as Located, PartitionView};
use isobar_protocol::TopicRef;
use isobar_protocol::batch::{BatchHeader, Batches, TimestampType};
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::list_offsets_request::ListOffsetsPartition;
use isobar_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use isobar_protocol::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use isobar_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use isobar_protocol::messages::{
    ListOffsetsRequest, ListOffsetsResponse, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
    TopicName,
};
use isobar_protocol::records::decode_batch;

use crate::Broker;
use crate::fetch::{epoch_error, read};

/// Kafka's `ListOffsetsRequest` timestamps with a meaning of their own.
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;

/// The most that one batch may hold once decompressed.
const DECOMPRESSED_CAP_BYTES: usize = 256 << 20;

/// The least timestamp that a version knows the meaning of; one below it is UNSUPPORTED_VERSION (KIP-734, 405, 1005).
fn least_timestamp(version: i16) -> i64 {
    match version {
        ..=6 => EARLIEST,
        7 => MAX_TIMESTAMP,
        8 => EARLIEST_LOCAL,
        _ => LATEST_TIERED,
    }
}

/// First ListOffsets version that answers with leader epochs.
const LEADER_EPOCH_VERSION: i16 = 4;

/// A found offset and the timestamp of its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    offset: i64,
    timestamp_ms: i64,
}

pub(crate) async fn list(
    broker: &Arc<Broker>,
    version: i16,
    request: ListOffsetsRequest,
) -> ListOffsetsResponse {
    let barrier = broker.barrier().await;
    let read_committed = request.isolation_level == 1;
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in &topic.partitions {
            let answer = match barrier {
                // The code that Kafka gives while it cannot know.
                Err(_) => Err(ErrorCode::OffsetNotAvailable),
                Ok(()) if asked.timestamp < least_timestamp(version) => Err(ErrorCode::UnsupportedVersion),
                Ok(()) => list_one(broker, &topic.name, asked, read_committed).await,
            };
            partitions.push(list_answer(broker, version, &topic.name, asked, answer));
        }
        topics.push(ListOffsetsTopicResponse::default().with_name(topic.name).with_partitions(partitions));
    }
    ListOffsetsResponse::default().with_topics(topics)
}

fn list_answer(
    broker: &Broker,
    version: i16,
    topic: &TopicName,
    asked: &ListOffsetsPartition,
    answer: Result<Option<Found>, ErrorCode>,
) -> ListOffsetsPartitionResponse {
    let response = ListOffsetsPartitionResponse::default()
        .with_partition_index(asked.partition_index)
        .with_timestamp(-1)
        .with_offset(-1)
        .with_leader_epoch(-1);
    match answer {
        Err(code) => response.with_error_code(code.code()),
        Ok(None) => response,
        Ok(Some(found)) => {
            let response = response.with_timestamp(found.timestamp_ms).with_offset(found.offset);
            if version < LEADER_EPOCH_VERSION {
                return response;
            }
            let epoch =
                view_of(broker, topic, asked.partition_index).map_or(-1, |view| view.epoch_at(found.offset));
            response.with_leader_epoch(epoch)
        }
    }
}

fn view_of(broker: &Broker, topic: &TopicName, partition: i32) -> Result<Arc<PartitionView>, ErrorCode> {
    let unknown = ErrorCode::UnknownTopicOrPartition;
    let topic = broker.image.topic(&TopicRef::Name(topic.0.clone())).ok_or(unknown)?;
    broker.image.view(isobar_metadata::PartitionKey::new(topic.topic_id, partition)).ok_or(unknown)
}

async fn list_one(
    broker: &Arc<Broker>,
    topic: &TopicName,
    asked: &ListOffsetsPartition,
    read_committed: bool,
) -> Result<Option<Found>, ErrorCode> {
    let view = view_of(broker, topic, asked.partition_index)?;
    if let Some(error) = epoch_error(broker, asked.current_leader_epoch) {
        return Err(error);
    }
    let end = if read_committed { view.last_stable_offset } else { view.high_watermark };
    let at = |offset| Ok(Some(Found { offset, timestamp_ms: -1 }));
    match asked.timestamp {
        LATEST => at(end),
        EARLIEST | EARLIEST_LOCAL => at(view.log_start),
        // Nothing is tiered: what lies in a bucket is the log itself.
        LATEST_TIERED => Ok(None),
        MAX_TIMESTAMP => newest(broker, &view, end).await,
        timestamp if timestamp >= 0 => first_at_or_after(broker, &view, end, timestamp).await,
        _ => Err(ErrorCode::UnsupportedVersion),
    }
}

/// Extents and pointers to extents, by offset: a pointer stands for all that its block lists.
fn extents(view: &PartitionView, end: i64) -> impl Iterator<Item = Located<'_>> {
    let mut offset = view.log_start;
    std::iter::from_fn(move || {
        let extent = (offset < end).then(|| view.locate(offset, &[]))??;
        offset = extent.end_offset();
        Some(extent)
    })
}

/// An extent as far as it lies inside the log: first offset, one past the last, and the greatest timestamp it promises.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    from: i64,
    to: i64,
    max_timestamp_ms: i64,
}

/// The extents that were located, those of an index object each for itself.
async fn stretches(
    broker: &Arc<Broker>,
    view: &Arc<PartitionView>,
    end: i64,
    located: Located<'_>,
) -> Result<Vec<Stretch>, ErrorCode> {
    let inside = |extent: &Extent| Stretch {
        from: extent.base_offset.max(view.log_start),
        to: extent.end_offset().min(end),
        max_timestamp_ms: extent.max_timestamp_ms,
    };
    match located {
        Located::Extent(extent) => Ok(vec![inside(extent)]),
        Located::Indexed(pointer) => {
            let block = read::indexed(broker, view.key(), pointer).await?;
            Ok(block.extents.iter().map(inside).filter(|stretch| stretch.from < stretch.to).collect())
        }
    }
}

/// The first record, by offset, whose timestamp is at or after `timestamp_ms`.
async fn first_at_or_after(
    broker: &Arc<Broker>,
    view: &Arc<PartitionView>,
    end: i64,
    timestamp_ms: i64,
) -> Result<Option<Found>, ErrorCode> {
    // An extent may promise more than it holds inside the log: its largest timestamp may lie before the log start.
    for located in extents(view, end).filter(|located| located.max_timestamp_ms() >= timestamp_ms) {
        for stretch in stretches(broker, view, end, located).await? {
            if stretch.max_timestamp_ms < timestamp_ms {
                continue;
            }
            for batch in batches(broker, view, stretch.from, stretch.to).await? {
                let found = search(&batch, stretch.from, |time| time >= timestamp_ms)?;
                if let Some(found) = found.filter(|found| found.offset < end) {
                    return Ok(Some(found));
                }
            }
        }
    }
    Ok(None)
}

/// The first record with the largest timestamp of all (KIP-734).
async fn newest(
    broker: &Arc<Broker>,
    view: &Arc<PartitionView>,
    end: i64,
) -> Result<Option<Found>, ErrorCode> {
    let mut best: Option<Located<'_>> = None;
    for located in extents(view, end) {
        if best.is_none_or(|best| located.max_timestamp_ms() > best.max_timestamp_ms()) {
            best = Some(located);
        }
    }
    let Some(best) = best else { return Ok(None) };
    let stretches = stretches(broker, view, end, best).await?;
    // The first of those with the largest.
    let best = stretches.into_iter().rev().max_by_key(|stretch| stretch.max_timestamp_ms);
    let Some(Stretch { from, to, .. }) = best else { return Ok(None) };
    let mut newest: Option<Found> = None;
    for batch in batches(broker, view, from, to).await? {
        let header = BatchHeader::parse(&batch).map_err(|_| ErrorCode::KafkaStorageError)?;
        if newest.is_none_or(|found| header.max_timestamp_ms > found.timestamp_ms) {
            newest = search(&batch, from, |time| time >= header.max_timestamp_ms)?.or(newest);
        }
    }
    Ok(newest)
}

async fn batches(
    broker: &Arc<Broker>,
    view: &Arc<PartitionView>,
    from: i64,
    end: i64,
) -> Result<Vec<Bytes>, ErrorCode> {
    let span = read::Span { from, end, max_bytes: usize::MAX, at_least_one: true, until: None };
    let blob = read::records(broker, view, &span).await?.to_bytes();
    let batches = Batches::new(&blob).map(|batch| {
        let (_, bytes) = batch.map_err(|error| {
            tracing::error!(%error, "a batch that was read cannot be parsed");
            ErrorCode::KafkaStorageError
        })?;
        Ok(blob.slice_ref(bytes))
    });
    batches.collect()
}

/// The first record of a batch, at or after offset `from`, whose timestamp is wanted.
fn search(batch: &Bytes, from: i64, wanted: impl Fn(i64) -> bool) -> Result<Option<Found>, ErrorCode> {
    let damaged = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "a batch cannot be opened for its timestamps");
        ErrorCode::KafkaStorageError
    };
    let header = BatchHeader::parse(batch).map_err(|error| damaged(&error))?;
    if header.attributes.timestamp_type() == TimestampType::LogAppendTime {
        // All its records carry the batch's time.
        let offset = header.base_offset.max(from);
        return Ok(wanted(header.max_timestamp_ms)
            .then_some(Found { offset, timestamp_ms: header.max_timestamp_ms }));
    }
    if !wanted(header.max_timestamp_ms) {
        return Ok(None);
    }
    let records = decode_batch(batch, DECOMPRESSED_CAP_BYTES).map_err(|error| damaged(&error))?;
    for record in records.iter() {
        let record = record.map_err(|error| damaged(&error))?;
        if record.offset >= from && wanted(record.timestamp_ms) {
            return Ok(Some(Found { offset: record.offset, timestamp_ms: record.timestamp_ms }));
        }
    }
    Ok(None)
}

pub(crate) async fn for_leader_epoch(
    broker: &Arc<Broker>,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let barrier = broker.barrier().await;
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            let end = match barrier {
                Err(_) => Err(ErrorCode::OffsetNotAvailable),
                Ok(()) => end_of_epoch(broker, &topic.topic, asked),
            };
            let response = EpochEndOffset::default()
                .with_partition(asked.partition)
                .with_leader_epoch(-1)
                .with_end_offset(-1);
            match end {
                Ok((epoch, offset)) => response.with_leader_epoch(epoch).with_end_offset(offset),
                Err(code) => response.with_error_code(code.code()),
            }
        });
        let partitions = partitions.collect();
        OffsetForLeaderTopicResult::default().with_topic(topic.topic).with_partitions(partitions)
    });
    OffsetForLeaderEpochResponse::default().with_topics(topics.collect())
}

fn end_of_epoch(
    broker: &Broker,
    topic: &TopicName,
    asked: &OffsetForLeaderPartition,
) -> Result<(i32, i64), ErrorCode> {
    let view = view_of(broker, topic, asked.partition)?;
    if let Some(error) = epoch_error(broker, asked.current_leader_epoch) {
        return Err(error);
    }
    Ok(view.end_of_epoch(asked.leader_epoch).unwrap_or((-1, -1)))
}
