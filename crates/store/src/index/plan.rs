//! Which extents leave metadata's memory for an index object. Pure.
//!
//! Rules
//! 1. Only from lists longer than [`Limits::list_extents`], and only their lowest extents, without a gap: a pointer stands below all
//!    that is listed.
//! 2. Only *settled* ones, for what is indexed is never compacted again: final bytes, in an object of one topic, or in a
//!    merge that is not small and has lain for [`Limits::settle_ms`].
//! 3. [`Limits::keep_extents`] stay listed, so that readers near the end open no block.
//! 4. Once one list is too long, half as long ones go along: few index objects, each of many blocks.

use std::sync::Arc;

use isobar_metadata::ids::{PartitionKey, StoreId};
use isobar_metadata::record::{Extent, ObjectState, object_level};
use isobar_metadata::{Image, PartitionView};

/// What is long, and what is settled.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A list with more extents is shortened.
    pub list_extents: usize,
    /// The newest that stay.
    pub keep_extents: usize,
    /// Extents of one block at most; half of it at least.
    pub block_extents: usize,
    /// A merge is settled after this.
    pub settle_ms: i64,
    /// And if it has at least so many live bytes, or it would be merged again.
    pub settled_bytes: u64,
    /// Blocks of one index object.
    pub blocks: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            list_extents: 512,
            keep_extents: 192,
            block_extents: 256,
            settle_ms: 24 * 3_600_000,
            settled_bytes: 128 << 20,
            blocks: 1_000,
        }
    }
}

/// Extents that become one block.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Whose.
    pub key: PartitionKey,
    /// In offset order, each beginning where the one before ends; at least one.
    pub extents: Vec<Extent>,
}

/// The blocks of the next index object; empty: none is needed.
pub fn plan(image: &Image, store: StoreId, limits: &Limits) -> Vec<Planned> {
    // Mostly nothing is: that is found out by the lengths of lists and the beginnings of long ones alone.
    if !longer(image, store, limits.list_extents).any(|view| !blocks(image, view, store, limits).is_empty()) {
        return Vec::new();
    }
    let mut planned = Vec::new();
    for view in longer(image, store, limits.list_extents / 2) {
        if planned.len() >= limits.blocks {
            break;
        }
        planned.extend(blocks(image, view, store, limits));
    }
    planned.truncate(limits.blocks);
    planned
}

/// Partitions whose list has more extents than this.
fn longer(image: &Image, store: StoreId, than: usize) -> impl Iterator<Item = &Arc<PartitionView>> {
    let all = (0..image.shards()).flat_map(|shard| image.shard_partitions(shard));
    all.filter(move |view| view.stores.get(&store).is_some_and(|extents| extents.len() > than))
}

fn blocks(image: &Image, view: &PartitionView, store: StoreId, limits: &Limits) -> Vec<Planned> {
    let Some(listed) = view.stores.get(&store) else { return Vec::new() };
    let most = listed.len().saturating_sub(limits.keep_extents);
    let mut settled: Vec<Extent> = Vec::new();
    for extent in listed.values().take(most) {
        let follows = settled.last().is_none_or(|last| last.end_offset() == extent.base_offset);
        if !follows || !is_settled(image, extent, limits) {
            break;
        }
        settled.push(extent.clone());
    }
    let least = (limits.block_extents / 2).max(1);
    let blocks = settled.chunks(limits.block_extents.max(1)).filter(|block| block.len() >= least);
    blocks.map(|block| Planned { key: view.key(), extents: block.to_vec() }).collect()
}

fn is_settled(image: &Image, extent: &Extent, limits: &Limits) -> bool {
    let Some(location) = extent.object() else { return false };
    let Some(object) = image.object(location.object) else { return false };
    if location.unstamped || object.state != ObjectState::Committed as i32 || !object.complete {
        return false;
    }
    let has_lain = image.time_ms().saturating_sub(object.since_ms) >= limits.settle_ms;
    match object.level {
        object_level::SINGLE_TOPIC => true,
        object_level::MERGED => has_lain && object.live_bytes >= limits.settled_bytes,
        _ => false,
    }
}
