//! Makes the object of a job: reads its sources, checks every batch, writes one object.
//!
//! Each source is sorted by partition and offset, as the new object is, so each is read once from front to back by ranged GETs
//! of a window: a merge as tapes did it. Memory is bounded by [`READ_BYTES`] for all windows together, one run, and one part
//! of the upload; never a whole object, unless it is small enough for a plain PUT ([`STREAM_ABOVE_BYTES`]).
//!
//! Every batch's CRC is checked, and its offsets against the extent it came from. A run of which a batch is damaged is left out of the object as
//! a whole and named; its extents stay where they are.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use isobar_host::watch;
use isobar_metadata::command::{CompactedRun, ObjectRun, ReplacedExtent};
use isobar_metadata::ids::{ObjectId, PartitionKey};
use isobar_metadata::record::{Extent, ObjectLocation};
use isobar_metadata::{Image, PartitionView};
use isobar_protocol::batch::{BatchHeader, HEADER_BYTES, verify_crc};
use tokio::time::Instant;

use super::plan::{Job, MergeRun};
use crate::bucket::PutStream;
use crate::build::final_bytes;
use crate::format::{ObjectBuilder, object_key};
use crate::{Bucket, StoreError};

/// Bytes of all windows together.
const READ_BYTES: u64 = 32 << 20;
/// Bounds of one window.
const WINDOW_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=4 << 20;
/// A gap up to this between two ranges is read over: a request costs more.
const GAP_BYTES: u64 = 64 << 10;
/// Larger objects are written in parts while they are made.
const STREAM_ABOVE_BYTES: u64 = 64 << 20;
/// Batches of one object: bounds its footer, and what is kept for it. What is left over goes into another.
const MAX_BATCHES: usize = 1_000_000;

/// Bytes a second, over everything that goes by it.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_s: u64,
    next: Instant,
}

impl Pace {
    pub(crate) fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1), next: Instant::now() }
    }

    /// Waits until the bytes before these have had their time.
    async fn take(&mut self, bytes: u64) {
        let now = Instant::now();
        tokio::time::sleep_until(self.next).await;
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        self.next = self.next.max(now) + takes;
    }
}

/// An extent whose bytes cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadExtent {
    pub(crate) key: PartitionKey,
    pub(crate) location: ObjectLocation,
    /// Its object is not there, which a newer image may explain; else it is damaged.
    pub(crate) stale: bool,
    pub(crate) why: String,
}

/// An object that is in the store.
pub(crate) struct Merged {
    pub(crate) runs: Vec<CompactedRun>,
    pub(crate) size_bytes: u64,
    pub(crate) batch_bytes: u64,
}

/// What a merge works with.
pub(crate) struct Merging<'a> {
    pub(crate) bucket: &'a Bucket,
    pub(crate) image: &'a Image,
    pub(crate) pace: &'a mut Pace,
    pub(crate) object: ObjectId,
    pub(crate) now_ms: i64,
    pub(crate) stop: &'a watch::Receiver<bool>,
}

/// Waits until the compactor is to stop.
pub(crate) async fn stopped(stop: &watch::Receiver<bool>) {
    let mut stop = stop.clone();
    if stop.wait_for(|stop| *stop).await.is_err() {
        // Whoever could say so has let the task go: it runs on, as tasks do.
        std::future::pending().await
    }
}

/// Reads and writes. `Ok(None)`: nothing could be read, or it is to stop, and no object was written. An error: no object that
/// counts is there; begin again under another id. Either way no parts are left, as far as the store answers.
pub(crate) async fn merge(
    merging: &mut Merging<'_>,
    job: &Job,
    bad: &mut Vec<BadExtent>,
) -> Result<Option<Merged>, StoreError> {
    let stop = merging.stop;
    let mut output = Output::new(merging.bucket, merging.object, job.size_bytes()).await?;
    let filled = tokio::select! {
        biased;
        () = stopped(stop) => Ok(Filled::default()),
        filled = fill(merging, job, bad, &mut output) => filled,
    };
    match filled {
        Ok(Filled { runs, batch_bytes }) if !runs.is_empty() => {
            let size_bytes = output.finish().await?;
            Ok(Some(Merged { runs, size_bytes, batch_bytes }))
        }
        ended => {
            output.abort().await;
            ended.map(|_| None)
        }
    }
}

/// What lies in an output that is written but for its end.
#[derive(Default)]
struct Filled {
    runs: Vec<CompactedRun>,
    batch_bytes: u64,
}

async fn fill(
    merging: &mut Merging<'_>,
    job: &Job,
    bad: &mut Vec<BadExtent>,
    output: &mut Output,
) -> Result<Filled, StoreError> {
    let cluster_id = merging.image.format().cluster_id.clone();
    let mut builder = ObjectBuilder::new(cluster_id, merging.object, merging.now_ms);
    let mut sources = Sources::of(job);
    let (mut runs, mut batches) = (Vec::with_capacity(job.runs.len()), 0);
    for run in &job.runs {
        let stamped = match read_run(merging, &mut sources, run).await {
            Ok(stamped) => stamped,
            Err(Trouble::Bad(extent)) => {
                bad.push(extent);
                continue;
            }
            Err(Trouble::Store(error)) => return Err(error),
        };
        batches += stamped.len();
        if batches > MAX_BATCHES && !runs.is_empty() {
            break;
        }
        builder.end_run();
        let position = builder.body_bytes();
        let mut max_timestamp_ms = i64::MIN;
        for (batch, header, base_offset, leader_epoch) in &stamped {
            builder.push(run.key, batch, header, *base_offset, *leader_epoch);
            max_timestamp_ms = max_timestamp_ms.max(header.max_timestamp_ms);
        }
        runs.push(compacted(run, position, builder.body_bytes() - position, max_timestamp_ms));
        output.write(builder.take_parts(), merging.pace).await?;
        // Checking what is in memory already waits for nothing; others want to run.
        tokio::task::yield_now().await;
    }
    let batch_bytes = builder.body_bytes();
    if !runs.is_empty() {
        let (last, _) = builder.finish();
        output.write(last, merging.pace).await?;
    }
    Ok(Filled { runs, batch_bytes })
}

fn compacted(run: &MergeRun, position: u64, bytes: u64, max_timestamp_ms: i64) -> CompactedRun {
    let replaces = run.extents.iter().filter_map(|extent| {
        let location = extent.object()?;
        Some(ReplacedExtent {
            base_offset: extent.base_offset,
            object: location.object,
            position: location.position,
        })
    });
    CompactedRun {
        run: ObjectRun {
            topic_id: run.key.topic_id,
            partition: run.key.partition,
            base_offset: run.extents.first().map_or(0, |extent| extent.base_offset),
            last_offset: run.extents.last().map_or(0, |extent| extent.last_offset),
            position,
            // A run is one extent, which is below 4 GiB, or several of some MiB.
            size_bytes: bytes as u32,
            max_timestamp_ms,
        },
        replaces: replaces.collect(),
    }
}

enum Trouble {
    /// The run is left out.
    Bad(BadExtent),
    /// The job ends.
    Store(StoreError),
}

type Stamped = (Bytes, BatchHeader, i64, i32);

async fn read_run(
    merging: &mut Merging<'_>,
    sources: &mut Sources,
    run: &MergeRun,
) -> Result<Vec<Stamped>, Trouble> {
    let mut stamped = Vec::new();
    for extent in &run.extents {
        let Some(location) = extent.object() else { continue };
        let bad = |stale, why| BadExtent { key: run.key, location, stale, why };
        let Some(view) = merging.image.stored_view(run.key) else {
            return Err(Trouble::Bad(bad(true, "its topic is gone".to_owned())));
        };
        let before = stamped.len();
        let mut tried_again = false;
        loop {
            let read = read_extent(merging, sources, view, extent, &mut stamped).await;
            match read {
                Ok(()) => break,
                // Damage on the way passes, damage in the store does not.
                Err(StoreError::Damaged { why, .. }) if !tried_again => {
                    tracing::warn!(key = ?run.key, ?location, why, "reading a damaged range again");
                    tried_again = true;
                    stamped.truncate(before);
                    sources.forget(location.object);
                }
                Err(StoreError::Damaged { why, .. }) => return Err(Trouble::Bad(bad(false, why))),
                Err(error @ StoreError::NotFound(_)) => {
                    return Err(Trouble::Bad(bad(true, error.to_string())));
                }
                Err(error) => return Err(Trouble::Store(error)),
            }
        }
    }
    Ok(stamped)
}

/// The batches of one extent, with the offsets and leader epochs that metadata says.
async fn read_extent(
    merging: &mut Merging<'_>,
    sources: &mut Sources,
    view: &PartitionView,
    extent: &Extent,
    stamped: &mut Vec<Stamped>,
) -> Result<(), StoreError> {
    let Some(location) = extent.object() else { return Ok(()) };
    let range = location.range();
    let damaged = |position: u64, why: String| StoreError::Damaged {
        key: object_key(location.object),
        why: format!("{why} (extent at {:?}, position {position})", location.range()),
    };
    let (mut position, mut next_offset) = (range.start, extent.base_offset);
    while position < range.end {
        let head = sources.take(merging, location.object, position, HEADER_BYTES as u64).await?;
        let header = BatchHeader::parse_head(&head).map_err(|error| damaged(position, error.to_string()))?;
        let bytes = header.total_bytes() as u64;
        if bytes < HEADER_BYTES as u64 || bytes > range.end - position || header.last_offset_delta < 0 {
            return Err(damaged(position, "a batch's length or offsets do not fit".to_owned()));
        }
        let batch = sources.take(merging, location.object, position, bytes).await?;
        verify_crc(&batch).map_err(|error| damaged(position, error.to_string()))?;
        let (batch, header, base_offset) = if location.unstamped {
            let (batch, header) = final_bytes(&batch, extent).map_err(|why| damaged(position, why))?;
            (batch, header, next_offset)
        } else {
            (batch, header, header.base_offset)
        };
        let last_offset = base_offset + i64::from(header.last_offset_delta);
        let is_first = position == range.start;
        if base_offset < next_offset
            || last_offset > extent.last_offset
            || (is_first && base_offset != extent.base_offset)
        {
            let why = format!("offsets {base_offset} to {last_offset}, where {next_offset} come next");
            return Err(damaged(position, why));
        }
        let leader_epoch = view.epoch_at(base_offset);
        // The batch's CRC does not cover it.
        if !location.unstamped && header.leader_epoch != leader_epoch {
            let why = format!("leader epoch {}, metadata says {leader_epoch}", header.leader_epoch);
            return Err(damaged(position, why));
        }
        stamped.push((batch, header, base_offset, leader_epoch));
        position += bytes;
        next_offset = last_offset + 1;
    }
    if next_offset != extent.end_offset() {
        let why = format!("the batches end at {next_offset}, metadata says {}", extent.end_offset());
        return Err(damaged(position, why));
    }
    Ok(())
}

/// The objects that a job reads.
struct Sources {
    cursors: BTreeMap<ObjectId, Cursor>,
    window_bytes: u64,
}

impl Sources {
    fn of(job: &Job) -> Self {
        let mut cursors: BTreeMap<ObjectId, Cursor> = BTreeMap::new();
        for location in job.runs.iter().flat_map(|run| &run.extents).filter_map(Extent::object) {
            cursors.entry(location.object).or_default().ranges.push(location.range());
        }
        for cursor in cursors.values_mut() {
            cursor.ranges.sort_by_key(|range| range.start);
        }
        let share = READ_BYTES / (cursors.len() as u64).max(1);
        Self { cursors, window_bytes: share.clamp(*WINDOW_BYTES.start(), *WINDOW_BYTES.end()) }
    }

    async fn take(
        &mut self,
        merging: &mut Merging<'_>,
        object: ObjectId,
        position: u64,
        bytes: u64,
    ) -> Result<Bytes, StoreError> {
        let window_bytes = self.window_bytes;
        let cursor = self.cursors.entry(object).or_default();
        cursor.take(merging, object, position..position + bytes, window_bytes).await
    }

    fn forget(&mut self, object: ObjectId) {
        if let Some(cursor) = self.cursors.get_mut(&object) {
            (cursor.start, cursor.buffer) = (0, Bytes::new());
        }
    }
}

/// A window that moves through one object.
#[derive(Default)]
struct Cursor {
    /// What is wanted, in order.
    ranges: Vec<Range<u64>>,
    start: u64,
    buffer: Bytes,
}

impl Cursor {
    async fn take(
        &mut self,
        merging: &mut Merging<'_>,
        object: ObjectId,
        wanted: Range<u64>,
        window_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        let end = self.start + self.buffer.len() as u64;
        if wanted.start < self.start || wanted.end > end {
            let kept = if (self.start..end).contains(&wanted.start) {
                self.buffer.slice((wanted.start - self.start) as usize..)
            } else {
                Bytes::new()
            };
            let from = wanted.start + kept.len() as u64;
            let to = self.reach(from, from + window_bytes).max(wanted.end);
            merging.pace.take(to - from).await;
            let read = get(merging.bucket, object, from..to).await?;
            self.buffer = if kept.is_empty() {
                read
            } else {
                let mut joined = BytesMut::with_capacity(kept.len() + read.len());
                joined.extend_from_slice(&kept);
                joined.extend_from_slice(&read);
                joined.freeze()
            };
            self.start = wanted.start;
        }
        let at = (wanted.start - self.start) as usize;
        Ok(self.buffer.slice(at..at + (wanted.end - wanted.start) as usize))
    }

    /// How far one read from `from` goes: over what is wanted and small gaps, up to `limit`.
    fn reach(&self, from: u64, limit: u64) -> u64 {
        let first = self.ranges.partition_point(|range| range.end <= from);
        let mut to = from;
        for range in &self.ranges[first..] {
            if range.start > to + GAP_BYTES || to >= limit {
                break;
            }
            to = to.max(range.end);
        }
        to.min(limit)
    }
}

/// A range that lies beyond the object's end is damage, however the store says it.
async fn get(bucket: &Bucket, object: ObjectId, range: Range<u64>) -> Result<Bytes, StoreError> {
    let key = object_key(object);
    match bucket.get_range(&key, range.clone()).await {
        Err(StoreError::NotFound(key)) => Err(StoreError::NotFound(key)),
        Err(error) => match bucket.size(&key).await {
            Ok(size) if size < range.end => {
                let why = format!("{size} bytes long, metadata names bytes up to {}", range.end);
                Err(StoreError::Damaged { key, why })
            }
            _ => Err(error),
        },
        got => got,
    }
}

/// Where the object goes.
enum Output {
    Whole { bucket: Bucket, key: String, parts: Vec<Bytes> },
    Stream(PutStream),
}

impl Output {
    async fn new(bucket: &Bucket, object: ObjectId, bytes: u64) -> Result<Self, StoreError> {
        let key = object_key(object);
        if bytes > STREAM_ABOVE_BYTES {
            return Ok(Self::Stream(bucket.put_stream(&key).await?));
        }
        Ok(Self::Whole { bucket: bucket.clone(), key, parts: Vec::new() })
    }

    async fn write(&mut self, pieces: Vec<Bytes>, pace: &mut Pace) -> Result<(), StoreError> {
        pace.take(pieces.iter().map(|piece| piece.len() as u64).sum()).await;
        match self {
            Self::Whole { parts, .. } => {
                parts.extend(pieces);
                Ok(())
            }
            Self::Stream(stream) => stream.write(pieces).await,
        }
    }

    async fn finish(self) -> Result<u64, StoreError> {
        match self {
            Self::Whole { bucket, key, parts } => {
                let bytes = parts.iter().map(|part| part.len() as u64).sum();
                bucket.put(&key, parts).await.map(|()| bytes)
            }
            Self::Stream(stream) => stream.finish().await,
        }
    }

    async fn abort(self) {
        if let Self::Stream(stream) = self {
            stream.abort().await;
        }
    }
}
