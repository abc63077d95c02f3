//! What a replica knows of its streams: pure, no disk.
//!
//! Invariants
//! 1. A stream's chunks were begun in order and without a gap: `next` is the only number it takes.
//! 2. A chunk is dropped when metadata says that nothing points at it and nothing ever will, never before: it was released, or it
//!    was committed without an extent, or its stream passed it by or closed without a commit naming it, or its
//!    stream is forgotten.
//! 3. A segment is given back once: when it holds no chunk, and a later segment has been written. Appends end in the order
//!    of their places, so by then every chunk of it has been entered here.
//! 4. A stream that is closed takes no chunk any more, also after it is forgotten, but those that are filled in
//!    ([`crate::repair`]): live ones, by an image that is as new as what was followed here, so that their release is yet to come.
//!    Stream ids are granted in rising order, so of forgotten ones only the newest are kept one by one.

use std::collections::{BTreeMap, BTreeSet};

use isobar_metadata::Image;
use isobar_metadata::effect::{EffectBatch, EffectKind};
use isobar_metadata::ids::{DirectoryId, StreamId};
use isobar_metadata::record::StreamRecord;

use crate::WalError;

/// Forgotten streams that are remembered one by one.
const FORGOTTEN_MAX: usize = 1024;

pub(crate) type ChunkId = (StreamId, u64);

/// Where a chunk's frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) position: u64,
    pub(crate) segment: u64,
    pub(crate) bytes: u32,
}

/// A chunk that metadata may still need.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// `None` until its append is durable.
    place: Option<Place>,
    /// A commit named it and extents point at it.
    named: bool,
}

#[derive(Debug, Default)]
struct Stream {
    next: u64,
    /// Appends that have not ended.
    pending: u64,
    /// The lowest number that was refused while later ones were under way: those are refused too, however they end, and
    /// the stream goes on from here once they have.
    refused_from: Option<u64>,
    closed: bool,
    /// Some of it was found on disk at start.
    recovered: bool,
    /// Numbers below this were settled by a commit: their entries are named or gone.
    settled: u64,
    /// Settled numbers that have not come here yet and that extents point at: a write quorum may be faster than this replica.
    awaited: BTreeSet<u64>,
    chunks: BTreeMap<u64, Entry>,
}

impl Stream {
    /// A number that is not used up: what metadata says of it still holds when it comes again.
    fn take_back(&mut self, number: u64) {
        if self.chunks.remove(&number).is_some_and(|entry| entry.named) {
            self.awaited.insert(number);
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    directory: DirectoryId,
    streams: BTreeMap<StreamId, Stream>,
    /// Chunks begun but not yet durable that were dropped meanwhile: their bytes are garbage on arrival.
    dropped_early: BTreeSet<ChunkId>,
    /// Chunks per segment.
    segments: BTreeMap<u64, u64>,
    empty_segments: BTreeSet<u64>,
    newest_segment: u64,
    forgotten: BTreeSet<StreamId>,
    /// All up to this one are forgotten or were never opened here.
    forgotten_floor: Option<StreamId>,
    /// The newest stream that metadata has told of. One that is not newer and not known here is forgotten, or was opened
    /// elsewhere: what comes late for it would be garbage that nothing ever drops.
    newest_told: Option<StreamId>,
    /// Index of the newest entry of metadata that was followed.
    followed: u64,
    chunks: u64,
    bytes: u64,
}

impl Index {
    pub(crate) fn new(directory: DirectoryId) -> Self {
        Self { directory, ..Self::default() }
    }

    /// Chunks and bytes that metadata may still need and that are durable.
    pub(crate) fn live(&self) -> (u64, u64) {
        (self.chunks, self.bytes)
    }

    /// Whether the chunk is here at all, durable or on its way.
    pub(crate) fn holds(&self, (stream, number): ChunkId) -> bool {
        self.streams.get(&stream).is_some_and(|stream| stream.chunks.contains_key(&number))
    }

    pub(crate) fn place(&self, (stream, number): ChunkId) -> Option<Place> {
        self.streams.get(&stream)?.chunks.get(&number)?.place
    }

    /// The chunk and those of its stream that lie behind it in its segment, so many bytes far, by number; nothing if it is not
    /// durable here.
    pub(crate) fn with_next(&self, (stream, number): ChunkId, bytes: u64) -> Vec<(u64, Place)> {
        let Some(stream) = self.streams.get(&stream) else { return Vec::new() };
        let mut places =
            stream.chunks.range(number..).map_while(|(&number, entry)| Some((number, entry.place?)));
        let Some((_, first)) = places.next().filter(|(found, _)| *found == number) else { return Vec::new() };
        let mut chosen = vec![(number, first)];
        for (number, place) in places {
            let last = chosen[chosen.len() - 1].1;
            let behind = last.position + u64::from(last.bytes)..first.position + bytes;
            if place.segment != first.segment || !behind.contains(&place.position) {
                break;
            }
            chosen.push((number, place));
        }
        chosen
    }

    /// Checks that a chunk may be appended, without taking it.
    pub(crate) fn check(&self, (stream, number): ChunkId) -> Result<(), WalError> {
        let (next, closed, refusing) = match self.streams.get(&stream) {
            Some(stream) => (stream.next, stream.closed, stream.refused_from.is_some()),
            None => {
                let told = self.forgotten_floor.max(self.newest_told);
                (0, Some(stream) <= told || self.forgotten.contains(&stream), false)
            }
        };
        if closed {
            Err(WalError::Closed)
        } else if refusing {
            Err(WalError::Full)
        } else if number != next {
            Err(WalError::Gap { expected: next })
        } else {
            Ok(())
        }
    }

    /// Takes a chunk that [`check`](Self::check) let pass.
    pub(crate) fn begin(&mut self, id: ChunkId) {
        let (_, number) = id;
        let stream = self.streams.entry(id.0).or_default();
        stream.next = number + 1;
        stream.pending += 1;
        let named = stream.awaited.remove(&number);
        if number < stream.settled && !named {
            // Metadata is done with it already.
            self.dropped_early.insert(id);
            return;
        }
        stream.chunks.insert(number, Entry { place: None, named });
    }

    /// Takes a chunk of a closed stream, which metadata at this index says is live. False: metadata has gone on, so it may be
    /// garbage.
    pub(crate) fn begin_filling(&mut self, (id, number): ChunkId, at_index: u64) -> bool {
        if at_index < self.followed {
            return false;
        }
        let stream = self.streams.entry(id).or_default();
        stream.closed = true;
        stream.pending += 1;
        stream.awaited.remove(&number);
        stream.chunks.insert(number, Entry { place: None, named: true });
        true
    }

    /// Such a chunk could not be written.
    pub(crate) fn not_filled(&mut self, id: ChunkId) {
        self.dropped_early.remove(&id);
        if let Some(stream) = self.streams.get_mut(&id.0) {
            stream.pending = stream.pending.saturating_sub(1);
            stream.chunks.remove(&id.1);
        }
    }

    /// Its append is durable. `Err`: an earlier chunk of the stream is not, so this one is not taken either.
    pub(crate) fn written(&mut self, id: ChunkId, place: Place) -> Result<(), WalError> {
        self.newest_segment = self.newest_segment.max(place.segment);
        let broken = self.settle(id);
        if broken.is_some() || self.dropped_early.remove(&id) || !self.enter(id, place) {
            self.touch_segment(place.segment);
        }
        broken.map_or(Ok(()), Err)
    }

    /// Its append had no effect, or none that counts. If that `may_pass`, the number is not used up.
    pub(crate) fn refused(&mut self, id: ChunkId, may_pass: bool) {
        if let Some(stream) = self.streams.get_mut(&id.0) {
            if may_pass {
                let from = stream.refused_from.get_or_insert(id.1);
                *from = id.1.min(*from);
            } else {
                stream.closed = true;
            }
        }
        self.settle(id);
        self.dropped_early.remove(&id);
        if let Some(stream) = self.streams.get_mut(&id.0) {
            stream.take_back(id.1);
        }
    }

    /// One append less under way. Says whether its stream has a hole below it.
    fn settle(&mut self, (stream, number): ChunkId) -> Option<WalError> {
        let stream = self.streams.get_mut(&stream)?;
        stream.pending = stream.pending.saturating_sub(1);
        let from = stream.refused_from?;
        if stream.pending == 0 {
            stream.refused_from = None;
            stream.next = from;
        }
        if number > from {
            stream.take_back(number);
            return Some(WalError::Full);
        }
        None
    }

    /// A chunk that was found on disk at start.
    pub(crate) fn recovered(&mut self, id: ChunkId, place: Place) {
        self.newest_segment = self.newest_segment.max(place.segment);
        self.drop_chunk(id, &mut Vec::new());
        let stream = self.streams.entry(id.0).or_default();
        stream.next = stream.next.max(id.1 + 1);
        stream.recovered = true;
        stream.chunks.insert(id.1, Entry { place: None, named: false });
        self.enter(id, place);
    }

    fn enter(&mut self, id: ChunkId, place: Place) -> bool {
        let Some(entry) = self.streams.get_mut(&id.0).and_then(|stream| stream.chunks.get_mut(&id.1)) else {
            return false;
        };
        entry.place = Some(place);
        *self.segments.entry(place.segment).or_default() += 1;
        self.empty_segments.remove(&place.segment);
        self.chunks += 1;
        self.bytes += u64::from(place.bytes);
        true
    }

    /// Brings what is here in line with metadata. The image must be as new as anything that was followed, and as what was on the
    /// disk at start. Returns what was dropped.
    pub(crate) fn reconcile(&mut self, image: &Image) -> Vec<ChunkId> {
        let mut dropped = Vec::new();
        self.followed = self.followed.max(image.index());
        let newest = image.streams().map(|truth| truth.record.stream).max();
        self.newest_told = self.newest_told.max(newest);
        let ids: Vec<StreamId> = self.streams.keys().copied().collect();
        for id in ids {
            let Some(truth) = image.stream(id) else {
                // A stream that is newer than the image is not forgotten: others began it while this one was starting.
                if self.streams[&id].recovered || Some(id) <= self.newest_told {
                    self.forget(id, &mut dropped);
                }
                continue;
            };
            let numbers: Vec<u64> = self.streams[&id].chunks.keys().copied().collect();
            for number in numbers {
                if truth.is_garbage(number) {
                    self.drop_chunk((id, number), &mut dropped);
                }
            }
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.closed |= truth.record.closed;
                stream.settled = if truth.record.committed { truth.record.last_chunk + 1 } else { 0 };
                for (number, entry) in &mut stream.chunks {
                    entry.named = truth.live.contains_key(number);
                }
                stream.awaited = truth.live.range(stream.next..).map(|(number, _)| *number).collect();
            }
        }
        for truth in image.streams().filter(|truth| truth.record.ensemble.contains(&self.directory)) {
            if !truth.record.closed && !self.streams.contains_key(&truth.record.stream) {
                // Nothing of it was found. Only if nothing of it is needed may this replica go on with it.
                let next = if truth.record.committed { truth.record.last_chunk + 1 } else { 0 };
                let stream =
                    Stream { next, closed: !truth.live.is_empty(), settled: next, ..Stream::default() };
                self.streams.insert(truth.record.stream, stream);
            }
        }
        dropped
    }

    /// Follows what metadata did. Returns what was dropped.
    pub(crate) fn follow(&mut self, batch: &EffectBatch) -> Vec<ChunkId> {
        let mut dropped = Vec::new();
        self.followed = self.followed.max(batch.index);
        for effect in &batch.effects {
            match &effect.kind {
                Some(EffectKind::ChunkCommitted(commit)) => {
                    self.committed((commit.stream, commit.chunk), commit.extents > 0, &mut dropped);
                }
                Some(EffectKind::Released(released)) => {
                    for &number in &released.chunks {
                        if let Some(stream) = self.streams.get_mut(&released.stream) {
                            stream.awaited.remove(&number);
                        }
                        self.drop_chunk((released.stream, number), &mut dropped);
                    }
                }
                Some(EffectKind::Stream(record)) => self.stream_changed(record, &mut dropped),
                Some(EffectKind::StreamForgotten(forgotten)) => self.forget(forgotten.stream, &mut dropped),
                _ => {}
            }
        }
        dropped
    }

    fn committed(&mut self, (id, number): ChunkId, extents: bool, dropped: &mut Vec<ChunkId>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if number < stream.settled {
            return;
        }
        let mut garbage: Vec<u64> =
            stream.chunks.range(stream.settled..number).map(|(&number, _)| number).collect();
        stream.settled = number + 1;
        match stream.chunks.get_mut(&number) {
            Some(entry) if extents => entry.named = true,
            Some(_) => garbage.push(number),
            None if extents && number >= stream.next => drop(stream.awaited.insert(number)),
            None => {}
        }
        for number in garbage {
            self.drop_chunk((id, number), dropped);
        }
    }

    fn stream_changed(&mut self, record: &StreamRecord, dropped: &mut Vec<ChunkId>) {
        if !record.closed {
            self.newest_told = self.newest_told.max(Some(record.stream));
        }
        if !record.ensemble.contains(&self.directory) {
            return;
        }
        let stream = self.streams.entry(record.stream).or_default();
        if !record.closed {
            return;
        }
        stream.closed = true;
        stream.awaited.clear();
        let unnamed: Vec<u64> =
            stream.chunks.iter().filter(|(_, entry)| !entry.named).map(|(&number, _)| number).collect();
        for number in unnamed {
            self.drop_chunk((record.stream, number), dropped);
        }
    }

    fn forget(&mut self, id: StreamId, dropped: &mut Vec<ChunkId>) {
        let numbers: Vec<u64> = match self.streams.get(&id) {
            Some(stream) => stream.chunks.keys().copied().collect(),
            None => return,
        };
        for number in numbers {
            self.drop_chunk((id, number), dropped);
        }
        self.streams.remove(&id);
        self.forgotten.insert(id);
        while self.forgotten.len() > FORGOTTEN_MAX
            && let Some(oldest) = self.forgotten.pop_first()
        {
            self.forgotten_floor = self.forgotten_floor.max(Some(oldest));
        }
    }

    fn drop_chunk(&mut self, id: ChunkId, dropped: &mut Vec<ChunkId>) {
        let Some(stream) = self.streams.get_mut(&id.0) else { return };
        let Some(entry) = stream.chunks.remove(&id.1) else { return };
        dropped.push(id);
        let Some(place) = entry.place else {
            self.dropped_early.insert(id);
            return;
        };
        self.chunks -= 1;
        self.bytes -= u64::from(place.bytes);
        if let Some(count) = self.segments.get_mut(&place.segment) {
            *count -= 1;
        }
        self.touch_segment(place.segment);
    }

    fn touch_segment(&mut self, segment: u64) {
        if self.segments.get(&segment).is_none_or(|&count| count == 0) {
            self.segments.remove(&segment);
            self.empty_segments.insert(segment);
        }
    }

    /// Breaks invariant 2 on purpose, for the tests that must notice.
    pub(crate) fn sabotage_release(&mut self, id: ChunkId) {
        self.drop_chunk(id, &mut Vec::new());
    }

    /// Segments that hold nothing any more and are not written to; each is returned once.
    pub(crate) fn take_free_segments(&mut self) -> Vec<u64> {
        let kept = self.empty_segments.split_off(&self.newest_segment);
        std::mem::replace(&mut self.empty_segments, kept).into_iter().collect()
    }

    /// Whether a segment holds a chunk.
    pub(crate) fn uses(&self, segment: u64) -> bool {
        self.segments.contains_key(&segment)
    }
}

#[cfg(test)]
mod tests;
