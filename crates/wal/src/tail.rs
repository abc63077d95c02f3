//! Memory of recent chunks, bounded in bytes; the ones used least recently go first.

use std::collections::BTreeMap;

use isobar_metadata::ids::StreamId;

use crate::Chunk;

type ChunkId = (StreamId, u64);

struct Held {
    chunk: Chunk,
    bytes: usize,
    /// Its place in `order`.
    stamp: u64,
}

pub(crate) struct Tail {
    max_bytes: usize,
    bytes: usize,
    next_stamp: u64,
    held: BTreeMap<ChunkId, Held>,
    order: BTreeMap<u64, ChunkId>,
}

impl Tail {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, bytes: 0, next_stamp: 0, held: BTreeMap::new(), order: BTreeMap::new() }
    }

    /// Takes a chunk, and drops the oldest until all fit again. One that is larger than the bound by itself is not taken.
    pub(crate) fn insert(&mut self, id: ChunkId, chunk: Chunk) {
        self.remove(id);
        let chunk = chunk.compact();
        let bytes = chunk.memory_bytes();
        if bytes > self.max_bytes {
            return;
        }
        let stamp = self.stamp(id);
        self.held.insert(id, Held { chunk, bytes, stamp });
        self.bytes += bytes;
        while self.bytes > self.max_bytes
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.bytes -= self.held.remove(&oldest).map_or(0, |held| held.bytes);
        }
    }

    /// A chunk that is held; it counts as used now.
    pub(crate) fn get(&mut self, id: ChunkId) -> Option<Chunk> {
        let next_stamp = self.next_stamp;
        let held = self.held.get_mut(&id)?;
        // Readers of the tail take the same chunk many times in a row.
        if held.stamp + 1 != next_stamp {
            self.order.remove(&held.stamp);
            held.stamp = next_stamp;
            self.order.insert(next_stamp, id);
            self.next_stamp += 1;
        }
        Some(held.chunk.clone())
    }

    pub(crate) fn remove(&mut self, id: ChunkId) {
        if let Some(held) = self.held.remove(&id) {
            self.order.remove(&held.stamp);
            self.bytes -= held.bytes;
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn stamp(&mut self, id: ChunkId) -> u64 {
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        self.order.insert(stamp, id);
        stamp
    }
}
