//! Reads batches out of objects, through the block cache.
//!
//! What it promises
//! 1. What comes back are whole batches from the one that holds the offset asked for on, with every batch's CRC checked
//!    once since its block came from the store; or an error. What that CRC leaves out is as metadata says: offsets follow each
//!    other from the run's first on (log compaction, which makes gaps, is not built), and so do leader epochs. In an unstamped run
//!    (durability class `object`) the batches' own offsets mean nothing: they are counted from the run's first offset.
//! 2. No copy, but for batches that cross the border of two blocks.
//! 3. At least one batch, and no second one beyond `max_bytes`.
//!
//! A run has no index of its own here: a read walks the headers from the run's start. So that one who reads on does not walk
//! again, the place where a read ended is remembered for a bounded number of readers, and with it how far was read
//! ahead for it ([`Ahead`]): who goes on from there is the same reader, or one who reads the same.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use isobar_host::Host;
use isobar_metadata::ids::ObjectId;
use isobar_metadata::record::{EpochStart, Extent, ObjectLocation, epoch_at};
use isobar_metadata::{PartitionKey, PartitionView};
use isobar_protocol::batch::{BatchHeader, HEADER_BYTES, verify_crc};
use parking_lot::Mutex;

use crate::ahead::{Ahead, Limits};
use crate::cache::{BLOCK_BYTES, Block, BlockCache, BlockKey, BlockSource};
use crate::classes::Class;
use crate::format::object_key;
use crate::zone::{Sources, Zone};
use crate::{Bucket, StoreError};

/// Places that are remembered.
const HINTS_MAX: usize = 4096;

/// Blocks in one request, at most.
const REQUEST_BLOCKS: u32 = 8;

/// A run in an object: what an object extent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadObject {
    /// Whose run it is.
    pub key: PartitionKey,
    /// The partition's leader epochs.
    pub epochs: Arc<[EpochStart]>,
    /// [`Class::Tail`] for one who reads at the end of the log, else [`Class::CatchUp`].
    pub class: Class,
    /// The object.
    pub object: ObjectId,
    /// The run's bytes in it.
    pub range: Range<u64>,
    /// First offset.
    pub first_offset: i64,
    /// Last offset, inclusive.
    pub last_offset: i64,
    /// The batches have no final offsets in them: they take those of the run, densely.
    pub unstamped: bool,
}

impl ReadObject {
    /// The run of an extent that lies in an object.
    pub fn of(view: &PartitionView, class: Class, extent: &Extent, location: ObjectLocation) -> Self {
        Self {
            key: view.key(),
            epochs: Arc::clone(&view.epochs),
            class,
            object: location.object,
            range: location.range(),
            first_offset: extent.base_offset,
            last_offset: extent.last_offset,
            unstamped: location.unstamped,
        }
    }
}

/// Batches of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadBatches {
    /// Offset of the first one.
    pub base_offset: i64,
    /// In order, each of whole batches.
    pub parts: Vec<Bytes>,
}

/// Reads runs. Cheap to clone.
#[derive(Clone)]
pub struct ObjectReader {
    bucket: Bucket,
    store: Sources,
    near: Sources,
    cache: Arc<dyn BlockCache>,
    hints: Arc<Mutex<Hints>>,
}

/// Where a read ended.
#[derive(Clone, Copy)]
struct Place {
    object: ObjectId,
    run_start: u64,
    position: u64,
    ahead: Ahead,
}

/// Places by partition and next offset.
#[derive(Default)]
struct Hints {
    places: BTreeMap<(PartitionKey, i64), Place>,
    order: VecDeque<(PartitionKey, i64)>,
}

impl Hints {
    fn note(&mut self, key: (PartitionKey, i64), place: Place) {
        if self.places.insert(key, place).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > HINTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.places.remove(&oldest);
        }
    }
}

/// Batches found so far: neighbours in one block become one slice.
#[derive(Default)]
struct Found {
    parts: Vec<Bytes>,
    bytes: usize,
    /// Block and range of the last part, while it can still grow.
    open: Option<(Arc<Block>, Range<usize>)>,
}

impl Found {
    fn push_slice(&mut self, block: &Arc<Block>, range: Range<usize>) {
        self.bytes += range.len();
        match &mut self.open {
            Some((same, open)) if Arc::ptr_eq(same, block) && open.end == range.start => open.end = range.end,
            _ => {
                self.close();
                self.open = Some((Arc::clone(block), range));
            }
        }
    }

    fn push_copy(&mut self, batch: Bytes) {
        self.close();
        self.bytes += batch.len();
        self.parts.push(batch);
    }

    fn close(&mut self) {
        if let Some((block, range)) = self.open.take() {
            self.parts.push(block.bytes().slice(range));
        }
    }
}

/// Blocks out of a bucket's objects.
struct FromBucket {
    bucket: Bucket,
}

#[async_trait]
impl BlockSource for FromBucket {
    async fn load(
        &self,
        object: ObjectId,
        blocks: Range<u32>,
        found: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<(), StoreError> {
        let range = u64::from(blocks.start) * BLOCK_BYTES..u64::from(blocks.end) * BLOCK_BYTES;
        let pieces = self.bucket.get_pieces(&object_key(object), range, BLOCK_BYTES).await?;
        pieces.into_iter().for_each(found);
        Ok(())
    }
}

impl ObjectReader {
    /// Reads from this store through this cache.
    pub fn new(bucket: Bucket, cache: Arc<dyn BlockCache>) -> Self {
        let source = |class| Arc::new(FromBucket { bucket: bucket.with_class(class) });
        let store = Sources { tail: source(Class::Tail), catch_up: source(Class::CatchUp) };
        Self { bucket, near: store.clone(), store, cache, hints: Arc::default() }
    }

    /// The same as one of a zone: asks it before the store, and serves it from the cache.
    pub fn in_zone(self, host: &Host, zone: &Zone) -> Self {
        zone.serve(host, Arc::clone(&self.cache), self.store.clone());
        Self { near: self.store.near(zone), ..self }
    }

    /// The cache it reads through.
    pub fn cache(&self) -> &Arc<dyn BlockCache> {
        &self.cache
    }

    /// The store it reads from.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// Batches of the run from the one that holds `offset` on, as few slices as possible, each of whole batches.
    ///
    /// Where bytes are not what was written, the blocks are fetched once more, from the store itself: damage on the way passes,
    /// damage in the store does not.
    pub async fn read(
        &self,
        run: ReadObject,
        offset: i64,
        max_bytes: usize,
    ) -> Result<ReadBatches, StoreError> {
        let hint = self.hints.lock().places.get(&(run.key, offset)).copied();
        let hint = hint.map(|place| (place, offset));
        let mut walk = Walk::new(self, &self.near, &run, hint);
        let error = match walk.read(offset, max_bytes).await {
            Err(error @ StoreError::Damaged { .. }) => error,
            other => return other,
        };
        tracing::warn!(%error, "fetching damaged blocks again");
        for block in std::mem::take(&mut walk.touched) {
            self.cache.evict(BlockKey { object: run.object, block });
        }
        Walk::new(self, &self.store, &run, None).read(offset, max_bytes).await
    }

    /// Any bytes of an object, not checked: the caller knows their CRC.
    pub(crate) async fn bytes(&self, object: ObjectId, range: Range<u64>) -> Result<Bytes, StoreError> {
        let mut bytes = BytesMut::new();
        let mut position = range.start;
        while position < range.end {
            let number = u32::try_from(position / BLOCK_BYTES).unwrap_or(u32::MAX);
            let block = self.cache.get(BlockKey { object, block: number }, &self.store.catch_up).await?;
            let at = (position % BLOCK_BYTES) as usize;
            let wanted = (range.end - position) as usize;
            let found = block.bytes().get(at..).unwrap_or_default();
            if found.is_empty() {
                let why = format!("the object is shorter than metadata says (bytes {range:?})");
                return Err(StoreError::Damaged { key: object_key(object), why });
            }
            let found = &found[..found.len().min(wanted)];
            bytes.extend_from_slice(found);
            position += found.len() as u64;
        }
        Ok(bytes.freeze())
    }

    /// Fetches these bytes from the store when they are next asked for.
    pub(crate) fn forget(&self, object: ObjectId, range: Range<u64>) {
        for number in range.start / BLOCK_BYTES..=range.end.saturating_sub(1) / BLOCK_BYTES {
            let block = u32::try_from(number).unwrap_or(u32::MAX);
            self.cache.evict(BlockKey { object, block });
        }
    }
}

/// One read on its way through a run.
struct Walk<'a> {
    reader: &'a ObjectReader,
    sources: &'a Sources,
    run: &'a ReadObject,
    position: u64,
    /// Where the batch at `position` begins.
    next_offset: i64,
    ahead: Ahead,
    block: Option<(u32, Arc<Block>)>,
    touched: Vec<u32>,
}

impl<'a> Walk<'a> {
    fn new(
        reader: &'a ObjectReader,
        sources: &'a Sources,
        run: &'a ReadObject,
        hint: Option<(Place, i64)>,
    ) -> Self {
        let start = run.range.start;
        let (position, next_offset, ahead) = match hint {
            Some((place, offset)) if place.object == run.object && place.run_start == start => {
                (place.position, offset, place.ahead)
            }
            Some((place, _)) => (start, run.first_offset, place.ahead.elsewhere()),
            None => (start, run.first_offset, Ahead::default()),
        };
        Self { reader, sources, run, position, next_offset, ahead, block: None, touched: Vec::new() }
    }

    async fn read(&mut self, offset: i64, max_bytes: usize) -> Result<ReadBatches, StoreError> {
        let run = self.run;
        let mut found = Found::default();
        let mut base_offset = None;
        while self.position < run.range.end {
            let (block, at) = self.block_at(self.position).await?;
            let (header, base) = self.header(&block, at).await?;
            let next = base + i64::from(header.last_offset_delta) + 1;
            let bytes = header.total_bytes();
            if next > offset {
                if found.bytes > 0 && found.bytes + bytes > max_bytes {
                    break;
                }
                self.take(&block, at, bytes, &mut found).await?;
                base_offset.get_or_insert(base);
            }
            self.position += bytes as u64;
            self.next_offset = next;
            if found.bytes >= max_bytes {
                break;
            }
        }
        found.close();
        let Some(base_offset) = base_offset else {
            return Err(self.damaged(format!("offset {offset} is not in the run")));
        };
        let place = Place {
            object: run.object,
            run_start: run.range.start,
            position: self.position,
            ahead: self.ahead,
        };
        self.reader.hints.lock().note((run.key, self.next_offset), place);
        Ok(ReadBatches { base_offset, parts: found.parts })
    }

    fn damaged(&self, why: String) -> StoreError {
        let why = format!("{why} (run at {:?}, position {})", self.run.range, self.position);
        StoreError::Damaged { key: object_key(self.run.object), why }
    }

    /// The block that holds a position, and where in it.
    async fn block_at(&mut self, position: u64) -> Result<(Arc<Block>, usize), StoreError> {
        let number = u32::try_from(position / BLOCK_BYTES).map_err(|_| self.damaged("too far".to_owned()))?;
        let block = match &self.block {
            Some((known, block)) if *known == number => Arc::clone(block),
            _ => {
                let block = self.load(number).await?;
                self.touched.push(number);
                self.block = Some((number, Arc::clone(&block)));
                block
            }
        };
        let at = (position % BLOCK_BYTES) as usize;
        if at >= block.bytes().len() {
            return Err(self.damaged("the object is shorter than metadata says".to_owned()));
        }
        Ok((block, at))
    }

    /// A block that the walk has not seen yet, and what is read ahead of it.
    async fn load(&mut self, number: u32) -> Result<Arc<Block>, StoreError> {
        let (reader, object) = (self.reader, self.run.object);
        let source = self.sources.of(self.run.class);
        let room = reader.cache.room();
        let end = self.run.range.end.div_ceil(BLOCK_BYTES);
        let limits = Limits {
            end: u32::try_from(end).unwrap_or(u32::MAX),
            // A part of the room: there are other readers.
            request_max: (room / 3).clamp(1, REQUEST_BLOCKS),
            room,
        };
        let request = self.ahead.touch(number, limits);
        // A single block comes by the question for it.
        if request.len() > 1 || request.start != number {
            reader.cache.prefetch(object, request, source);
        }
        reader.cache.get(BlockKey { object, block: number }, source).await
    }

    /// The header at the walk's position, checked against the run, and the batch's first offset.
    async fn header(&mut self, block: &Arc<Block>, at: usize) -> Result<(BatchHeader, i64), StoreError> {
        let left = self.run.range.end - self.position;
        if left < HEADER_BYTES as u64 {
            return Err(self.damaged("the run ends within a header".to_owned()));
        }
        let header = match block.bytes().get(at..at + HEADER_BYTES) {
            Some(head) => BatchHeader::parse_head(head),
            None => BatchHeader::parse_head(&self.gather(block, at, HEADER_BYTES).await?),
        };
        let header = header.map_err(|error| self.damaged(error.to_string()))?;
        let base = self.next_offset;
        let last = base.saturating_add(i64::from(header.last_offset_delta));
        let is_outside = base < self.run.first_offset || last > self.run.last_offset;
        if header.total_bytes() as u64 > left || header.last_offset_delta < 0 || is_outside {
            return Err(self.damaged(format!("a batch that does not fit: offset {base}")));
        }
        if !self.run.unstamped {
            let (found, wanted) =
                ((header.base_offset, header.leader_epoch), (base, epoch_at(&self.run.epochs, base)));
            if found != wanted {
                return Err(
                    self.damaged(format!("offset and leader epoch are {found:?}, metadata says {wanted:?}"))
                );
            }
        }
        Ok((header, base))
    }

    async fn take(
        &mut self,
        block: &Arc<Block>,
        at: usize,
        bytes: usize,
        found: &mut Found,
    ) -> Result<(), StoreError> {
        if let Some(batch) = block.bytes().get(at..at + bytes) {
            let range = at as u32..(at + bytes) as u32;
            if !block.is_verified(&range) {
                verify_crc(batch).map_err(|error| self.damaged(error.to_string()))?;
                block.set_verified(range);
            }
            found.push_slice(block, at..at + bytes);
        } else {
            let batch = self.gather(block, at, bytes).await?;
            verify_crc(&batch).map_err(|error| self.damaged(error.to_string()))?;
            found.push_copy(batch);
        }
        Ok(())
    }

    /// Copies `bytes` from a position that starts in `block` and goes on in later ones.
    async fn gather(&mut self, block: &Arc<Block>, at: usize, bytes: usize) -> Result<Bytes, StoreError> {
        let mut copy = BytesMut::with_capacity(bytes);
        copy.extend_from_slice(&block.bytes()[at..]);
        while copy.len() < bytes {
            let (next, start) = self.block_at(self.position + copy.len() as u64).await?;
            let end = next.bytes().len().min(start + bytes - copy.len());
            copy.extend_from_slice(&next.bytes()[start..end]);
        }
        Ok(copy.freeze())
    }
}

#[cfg(test)]
pub(crate) mod tests;
