//! From a view to bytes: extents, then batches, stamped with their offsets.
//!
//! A broker may have no WAL replica of its own, and chunks may be small and many: what lies in the WAL is asked for
//! [`AT_ONCE`] extents at a time, and a fetch that has read for long answers with what it has.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use isobar_metadata::index_block::IndexBlock;
use isobar_metadata::record::WalLocation;
use isobar_metadata::{Extent, Found, IndexPointer, Location, PartitionKey, PartitionView, StoreId};
use isobar_protocol::batch::{BatchHeader, Batches, TimestampType, rewrite_timestamp};
use isobar_protocol::error::ErrorCode;
use isobar_protocol::fetch::RecordSet;
use isobar_store::{Class, ReadBatches, ReadObject, StoreError};
use isobar_wal::WalError;
use tokio::time::Instant;

use crate::Broker;

/// What to read of a partition.
pub(crate) struct Span {
    /// The batch that holds this offset comes first, whole.
    pub(crate) from: i64,
    /// Nothing at or after this offset.
    pub(crate) end: i64,
    pub(crate) max_bytes: usize,
    /// One batch is given even if it is larger than `max_bytes`, or late.
    pub(crate) at_least_one: bool,
    /// Nothing more is read after this; `None`: all of it is needed.
    pub(crate) until: Option<Instant>,
}

/// Extents in the WAL that are read at the same time.
const AT_ONCE: usize = 16;

/// Why a location gave nothing.
enum Miss {
    /// It may have moved: resolve it again.
    Stale,
    /// The bytes are there and wrong, or cannot be had.
    Failed(ErrorCode),
}

/// Batches of `span`, ready to be sent.
pub(crate) async fn records(
    broker: &Arc<Broker>,
    view: &Arc<PartitionView>,
    span: &Span,
) -> Result<RecordSet, ErrorCode> {
    let mut set = RecordSet::default();
    let mut view = Arc::clone(view);
    let mut offset = span.from;
    let mut resolved_again = false;
    while offset < span.end && wants_more(&set, span) {
        let Some(found) = view.locate(offset, &[broker.home_store]) else {
            return missing(&set, view.key(), offset);
        };
        let taken = match found.extent().filter(|extent| extent.wal().is_some()) {
            Some(_) => take_from_wal(broker, &view, offset, span, &mut set).await,
            None => match resolve(broker, view.key(), found, offset).await {
                Ok(extent) => take(broker, &view, &extent, offset, span, &mut set).await,
                Err(miss) => Err(miss),
            },
        };
        match taken {
            Ok(Some(next)) => {
                offset = next;
                resolved_again = false;
            }
            Ok(None) => break,
            Err(Miss::Stale) if !resolved_again => {
                resolved_again = true;
                match resolve_again(broker, view.key()).await? {
                    Some(newer) => view = newer,
                    None => return Ok(set),
                }
            }
            Err(miss) => return failed(set, view.key(), offset, &miss),
        }
    }
    Ok(set)
}

fn wants_more(set: &RecordSet, span: &Span) -> bool {
    let in_time = || span.until.is_none_or(|until| Instant::now() < until);
    wants_first(set, span) || (set.len_bytes() < span.max_bytes && in_time())
}

fn wants_first(set: &RecordSet, span: &Span) -> bool {
    span.at_least_one && set.len_bytes() == 0
}

/// A hole between log start and high watermark is damage, unless the log start has moved past the offset.
fn missing(set: &RecordSet, key: PartitionKey, offset: i64) -> Result<RecordSet, ErrorCode> {
    if set.len_bytes() > 0 {
        return Ok(set.clone());
    }
    tracing::error!(topic_id = %key.topic_id, partition = key.partition, offset, "an offset inside the log has no location");
    Err(ErrorCode::KafkaStorageError)
}

/// The extent itself, from an index object if it is there.
async fn resolve(broker: &Broker, key: PartitionKey, found: Found<'_>, offset: i64) -> Result<Extent, Miss> {
    match found {
        Found::Extent(extent) => Ok(extent.clone()),
        Found::Indexed(pointer) => {
            let resolved = broker.index.resolve(key, pointer, offset).await;
            resolved.map_err(|error| index_miss(&error, pointer))
        }
    }
}

fn index_miss(error: &StoreError, pointer: &IndexPointer) -> Miss {
    if matches!(error, StoreError::NotFound { .. }) {
        return Miss::Stale;
    }
    tracing::error!(%error, object = %pointer.object, position = pointer.position, "an index block cannot be read");
    Miss::Failed(ErrorCode::KafkaStorageError)
}

/// The extents that a pointer stands for.
pub(crate) async fn indexed(
    broker: &Broker,
    key: PartitionKey,
    pointer: &IndexPointer,
) -> Result<Arc<IndexBlock>, ErrorCode> {
    let block = broker.index.block(key, pointer).await;
    block.map_err(|error| match index_miss(&error, pointer) {
        // The log start has passed it a moment ago: the next look sees that.
        Miss::Stale => ErrorCode::OffsetNotAvailable,
        Miss::Failed(error) => error,
    })
}

fn failed(set: RecordSet, key: PartitionKey, offset: i64, miss: &Miss) -> Result<RecordSet, ErrorCode> {
    let error = match miss {
        Miss::Stale => {
            tracing::error!(
                topic_id = %key.topic_id, partition = key.partition, offset,
                "a location was not found twice, at the newest metadata too"
            );
            ErrorCode::KafkaStorageError
        }
        Miss::Failed(error) => *error,
    };
    // What was read before the failure is good; the next fetch meets the failure first.
    if set.len_bytes() > 0 { Ok(set) } else { Err(error) }
}

async fn resolve_again(broker: &Broker, key: PartitionKey) -> Result<Option<Arc<PartitionView>>, ErrorCode> {
    broker.barrier().await?;
    Ok(broker.image.view(key))
}

/// Adds batches of one extent. `Some(next offset)`; `None` when the span is full.
async fn take(
    broker: &Broker,
    view: &PartitionView,
    extent: &Extent,
    offset: i64,
    span: &Span,
    set: &mut RecordSet,
) -> Result<Option<i64>, Miss> {
    match extent.location() {
        // An index names objects only.
        Location::Wal(_) => Err(Miss::Stale),
        Location::Object(location) => {
            let class = class_of(broker, view, extent);
            let object = ReadObject::of(view, class, extent, *location);
            let most = span.max_bytes.saturating_sub(set.len_bytes()).max(1);
            let read = broker.objects.read(object, offset, most).await;
            let ReadBatches { base_offset, parts } = read.map_err(|error| store_miss(&error, extent))?;
            if location.unstamped {
                let batches = split(&parts, extent)?;
                return take_unstamped(view, extent, (base_offset, &batches), offset, span, set);
            }
            take_final(&parts, extent, offset, span, set)
        }
        Location::Inline(location) => {
            let batches = split(std::slice::from_ref(&location.data), extent)?;
            whole(take_unstamped(view, extent, (extent.base_offset, &batches), offset, span, set)?, extent)
        }
    }
}

/// Adds batches of the extents from an offset on that lie in the WAL, up to the first that does not, or cannot be read: that one is
/// met again. As [`take`].
async fn take_from_wal(
    broker: &Broker,
    view: &PartitionView,
    offset: i64,
    span: &Span,
    set: &mut RecordSet,
) -> Result<Option<i64>, Miss> {
    let left = span.max_bytes.saturating_sub(set.len_bytes());
    let mut extents = in_wal(view, broker.home_store, offset, span.end, left);
    let mut reads = FuturesOrdered::new();
    let mut next = offset;
    loop {
        while reads.len() < AT_ONCE
            && let Some((extent, location)) = extents.next()
        {
            reads.push_back(read_one(broker, extent, location));
        }
        let Some((extent, read)) = reads.next().await else { break };
        let taken = match read {
            Ok(batches) => take_unstamped(view, extent, (extent.base_offset, &batches), next, span, set),
            Err(error) => Err(wal_miss(&error, extent)),
        };
        match taken.and_then(|taken| whole(taken, extent)) {
            Ok(Some(after)) => next = after,
            Err(_) if next > offset => break,
            full_or_failed => return full_or_failed,
        }
        if !wants_more(set, span) {
            break;
        }
    }
    Ok(Some(next))
}

async fn read_one<'a>(
    broker: &'a Broker,
    extent: &'a Extent,
    location: WalLocation,
) -> (&'a Extent, Result<Vec<Bytes>, WalError>) {
    (extent, broker.wal.read(location.stream, location.chunk, location.ordinals()).await)
}

/// The extents from an offset on that lie in the WAL, as many as have so many bytes, but one at least.
fn in_wal(
    view: &PartitionView,
    home_store: StoreId,
    offset: i64,
    end: i64,
    max_bytes: usize,
) -> impl Iterator<Item = (&Extent, WalLocation)> {
    let at = move |offset: i64| {
        let found = view.locate(offset, &[home_store]).filter(|_| offset < end)?;
        let Found::Extent(extent) = found else { return None };
        Some((extent, extent.wal()?))
    };
    let following = std::iter::successors(at(offset), move |(extent, _)| at(extent.end_offset()));
    let mut before: u64 = 0;
    following.take_while(move |(extent, _)| {
        let fits = before == 0 || before < max_bytes as u64;
        before += extent.size_bytes.max(1);
        fits
    })
}

/// Single batches of slices of whole ones.
fn split(parts: &[Bytes], extent: &Extent) -> Result<Vec<Bytes>, Miss> {
    let mut batches = Vec::new();
    for part in parts {
        for batch in Batches::new(part) {
            let (_, bytes) = batch.map_err(|error| damaged(extent, &error))?;
            batches.push(part.slice_ref(bytes));
        }
    }
    Ok(batches)
}

/// What was read to its end must end where the extent does.
fn whole(next: Option<i64>, extent: &Extent) -> Result<Option<i64>, Miss> {
    match next {
        Some(next) if next != extent.end_offset() => {
            Err(damaged(extent, &"its batches hold other offsets than metadata says"))
        }
        next => Ok(next),
    }
}

/// One who reads what was uploaded last is at the end of the log and must not wait behind readers of old data.
fn class_of(broker: &Broker, view: &PartitionView, extent: &Extent) -> Class {
    let after = view.locate(extent.end_offset(), &[broker.home_store]);
    match after.map(|found| found.extent().map(Extent::location)) {
        Some(Some(Location::Object(_)) | None) => Class::CatchUp,
        Some(Some(Location::Wal(_) | Location::Inline(_))) | None => Class::Tail,
    }
}

/// Batches as they lie in the WAL, from an offset on: offsets and leader epoch are not in them yet.
fn take_unstamped(
    view: &PartitionView,
    extent: &Extent,
    (mut base, batches): (i64, &[Bytes]),
    offset: i64,
    span: &Span,
    set: &mut RecordSet,
) -> Result<Option<i64>, Miss> {
    for batch in batches {
        let header = BatchHeader::parse(batch).map_err(|error| damaged(extent, &error))?;
        let next = base + i64::from(header.last_offset_delta) + 1;
        if next > offset {
            if base >= span.end || !fits(set, batch.len(), span) {
                return Ok(None);
            }
            let epoch = view.epoch_at(base);
            if extent.append_time_ms >= 0 {
                let mut rewritten = BytesMut::from(&batch[..]);
                rewrite_timestamp(&mut rewritten, TimestampType::LogAppendTime, extent.append_time_ms);
                let rewritten = rewritten.freeze();
                let header = BatchHeader::parse(&rewritten).map_err(|error| damaged(extent, &error))?;
                set.push_stamped(rewritten, &header, base, epoch);
            } else {
                set.push_stamped(batch.clone(), &header, base, epoch);
            }
        }
        base = next;
    }
    Ok(Some(base))
}

/// Batches as they lie in an object: final.
fn take_final(
    parts: &[Bytes],
    extent: &Extent,
    offset: i64,
    span: &Span,
    set: &mut RecordSet,
) -> Result<Option<i64>, Miss> {
    let mut next_offset = offset;
    for part in parts {
        for batch in Batches::new(part) {
            let (header, bytes) = batch.map_err(|error| damaged(extent, &error))?;
            if header.next_offset() <= offset {
                continue;
            }
            if header.base_offset >= span.end || !fits(set, bytes.len(), span) {
                return Ok(None);
            }
            set.push(part.slice_ref(bytes));
            next_offset = header.next_offset();
        }
    }
    if next_offset == offset {
        return Err(damaged(extent, &"its object range does not hold the offset"));
    }
    Ok(Some(next_offset))
}

fn fits(set: &RecordSet, bytes: usize, span: &Span) -> bool {
    set.len_bytes() + bytes <= span.max_bytes || wants_first(set, span)
}

fn damaged(extent: &Extent, error: &dyn std::fmt::Display) -> Miss {
    tracing::error!(%error, location = ?extent.location(), "damaged bytes are not served");
    Miss::Failed(ErrorCode::KafkaStorageError)
}

fn wal_miss(error: &WalError, extent: &Extent) -> Miss {
    if matches!(error, WalError::NotFound) {
        return Miss::Stale;
    }
    tracing::error!(%error, location = ?extent.location(), "a WAL read failed");
    Miss::Failed(ErrorCode::KafkaStorageError)
}

fn store_miss(error: &StoreError, extent: &Extent) -> Miss {
    if matches!(error, StoreError::NotFound { .. }) {
        return Miss::Stale;
    }
    tracing::error!(%error, location = ?extent.location(), "an object read failed");
    Miss::Failed(ErrorCode::KafkaStorageError)
}
