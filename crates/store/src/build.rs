//! Reads planned runs from the WAL and makes an object of them.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use isobar_metadata::command::ObjectRun;
use isobar_metadata::ids::{ObjectId, PartitionKey};
use isobar_metadata::record::{Extent, InlineLocation, WalLocation};
use isobar_metadata::{Location, PartitionView};
use isobar_protocol::batch::{BatchHeader, TimestampType, rewrite_timestamp};
use isobar_wal::{Wal, WalError};

use crate::format::ObjectBuilder;
use crate::plan::PlannedRun;

/// Batches between two looks at whether other tasks want to run.
const YIELD_AFTER: usize = 2048;

/// A run ends at this length: a reader walks it from its start.
pub(crate) const MAX_RUN_BYTES: u64 = 8 << 20;

/// Batches asked of a WAL at a time.
const MAX_PIECE_BATCHES: u32 = 4096;
/// Reads of the WAL under way for an object: those from another zone take a round trip each.
const READS_AT_ONCE: usize = 16;

/// A run that was left out.
pub(crate) struct BadRun {
    pub(crate) key: PartitionKey,
    pub(crate) location: Location,
    pub(crate) why: String,
}

/// An object ready to be put.
pub(crate) struct Built {
    pub(crate) parts: Vec<Bytes>,
    pub(crate) runs: Vec<ObjectRun>,
    pub(crate) bad: Vec<BadRun>,
    pub(crate) size_bytes: u64,
    pub(crate) batch_bytes: u64,
}

pub(crate) async fn build(
    wal: &dyn Wal,
    cluster_id: String,
    object: ObjectId,
    now_ms: i64,
    runs: Vec<(PlannedRun, Arc<PartitionView>)>,
) -> Built {
    let mut bad = Vec::new();
    let (runs, views): (Vec<_>, Vec<_>) = runs.into_iter().unzip();
    let read = read_all(wal, &runs, &mut bad).await;
    let mut builder = ObjectBuilder::new(cluster_id, object, now_ms).with_max_run_bytes(MAX_RUN_BYTES);
    let mut since_yield = 0;
    for ((run, view), extents) in runs.iter().zip(views).zip(read) {
        let Some(extents) = extents else { continue };
        match stamped(run, &view, &extents) {
            Ok(batches) => {
                since_yield += batches.len();
                for (batch, header, base_offset, leader_epoch) in batches {
                    builder.push(run.key, &batch, &header, base_offset, leader_epoch);
                }
            }
            Err((extent, why)) => {
                bad.push(BadRun { key: run.key, location: extent.location().clone(), why });
            }
        }
        if since_yield > YIELD_AFTER {
            since_yield = 0;
            tokio::task::yield_now().await;
        }
    }
    let batch_bytes = builder.body_bytes();
    let (parts, runs) = builder.finish();
    let size_bytes = parts.iter().map(|part| part.len() as u64).sum();
    let runs = runs
        .iter()
        .map(|run| ObjectRun {
            topic_id: run.key.topic_id,
            partition: run.key.partition,
            base_offset: run.first_offset,
            last_offset: run.last_offset,
            position: run.range.start,
            // A plan is far smaller than 4 GiB.
            size_bytes: (run.range.end - run.range.start) as u32,
            max_timestamp_ms: run.max_timestamp_ms,
        })
        .collect();
    Built { parts, runs, bad, size_bytes, batch_bytes }
}

/// Batches that lie side by side in a chunk, and the extents they belong to, in their order: run, and which of its extents.
struct Piece {
    of: WalLocation,
    whose: Vec<(usize, usize)>,
}

/// What is read from the WAL, chunk by chunk, so that one which comes from disk or from another node is read once.
fn pieces(runs: &[PlannedRun]) -> Vec<Piece> {
    let mut order: Vec<(WalLocation, (usize, usize))> = Vec::new();
    for (run, planned) in runs.iter().enumerate() {
        let of_run = planned.extents.iter().enumerate();
        order.extend(of_run.filter_map(|(at, extent)| Some((extent.wal()?, (run, at)))));
    }
    order.sort_by_key(|(wal, whose)| (wal.stream, wal.chunk, wal.first_batch, *whose));
    let mut pieces: Vec<Piece> = Vec::new();
    for (wal, whose) in order {
        match pieces.last_mut() {
            Some(Piece { of, whose: others })
                if (of.stream, of.chunk, of.ordinals().end) == (wal.stream, wal.chunk, wal.first_batch)
                    && of.batches + wal.batches <= MAX_PIECE_BATCHES =>
            {
                of.batches += wal.batches;
                others.push(whose);
            }
            _ => pieces.push(Piece { of: wal, whose: vec![whose] }),
        }
    }
    pieces
}

/// The batches of each extent of each run; `None` for a run of which something could not be read.
async fn read_all(wal: &dyn Wal, runs: &[PlannedRun], bad: &mut Vec<BadRun>) -> Vec<Option<Vec<Vec<Bytes>>>> {
    let mut read: Vec<Option<Vec<Vec<Bytes>>>> =
        runs.iter().map(|run| Some(vec![Vec::new(); run.extents.len()])).collect();
    let mut enter = |(run, at): (usize, usize), result: Result<Vec<Bytes>, String>| {
        let planned = &runs[run];
        let Some(extents) = read[run].as_mut() else { return };
        match result {
            Ok(batches) => extents[at] = batches,
            Err(why) => {
                bad.push(BadRun { key: planned.key, location: planned.extents[at].location().clone(), why });
                read[run] = None;
            }
        }
    };
    for (run, planned) in runs.iter().enumerate() {
        for (at, extent) in planned.extents.iter().enumerate() {
            match extent.location() {
                Location::Wal(_) => {}
                Location::Inline(inline) => {
                    enter((run, at), split_inline(inline).map_err(|error| error.to_string()))
                }
                Location::Object(_) => enter((run, at), Err(WalError::NotFound.to_string())),
            }
        }
    }
    let reads = pieces(runs).into_iter().map(|piece| async move {
        let result = wal.read(piece.of.stream, piece.of.chunk, piece.of.ordinals()).await;
        (piece.whose, result)
    });
    let mut reads = stream::iter(reads).buffered(READS_AT_ONCE);
    while let Some((whose, result)) = reads.next().await {
        let mut result = result.map_err(|error| error.to_string()).map(Vec::into_iter);
        for (run, at) in whose {
            let count = runs[run].extents[at].wal().map_or(0, |wal| wal.batches as usize);
            let own = result.as_mut().map(|batches| batches.take(count).collect()).map_err(|why| why.clone());
            enter((run, at), own);
        }
    }
    read
}

fn split_inline(inline: &InlineLocation) -> Result<Vec<Bytes>, WalError> {
    let mut rest = inline.data.clone();
    let mut batches = Vec::new();
    while !rest.is_empty() {
        let header = BatchHeader::parse(&rest).map_err(|error| WalError::Corrupt(error.to_string()))?;
        batches.push(rest.split_to(header.total_bytes()));
    }
    Ok(batches)
}

type Stamped = (Bytes, BatchHeader, i64, i32);

/// Gives each batch its offset, checks that they fill the extents exactly, and rewrites those of LogAppendTime.
fn stamped<'a>(
    run: &'a PlannedRun,
    view: &PartitionView,
    read: &[Vec<Bytes>],
) -> Result<Vec<Stamped>, (&'a Extent, String)> {
    let mut stamped = Vec::with_capacity(read.iter().map(Vec::len).sum());
    for (extent, batches) in run.extents.iter().zip(read) {
        let mut offset = extent.base_offset;
        for batch in batches {
            let (batch, header) = final_bytes(batch, extent).map_err(|why| (extent, why))?;
            let leader_epoch = view.epoch_at(offset);
            let base_offset = offset;
            offset += i64::from(header.last_offset_delta) + 1;
            stamped.push((batch, header, base_offset, leader_epoch));
        }
        if offset != extent.end_offset() {
            let why = format!("the batches end at {offset}, metadata says {}", extent.end_offset());
            return Err((extent, why));
        }
    }
    Ok(stamped)
}

pub(crate) fn final_bytes(batch: &Bytes, extent: &Extent) -> Result<(Bytes, BatchHeader), String> {
    let header = BatchHeader::parse(batch).map_err(|error| error.to_string())?;
    if header.total_bytes() != batch.len() || header.last_offset_delta < 0 {
        return Err("a batch's length or offsets do not fit".to_owned());
    }
    if extent.append_time_ms < 0 {
        return Ok((batch.clone(), header));
    }
    let mut rewritten = BytesMut::from(&batch[..]);
    rewrite_timestamp(&mut rewritten, TimestampType::LogAppendTime, extent.append_time_ms);
    let rewritten = rewritten.freeze();
    let header = BatchHeader::parse(&rewritten).map_err(|error| error.to_string())?;
    Ok((rewritten, header))
}

#[cfg(test)]
mod tests;
