//! Blocks of objects, kept.
//!
//! Owns: aligned blocks of [`BLOCK_BYTES`] (the last of an object is shorter) behind the [`BlockCache`] trait: [`MemoryCache`],
//! and [`DiskCache`](crate::DiskCache), which is the same with a local disk below it.
//!
//! Invariants
//! 1. A block never changes: objects never do, and their ids are used once. So nothing is removed but for room, and where its
//!    bytes turned out to be damaged on their way from the store.
//! 2. One load of a block is under way at a time, however many ask and whether one asks or reads ahead; the load belongs to
//!    nobody who asks, so it ends though all of them have left.
//! 3. At most `max_bytes` are kept, loads under way and blocks still in a reader's hands not counted.
//! 4. Blocks that were read ahead and nobody has asked for yet, loads under way counted, take at most three quarters of
//!    `max_bytes`.
//! 5. A failed load is told to all who waited and not kept.
//!
//! Which of a block's batches have had their CRC checked is noted in the block and goes with it: bytes that come from the
//! store or from the disk again are checked again.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use isobar_host::Host;
use isobar_host::watch;
use isobar_metadata::ids::ObjectId;
use parking_lot::Mutex;

use crate::StoreError;
use crate::format::object_key;
use crate::metrics::StoreMetrics;

/// Size of a block.
pub const BLOCK_BYTES: u64 = 1 << 20;

/// Names a block: the bytes from `block * BLOCK_BYTES` of an object, in whichever store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey {
    /// The object.
    pub object: ObjectId,
    /// Counted from 0.
    pub block: u32,
}

/// A block of an object.
#[derive(Debug)]
pub struct Block {
    bytes: Bytes,
    /// Ranges of batches whose CRC was checked since the load; sorted, apart from each other.
    verified: Mutex<Vec<Range<u32>>>,
}

impl Block {
    /// A block as it came from the store, nothing in it checked.
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes, verified: Mutex::default() }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whether all of the range was verified since the load.
    pub fn is_verified(&self, range: &Range<u32>) -> bool {
        let verified = self.verified.lock();
        let after = verified.partition_point(|known| known.start <= range.start);
        after > 0 && verified[after - 1].end >= range.end
    }

    /// Notes that the batches in this range were verified.
    pub fn set_verified(&self, range: Range<u32>) {
        let mut verified = self.verified.lock();
        let from = verified.partition_point(|known| known.end < range.start);
        let to = verified.partition_point(|known| known.start <= range.end);
        let mut merged = range;
        if from < to {
            merged.start = merged.start.min(verified[from].start);
            merged.end = merged.end.max(verified[to - 1].end);
        }
        verified.splice(from..to, [merged]);
    }
}

/// Where blocks come from when they are not in the cache.
#[async_trait]
pub trait BlockSource: Send + Sync {
    /// Loads neighbouring blocks of an object, if it can by one request, and gives each to `found` as soon as it is
    /// there, in order.
    async fn load(
        &self,
        object: ObjectId,
        blocks: Range<u32>,
        found: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<(), StoreError>;
}

/// Keeps blocks. An implementation whose blocks leave memory keeps a CRC with each and checks it when they come back.
#[async_trait]
pub trait BlockCache: Send + Sync {
    /// The block, from the cache or else from the source.
    async fn get(&self, key: BlockKey, source: &Arc<dyn BlockSource>) -> Result<Arc<Block>, StoreError>;

    /// Starts loading those of `blocks` that are neither here nor under way, as far as there is room to read ahead:
    /// neighbours by one load. Nobody waits for it.
    fn prefetch(&self, object: ObjectId, blocks: Range<u32>, source: &Arc<dyn BlockSource>);

    /// Blocks that may be read ahead now, over all readers.
    fn room(&self) -> u32;

    /// Drops a block whose bytes are not what was written, so that the next one who asks loads it again.
    fn evict(&self, key: BlockKey);
}

type Outcome = Option<Result<Arc<Block>, StoreError>>;

enum Slot {
    Ready { block: Arc<Block>, stamp: u64, asked: bool },
    Loading { waiting: watch::Receiver<Outcome>, asked: bool },
}

#[derive(Default)]
struct State {
    slots: BTreeMap<BlockKey, Slot>,
    /// Ready blocks, those used least recently first.
    order: BTreeMap<u64, BlockKey>,
    next_stamp: u64,
    bytes: usize,
    /// Blocks, ready or loading, that nobody has asked for yet.
    ahead: usize,
}

struct Shared {
    host: Host,
    max_bytes: usize,
    metrics: StoreMetrics,
    state: Mutex<State>,
}

/// A block cache in memory. A clone is the same cache.
#[derive(Clone)]
pub struct MemoryCache {
    shared: Arc<Shared>,
}

impl MemoryCache {
    /// Keeps at most `max_bytes`.
    pub fn new(host: &Host, max_bytes: usize, metrics: StoreMetrics) -> Self {
        let shared = Shared { host: host.clone(), max_bytes, metrics, state: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Bytes kept now.
    pub fn bytes(&self) -> usize {
        self.shared.state.lock().bytes
    }

    fn ahead_max(&self) -> usize {
        self.shared.max_bytes / 4 * 3 / BLOCK_BYTES as usize
    }

    /// The block if it is here, or whom to wait for, and what to start (not under the lock: a task that cannot start is
    /// dropped, and takes it).
    fn look(&self, key: BlockKey) -> Result<Arc<Block>, (watch::Receiver<Outcome>, Option<Flight>)> {
        let mut state = self.shared.state.lock();
        let state = &mut *state;
        match state.slots.get_mut(&key) {
            Some(Slot::Ready { block, stamp, asked }) => {
                self.shared.metrics.cache_hits.inc();
                state.ahead -= usize::from(!std::mem::replace(asked, true));
                state.order.remove(stamp);
                *stamp = state.next_stamp;
                state.next_stamp += 1;
                state.order.insert(*stamp, key);
                Ok(Arc::clone(block))
            }
            Some(Slot::Loading { waiting, asked }) => {
                self.shared.metrics.cache_hits.inc();
                state.ahead -= usize::from(!std::mem::replace(asked, true));
                Err((waiting.clone(), None))
            }
            None => {
                self.shared.metrics.cache_misses.inc();
                let mut flight = Flight::new(&self.shared, key.object, key.block);
                let waiting = flight.claim(state, true);
                Err((waiting, Some(flight)))
            }
        }
    }
}

/// A load under way, of one block or of neighbours. If its task dies (a panic, the runtime's end) the slots are freed, so
/// that the next one who asks loads anew.
struct Flight {
    shared: Arc<Shared>,
    object: ObjectId,
    blocks: Range<u32>,
    /// One for each block that has not landed yet.
    tell: VecDeque<watch::Sender<Outcome>>,
}

impl Flight {
    fn new(shared: &Arc<Shared>, object: ObjectId, first: u32) -> Self {
        Self { shared: Arc::clone(shared), object, blocks: first..first, tell: VecDeque::new() }
    }

    /// Takes the next block's slot, which is free.
    fn claim(&mut self, state: &mut State, asked: bool) -> watch::Receiver<Outcome> {
        let (tell, waiting) = watch::channel(None);
        let key = BlockKey { object: self.object, block: self.blocks.end };
        state.slots.insert(key, Slot::Loading { waiting: waiting.clone(), asked });
        state.ahead += usize::from(!asked);
        self.tell.push_back(tell);
        self.blocks.end += 1;
        waiting
    }

    fn start(mut self, source: Arc<dyn BlockSource>) {
        let host = self.shared.host.clone();
        host.spawn("block-load", async move {
            let (object, blocks) = (self.object, self.blocks.clone());
            let loaded = source.load(object, blocks, &mut |bytes| self.land(bytes)).await;
            let short = || StoreError::Damaged {
                key: object_key(object),
                why: format!("it ends before block {}", self.blocks.start),
            };
            let error = loaded.err().unwrap_or_else(short);
            self.fail(&error);
        });
    }

    fn land(&mut self, bytes: Bytes) {
        let Some(tell) = self.tell.pop_front() else { return };
        let key = BlockKey { object: self.object, block: self.blocks.start };
        self.blocks.start += 1;
        let block = Arc::new(Block::new(bytes));
        {
            let mut state = self.shared.state.lock();
            state.keep(key, Arc::clone(&block), &self.shared);
            self.shared.metrics.cache_bytes.set(state.bytes as u64);
        }
        tell.send_replace(Some(Ok(block)));
    }

    /// Tells it to all who wait for what has not landed.
    fn fail(&mut self, error: &StoreError) {
        let tell = std::mem::take(&mut self.tell);
        self.free();
        for tell in tell {
            tell.send_replace(Some(Err(error.clone())));
        }
    }

    fn free(&mut self) {
        let mut state = self.shared.state.lock();
        for block in std::mem::take(&mut self.blocks) {
            let freed = state.slots.remove(&BlockKey { object: self.object, block });
            state.ahead -= usize::from(matches!(freed, Some(Slot::Loading { asked: false, .. })));
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.free();
    }
}

impl State {
    /// Puts a block that was loading into its slot.
    fn keep(&mut self, key: BlockKey, block: Arc<Block>, shared: &Shared) {
        let asked = match self.slots.remove(&key) {
            Some(Slot::Loading { asked, .. }) => asked,
            _ => true,
        };
        let len = block.bytes.len();
        if len > shared.max_bytes {
            self.forget(len, asked, shared);
            return;
        }
        while self.bytes + len > shared.max_bytes
            && let Some((_, oldest)) = self.order.pop_first()
        {
            if let Some(Slot::Ready { block, asked, .. }) = self.slots.remove(&oldest) {
                self.bytes -= block.bytes.len();
                self.forget(block.bytes.len(), asked, shared);
            }
        }
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        self.order.insert(stamp, key);
        self.bytes += len;
        self.slots.insert(key, Slot::Ready { block, stamp, asked });
    }

    fn forget(&mut self, bytes: usize, asked: bool, shared: &Shared) {
        if !asked {
            self.ahead -= 1;
            shared.metrics.cache_unused_bytes.inc_by(bytes as u64);
        }
    }
}

#[async_trait]
impl BlockCache for MemoryCache {
    async fn get(&self, key: BlockKey, source: &Arc<dyn BlockSource>) -> Result<Arc<Block>, StoreError> {
        let (mut waiting, flight) = match self.look(key) {
            Ok(block) => return Ok(block),
            Err(missing) => missing,
        };
        if let Some(flight) = flight {
            flight.start(Arc::clone(source));
        }
        match waiting.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Err(StoreError::Stopping)),
            // The loading task is gone without a word.
            Err(_) => Err(StoreError::Stopping),
        }
    }

    fn prefetch(&self, object: ObjectId, blocks: Range<u32>, source: &Arc<dyn BlockSource>) {
        let ahead_max = self.ahead_max();
        let mut flights: Vec<Flight> = Vec::new();
        {
            let mut state = self.shared.state.lock();
            for block in blocks {
                if state.slots.contains_key(&BlockKey { object, block }) {
                    continue;
                }
                if state.ahead >= ahead_max {
                    break;
                }
                // After a gap comes a load of its own.
                if flights.last().is_none_or(|flight| flight.blocks.end != block) {
                    flights.push(Flight::new(&self.shared, object, block));
                }
                if let Some(flight) = flights.last_mut() {
                    flight.claim(&mut state, false);
                    self.shared.metrics.cache_ahead_bytes.inc_by(BLOCK_BYTES);
                }
            }
        }
        for flight in flights {
            flight.start(Arc::clone(source));
        }
    }

    fn room(&self) -> u32 {
        let ahead = self.shared.state.lock().ahead;
        u32::try_from(self.ahead_max().saturating_sub(ahead)).unwrap_or(u32::MAX)
    }

    fn evict(&self, key: BlockKey) {
        let mut state = self.shared.state.lock();
        if let Some(Slot::Ready { block, stamp, asked }) = state.slots.get(&key) {
            let (len, stamp, asked) = (block.bytes.len(), *stamp, *asked);
            state.slots.remove(&key);
            state.order.remove(&stamp);
            state.bytes -= len;
            state.forget(len, asked, &self.shared);
            self.shared.metrics.cache_bytes.set(state.bytes as u64);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
