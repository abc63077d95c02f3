//! Which bytes go into the next object. Pure.
//!
//! Rules
//! 1. Only WAL and Inline extents with an offset inside the log that the store does not hold yet.
//! 2. A run is contiguous: each extent begins where the one before ends. A partition with holes (something of it is in the store
//!    already, or is on its way) gives several runs.
//! 3. The oldest chunks first, so that whole chunks are released; a partition's extents in offset order.
//! 4. Within the limits, but at least one extent.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use isobar_metadata::PartitionView;
use isobar_metadata::ids::{PartitionKey, StoreId};
use isobar_metadata::record::{Extent, Location};

/// Bounds of one object.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of batches; passed only by a single extent that is larger.
    pub max_bytes: u64,
    /// Runs; one commit carries them all, so this bounds its size.
    pub max_runs: usize,
}

/// Contiguous extents of one partition that go into the object as one run.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedRun {
    /// Whose.
    pub key: PartitionKey,
    /// In offset order, each beginning where the one before ends.
    pub extents: Vec<Extent>,
}

impl PlannedRun {
    /// First offset.
    pub fn base_offset(&self) -> i64 {
        self.extents.first().map_or(0, |extent| extent.base_offset)
    }

    /// One past the last offset.
    pub fn end_offset(&self) -> i64 {
        self.extents.last().map_or(0, Extent::end_offset)
    }

    /// Bytes of its batches.
    pub fn size_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.size_bytes).sum()
    }
}

/// A partition to look at, from an offset on: below it everything is uploaded or on its way.
pub struct Candidate<'a> {
    /// The partition at one version.
    pub view: &'a PartitionView,
    /// Extents that begin below are left alone.
    pub from: i64,
}

/// The partition's first extent at or after `from` that is due in the store.
pub fn next_due(view: &PartitionView, store: StoreId, from: i64) -> Option<&Extent> {
    view.wal
        .range(from..)
        .map(|(_, extent)| extent)
        .find(|extent| extent.last_offset >= view.log_start && !is_stored(view, store, extent))
}

/// Uploads store whole extents, so where the first offset inside the log is stored, all of it is.
fn is_stored(view: &PartitionView, store: StoreId, extent: &Extent) -> bool {
    view.locate_in_store(store, extent.base_offset.max(view.log_start)).is_some()
}

/// Stream and chunk.
pub type Age = (u64, u64);

/// Age of an extent: streams are granted and chunks numbered in rising order.
pub fn age(extent: &Extent) -> Age {
    match extent.location() {
        Location::Wal(wal) => (wal.stream.0, wal.chunk),
        // No chunk is released by these; they go along with their neighbours.
        Location::Inline(_) | Location::Object(_) => (0, 0),
    }
}

/// What goes into the next object.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// Ordered by partition and offset.
    pub runs: Vec<PlannedRun>,
    /// The limits left something out: no later plan would be larger.
    pub is_full: bool,
}

/// Chooses the runs of the next object.
pub fn plan(candidates: &[Candidate<'_>], store: StoreId, limits: Limits) -> Plan {
    let mut heap = BinaryHeap::new();
    for (index, candidate) in candidates.iter().enumerate() {
        if let Some(extent) = next_due(candidate.view, store, candidate.from) {
            heap.push(Reverse((age(extent), index, extent.base_offset)));
        }
    }
    // Runs of each candidate, in offset order.
    let mut chosen: Vec<Vec<PlannedRun>> = candidates.iter().map(|_| Vec::new()).collect();
    let (mut bytes, mut runs, mut is_full) = (0_u64, 0, false);
    while let Some(Reverse((_, index, base_offset))) = heap.pop() {
        let view = candidates[index].view;
        let Some(extent) = view.wal.get(&base_offset) else { continue };
        if bytes > 0 && bytes + extent.size_bytes > limits.max_bytes {
            is_full = true;
            break;
        }
        let of_partition = &mut chosen[index];
        match of_partition.last_mut() {
            Some(run) if run.end_offset() == extent.base_offset => run.extents.push(extent.clone()),
            _ if runs == limits.max_runs => {
                is_full = true;
                continue;
            }
            _ => {
                runs += 1;
                of_partition.push(PlannedRun { key: view.key(), extents: vec![extent.clone()] });
            }
        }
        bytes += extent.size_bytes;
        if let Some(next) = next_due(view, store, extent.end_offset()) {
            heap.push(Reverse((age(next), index, next.base_offset)));
        }
    }
    let mut runs: Vec<PlannedRun> = chosen.into_iter().flatten().collect();
    runs.sort_by_key(|run| (run.key, run.base_offset()));
    Plan { runs, is_full }
}

#[cfg(test)]
mod tests;
