//! Memory of what this node appended, for readers of the tail who have no replica beside them. Pure.
//!
//! Follows metadata as a replica does ([`crate::index`]): a chunk that nothing points at any more is not found, so that memory never
//! says otherwise than the disks.

use std::collections::BTreeMap;

use isobar_metadata::Image;
use isobar_metadata::effect::{ChunkCommitted, EffectBatch, EffectKind};
use isobar_metadata::ids::StreamId;

use crate::Chunk;
use crate::tail::Tail;

#[derive(Default)]
struct Known {
    /// Numbers below this were settled by a commit.
    settled: u64,
    /// Not released: whether a commit named it.
    chunks: BTreeMap<u64, bool>,
}

pub(crate) struct Memory {
    tail: Tail,
    streams: BTreeMap<StreamId, Known>,
}

impl Memory {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { tail: Tail::new(max_bytes), streams: BTreeMap::new() }
    }

    /// A chunk is durable.
    pub(crate) fn insert(&mut self, chunk: Chunk) {
        let id = (chunk.stream(), chunk.number());
        let stream = self.streams.entry(id.0).or_default();
        if id.1 >= stream.settled {
            stream.chunks.insert(id.1, false);
            self.tail.insert(id, chunk);
        }
    }

    pub(crate) fn get(&mut self, id: (StreamId, u64)) -> Option<Chunk> {
        self.tail.get(id)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.tail.bytes()
    }

    /// Effects were missed: the image says what is left. Streams newer than `told` are newer than the image.
    pub(crate) fn reconcile(&mut self, image: &Image, told: Option<StreamId>) {
        let ids: Vec<StreamId> = self.streams.keys().copied().filter(|id| Some(*id) <= told).collect();
        for id in ids {
            match image.stream(id) {
                Some(truth) => self.drop_where(id, |number, _| truth.is_garbage(number)),
                None => {
                    self.drop_where(id, |_, _| true);
                    self.streams.remove(&id);
                }
            }
        }
    }

    pub(crate) fn follow(&mut self, batch: &EffectBatch) {
        for effect in &batch.effects {
            match &effect.kind {
                Some(EffectKind::ChunkCommitted(commit)) => self.committed(commit),
                Some(EffectKind::Released(released)) => {
                    for &number in &released.chunks {
                        self.drop_chunk(released.stream, number);
                    }
                }
                Some(EffectKind::Stream(record)) if record.closed => {
                    self.drop_where(record.stream, |_, named| !named);
                }
                Some(EffectKind::StreamForgotten(forgotten)) => {
                    self.drop_where(forgotten.stream, |_, _| true);
                    self.streams.remove(&forgotten.stream);
                }
                _ => {}
            }
        }
    }

    fn committed(&mut self, commit: &ChunkCommitted) {
        let Some(stream) = self.streams.get_mut(&commit.stream) else { return };
        if commit.chunk < stream.settled {
            return;
        }
        stream.settled = commit.chunk + 1;
        let has_extents = commit.extents > 0;
        if has_extents && let Some(named) = stream.chunks.get_mut(&commit.chunk) {
            *named = true;
        }
        // What it passed by can be named by no commit any more.
        self.drop_where(commit.stream, |number, named| number <= commit.chunk && !named);
    }

    fn drop_where(&mut self, stream: StreamId, is_dropped: impl Fn(u64, bool) -> bool) {
        let Some(known) = self.streams.get(&stream) else { return };
        let dropped = known.chunks.iter().filter(|&(&number, &named)| is_dropped(number, named));
        let dropped: Vec<u64> = dropped.map(|(&number, _)| number).collect();
        for number in dropped {
            self.drop_chunk(stream, number);
        }
    }

    fn drop_chunk(&mut self, stream: StreamId, number: u64) {
        if let Some(known) = self.streams.get_mut(&stream) {
            known.chunks.remove(&number);
        }
        self.tail.remove((stream, number));
    }
}
